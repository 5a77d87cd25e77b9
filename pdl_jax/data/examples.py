"""Pairs of prompt and target as arrays of fixed shape."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pdl_jax.data.prompt import make_format
from pdl_jax.data.sources import Source
from pdl_jax.data.tasks import Task
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]
# Characters read per token of room, and the least read; the rest would be cut.
_FOR_A_TOKEN, _READ = 1024, 2**20


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Sizes of the arrays, in tokens, chat format and end of turn included.

  Longer sources lose their end, and conversations their beginning. Records with
  longer targets are left out and counted.
  """

  prompt: int  # the longest prompt, P
  target: int  # the longest target, T

  @property
  def sequence(self) -> int:
    """Returns L = P + T - 1: the last target token is never read."""
    return self.prompt + self.target - 1


class Rows(Protocol):
  """The rows that training batches are drawn from; see `empty_example`."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Batch: ...


class Examples(Rows, Protocol):
  """Rows that are also scored and generated from."""

  lengths: Lengths
  pad: int  # id that fills rows

  def record(self, index: int) -> dict[str, str]:
    """Returns the text: id, group, source, target and perhaps style."""
    ...

  def prompt_and_target(self, index: int) -> tuple[list[int], list[int]]:
    """Returns at most P ids of the prompt and T of the target."""
    ...

  def __getitem__(self, index: int) -> Batch:
    """Returns the prompt and target, padded."""
    prompt, target = self.prompt_and_target(index)
    return padded_example(prompt, target, self.lengths, self.pad)


def empty_example(lengths: Lengths, pad: int) -> Batch:
  """Makes an example without tokens.

  Returns:
    tokens, segments, positions: [L] int32; segment 0 is padding.
    labels: [T] int32, the target tokens.
    reads: [T] int32, the position whose hidden state predicts each label. So
      the head runs at targets only.
    where: [T] bool, True at real labels.
  """
  length, target = lengths.sequence, lengths.target
  return {
    'tokens': np.full(length, pad, np.int32),
    'segments': np.zeros(length, np.int32),
    'positions': np.zeros(length, np.int32),
    'labels': np.zeros(target, np.int32),
    'reads': np.zeros(target, np.int32),
    'where': np.zeros(target, bool),
  }


def padded_example(
  prompt: list[int], target: list[int], lengths: Lengths, pad: int
) -> Batch:
  """Makes an example, padded to L and T."""
  example = empty_example(lengths, pad)
  tokens = [*prompt, *target[:-1]]
  example['tokens'][: len(tokens)] = tokens
  example['segments'][: len(tokens)] = 1
  example['positions'][: len(tokens)] = np.arange(len(tokens))
  example['labels'][: len(target)] = target
  example['reads'][: len(target)] = len(prompt) - 1 + np.arange(len(target))
  example['where'][: len(target)] = True
  return example


def encode_targets(
  texts: Sequence[str], tokenizer: Tokenizer, longest: int
) -> list[list[int]]:
  """Encodes answers with their end of turn; far too long ones in part."""
  whole = [text.strip() for text in texts]
  answers = tokenizer.encode([read_of(text, longest) for text in whole])
  for index, ids in enumerate(answers):
    if len(ids) <= longest and read_of(whole[index], longest) != whole[index]:
      (answers[index],) = tokenizer.encode([whole[index]])
  return [[*ids, tokenizer.end_of_turn] for ids in answers]


def read_of(text: str, tokens: int) -> str:
  """Cuts far too long texts: encoding takes 100 times their memory."""
  return text[: max(_READ, _FOR_A_TOKEN * tokens)]


class Pairs(Examples):
  """The usable records of a split, encoded on demand."""

  def __init__(
    self, source: Source, usable: np.ndarray, task: Task, tokenizer: Tokenizer,
    lengths: Lengths,
  ):  # fmt: skip
    self.source, self.usable = source, usable
    self.task, self.lengths, self._tokenizer = task, lengths, tokenizer
    self.pad = tokenizer.end_of_turn
    self._format = make_format(tokenizer)
    sizes = (self._format.size(text) for text in task.instructions.values())
    least = max(sizes) + 1
    if lengths.prompt < least:
      raise ConfigError(
        f'data.max_prompt {lengths.prompt} leaves no room for a source: the '
        f'chat format alone takes {least - 1} tokens; use at least {least}'
      )

  def __len__(self) -> int:
    return len(self.usable)

  def record(self, index: int) -> dict[str, str]:
    """See `Examples`."""
    record = self.source[int(self.usable[index])]
    # Stripped as for encoding, so that byte counts match what the model reads.
    parts = ('source', 'target')
    return record | {part: record[part].strip() for part in parts}

  def prompt_and_target(self, index: int) -> tuple[list[int], list[int]]:
    """See `Examples`."""
    record = self.record(index)
    (target,) = encode_targets(
      [record['target']], self._tokenizer, self.lengths.target
    )
    where = f'record {record["id"]}'
    try:
      prompt = self._prompt(record)
    except DataError as error:
      raise DataError(f'{where}: {error}') from None
    self._tokenizer.check_rows([*prompt, *target], f'{where}: its text')
    return prompt, target

  def _prompt(self, record: dict[str, str]) -> list[int]:
    text, most = record['source'], self.lengths.prompt
    # A turn takes at least one token.
    turns = text.rsplit('\n', most)[-most:] if self.task.turns else [text]
    turns = [read_of(turn, most) for turn in turns]
    instruction = self.task.instruction(record)
    return self._format.prompt(instruction, turns, most)
