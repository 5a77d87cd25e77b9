"""How often each token type occurs, and proof of what was counted.

A table belongs to one tokenizer and one split of one data set; weights made
from another's would be silently wrong, so loading checks both.
"""

import dataclasses
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pdl_jax.errors import ConfigError, DataError

# What NumPy and zipfile raise for files that are damaged or something else.
_UNREADABLE = (
  OSError,
  EOFError,
  KeyError,
  TypeError,
  ValueError,
  RuntimeError,
  zipfile.BadZipFile,
  zlib.error,
)
UNITS = ('count', 'probability')


@dataclasses.dataclass(frozen=True)
class FrequencyTable:
  """Counts of token types in the target tokens of one split.

  Attributes:
    counts_V: int64, one a token type, specials and added tokens included.
    tokenizer: fingerprint of the tokenizer that made the ids.
    tokenizer_name: for messages.
    data: fingerprint of the data set and split.
    data_name: for messages.
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
    """Tokens counted."""
    return int(self.counts_V.sum())

  @property
  def fingerprint(self) -> str:
    """Hex SHA-256 of the counts and of everything that names them."""
    meta = json.dumps(self._meta(), sort_keys=True).encode()
    counts = np.ascontiguousarray(self.counts_V, '<i8').tobytes()
    return hashlib.sha256(meta + counts).hexdigest()

  def frequency(self, unit: str) -> np.ndarray:
    """frequency_V as a 'count' or as a 'probability' (sums to 1), float64.

    Raises:
      ConfigError: for another unit.
      DataError: for probabilities of an empty table.
    """
    if unit not in UNITS:
      raise ConfigError(f'unit {unit!r} is not one of {", ".join(UNITS)}')
    if unit == 'count':
      return self.counts_V.astype(np.float64)
    if not self.total:
      raise DataError(f'{self.data_name}: no target token was counted')
    return self.counts_V / self.total

  def save(self, path: Path) -> None:
    """Writes the table; whole or not at all."""
    partial = path.with_suffix('.partial')
    with partial.open('wb') as file:
      np.savez_compressed(
        file, counts_V=self.counts_V, meta=json.dumps(self._meta())
      )
    partial.replace(path)

  def _meta(self) -> dict[str, str]:
    names = [field.name for field in dataclasses.fields(self)]
    return {name: getattr(self, name) for name in names if name != 'counts_V'}


def count(
  token_lists: Iterable[Iterable[int]], vocab_size: int
) -> np.ndarray:
  """Counts ids into counts_V, int64, a list at a time.

  Raises:
    DataError: for an id outside [0, vocab_size).
  """
  counts_V = np.zeros(vocab_size, np.int64)
  for tokens in token_lists:
    ids = np.asarray(list(tokens), np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
      raise DataError(
        f'token ids {ids.min()}..{ids.max()} do not fit a vocabulary of '
        f'{vocab_size}'
      )
    np.add.at(counts_V, ids, 1)
  return counts_V


def load(
  path: Path, *, tokenizer: str, tokenizer_name: str, vocab_size: int
) -> FrequencyTable:
  """Reads a table and checks that it fits.

  Args:
    path: what `FrequencyTable.save` wrote.
    tokenizer: fingerprint of the tokenizer in use.
    tokenizer_name: its name, for messages.
    vocab_size: V of the model.

  Raises:
    DataError: if it is unreadable, of another tokenizer or size, or counted on
      an evaluation split; names both sides and how to rebuild it.
  """
  rebuild = (
    'leave out --config.loss.frequency_table and the run counts its own '
    'training split'
  )
  if not path.is_file():
    raise DataError(f'there is no frequency table {path}; {rebuild}')
  try:
    with np.load(path, allow_pickle=False) as stored:
      table = FrequencyTable(
        stored['counts_V'], **json.loads(str(stored['meta']))
      )
  except _UNREADABLE as e:
    raise DataError(
      f'{path} is not a frequency table that a run has written '
      f'({type(e).__name__}); {rebuild}'
    ) from e
  if table.tokenizer != tokenizer or table.counts_V.shape != (vocab_size,):
    raise DataError(
      f'{path} was counted with tokenizer {table.tokenizer_name} '
      f'({table.tokenizer[:8]}, {table.counts_V.size} types), this run uses '
      f'{tokenizer_name} ({tokenizer[:8]}, {vocab_size} types); {rebuild}'
    )
  if table.split != 'train':
    raise DataError(
      f'{path} was counted on the {table.split} split of {table.data_name}; '
      f'weights may only come from a train split; {rebuild}'
    )
  return table


def effective_sample_size(counts_V: np.ndarray, weights_V: np.ndarray) -> float:
  """(sum w)**2 / sum w**2 over running tokens, as a share of the tokens.

  1 when all weights are equal; small when few tokens carry the loss.
  """
  weighted = (counts_V * weights_V).sum()
  squared = (counts_V * np.square(weights_V)).sum()
  return float(weighted**2 / (squared * counts_V.sum()))
