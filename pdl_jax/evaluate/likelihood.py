"""Unweighted likelihood of the targets: perplexity, bits per byte, buckets.

Whatever the training loss weighted, here every target token counts once.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.evaluate.inputs import Record, check_counts, ids_array
from pdl_jax.evaluate.metric import Metric, exp_or_none, ratio

# The smallest training count of each bucket; a bucket ends where the next
# begins.
_BUCKET_STARTS = (0, 1, 2, 3, 4, 5, 10, 100, 1000)
BUCKETS = ('0', '1', '2', '3', '4', '5-9', '10-99', '100-999', '1000+')
DECILES = 10
UNSEEN = 'unseen'


def _target_nats(record: Record) -> list[float]:
  nats = record['reference_nll']
  for position, value in enumerate(nats):
    if not math.isfinite(value):
      raise DataError(
        f"record {record['id']!r}: field 'reference_nll' is {value} at target "
        f'token {position} of {len(nats)}; the model gave no usable probability'
      )
  return nats


def _all_nats(records: Sequence[Record]) -> list[float]:
  return [value for record in records for value in _target_nats(record)]


def nats_per_token(records: Sequence[Record]) -> Metric:
  """Mean negative log-likelihood of the target tokens, in nats, >= 0.

  Summed over all records before the one division: no mean of means. The sum
  is exact, so the order of the records cannot change it.

  Raises:
    DataError: a likelihood that is not finite.
  """
  nats = _all_nats(records)
  return Metric(
    value=ratio(math.fsum(nats), len(nats)),
    n=len(nats),
    unit='tokens',
    definition='sum of -ln p over target tokens / number of target tokens, '
    'unweighted, stop tokens included',
  )


def perplexity(records: Sequence[Record]) -> Metric:
  """exp of the mean nats a target token, >= 1.

  None above the largest float (709 nats a token), where nats_per_token still
  holds.

  Raises:
    DataError: a likelihood that is not finite.
  """
  mean = nats_per_token(records)
  return Metric(
    value=exp_or_none(mean.value),
    n=mean.n,
    unit='tokens',
    definition='exp(sum of -ln p over target tokens / number of target '
    'tokens), unweighted, stop tokens included; it depends on the '
    'tokenizer',
  )


def bits_per_byte(records: Sequence[Record]) -> Metric:
  """Bits that the model needs a UTF-8 byte of target text, >= 0.

  Comparable across tokenizers. `reference_ids` must be the whole of
  `references[0]`: a truncated target makes the value too small.

  Raises:
    DataError: a likelihood that is not finite.
  """
  n_bytes = sum(len(r['references'][0].encode()) for r in records)
  return Metric(
    value=ratio(math.fsum(_all_nats(records)) / math.log(2), n_bytes),
    n=n_bytes,
    unit='bytes',
    definition='sum of -ln p over target tokens / ln 2 / UTF-8 bytes of the '
    'target text (references[0]); the nats of stop tokens are included, which '
    'have no bytes',
  )


def perplexity_by_frequency(
  records: Sequence[Record], counts_V: np.ndarray
) -> dict[str, Any]:
  """Perplexity of the target tokens, by how often training saw their type.

  The buckets add up to the total, stop tokens included: these fall into the
  bucket of their own count, so a table that never counted them puts that of
  each target that ends into bucket '0'.

  Args:
    records: prediction records.
    counts_V: integers [V], tokens of each type in the training split's targets.

  Returns:
    `n`, `unit`, `definition` and `buckets`: for each name in BUCKETS `tokens`,
    `nats_per_token` and `perplexity`, the last two None in an empty bucket.

  Raises:
    DataError: bad counts, a token id outside [0, V), a likelihood that is not
      finite.
  """
  counts_V = check_counts(counts_V)
  bucket_V = np.searchsorted(_BUCKET_STARTS, counts_V, 'right') - 1
  nats = _nats_by_bucket(records, bucket_V, len(BUCKETS))
  return {
    'n': sum(map(len, nats)),
    'unit': 'tokens',
    'definition': 'perplexity of the target tokens whose type occurs so many '
    'times in the training targets; unweighted, stop tokens included',
    'buckets': dict(zip(BUCKETS, map(_bucket, nats), strict=True)),
  }


def mass_deciles(counts_V: np.ndarray) -> np.ndarray:
  """The tenth of the running training tokens that each type belongs to.

  Types stand by ascending count, all types of one count together: they belong
  to the tenth in which the middle of their tokens lies. So a tenth can hold
  more or less than its share, or, beside a very common type, nothing.

  Args:
    counts_V: integers [V], tokens of each type in the training split's targets.

  Returns:
    Integers [V]: 0 for types never seen, 1 (rarest) to 10.

  Raises:
    DataError: bad counts.
  """
  counts_V = check_counts(counts_V)
  levels, level_V, types = np.unique(
    counts_V, return_inverse=True, return_counts=True
  )
  mass = levels * types
  end = np.cumsum(mass)
  # In integers: half a token either way would move a level on the border.
  decile = DECILES * (2 * end - mass) // (2 * max(int(end[-1]), 1)) + 1
  return np.where(levels == 0, 0, decile)[level_V]


def perplexity_by_mass(
  records: Sequence[Record], counts_V: np.ndarray
) -> dict[str, Any]:
  """Perplexity of the target tokens, by tenths of the training tokens.

  Tenths as in `mass_deciles`, types never seen apart; they add up to the
  total, stop tokens included as in `perplexity_by_frequency`.

  Args:
    records: prediction records.
    counts_V: integers [V], tokens of each type in the training split's targets.

  Returns:
    `n`, `unit`, `definition` and `buckets`: for 'unseen' and '1' (rarest) to
    '10' what a bucket of `perplexity_by_frequency` has, `counts`, the smallest
    and largest training count, and `training_share`, in [0, 1], of the tokens.

  Raises:
    DataError: bad counts, a token id outside [0, V), a likelihood that is not
      finite.
  """
  counts_V = check_counts(counts_V)
  decile_V = mass_deciles(counts_V)
  nats = _nats_by_bucket(records, decile_V, DECILES + 1)
  names = (UNSEEN, *map(str, range(1, DECILES + 1)))
  return {
    'n': sum(map(len, nats)),
    'unit': 'tokens',
    'definition': 'perplexity of the target tokens by tenths of the running '
    'training tokens, types by ascending count, from 1 (rarest) to 10; types '
    'of one count stay together, in the tenth of the middle of their tokens; '
    'unweighted, stop tokens included',
    'buckets': {
      name: _bucket(nats[index])
      | _training_side(counts_V[decile_V == index], int(counts_V.sum()))
      for index, name in enumerate(names)
    },
  }


def _training_side(counts_T: np.ndarray, total: int) -> dict[str, Any]:
  """What training holds of the T types of a bucket."""
  edges = [int(counts_T.min()), int(counts_T.max())] if counts_T.size else None
  return {
    'counts': edges,
    'training_share': ratio(int(counts_T.sum()), total),
  }


def _nats_by_bucket(
  records: Sequence[Record], bucket_V: np.ndarray, n_buckets: int
) -> list[list[float]]:
  """Nats of each target token, under the bucket of its type."""
  nats: list[list[float]] = [[] for _ in range(n_buckets)]
  for record in records:
    ids_L = ids_array(record, 'reference_ids', len(bucket_V))
    values = _target_nats(record)
    for bucket, value in zip(bucket_V[ids_L].tolist(), values, strict=True):
      nats[bucket].append(value)
  return nats


def _bucket(nats: list[float]) -> dict[str, float | None]:
  mean = ratio(math.fsum(nats), len(nats))
  return {
    'tokens': len(nats),
    'nats_per_token': mean,
    'perplexity': exp_or_none(mean),
  }
