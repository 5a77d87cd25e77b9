"""Losses of a few numbers of each token, `TokenStats`.

They run on the linear head without an array of the vocabulary's size. Each
takes the statistics (at temperature 1) and the weight of the token's type, by
which it is multiplied. Each raises ConfigError for a setting out of range. p is
the probability of the label y and l = -log p.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import stop_gradient

from pdl_jax.losses.checks import check_number, check_range, is_zero
from pdl_jax.losses.core import LossTerms, TokenStats
from pdl_jax.losses.cross_entropy import check_options
from pdl_jax.losses.registry import register


def cross_entropy_terms(
  stats: TokenStats,
  weight: Array,
  *,
  label_smoothing: Array | float = 0.0,
  z_loss: Array | float = 0.0,
) -> LossTerms:
  """Cross-entropy with label smoothing and z-loss, as `token_nll`.

    (1 - e) * (log Z - z_y) + e * (log Z - mean_v z_v) + c * (log Z)**2

  Args:
    label_smoothing: e in [0, 1); may be traced. A Python zero leaves no trace
      in the program.
    z_loss: c >= 0, likewise.
  """
  check_options(label_smoothing, z_loss, None, 'none', None)
  loss = stats.nll
  if not is_zero(label_smoothing):
    smooth = stats.log_z - stats.average
    loss = (1.0 - label_smoothing) * loss + label_smoothing * smooth
  if not is_zero(z_loss):
    loss = loss + z_loss * jnp.square(stats.log_z)
  return LossTerms(weight * loss, weight)


@register('focal')
def focal(
  stats: TokenStats, weight: Array, *, gamma: Array | float = 2.0
) -> LossTerms:
  """Focal loss, (1 - p) ** gamma * l (arXiv:1708.02002).

  The factor is part of what is differentiated.

  Args:
    gamma: >= 0; 0 is cross-entropy.
  """
  check_number('gamma', gamma)
  # Below gamma 1 the slope of the power is infinite at p = 1, where the true
  # gradient is 0; rounding can also leave l a little below 0.
  missing = jnp.maximum(-jnp.expm1(-stats.nll), jnp.finfo(jnp.float32).tiny)
  return LossTerms(weight * missing**gamma * stats.nll, weight)


@register('mile', wants=('expected',))
def mile(
  stats: TokenStats, weight: Array, *, gamma: Array | float = 1.0
) -> LossTerms:
  """MiLe, (1 + H) ** gamma * l, H the entropy of the prediction in nats.

  The factor is detached and joins the weight of the token, so that a weighted
  mean over the whole batch gives the factors the mean of 1 that the paper
  gives them (arXiv:2310.19531).

  Args:
    gamma: >= 0; 0 is cross-entropy.
  """
  check_number('gamma', gamma)
  weight = weight * (1.0 + stop_gradient(stats.entropy)) ** gamma
  return LossTerms(weight * stats.nll, weight)


@register('dft')
def dft(stats: TokenStats, weight: Array) -> LossTerms:
  """Dynamic fine-tuning, p * l with p detached (arXiv:2508.05629).

  It pulls away from rare tokens. The mean is over tokens, as published: p does
  not join the weight that a weighted mean divides by.
  """
  factor = stop_gradient(jnp.exp(-stats.nll))
  return LossTerms(weight * factor * stats.nll, weight)


@register('mixce')
def mixce(
  stats: TokenStats, weight: Array, *, eta: Array | float = 0.5
) -> LossTerms:
  """MixCE, (eta + (1 - eta) * p) * l with p detached (arXiv:2305.16958).

  Forward cross-entropy mixed with an approximation of the reverse one. The
  default is ours; the paper chooses eta by the data set.

  Args:
    eta: in [0, 1]; 1 is cross-entropy, 0 is `dft`.
  """
  check_range('eta', eta, 0, 1)
  factor = eta + (1.0 - eta) * stop_gradient(jnp.exp(-stats.nll))
  return LossTerms(weight * factor * stats.nll, weight)


@register('gem', wants=('expected',), temperature='beta')
def gem(
  stats: TokenStats, weight: Array, *, beta: Array | float = 0.7
) -> LossTerms:
  """GEM, sum_v q_v (log p_v - log p_y), q = softmax(z / beta) detached.

  The gradient with respect to the logits is q - onehot(y): that of
  cross-entropy, with a sharper distribution for beta < 1. The value may be
  negative. Source: arXiv:2408.16673, with a linear h.

  Args:
    stats: at temperature T = beta.
    beta: > 0; 1 has the gradient of cross-entropy.
  """
  check_range('beta', beta, 0, np.inf, closed_low=False, closed_high=False)
  # log Z of p drops out: the value is sum_v q_v z_v - z_y. Detached from q,
  # its gradient is that of beta * log Z of q.
  value = stop_gradient(stats.expected - stats.label)
  slope = beta * stats.log_z - stats.label
  return LossTerms(weight * (value + (slope - stop_gradient(slope))), weight)
