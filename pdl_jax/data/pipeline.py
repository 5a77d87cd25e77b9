"""Turns a split of a data set into batches of arrays."""

import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Sequence, Sized
from functools import lru_cache

import grain
import numpy as np

from pdl_jax.data import examples as made
from pdl_jax.data.examples import Batch, Examples, Lengths, Rows
from pdl_jax.data.sources import Source
from pdl_jax.data.tasks import Task
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.losses import frequency

# A split that loses a larger share than this is not what it claims to be.
MAX_EMPTY_SHARE = 0.01
MAX_DOCUMENT = 2**23  # characters; the Bible has 4.4 million
_CHUNK = 1024
_WINDOW = 16  # batches that are sorted by length together
_ENDLESS = 2**40


@dataclasses.dataclass(frozen=True)
class Survey:
  """The findings of one pass over the targets of a split."""

  usable: np.ndarray  # indices of the kept records
  # Ids per kept target, its end included, and the start of a document.
  sizes: np.ndarray
  empty: int  # records without a source or a target
  too_long: int  # records with a target over the limit
  counts_V: np.ndarray  # occurrences of each type in kept targets
  total: int  # records read
  digest: str  # SHA-256 of target ids and prompt texts, in order

  def describe(self) -> str:
    """Returns one line for the terminal."""
    return (
      f'{len(self.usable)} of {self.total} records, '
      f'{int(self.counts_V.sum())} target tokens; left out: {self.empty} '
      f'without text, {self.too_long} with too long a target'
    )


def survey(
  source: Source, task: Task, tokenizer: Tokenizer, lengths: Lengths,
  limit: int = 0,
) -> Survey:  # fmt: skip
  """Finds the usable records and counts their target tokens.

  It streams: beside the counts, it keeps two integers per record. It stops
  after `limit` usable records; 0 is no limit.
  """
  usable, sizes, empty, too_long, total = [], [], 0, 0, 0
  counts_V = np.zeros(tokenizer.vocab_size, np.int64)
  digest = hashlib.sha256()
  for start in range(0, len(source), _CHUNK):
    numbers = range(start, min(start + _CHUNK, len(source)))
    records = [source[i] for i in numbers]
    targets = _targets(source, records, task, tokenizer, lengths)
    kept = []
    for number, record, target in zip(numbers, records, targets, strict=True):
      if limit and len(usable) == limit:
        break
      total += 1
      tokenizer.check_rows(target, f'record {record["id"]}: its text')
      if _is_empty(record, task):
        empty += 1
      elif len(target) > lengths.target and not task.documents:
        too_long += 1
      else:
        usable.append(number)
        sizes.append(len(target) + task.documents)
        kept.append(target)
        texts = sorted(pair for pair in record.items() if pair[0] != 'target')
        digest.update('\0'.join(map('='.join, texts)).encode(errors='replace'))
        digest.update(np.asarray([*target, -1], np.int32).tobytes())
    counts_V += frequency.count(kept, tokenizer.vocab_size)
    if limit and len(usable) == limit:
      break
  if empty > MAX_EMPTY_SHARE * total or not usable:
    parts = 'target' if task.documents else 'source or a target'
    reasons = [
      f'{empty} without a {parts}',
      f'{too_long} with a target over {lengths.target} tokens',
    ]
    remedy = f'at most {MAX_EMPTY_SHARE:.0%} may lack one; name other fields'
    # If some remain, there are too many empty ones.
    if not usable and too_long > empty:
      reasons.reverse()
      remedy = 'raise data.max_target'
    raise DataError(
      f'{source.name}/{source.split}: left out are {" and ".join(reasons)}, '
      f'{len(usable)} of {total} records remain; {remedy}'
    )
  return Survey(
    np.asarray(usable), np.asarray(sizes), empty, too_long, counts_V, total,
    digest.hexdigest(),
  )  # fmt: skip


def _targets(
  source: Source, records: Sequence[dict[str, str]], task: Task,
  tokenizer: Tokenizer, lengths: Lengths,
) -> list[list[int]]:  # fmt: skip
  texts = [record['target'] for record in records]
  if not task.documents:
    return made.encode_targets(texts, tokenizer, lengths.target)
  for record in records:
    if len(record['target']) > MAX_DOCUMENT:
      raise DataError(
        f'{source.name}/{source.split}: record {record["id"]} is a document of'
        f' {len(record["target"]):,} characters, which takes a hundred times as'
        f' many bytes to encode; cut it into some of at most {MAX_DOCUMENT:,}'
      )
  ids = tokenizer.encode([text.strip() for text in texts])
  return [[*document, tokenizer.end_of_text] for document in ids]


def _is_empty(record: dict[str, str], task: Task) -> bool:
  parts = ('target',) if task.documents else ('source', 'target')
  return not all(record[part].strip() for part in parts)


def target_texts(source: Source, seen: Survey) -> Iterator[list[str]]:
  """Yields the targets of the usable records in chunks."""
  for start in range(0, len(seen.usable), _CHUNK):
    numbers = seen.usable[start : start + _CHUNK]
    yield [source[int(i)]['target'].strip() for i in numbers]


def train_iterator(
  examples: Rows, batch: int, seed: int, share: int, shares: int,
  buckets: int = 1,
) -> grain.DatasetIterator:  # fmt: skip
  """Makes endless shuffled batches, the same for any number of shares.

  Args:
    batch: global batch size, divisible by `shares`.
    seed: decides the order.
    share, shares: which part of each global batch to return, of how many.
    buckets: number of lengths that a batch can have. Above 1, windows of 16
      batches are sorted by length. Each batch is cut to the shortest multiple
      of L / buckets that holds its examples.

  Returns:
    an iterator over Batch with rows [batch / shares, ...]. Its state can be
      saved, and is the number of batches taken (`position`).
  """
  dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
  # A step takes far longer than making its batch, so a short queue suffices.
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  if buckets > 1:
    sorted_batches = _Sorted(dataset, batch, seed, buckets)
    batches = grain.MapDataset.range(_ENDLESS).map(lambda k: {
      name: rows[share::shares] for name, rows in sorted_batches[k].items()
    })  # fmt: skip
    return iter(batches.to_iter_dataset(options))
  dataset = dataset[share::shares]
  dataset = dataset.batch(batch // shares, drop_remainder=True)
  return iter(dataset.to_iter_dataset(options))


class _Sorted:
  """Global batches of examples of similar length, by number."""

  def __init__(
    self, dataset: grain.MapDataset, batch: int, seed: int, buckets: int
  ):
    self._dataset, self._batch, self._seed = dataset, batch, seed
    self._buckets, self._lock = buckets, threading.Lock()
    self._window = lru_cache(2)(self._make_window)

  def __getitem__(self, number: int) -> Batch:
    window, index = divmod(int(number), _WINDOW)
    # Threads need the same window: one of them makes it.
    with self._lock:
      return self._window(window)[index]

  def _make_window(self, window: int) -> list[Batch]:
    size = _WINDOW * self._batch
    first = window * size
    found = [self._dataset[i] for i in range(first, first + size)]
    rows = [row for row in found if row is not None]  # nothing was filtered
    used = np.array([int((row['segments'] > 0).sum()) for row in rows])
    order = np.argsort(used, kind='stable').reshape(_WINDOW, self._batch)
    random = np.random.default_rng((self._seed, window))
    return [
      _cut_to_bucket(
        _stack([rows[i] for i in order[index]]),
        used[order[index]].max(), self._buckets,
      )
      for index in random.permutation(_WINDOW)
    ]  # fmt: skip


def _cut_to_bucket(batch: Batch, longest: int, buckets: int) -> Batch:
  length = batch['tokens'].shape[1]
  sizes = (-(-length * i // buckets) for i in range(1, buckets + 1))
  size = min(size for size in sizes if size >= longest)
  by_position = ('tokens', 'segments', 'positions')
  return {
    name: rows[:, :size] if name in by_position else rows
    for name, rows in batch.items()
  }


def _stack(rows: Sequence[Batch]) -> Batch:
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def evaluation_batches(
  examples: Examples, numbers: np.ndarray, batch: int
) -> Iterator[Batch]:
  """Yields examples in order; empty ones fill the last batch."""
  empty = made.empty_example(examples.lengths, 0)
  for start in range(0, len(numbers), batch):
    rows = [examples[int(i)] for i in numbers[start : start + batch]]
    yield _stack(rows + [empty] * (batch - len(rows)))


def left_padded(
  examples: Examples, numbers: np.ndarray, batch: int, length: int
) -> Batch:
  """Makes prompts that all end in the last column, to generate from.

  `length` is at least the longest prompt. Rows beyond the numbers are empty.
  Returns prompts, [batch, length] int32, and filled, bool, True at real tokens.
  """
  prompts = np.zeros((batch, length), np.int32)
  filled = np.zeros((batch, length), bool)
  for row, number in enumerate(numbers):
    prompt, _ = examples.prompt_and_target(int(number))
    prompts[row, length - len(prompt) :] = prompt
    filled[row, length - len(prompt) :] = True
  return {'prompts': prompts, 'filled': filled}


def sample(items: Sized, count: int, draw: int = 0) -> np.ndarray:
  """Draws item numbers, the same in every run; draws 0, 1, ... are disjoint."""
  if draw and draw * count >= len(items):
    raise ConfigError(
      f'evaluate.sample_index {draw}: {len(items)} examples make only '
      f'{-(-len(items) // count)} draws of {count}, numbered from 0'
    )
  order = np.random.default_rng(0).permutation(len(items))
  return np.sort(order[draw * count : (draw + 1) * count])
