"""Which tokens may be sampled: truncations, each a mask on logits_BxV.

A mask is True at the tokens that stay. It follows from the distribution alone:
tokens of equal logit are kept or dropped together, and the likeliest token of
a row (for `typical`, the most typical one) always stays. A logit of -inf is a
token of probability 0, which is how truncations follow one another.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.generate.settings import DecodeSettings


def top_k(logits_BxV: Array, k: int) -> Array:
  """The k >= 1 likeliest tokens (arXiv:1805.04833), and those that tie."""
  k = min(k, logits_BxV.shape[1])
  kth_B = jax.lax.top_k(logits_BxV, k)[0][:, -1]
  return logits_BxV >= kth_B[:, None]


def top_p(logits_BxV: Array, p: float) -> Array:
  """The smallest set of likeliest tokens of mass p (arXiv:1904.09751, eq. 2).

  A token stays if the tokens strictly likelier than it have less mass than p,
  which is in (0, 1].
  """
  return _least_mass(logits_BxV, jax.nn.softmax(logits_BxV, axis=-1), p)


def min_p(logits_BxV: Array, share: float) -> Array:
  """Tokens of at least `share` of the top probability (arXiv:2407.01082).

  The share is in [0, 1]; 0 keeps all.
  """
  below_BxV = logits_BxV - logits_BxV.max(axis=-1, keepdims=True)
  return below_BxV >= jnp.log(jnp.float32(share))


def typical(logits_BxV: Array, p: float) -> Array:
  """Locally typical tokens (arXiv:2202.00666, eq. 10).

  A token's distance from typical is |-log p(v) - H|, H the entropy in nats.
  It stays if the tokens strictly closer than it have less mass than p, which is
  in (0, 1].
  """
  log_p_BxV = jax.nn.log_softmax(logits_BxV, axis=-1)
  p_BxV = jnp.exp(log_p_BxV)
  # A token without probability has no share in the entropy, and is never kept.
  finite_BxV = jnp.where(p_BxV > 0, log_p_BxV, 0.0)
  entropy_B = -(p_BxV * finite_BxV).sum(axis=-1)
  closeness_BxV = -jnp.abs(log_p_BxV + entropy_B[:, None])
  return _least_mass(closeness_BxV, p_BxV, p)


def truncate(logits_BxV: Array, settings: DecodeSettings) -> Array:
  """Divides by the temperature, then truncates: -inf where dropped.

  The order is temperature, top_k, top_p, min_p, typical_p. Each works on what
  the one before has left, renormalised.
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

  Sorting a vocabulary takes longer than to halve the interval of the lowest
  rank kept 32 times, as often as there are bits in a rank.
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
  """uint32 in the order of the floats, -inf first; both zeros are one."""
  one_zero = jnp.where(x == 0, jnp.zeros_like(x), x)
  bits = jax.lax.bitcast_convert_type(one_zero, jnp.uint32)
  sign = jnp.uint32(0x80000000)
  return jnp.where(bits & sign, ~bits, bits | sign)
