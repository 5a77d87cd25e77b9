"""Unweighted likelihood of the targets: perplexity, bits per byte, by count.

Every target token counts once here, whatever the training loss weighted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.evaluate.inputs import Record, ids_array
from pdl_jax.evaluate.registry import (
  Found,
  Inputs,
  Metric,
  of_sums,
  perplexity,
  register,
)

# The smallest training count of each bucket.
_BUCKET_STARTS = (0, 1, 2, 3, 4, 5, 10, 100, 1000)
BUCKETS = ('0', '1', '2', '3', '4', '5-9', '10-99', '100-999', '1000+')


def bits_per_byte(sums: np.ndarray) -> np.ndarray:
  """Sums [..., 2] (nats, bytes) -> bits per byte [...]."""
  return sums[..., 0] / math.log(2) / sums[..., 1]


PERPLEXITY = Metric(
  'perplexity', 'Perplexity', 'lower', unit='tokens', sums=('nats', 'tokens'),
  value=perplexity, rows='always',
  definition='exp(sum of -ln p over target tokens / number of target '
  'tokens), unweighted, stop tokens included; it depends on the tokenizer',
)  # fmt: skip
NATS = Metric(
  'nats_per_token', 'Nats a token', 'lower', 4, unit='tokens',
  sums=('nats', 'tokens'), rows='never',
  definition='sum of -ln p over target tokens / number of target tokens, '
  'unweighted, stop tokens included',
)  # fmt: skip


def sums_of(bucket: str) -> tuple[str, str]:
  """Names the two sums of a bucket: nats and target tokens."""
  return f'nats of {bucket}', f'tokens of {bucket}'


@register(
  PERPLEXITY,
  NATS,
  Metric(
    'bits_per_byte', 'Bits per byte', 'lower', 3, unit='bytes',
    sums=('nats', 'bytes'), value=bits_per_byte, rows='always',
    definition='sum of -ln p over target tokens / ln 2 / UTF-8 bytes of the '
    'target text (references[0]); the nats of stop tokens are included, which '
    'have no bytes. Comparable across tokenizers, unless a target is cut',
  ),
)  # fmt: skip
def likelihoods(inputs: Inputs) -> Found:
  """Sums nats, tokens and bytes per target, overall and by training count."""
  examples, counts_V = inputs.examples, inputs.counts_V
  nats = [_target_nats(record) for record in examples]
  found = {
    'nats': list(map(math.fsum, nats)),
    'tokens': list(map(len, nats)),
    'bytes': [len(record['references'][0].encode()) for record in examples],
  }
  bucket_V = np.searchsorted(_BUCKET_STARTS, counts_V, 'right') - 1
  buckets = [
    bucket_V[ids_array(record, 'reference_ids', len(counts_V))].tolist()
    for record in examples
  ]
  for index, name in enumerate(BUCKETS):
    own = [
      [value for value, at in zip(*pair, strict=True) if at == index]
      for pair in zip(nats, buckets, strict=True)
    ]
    of_nats, of_tokens = sums_of(name)
    found |= {
      of_nats: list(map(math.fsum, own)),
      of_tokens: list(map(len, own)),
    }
  return found


def by_frequency(sums: Mapping[str, Sequence[float]]) -> dict[str, Any]:
  """Perplexity of the target tokens, by how often training saw their type.

  The buckets add up to the whole. An empty bucket has 0 `tokens`, and None as
  `nats_per_token` and `perplexity`.
  """
  buckets = {}
  for name in BUCKETS:
    nats = of_sums(NATS, sums_of(name), sums)
    buckets[name] = {
      'tokens': nats.n,
      'nats_per_token': nats.value,
      'perplexity': of_sums(PERPLEXITY, sums_of(name), sums).value,
    }
  return {
    'n': sum(cells['tokens'] for cells in buckets.values()),
    'unit': 'tokens',
    'definition': 'perplexity of the target tokens whose type occurs so many '
    'times in the training targets; unweighted, stop tokens included',
    'buckets': buckets,
  }


def _target_nats(record: Record) -> list[float]:
  nats = record['reference_nll']
  for position, value in enumerate(nats):
    if not math.isfinite(value):
      raise DataError(
        f"record {record['id']!r}: field 'reference_nll' is {value} at target "
        f'token {position} of {len(nats)}; the model gave no usable probability'
      )
  return nats
