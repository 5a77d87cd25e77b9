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
    'unweighted, end-of-turn token included',
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
    'tokens), unweighted, end-of-turn token included; it depends on the '
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
    'target text (references[0]); the nats of the end-of-turn token are '
    'included, it has no bytes',
  )


def perplexity_by_frequency(
  records: Sequence[Record], counts_V: np.ndarray
) -> dict[str, Any]:
  """Perplexity of the target tokens, by how often training saw their type.

  The buckets add up to the total, end-of-turn tokens included: these fall into
  the bucket of their own count, so a table that never counted them puts one a
  record into bucket '0'.

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
  nats: dict[str, list[float]] = {name: [] for name in BUCKETS}
  for record in records:
    ids_L = ids_array(record, 'reference_ids', len(counts_V))
    bucket_L = np.searchsorted(_BUCKET_STARTS, counts_V[ids_L], 'right') - 1
    for bucket, value in zip(bucket_L, _target_nats(record), strict=True):
      nats[BUCKETS[bucket]].append(value)
  return {
    'n': sum(map(len, nats.values())),
    'unit': 'tokens',
    'definition': 'perplexity of the target tokens whose type occurs so many '
    'times in the training targets; unweighted, end-of-turn token included',
    'buckets': {name: _bucket(values) for name, values in nats.items()},
  }


def _bucket(nats: list[float]) -> dict[str, float | None]:
  mean = ratio(math.fsum(nats), len(nats))
  return {
    'tokens': len(nats),
    'nats_per_token': mean,
    'perplexity': exp_or_none(mean),
  }
