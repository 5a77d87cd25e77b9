"""Checks what every metric reads: prediction records and token counts."""

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.run_folder import PREDICTION
from pdl_jax.storage import files

Record = Mapping[str, Any]
_NOT_EMPTY = ('references', 'reference_ids')
_FINISH_REASONS = ('stop', 'length')


def validate_records(records: Sequence[Record]) -> None:
  """Raises DataError if no metric could be trusted on these records."""
  if not records:
    raise DataError('no prediction records: there is nothing to evaluate')
  seen: set[str] = set()
  for position, record in enumerate(records):
    name = repr(record['id']) if 'id' in record else f'at position {position}'
    if found := files.fault(record, PREDICTION) or _fault(record):
      raise DataError(f'record {name}: {found}')
    if record['id'] in seen:
      raise DataError(
        f"record {name}: field 'id' comes twice (again at position "
        f'{position}); keep one record per example'
      )
    seen.add(record['id'])


def _fault(record: Record) -> str:
  """Names what is wrong besides types; '' if nothing is."""
  for field in _NOT_EMPTY:
    if not record[field]:
      return f'field {field!r} is empty'
  n_ids, n_nll = len(record['reference_ids']), len(record['reference_nll'])
  if n_ids != n_nll:
    return (
      f"field 'reference_nll' has {n_nll} values for {n_ids} reference_ids; "
      'there must be one per target token'
    )
  reason = record['finish_reason']
  if reason not in _FINISH_REASONS:
    return f"field 'finish_reason' is {reason!r}, not one of {_FINISH_REASONS}"
  return ''


_SAMPLE_ID = re.compile(r'(?P<item>.*)#(?P<number>\d+)', re.DOTALL)


def samples_by_example(records: Sequence[Record]) -> list[list[Record]]:
  """Groups records by example; samples ('x#0', 'x#1') are ordered by number."""
  samples: dict[tuple[str, ...], list[tuple[int, Record]]] = {}
  for record in records:
    found = _SAMPLE_ID.fullmatch(record['id'])
    # With one sample per example, even 'x#0' is the id of an example.
    if record.get('decode', {}).get('samples') == 1:
      found = None
    name, number = record['id'], 0
    if found:
      name, number = found['item'], int(found['number'])
    item = (name, record['prompt'], *record['references'])
    samples.setdefault(item, []).append((number, record))
  return [
    [record for _, record in sorted(group, key=operator.itemgetter(0))]
    for group in samples.values()
  ]


def check_counts(counts_V: np.ndarray) -> np.ndarray:
  """Returns training counts as int64 [V]; DataError if they are not counts."""
  counts_V = np.asarray(counts_V)
  if counts_V.ndim != 1 or not counts_V.size:
    raise DataError(
      f'token counts have shape {counts_V.shape}; expected [V], one per type'
    )
  if not np.issubdtype(counts_V.dtype, np.integer):
    raise DataError(
      f'token counts are {counts_V.dtype}, not integers; pass counts of the '
      'training split, not probabilities or weights'
    )
  if counts_V.min() < 0:
    raise DataError(f'token counts hold a negative one: {counts_V.min()}')
  return counts_V.astype(np.int64)


def ids_array(record: Record, field: str, vocab_size: int) -> np.ndarray:
  """Returns `record[field]` as int64 [L]; DataError for ids outside [0, V)."""
  ids_L = np.asarray(record[field], np.int64)
  outside_L = (ids_L < 0) | (ids_L >= vocab_size)
  if outside_L.any():
    raise DataError(
      f'record {record["id"]!r}: field {field!r} holds token id '
      f'{ids_L[outside_L][0]}, outside [0, {vocab_size}); are the counts of '
      'another tokenizer?'
    )
  return ids_L


def special_mask(special_ids: Sequence[int], vocab_size: int) -> np.ndarray:
  """Marks special tokens in a boolean [V]; ConfigError outside [0, V)."""
  mask_V = np.zeros(vocab_size, bool)
  for token in special_ids:
    if not 0 <= token < vocab_size:
      raise ConfigError(f'special id {token} is outside [0, {vocab_size})')
    mask_V[token] = True
  return mask_V
