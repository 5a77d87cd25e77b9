"""Truncations of a distribution, each a mask on logits_BxV.

A mask is True at the tokens that stay. Tokens of equal logit stay or go
together. The likeliest token of a row (for `typical`, the most typical) always
stays. Truncations compose: a logit of -inf is a token of probability 0.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.generate.settings import DecodeSettings


def top_k(logits_BxV: Array, k: int) -> Array:
  """Keeps the k >= 1 likeliest tokens (arXiv:1805.04833), and ties."""
  k = min(k, logits_BxV.shape[1])
  kth_B = jax.lax.top_k(logits_BxV, k)[0][:, -1]
  return logits_BxV >= kth_B[:, None]


def top_p(logits_BxV: Array, p: float) -> Array:
  """Keeps the smallest likeliest set of mass p (arXiv:1904.09751, eq. 2).

  A token stays if strictly likelier tokens have less mass than p in (0, 1].
  """
  return _least_mass(logits_BxV, jax.nn.softmax(logits_BxV, axis=-1), p)


def min_p(logits_BxV: Array, share: float) -> Array:
  """Keeps p(v) >= share * max p, share in [0, 1] (arXiv:2407.01082)."""
  below_BxV = logits_BxV - logits_BxV.max(axis=-1, keepdims=True)
  return below_BxV >= jnp.log(jnp.float32(share))


def typical(logits_BxV: Array, p: float) -> Array:
  """Keeps locally typical tokens (arXiv:2202.00666, eq. 10).

  A token's distance is |-log p(v) - H|, H the entropy in nats. It stays if
  strictly closer tokens have less mass than p in (0, 1].
  """
  log_p_BxV = jax.nn.log_softmax(logits_BxV, axis=-1)
  p_BxV = jnp.exp(log_p_BxV)
  # A token of probability 0 adds nothing to the entropy, and is never kept.
  finite_BxV = jnp.where(p_BxV > 0, log_p_BxV, 0.0)
  entropy_B = -(p_BxV * finite_BxV).sum(axis=-1)
  closeness_BxV = -jnp.abs(log_p_BxV + entropy_B[:, None])
  return _least_mass(closeness_BxV, p_BxV, p)


def truncate(logits_BxV: Array, settings: DecodeSettings) -> Array:
  """Divides by the temperature, then truncates: -inf where dropped.

  The order is top_k, top_p, min_p, typical_p. Each sees what the one before
  left, renormalised.
  """
  kept_BxV = logits_BxV / settings.temperature

  def keep(mask_BxV: Array) -> Array:
    return jnp.where(mask_BxV, kept_BxV, -jnp.inf)

  if settings.top_k:
    kept_BxV = keep(top_k(kept_BxV, settings.top_k))
  if settings.top_p < 1:
    kept_BxV = keep(top_p(kept_BxV, settings.top_p))
  if settings.min_p > 0:
    kept_BxV = keep(min_p(kept_BxV, settings.min_p))
  if settings.typical_p < 1:
    kept_BxV = keep(typical(kept_BxV, settings.typical_p))
  return kept_BxV


def _least_mass(rank_BxV: Array, p_BxV: Array, mass: float) -> Array:
  """Keeps tokens for which those of strictly higher rank have less mass.

  It bisects the lowest kept rank 32 times, once per bit, which is faster than
  sorting a vocabulary.
  """
  order_BxV = _ordered_bits(rank_BxV)
  low_B = order_BxV.min(axis=-1)
  high_B = order_BxV.max(axis=-1)

  def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low_B, high_B = bounds
    middle_B = low_B + (high_B - low_B) // 2
    above_BxV = order_BxV > middle_B[:, None]
    above_B = jnp.where(above_BxV, p_BxV, 0.0).sum(axis=-1)
    enough_B = above_B < mass
    return (
      jnp.where(enough_B, low_B, middle_B + 1),
      jnp.where(enough_B, middle_B, high_B),
    )

  _, threshold_B = jax.lax.fori_loop(0, 32, halve, (low_B, high_B))
  return order_BxV >= threshold_B[:, None]


def _ordered_bits(x: Array) -> Array:
  """Returns uint32 in the order of the floats, with both zeros equal."""
  one_zero = jnp.where(x == 0, jnp.zeros_like(x), x)
  bits = jax.lax.bitcast_convert_type(one_zero, jnp.uint32)
  sign = jnp.uint32(0x80000000)
  return jnp.where(bits & sign, ~bits, bits | sign)
