"""From a split of a data set to batches of arrays."""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from pdl_jax import frequency
from pdl_jax.data.sources import Source
from pdl_jax.data.tasks import Task, chat_parts
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError, DataError

# A split that loses more of its records than this is not what it claims to be.
MAX_EMPTY_SHARE = 0.01
_CHUNK = 1024

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Sizes of the arrays, in tokens.

  Attributes:
    prompt: longest prompt P, chat format included; longer sources are cut at
      their end, so that the target always survives.
    target: longest target T, end of turn included; records with longer
      targets are left out and counted.
  """

  prompt: int
  target: int

  @property
  def sequence(self) -> int:
    """L: the last target token is only ever predicted, never read."""
    return self.prompt + self.target - 1


@dataclasses.dataclass(frozen=True)
class Survey:
  """One pass over the targets of a split.

  Attributes:
    usable: indices of the records that are kept.
    empty: records without a source or a target.
    too_long: records whose target exceeds the longest target.
    counts_V: how often each type occurs in the kept targets.
    total: records in all.
  """

  usable: np.ndarray
  empty: int
  too_long: int
  counts_V: np.ndarray
  total: int

  def describe(self) -> str:
    """One line for the terminal."""
    return (
      f'{len(self.usable)} of {self.total} pairs, '
      f'{int(self.counts_V.sum())} target tokens; left out: {self.empty} '
      f'without text, {self.too_long} with too long a target'
    )


def survey(
  source: Source, task: Task, tokenizer: Tokenizer, lengths: Lengths
) -> Survey:
  """Finds the usable records and counts their target tokens.

  Raises:
    DataError: if more than 1 % of the records have no source or target, or
      none is usable.
  """
  usable, empty, too_long = [], 0, 0
  counts_V = np.zeros(tokenizer.vocab_size, np.int64)
  for start in range(0, len(source), _CHUNK):
    numbers = range(start, min(start + _CHUNK, len(source)))
    records = [source[i] for i in numbers]
    targets = _encode_targets([r[task.target] for r in records], tokenizer)
    kept = []
    for number, record, target in zip(numbers, records, targets, strict=True):
      if not record[task.target].strip() or not record[task.source].strip():
        empty += 1
      elif len(target) > lengths.target:
        too_long += 1
      else:
        usable.append(number)
        kept.append(target)
    counts_V += frequency.count(kept, tokenizer.vocab_size)
  if empty > MAX_EMPTY_SHARE * len(source) or not usable:
    raise DataError(
      f'{source.name}/{source.split}: {empty} of {len(source)} records have no '
      f'{task.source} or no {task.target}, {too_long} have a target over '
      f'{lengths.target} tokens, {len(usable)} remain; more than '
      f'{MAX_EMPTY_SHARE:.0%} empty or nothing left is an error'
    )
  return Survey(np.asarray(usable), empty, too_long, counts_V, len(source))


def target_texts(
  source: Source, task: Task, seen: Survey
) -> Iterator[list[str]]:
  """The targets of the usable records, some at a time."""
  for start in range(0, len(seen.usable), _CHUNK):
    numbers = seen.usable[start : start + _CHUNK]
    yield [source[int(i)][task.target].strip() for i in numbers]


def _encode_targets(
  texts: Sequence[str], tokenizer: Tokenizer
) -> list[list[int]]:
  ended = tokenizer.encode([text.strip() for text in texts])
  return [[*ids, tokenizer.end_of_turn] for ids in ended]


class Examples:
  """The usable records of a split, encoded when they are asked for."""

  def __init__(
    self,
    source: Source,
    usable: np.ndarray,
    task: Task,
    tokenizer: Tokenizer,
    lengths: Lengths,
  ):
    self.source, self.usable = source, usable
    self.task, self.lengths, self._tokenizer = task, lengths, tokenizer
    before, between, _ = chat_parts(task)
    self._before = tokenizer.encode_template(before)
    self._between = tokenizer.encode_template(between)
    room = lengths.prompt - len(self._before) - len(self._between)
    if room < 1:
      least = lengths.prompt - room
      raise ConfigError(
        f'data.max_prompt {lengths.prompt} leaves no room for a source: the '
        f'chat format alone takes {least} tokens; use at least {least + 1}'
      )
    self._room = room

  def __len__(self) -> int:
    return len(self.usable)

  def record(self, index: int) -> dict[str, str]:
    """The text of an example."""
    return self.source[int(self.usable[index])]

  def prompt_and_target(self, index: int) -> tuple[list[int], list[int]]:
    """Ids of the prompt, at most P, and of the target, at most T."""
    record = self.record(index)
    (source,) = self._tokenizer.encode([record[self.task.source].strip()])
    (target,) = _encode_targets([record[self.task.target]], self._tokenizer)
    return [*self._before, *source[: self._room], *self._between], target

  def __getitem__(self, index: int) -> Batch:
    """One padded example; see `empty_example` for the arrays."""
    prompt, target = self.prompt_and_target(index)
    example = empty_example(self.lengths, self._tokenizer.end_of_turn)
    tokens = [*prompt, *target[:-1]]
    example['tokens'][: len(tokens)] = tokens
    example['segments'][: len(tokens)] = 1
    example['positions'][: len(tokens)] = np.arange(len(tokens))
    example['labels'][: len(target)] = target
    example['reads'][: len(target)] = len(prompt) - 1 + np.arange(len(target))
    example['where'][: len(target)] = True
    return example


def empty_example(lengths: Lengths, pad: int) -> Batch:
  """An example without a token.

  Returns:
    tokens, segments, positions: [L] int32, segment 0 is padding.
    labels: [T] int32, the target tokens.
    reads: [T] int32, the position whose hidden state predicts each label, so
      that the head is applied at targets only.
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


def train_iterator(
  examples: Examples, batch: int, seed: int, process: int, processes: int
) -> grain.DatasetIterator:
  """Endless shuffled batches, the same global batches on any process count.

  Args:
    examples: the training split.
    batch: global batch size, divisible by `processes`.
    seed: of the order.
    process: which share of each global batch to give.
    processes: number of shares.

  Returns:
    an iterator over Batch with rows [batch / processes, ...]; its state can be
    saved and restored.
  """
  dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
  dataset = dataset[process::processes]
  dataset = dataset.batch(batch // processes, drop_remainder=True)
  # A step takes far longer than its batch: a short queue keeps up.
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  return iter(dataset.to_iter_dataset(options))


def evaluation_batches(
  examples: Examples, numbers: np.ndarray, batch: int
) -> Iterator[Batch]:
  """The numbered examples in order; the last batch is filled with empties."""
  empty = empty_example(examples.lengths, 0)
  for start in range(0, len(numbers), batch):
    rows = [examples[int(i)] for i in numbers[start : start + batch]]
    rows += [empty] * (batch - len(rows))
    yield {key: np.stack([row[key] for row in rows]) for key in empty}


def left_padded(
  examples: Examples, numbers: np.ndarray, batch: int
) -> Batch:
  """Prompts that all end in the last column, to generate from.

  Returns:
    prompts: [batch, P] int32; filled: [batch, P] bool, True at real tokens.
    Rows beyond the numbers are empty.
  """
  length = examples.lengths.prompt
  prompts = np.zeros((batch, length), np.int32)
  filled = np.zeros((batch, length), bool)
  for row, number in enumerate(numbers):
    prompt, _ = examples.prompt_and_target(int(number))
    prompts[row, length - len(prompt) :] = prompt
    filled[row, length - len(prompt) :] = True
  return {'prompts': prompts, 'filled': filled}


def sample(examples: Examples, count: int) -> np.ndarray:
  """Numbers of `count` examples, the same in every run; all if fewer."""
  order = np.random.default_rng(0).permutation(len(examples))
  return np.sort(order[:count])
