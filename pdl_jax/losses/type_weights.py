"""Losses with a weight per token type: rivals of Power-Law Decay Loss.

Each makes weights_V, fp32, from the counts c of the types, and raises
ConfigError for arguments out of range. All take:

  frequency_V: counts, >= 0.
  special_ids: types with weight exactly 1, above all the end of turn; means,
    maxima and medians leave them out.
  normalize: 'published', or 'corpus_mean': a mean of 1 over token occurrences,
    which keeps the meaning of the learning rate.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.losses.checks import (
  check_frequency,
  check_number,
  check_range,
  special_types,
)
from pdl_jax.losses.power_law import power_law_weights
from pdl_jax.losses.registry import register

SCALES = ('published', 'corpus_mean')


@register('inverse_frequency')
def inverse_frequency_weights(
  frequency_V: np.ndarray,
  *,
  special_ids: Sequence[int],
  exponent: Array | float = 0.4,
) -> Array:
  """Inverse token frequency (ITF), w = c ** -exponent (arXiv:1811.08100).

  These are power-law weights at 'corpus_mean'. A type never counted weighs as
  much as the rarest one seen. exponent >= 0 may be traced; 0 gives ones. The
  default is our choice.
  """
  check_number('exponent', exponent)
  return power_law_weights(
    frequency_V, alpha=exponent, epsilon=0.0, unseen='min_count',
    special_ids=special_ids,
  )


@register('face')
def face_weights(
  frequency_V: np.ndarray,
  *,
  special_ids: Sequence[int],
  normalize: str = 'published',
) -> Array:
  """Frequency-aware cross-entropy (FACE), w = 1 - c / max c, rescaled.

  This is the variant with ground-truth frequencies and pre-weighting
  (arXiv:1902.09191). The commonest type weighs 0, one never counted the most;
  equally common types all weigh 1. The published scale is a mean of 1 over
  types, so token occurrences weigh far less than 1 on average.
  """
  counts_V, special_V = _types(frequency_V, special_ids)
  top = counts_V[~special_V].max(initial=0.0)
  raw_V = 1 - counts_V / top if top else np.ones_like(counts_V)
  return _finish(_scaled(raw_V, ~special_V), counts_V, special_V, normalize)


@register('class_balanced')
def class_balanced_weights(
  frequency_V: np.ndarray,
  *,
  special_ids: Sequence[int],
  beta: float = 0.9999,
  normalize: str = 'published',
) -> Array:
  """Weights by effective number, (1 - beta) / (1 - beta ** c), rescaled.

  beta is in [0, 1): 0 gives ones, beta -> 1 inverse frequency. The published
  scale is a mean of 1 over types, so token occurrences weigh less than 1 on
  average (arXiv:1901.05555). A type never counted weighs as one counted once.
  """
  check_range('beta', beta, '[0, 1)')
  counts_V, special_V = _types(frequency_V, special_ids)
  with np.errstate(divide='ignore'):
    log_beta = np.log(float(beta))
  # Rescaling cancels the factor 1 - beta.
  raw_V = -1 / np.expm1(_as_once(counts_V) * log_beta)
  return _finish(_scaled(raw_V, ~special_V), counts_V, special_V, normalize)


@register('adaptive_exponential')
def adaptive_exponential_weights(
  frequency_V: np.ndarray,
  *,
  special_ids: Sequence[int],
  decay: float = 1.75,
  max_weight: float = math.e,
  normalize: str = 'published',
) -> Array:
  """Token-level adaptive training, heavier for rarer types (arXiv:2010.04380).

    u(t) = exp(-T r),  w(t) = 1 + (max_weight - 1) u(t) / max u,  r = c / c_med

  T is `decay`, >= 0. c_med is the median count of the seen types: of two middle
  ones the smaller, as in the published code. Weights lie in [1, max_weight]:
  token occurrences weigh more than 1 on average, and max_weight 1 gives ones. A
  type never counted weighs as much as the rarest seen. Two steps are left out:
  the paper's first phase with cross-entropy, and its code's random resetting of
  some tokens to weight 1.
  """
  return _adaptive(frequency_V, special_ids, 0, decay, max_weight, normalize)


@register('adaptive_chi_square')
def adaptive_chi_square_weights(
  frequency_V: np.ndarray,
  *,
  special_ids: Sequence[int],
  decay: float = 1.75,
  max_weight: float = math.e,
  normalize: str = 'published',
) -> Array:
  """As `adaptive_exponential_weights`, with u(t) = r ** 2 * exp(-T r).

  Weights peak at r = 2 / T. Very rare types count as noise and weigh little
  more than 1.
  """
  return _adaptive(frequency_V, special_ids, 2, decay, max_weight, normalize)


def _adaptive(
  frequency_V: np.ndarray,
  special_ids: Sequence[int],
  power: int,
  decay: float,
  max_weight: float,
  normalize: str,
) -> Array:
  """Returns weights for u(t) = r ** power * exp(-decay * r)."""
  check_number('decay', decay)
  check_range('max_weight', max_weight, '[1, inf)')
  counts_V, special_V = _types(frequency_V, special_ids)
  seen_V = (counts_V > 0) & ~special_V
  weights_V = np.ones_like(counts_V)
  if seen_V.any():
    seen = np.sort(counts_V[seen_V])
    ratio_V = np.where(seen_V, counts_V, seen[0]) / seen[(seen.size - 1) // 2]
    # Computed in logarithms, because u underflows at large T.
    log_u_V = power * np.log(ratio_V) - decay * ratio_V
    weights_V += (max_weight - 1) * np.exp(log_u_V - log_u_V.max())
  return _finish(weights_V, counts_V, special_V, normalize)


def _types(
  frequency_V: np.ndarray, special_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns counts in double precision, and the mask of special types."""
  counts_V = check_frequency(frequency_V).astype(np.float64)
  special_V = special_types(special_ids, counts_V.size)
  return counts_V, special_V


def _as_once(counts_V: np.ndarray) -> np.ndarray:
  """Counts unseen types once, or like the rarest where a mix has rarer ones."""
  rarest = counts_V[counts_V > 0].min(initial=1.0)
  return np.where(counts_V == 0, rarest, counts_V)


def _scaled(raw_V: np.ndarray, mass_V: np.ndarray) -> np.ndarray:
  """Scales to mean 1 over `mass_V`; returns ones if all weights are zero."""
  total = (mass_V * raw_V).sum()
  if total == 0:
    return np.ones_like(raw_V)
  return raw_V * (mass_V.sum() / total)


def _finish(
  weights_V: np.ndarray,
  counts_V: np.ndarray,
  special_V: np.ndarray,
  normalize: str,
) -> Array:
  one_of('normalize', normalize, SCALES)
  if normalize == 'corpus_mean':
    weights_V = _scaled(weights_V, np.where(special_V, 0.0, counts_V))
  return jnp.asarray(np.where(special_V, 1.0, weights_V), jnp.float32)


@register('logit_adjustment', form='bias')
def logit_adjustment_bias(
  frequency_V: np.ndarray, *, tau: Array | float = 1.0
) -> Array:
  """Logit adjustment: the bias tau * log prior(t) of the logits.

  Either train with cross-entropy on logits + bias and decode without it, or
  train without it and decode with logits - bias; never both (arXiv:2007.07314).
  The prior is the share of counts; a type never counted is treated as counted
  once. tau >= 0 may be traced; 0 gives zeros, 1 is balanced softmax
  (arXiv:2007.10740).
  """
  check_number('tau', tau)
  counts_V, _ = _types(frequency_V, ())
  if not counts_V.any():
    raise ConfigError(f'none of the {counts_V.size} token types was counted')
  counts_V = _as_once(counts_V)
  return tau * jnp.asarray(np.log(counts_V / counts_V.sum()), jnp.float32)
