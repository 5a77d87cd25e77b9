"""Frequencies of token types, with a record of what was counted.

A table belongs to one tokenizer and one split of one data set. Weights from
another table would be silently wrong: loading and mixing check both.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pdl_jax.errors import ConfigError, DataError, one_of

UNITS = ('count', 'probability')
# Number of id lists counted at once.
_LISTS = 1024
_REBUILD = (
  'leave it out (loss.frequency_table, loss.background_table) and the run '
  'counts its own training split'
)


@dataclasses.dataclass(frozen=True)
class FrequencyTable:
  """Counts of token types in the target tokens of one split.

  Attributes:
    counts_V: of all types, specials too; int64 if counted, float64 if mixed.
    tokenizer, data: fingerprints; `data` is of data set and split, or of a mix.
    split: 'train'; a table counted on an evaluation split is refused.
  """

  counts_V: np.ndarray
  tokenizer: str
  tokenizer_name: str
  data: str
  data_name: str
  split: str

  @property
  def total(self) -> int:
    """Number of counted tokens; for a mix, those of the task."""
    return round(self.counts_V.sum().item())

  @property
  def source(self) -> str:
    """What was counted, for messages."""
    return f'{self.data_name}/{self.split} ({self.data[:8]})'

  @property
  def counted_with(self) -> str:
    """How it was counted, for messages."""
    return (
      f'counted with tokenizer {self.tokenizer_name} ({self.tokenizer[:8]}, '
      f'{self.counts_V.size} types)'
    )

  @property
  def fingerprint(self) -> str:
    """Hex SHA-256 of the counts and of the metadata."""
    meta = json.dumps(self._meta(), sort_keys=True).encode()
    kind = '<f8' if self.counts_V.dtype.kind == 'f' else '<i8'
    counts = np.ascontiguousarray(self.counts_V, kind).tobytes()
    return hashlib.sha256(meta + counts).hexdigest()

  def frequency(self, unit: str) -> np.ndarray:
    """Returns frequency_V, float64: counts, or probabilities that sum to 1."""
    one_of('unit', unit, UNITS)
    if unit == 'count':
      return self.counts_V.astype(np.float64)
    if not self.total:
      raise DataError(f'{self.data_name}: no target token was counted')
    return self.counts_V / self.total

  def save(self, path: Path) -> None:
    """Writes the table atomically."""
    partial = path.with_suffix('.partial')
    with partial.open('wb') as file:
      np.savez_compressed(
        file, counts_V=self.counts_V, meta=json.dumps(self._meta())
      )
    partial.replace(path)

  def _meta(self) -> dict[str, str]:
    return {k: x for k, x in vars(self).items() if k != 'counts_V'}


def count(
  token_lists: Iterable[Iterable[int]], vocab_size: int
) -> np.ndarray:
  """Counts ids into counts_V, int64; reads the lists as a stream."""
  counts_V, lists = np.zeros(vocab_size, np.int64), iter(token_lists)
  while group := list(islice(lists, _LISTS)):
    ids = np.fromiter(chain.from_iterable(group), np.int64)
    _check_ids(ids, vocab_size)
    counts_V += np.bincount(ids, minlength=vocab_size)
  return counts_V


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
  if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
    raise DataError(
      f'token ids {ids.min()}..{ids.max()} do not fit a vocabulary of '
      f'{vocab_size}'
    )


def mix(
  task: FrequencyTable, background: FrequencyTable, weight: float
) -> FrequencyTable:
  """Mixes the task's frequencies with those of a background corpus.

      p(t)     = (1 - weight) p_task(t) + weight p_background(t)
      count(t) = p(t) * total_task

  Counts and an absolute epsilon thus keep their size on the task.
  arXiv:2505.16900 counts on the task and allows such a mix. Both tables must
  come from training splits and one tokenizer. `weight` is in [0, 1]; 0 returns
  the task's own table.
  """
  names = f'{background.source} into {task.source}'
  if not 0 <= weight <= 1:
    raise ConfigError(f'share {weight} of mixing {names} is outside [0, 1]')
  theirs = (background.tokenizer, background.counts_V.shape)
  if (task.tokenizer, task.counts_V.shape) != theirs:
    raise DataError(
      f'{task.source} was {task.counted_with}, {background.source} was '
      f'{background.counted_with}; count both with one tokenizer'
    )
  if (task.split, background.split) != ('train', 'train'):
    raise DataError(
      f'cannot mix {names}: weights may only come from train splits'
    )
  if weight == 0:
    return task
  p_V = (1 - weight) * task.frequency('probability')
  p_V += weight * background.frequency('probability')
  sources = json.dumps([task.data, background.data, float(weight)])
  return dataclasses.replace(
    task,
    counts_V=p_V * task.total,
    data=hashlib.sha256(sources.encode()).hexdigest(),
    data_name=(
      f'{task.data_name} with {float(weight)} of {background.data_name}'
    ),
  )


def word_level(
  texts: Iterable[Iterable[tuple[str, Sequence[int]]]], vocab_size: int
) -> np.ndarray:
  """Returns frequency_V, float64: how often the words containing a piece occur.

      freq(t) = exp(mean of log count(word(i)) over the occurrences i of t)

  With this geometric mean, a power law of freq(t) is the geometric mean of the
  weights of those words. A piece that is always a whole word has that word's
  count. A piece never seen, such as end of turn, has 0.

  `texts` may be a generator over `Tokenizer.encode_words`, and is read once.
  Memory grows with distinct words, not with occurrences.
  """
  spellings = Counter(
    (word, tuple(ids)) for words in texts for word, ids in words
  )
  words = Counter()
  for (word, _), times in spellings.items():
    words[word] += times
  logs_V, occurrences_V = np.zeros(vocab_size), np.zeros(vocab_size)
  for (word, ids), times in spellings.items():
    _check_ids(np.asarray(ids), vocab_size)
    np.add.at(logs_V, list(ids), times * np.log(words[word]))
    np.add.at(occurrences_V, list(ids), times)
  seen_V = occurrences_V > 0
  means_V = logs_V / np.where(seen_V, occurrences_V, 1)
  return np.where(seen_V, np.exp(means_V), 0.0)


def read(path: Path) -> FrequencyTable:
  """Reads a table, whatever its tokenizer."""
  if not path.is_file():
    raise DataError(f'there is no frequency table {path}; {_REBUILD}')
  try:
    with np.load(path, allow_pickle=False) as stored:
      meta = json.loads(str(stored['meta']))
      table = FrequencyTable(stored['counts_V'], **meta)
    if not (wrong := _wrong(table)):
      return table
  except Exception as e:
    # For arbitrary files, NumPy, zipfile, decompressors and json raise almost
    # any exception. Each means that this is not a table.
    wrong = type(e).__name__
  raise DataError(
    f'{path} is not a frequency table that a run has written ({wrong}); '
    f'{_REBUILD}'
  )


def _wrong(table: FrequencyTable) -> str:
  """Describes what is wrong with a table; '' if it is valid."""
  counts_V = np.asarray(table.counts_V)
  if counts_V.ndim != 1 or counts_V.dtype.kind not in 'iuf':
    return f'counts_V has shape {counts_V.shape} of {counts_V.dtype}'
  bad = int((~np.isfinite(counts_V) | (counts_V < 0)).sum())
  if bad:
    return f'{bad} of {counts_V.size} counts are negative or not finite'
  if not counts_V.any():
    return f'none of its {counts_V.size} token types was counted'
  for name, value in table._meta().items():
    if not isinstance(value, str):
      return f'{name} is no text but of type {type(value).__name__}'
  return ''


def load(
  path: Path, *, tokenizer: str, tokenizer_name: str, vocab_size: int
) -> FrequencyTable:
  """Reads a table, which must fit the tokenizer (a fingerprint) and V.

  Raises:
    DataError: the table is unreadable, belongs to another tokenizer or size, or
      was counted on an evaluation split.
  """
  table = read(path)
  if table.tokenizer != tokenizer or table.counts_V.shape != (vocab_size,):
    raise DataError(
      f'{path} was {table.counted_with}, this run uses {tokenizer_name} '
      f'({tokenizer[:8]}, {vocab_size} types); {_REBUILD}'
    )
  if table.split != 'train':
    raise DataError(
      f'{path} was counted on the {table.split} split of {table.data_name}; '
      f'weights may only come from a train split; {_REBUILD}'
    )
  return table


def effective_sample_size(counts_V: np.ndarray, weights_V: np.ndarray) -> float:
  """Returns (sum w)**2 / sum w**2 over token occurrences, as a share of them.

  It is 1 when all weights are equal, and small when few tokens carry the loss.
  """
  weighted = (counts_V * weights_V).sum()
  squared = (counts_V * np.square(weights_V)).sum()
  return float(weighted**2 / (squared * counts_V.sum()))
