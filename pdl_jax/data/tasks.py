"""What the model is asked to do with a record, in the format of a chat."""

from collections.abc import Mapping
from typing import NamedTuple

from pdl_jax.data.tokenizer import END_OF_TURN, START_OF_TURN
from pdl_jax.errors import DataError


class Task(NamedTuple):
  """How records become conversations, or plain documents.

  Attributes:
    instructions: the system turn, by the record's `style`; '' for records
      without one.
    turns: the source is a conversation, one turn a line, the last one to be
      answered; otherwise it is one turn.
    documents: there is no conversation: the target is a whole document, read
      and predicted from its first token on.
  """

  instructions: Mapping[str, str]
  turns: bool = False
  documents: bool = False

  def instruction(self, record: Mapping[str, str]) -> str:
    """The system turn of a record.

    Raises:
      DataError: for a style that the task does not know.
    """
    style = record.get('style', '')
    if style not in self.instructions:
      raise DataError(
        f'record {record["id"]}: the task has no instruction for style '
        f'{style!r}, only for {", ".join(map(repr, self.instructions))}'
      )
    return self.instructions[style]


TASKS: dict[str, Task] = {
  'summarize': Task({'': 'Summarize the text in one sentence.'}),
  'dialogue': Task({'': 'Chat with a friend. Answer briefly.'}, turns=True),
  'style_transfer': Task({
    'basic': 'Rewrite the verse in Basic English.',
    'king_james': 'Rewrite the verse in the words of the King James Bible.',
  }),
  'language_model': Task({}, documents=True),
}


def system_turn(instruction: str) -> str:
  """The turn that says what to do; SmolLM2's own chat format."""
  return f'{START_OF_TURN}system\n{instruction}{END_OF_TURN}\n'


def turn_opens(role: str) -> str:
  """What stands before the text of a turn."""
  return f'{START_OF_TURN}{role}\n'


TURN_CLOSES = f'{END_OF_TURN}\n'
