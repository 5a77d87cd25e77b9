"""Losses of a few statistics per token, `TokenStats`.

On a linear head they need no array of the vocabulary's size. Each takes the
statistics (at temperature 1) and the weight of the token's type, which
multiplies the loss. Each raises ConfigError for a setting out of range.
Formulas use p, the probability of label y, and l = -log p.
"""

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from pdl_jax.losses.checks import check_number, check_range
from pdl_jax.losses.core import LossTerms, TokenStats
from pdl_jax.losses.registry import register


@register('focal')
def focal(
  stats: TokenStats, weight: Array, *, gamma: Array | float = 2.0
) -> LossTerms:
  """Focal loss, (1 - p) ** gamma * l (arXiv:1708.02002).

  The gradient flows through the factor too. gamma >= 0; 0 is cross-entropy.
  """
  check_number('gamma', gamma)
  # For gamma < 1 the power has infinite slope at p = 1, where the true gradient
  # is 0. Rounding can also leave l slightly below 0.
  missing = jnp.maximum(-jnp.expm1(-stats.nll), jnp.finfo(jnp.float32).tiny)
  return LossTerms(weight * missing**gamma * stats.nll, weight)


@register('mile', wants=('expected',))
def mile(
  stats: TokenStats, weight: Array, *, gamma: Array | float = 1.0
) -> LossTerms:
  """MiLe, (1 + H) ** gamma * l, with H the entropy of the prediction in nats.

  The detached factor joins the token's weight. A weighted mean over the whole
  batch thus gives the factors mean 1, as in the paper (arXiv:2310.19531).
  gamma >= 0; 0 is cross-entropy.
  """
  check_number('gamma', gamma)
  weight = weight * (1.0 + stop_gradient(stats.entropy)) ** gamma
  return LossTerms(weight * stats.nll, weight)


@register('dft')
def dft(stats: TokenStats, weight: Array) -> LossTerms:
  """Dynamic fine-tuning, p * l with p detached (arXiv:2508.05629).

  It pulls the model away from rare tokens. As published, the mean is over
  tokens: p does not join the weight that a weighted mean divides by.
  """
  factor = stop_gradient(jnp.exp(-stats.nll))
  return LossTerms(weight * factor * stats.nll, weight)


@register('mixce')
def mixce(
  stats: TokenStats, weight: Array, *, eta: Array | float = 0.5
) -> LossTerms:
  """MixCE, (eta + (1 - eta) * p) * l with p detached (arXiv:2305.16958).

  It mixes cross-entropy with an approximation of reverse cross-entropy. eta is
  in [0, 1]: 1 is cross-entropy, 0 is `dft`. The default is ours; the paper
  chooses eta per data set.
  """
  check_range('eta', eta, '[0, 1]')
  factor = eta + (1.0 - eta) * stop_gradient(jnp.exp(-stats.nll))
  return LossTerms(weight * factor * stats.nll, weight)


@register('gem', wants=('expected',), temperature='beta')
def gem(
  stats: TokenStats, weight: Array, *, beta: Array | float = 0.7
) -> LossTerms:
  """GEM, sum_v q_v (log p_v - log p_y), q = softmax(z / beta) detached.

  The gradient by the logits is q - onehot(y): that of cross-entropy, sharper
  for beta < 1. The value may be negative. beta > 0; `stats` are at T = beta.
  Source: arXiv:2408.16673, with a linear h.
  """
  check_range('beta', beta, '(0, inf)')
  # log Z of p cancels: the value is sum_v q_v z_v - z_y. With q detached, the
  # first term has the gradient of beta * log Z of q.
  value = stop_gradient(stats.expected - stats.label)
  slope = beta * stats.log_z - stats.label
  return LossTerms(weight * (value + (slope - stop_gradient(slope))), weight)
