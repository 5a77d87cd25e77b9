"""Reduces per-token terms to a number; only this module divides."""

import jax.numpy as jnp
from jax import Array

from pdl_jax.errors import one_of
from pdl_jax.losses.checks import check_mask
from pdl_jax.losses.core import LossTerms, Sums

REDUCTIONS = ('weighted_mean', 'token_mean', 'sum')


def denominator(weight: Array, where: Array, reduction: str) -> Array:
  """Returns the denominator of a reduction over tokens that count, fp32 scalar.

  It is the sum of weights ('weighted_mean'), the number of tokens
  ('token_mean'), or zero for `divide` to ignore ('sum', as printed in
  arXiv:2505.16900).
  """
  one_of('reduction', reduction, REDUCTIONS)
  check_mask(where)
  if reduction == 'sum':
    return jnp.zeros((), jnp.float32)
  by_token = weight if reduction == 'weighted_mean' else jnp.ones_like(weight)
  return jnp.where(where, by_token.astype(jnp.float32), 0.0).sum()


def sums(
  terms: LossTerms,
  where: Array | None = None,
  reduction: str = 'weighted_mean',
) -> Sums:
  """Returns numerator and denominator of a reduction, fp32 scalars.

  Values where `where` is False reach neither, even NaN.
  """
  loss = terms.loss_BxL.astype(jnp.float32)
  if where is None:
    where = jnp.ones(loss.shape, bool)
  den = denominator(terms.weight_BxL, where, reduction)
  return Sums(jnp.where(where, loss, 0.0).sum(), den)


def divide(total: Sums) -> Array:
  """Returns num / den, or num where the denominator is zero.

  A zero denominator means that no token counts (num is zero too) or that the
  reduction is a sum. Gradients stay finite either way.
  """
  counted = total.den > 0
  return total.num / jnp.where(counted, total.den, 1.0)
