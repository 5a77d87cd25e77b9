"""A plan: the commands that start a pod, and those that one needs later."""

import dataclasses
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

Command = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Step:
  """Commands that run at the same time, one for each host that needs its own.

  Attributes:
    name: what they do, for people.
    commands: each a list of arguments.
  """

  name: str
  commands: tuple[Command, ...]

  @classmethod
  def of(cls, name: str, *arguments: str) -> 'Step':
    """A step of one command."""
    return cls(name, (arguments,))


@dataclasses.dataclass(frozen=True)
class Plan:
  """How to start a pod.

  Attributes:
    programs: that have to be on the PATH.
    files: path -> text, written first.
    steps: in their order; each has to succeed before the next.
    later: what for -> commands that are printed and not run.
  """

  programs: tuple[str, ...]
  files: dict[Path, str]
  steps: tuple[Step, ...]
  later: dict[str, tuple[Command, ...]]


def to_shell(plan: Plan) -> str:
  """The plan as shell, to be pasted; what comes later is in comments."""
  parts = []
  for path, text in plan.files.items():
    parts += [f'# Written first: {path}', f'mkdir -p {_quoted(path.parent)}']
    parts += [f"cat > {_quoted(path)} <<'END_OF_FILE'\n{text}END_OF_FILE", '']
  for number, step in enumerate(plan.steps, 1):
    parts.append(f'# {number}/{len(plan.steps)} {step.name}')
    lines = [shlex.join(command) for command in step.commands]
    together = len(lines) > 1
    parts += [f'{line} &' if together else line for line in lines]
    parts += ['wait', ''] if together else ['']
  return '\n'.join(parts) + '\n' + later_to_shell(plan)


def later_to_shell(plan: Plan) -> str:
  """What one needs afterwards, in comments."""
  lines: list[str] = []
  for purpose, commands in plan.later.items():
    lines += [f'# To {purpose}:', *_comments(commands)]
  return '\n'.join(lines)


def _comments(commands: Iterable[Sequence[str]]) -> Iterable[str]:
  return (f'#   {shlex.join(command)}' for command in commands)


def _quoted(path: Path) -> str:
  return shlex.quote(str(path))
