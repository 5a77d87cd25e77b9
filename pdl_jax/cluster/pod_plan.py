"""Makes, shows and runs the commands that start a training on a pod.

A template, pods/KIND.sh, is shell with these marks:

  ## NAME            begins a step; "## To ..." what one may need afterwards
  ## ... # if SHARE  leaves the step out if that value is empty
  ${HOST}            repeats a command, or the step it names, for every host

A line is split into words before values are filled in, so no value is read as
shell. A word that holds several words, as in '--command=cd ${CODE} && ...', is
read by a shell on the host, so its values are quoted.
"""

import concurrent.futures
import re
import shlex
import shutil
import string
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pdl_jax import run_folder
from pdl_jax.cluster import pods
from pdl_jax.cluster.pods import Pod
from pdl_jax.errors import ConfigError, HostError

_TEMPLATES = Path(__file__).parent / 'pods'
# Where to get the programs.
_SOURCES = {
  'git': 'from https://git-scm.com',
  'gcloud': 'with https://cloud.google.com/sdk/docs/install',
  'kubectl': 'by gcloud components install kubectl',
  'xpk': 'by pip install xpk',
  'sbatch': 'on the login node of a Slurm cluster; start it there',
}


class Training(NamedTuple):
  """One run, to be started on a pod.

  Attributes:
    arguments: those of launch.py except --workdir and the pod's.
    workdir: the run folder, as the hosts see it.
    packed: the code as one file, on this machine.
    slices: mesh.slices, which xpk makes.
  """

  arguments: tuple[str, ...]
  workdir: Path
  commit: str
  packed: Path
  slices: int = 1

  @property
  def code(self) -> str:
    """The folder that the packed code makes."""
    return self.packed.name.removesuffix('.tar.gz')

  @property
  def pack(self) -> tuple[str, ...]:
    """The command that packs the code, with its commit."""
    return (
      'git', 'archive', f'--prefix={self.code}/',
      f'--add-virtual-file={self.code}/{run_folder.COMMIT}:{self.commit}',
      f'--output={self.packed}', self.commit, *run_folder.CODE,
    )  # fmt: skip


def committed(
  arguments: Sequence[str], workdir: Path, slices: int = 1
) -> Training:
  """Describes a training with the code of the last commit."""
  top = _git('rev-parse', '--show-toplevel')
  if Path(top).resolve() != Path.cwd().resolve():
    raise HostError(
      f'--pod ships the code of the checkout {top}; start it in that folder'
    )
  changed = _git('status', '--porcelain', '--', *run_folder.CODE).splitlines()
  if changed:
    more = f' and {len(changed) - 1} more' if len(changed) > 1 else ''
    raise ConfigError(
      f'--pod ships the last commit, from which {changed[0][3:]}{more} '
      'differs; commit it first'
    )
  commit = _git('rev-parse', 'HEAD')
  packed = Path(tempfile.gettempdir(), f'pdl_jax-{commit[:12]}.tar.gz')
  return Training(tuple(arguments), workdir, commit, packed, slices)


def _git(*arguments: str) -> str:
  try:
    done = subprocess.run(
      ['git', *arguments], capture_output=True, encoding='utf-8', check=True
    )
  except (OSError, subprocess.CalledProcessError) as error:
    raise HostError(
      '--pod ships the code by git, and there is no git or no checkout in '
      f'{Path.cwd()}'
    ) from error
  # rstrip, because a status line may begin with blanks.
  return done.stdout.rstrip()


Command = tuple[str, ...]
Values = Mapping[str, str | Command]


class Step(NamedTuple):
  """Commands that run at the same time, and what they do."""

  name: str
  commands: tuple[Command, ...]


class Plan(NamedTuple):
  """How to start a pod.

  Attributes:
    files: path -> text, written first.
    steps: in order; each has to succeed before the next.
    later: what one needs afterwards, printed and not run.
  """

  files: dict[Path, str]
  steps: tuple[Step, ...]
  later: tuple[Step, ...]


def make(pod: Pod, training: Training) -> Plan:
  """Plans how to start a training on a pod; looks up and runs nothing."""
  logs = training.workdir / 'logs'
  values, files = _values(pod, training, logs), {}
  if pod.pod_kind == 'slurm':
    script = (_TEMPLATES / 'job.sbatch').read_text('utf-8')
    files[logs / 'job.sbatch'] = _fill(script, _quoted(values))
  hosts = [
    {**values, 'HOST': f'{pod.pod}-{index}', 'INDEX': str(index)}
    for index in range(max(pod.hosts, 1))
  ]
  text = (_TEMPLATES / f'{pod.pod_kind}.sh').read_text('utf-8')
  steps = tuple(_steps(text, hosts))
  later = tuple(step for step in steps if step.name.startswith('To '))
  return Plan(files, steps[: len(steps) - len(later)], later)


def _values(pod: Pod, training: Training, logs: Path) -> Values:
  """Returns what templates may name; several words, or none, as a tuple."""
  own = (*training.arguments, f'--workdir={training.workdir}')
  again = ('python', 'launch.py', *own)
  project, _, family = pod.image.partition('/')
  capacity = () if pod.capacity in ('', 'on-demand') else (f'--{pod.capacity}',)
  if capacity and pod.pod_kind == 'mig':
    capacity = (
      '--provisioning-model=SPOT', '--instance-termination-action=DELETE'
    )  # fmt: skip
  slices = training.slices
  many = (f'--num-slices={slices}',) if slices > 1 else ()
  return {
    'NAME': pod.pod,
    'ZONE': pod.zone,
    'ACCELERATOR': pod.accelerator,
    'HOSTS': str(pod.hosts),
    'FIRST': f'{pod.pod}-0',
    'IMAGE': pod.runtime,
    'IMAGE_PROJECT': project,
    'IMAGE_FAMILY': family,
    'SHARE': pod.share,
    'MOUNT': pods.MOUNT,
    'CAPACITY': capacity,
    'CLUSTER': pod.cluster,
    'SLICES': many,
    'TASKS': pod.accelerator.rpartition(':')[2],
    'PACK': training.pack,
    'PACKED': str(training.packed),
    'PACKED_IN': str(training.packed.parent),
    'ARCHIVE': training.packed.name,
    'CODE': training.code,
    # Where Slurm's login node unpacks the code, on the disk all nodes see.
    'PODS': str(Path.cwd() / '.cache' / 'pods'),
    'LOGS': str(logs),
    'JOB_LOG': f'{logs}/slurm.log',
    'NODE_LOG': f'{logs}/host-%n.log',
    'TRAIN': ('.venv/bin/python', 'launch.py', *own, '--multihost'),
    'RESUME': (*again, *pod.flags()),
    'RESUME_HERE': (*again, *pod.flags(without=pods.OF_NEW)),
  }


def _steps(text: str, hosts: Sequence[Values]) -> Iterator[Step]:
  _, *sections = re.sub(r'\\\n *', '', text).split('\n## ')
  for section in sections:
    heading, *lines = section.splitlines()
    name, _, condition = heading.partition('  # if ')
    if condition and not hosts[0][condition]:
      continue
    lines = [line for line in lines if not line.startswith('#')]
    for group in [[x] for x in hosts] if '${HOST}' in name else [hosts]:
      commands = tuple(
        _command(line, values)
        for line in lines
        for values in (group if '${HOST}' in line else group[:1])
      )
      yield Step(_fill(name, group[0]), commands)


def _command(line: str, values: Values) -> Command:
  words: list[str] = []
  for word in shlex.split(line):
    alone = re.fullmatch(r'\$\{(\w+)\}', word)
    value = values[alone[1]] if alone else None
    if isinstance(value, tuple):
      words += value
    else:
      words.append(_fill(word, _quoted(values) if ' ' in word else values))
  return tuple(words)


def _quoted(values: Values) -> dict[str, str]:
  return {
    name: shlex.quote(value) if isinstance(value, str) else shlex.join(value)
    for name, value in values.items()
  }


def _fill(text: str, values: Values) -> str:
  return string.Template(text).substitute(values)


def to_shell(plan: Plan) -> str:
  """Formats the plan as shell to paste; later steps become comments."""
  parts = []
  for path, text in plan.files.items():
    folder, file = shlex.quote(str(path.parent)), shlex.quote(str(path))
    parts += [f'# Written first: {path}', f'mkdir -p {folder}']
    parts += [f"cat > {file} <<'END_OF_FILE'\n{text}END_OF_FILE", '']
  for number, step in enumerate(plan.steps, 1):
    lines = [shlex.join(command) for command in step.commands]
    if len(lines) > 1:
      lines = [*(f'{line} &' for line in lines), 'wait']
    parts += [f'# {number}/{len(plan.steps)} {step.name}', *lines, '']
  return '\n'.join(parts) + '\n' + _later(plan)


def _later(plan: Plan) -> str:
  """Formats what one needs afterwards as comments."""
  lines: list[str] = []
  for step in plan.later:
    lines.append(f'# {step.name}:')
    lines += [f'#   {shlex.join(command)}' for command in step.commands]
  return '\n'.join(lines)


def run(plan: Plan) -> None:
  """Runs the steps, printing each with its output."""
  for step in (*plan.steps, *plan.later):
    for program, *_ in step.commands:
      if program in _SOURCES and shutil.which(program) is None:
        raise HostError(
          f'--pod needs the program {program}, which is not on the PATH; it '
          f'comes {_SOURCES[program]}'
        )
  for path, text in plan.files.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, 'utf-8')
  try:
    for number, step in enumerate(plan.steps, 1):
      print(f'# {number}/{len(plan.steps)} {step.name}', flush=True)
      _run_step(step)
  finally:
    # After a failure too, because what was made by then costs money.
    print(_later(plan), flush=True)


def _run_step(step: Step) -> None:
  for command in step.commands:
    print(shlex.join(command), flush=True)
  try:
    with concurrent.futures.ThreadPoolExecutor(len(step.commands)) as pool:
      ends = list(pool.map(_run_command, step.commands))
  except KeyboardInterrupt:
    # The terminal has interrupted the commands too.
    raise HostError(
      f'interrupted in the step "{step.name}"; what was made until then stays, '
      'and the commands above delete it'
    ) from None
  for code, last in ends:
    if code:
      raise HostError(
        f'the step "{step.name}" ended with exit code {code}: {last}'
      )


def _run_command(command: Command) -> tuple[int, str]:
  last = 'it printed nothing'
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    encoding='utf-8', errors='replace',
  ) as process:  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
      print(line, end='', flush=True)
      last = line.strip() or last
  return process.returncode, last
