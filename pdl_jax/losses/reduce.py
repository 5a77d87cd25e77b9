"""From per-token terms to a number: the only place that divides."""

import jax.numpy as jnp
from jax import Array

from pdl_jax.errors import one_of
from pdl_jax.losses.checks import check_mask
from pdl_jax.losses.core import LossTerms, Sums

REDUCTIONS = ('weighted_mean', 'token_mean', 'sum')


def denominator(weight: Array, where: Array, reduction: str) -> Array:
  """What a reduction divides by, an fp32 scalar, over tokens that count.

  The sum of weights under 'weighted_mean', the number of tokens under
  'token_mean', and zero, which `divide` leaves alone, under 'sum' (the form
  printed in arXiv:2505.16900).
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
  """Numerator and denominator of a reduction, fp32 scalars.

  What stands where `where` is False reaches neither, even as NaN.
  """
  loss = terms.loss_BxL.astype(jnp.float32)
  if where is None:
    where = jnp.ones(loss.shape, bool)
  den = denominator(terms.weight_BxL, where, reduction)
  return Sums(jnp.where(where, loss, 0.0).sum(), den)


def divide(total: Sums) -> Array:
  """num / den; num itself where the denominator is zero.

  A denominator of zero means that nothing was there to be averaged (num is
  zero too) or that the reduction is a sum. Gradients stay finite either way.
  """
  counted = total.den > 0
  return total.num / jnp.where(counted, total.den, 1.0)
