"""Tasks: what the model is asked to do with a record, as a chat."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pdl_jax import own_files
from pdl_jax.data.tokenizer import END_OF_TURN, START_OF_TURN
from pdl_jax.errors import ConfigError, DataError

# A system turn, or one per style.
Instructions = str | Mapping[str, str]


class Task(NamedTuple):
  """How records become conversations, or plain documents."""

  instructions: Mapping[str, str]  # style -> system turn; '' is no style
  turns: bool = False  # the source has one per line; the last is answered
  # The target is a whole document, predicted from its first token on.
  documents: bool = False

  def instruction(self, record: Mapping[str, str]) -> str:
    """Returns the system turn of a record."""
    style = record.get('style', '')
    if style not in self.instructions:
      raise DataError(
        f'record {record["id"]}: the task has no instruction for style '
        f'{style!r}, only for {", ".join(map(repr, self.instructions))}'
      )
    return self.instructions[style]


TASKS: dict[str, Task] = {}
_Decorated = Callable[[], Instructions]


def register_task(
  name: str, *, turns: bool = False, documents: bool = False
) -> Callable[[_Decorated], _Decorated]:
  """Registers the task of a function that returns its instructions.

  Raises:
    ConfigError: another task has this name.
  """

  def register(instructions: _Decorated) -> _Decorated:
    found = own_files.explained(f'task {name}', instructions, str | Mapping)()
    by_style = {'': found} if isinstance(found, str) else found
    task = Task(by_style, turns, documents)
    # A config file may be executed twice.
    if TASKS.setdefault(name, task) != task:
      raise ConfigError(f'two tasks are called {name!r}; rename one')
    return instructions

  return register


@register_task('summarize')
def summarize() -> Instructions:
  """The target is a summary of the source."""
  return 'Summarize the text in one sentence.'


@register_task('dialogue', turns=True)
def dialogue() -> Instructions:
  """The target answers a conversation."""
  return 'Chat with a friend. Answer briefly.'


@register_task('style_transfer')
def style_transfer() -> Instructions:
  """The target says the same in the record's style."""
  return {
    'basic': 'Rewrite the verse in Basic English.',
    'king_james': 'Rewrite the verse in the words of the King James Bible.',
  }


@register_task('language_model', documents=True)
def language_model() -> Instructions:
  """The target is a document, and nothing is asked."""
  return {}


def system_turn(instruction: str) -> str:
  """Writes the system turn in SmolLM2's chat format."""
  return f'{START_OF_TURN}system\n{instruction}{END_OF_TURN}\n'


def turn_opens(role: str) -> str:
  """Writes what precedes the text of a turn."""
  return f'{START_OF_TURN}{role}\n'


TURN_CLOSES = f'{END_OF_TURN}\n'
