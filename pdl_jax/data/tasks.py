"""From a record of a data set to the prompt and the target of a model."""

from typing import NamedTuple

from pdl_jax.data.tokenizer import END_OF_TURN, START_OF_TURN


class Task(NamedTuple):
  """How records become conversations.

  Attributes:
    instruction: the system turn.
    source: name of the record's field that the user turn holds.
    target: name of the field that the assistant turn holds.
  """

  instruction: str
  source: str
  target: str


TASKS: dict[str, Task] = {
  'summarize': Task(
    'Summarize the text in one sentence.', 'document', 'summary'
  ),
}


def chat_parts(task: Task) -> tuple[str, str, str]:
  """Text before the source, between source and target, and after the target.

  The chat format of SmolLM2's own template, with the instruction as the
  system turn.
  """
  before = (
    f'{START_OF_TURN}system\n{task.instruction}{END_OF_TURN}\n'
    f'{START_OF_TURN}user\n'
  )
  between = f'{END_OF_TURN}\n{START_OF_TURN}assistant\n'
  return before, between, END_OF_TURN


