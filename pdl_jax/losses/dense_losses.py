"""Losses that read all logits of a token, or other tokens too.

Each takes logits_BxLxV of any float dtype (computed in fp32), labels_BxL in
[0, V), the context, and the weight of each token, which multiplies the loss.
For the rest see `token_losses`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from pdl_jax.losses.checks import check_number, check_range
from pdl_jax.losses.core import LossTerms
from pdl_jax.losses.cross_entropy import is_label, label_logit
from pdl_jax.losses.registry import register


class Context(NamedTuple):
  """What a loss on logits may read besides logits and labels.

  C is the length of a whole row; the L positions of the logits may be a part.

  Attributes:
    earlier_BxLxC: True where labels_BxC[:, c] is the first occurrence of its
      type among the targets strictly before position l; see `earlier_targets`.
    head_DxV: output matrix; the losses detach it.
  """

  labels_BxC: Array
  earlier_BxLxC: Array
  head_DxV: Array


def earlier_targets(
  labels_BxC: Array, where_BxC: Array, start: Array | int, length: int
) -> Array:
  """Marks the distinct types among earlier targets: earlier_BxLxC of `Context`.

  `where_BxC` is True at targets; other labels are not read. `start` and
  `length` select the L positions; `start` may be traced.
  """
  position_C = jnp.arange(labels_BxC.shape[1])
  before_CxC = position_C[None, :] < position_C[:, None]
  is_target_BxC = where_BxC.astype(bool)
  same_BxCxC = labels_BxC[:, :, None] == labels_BxC[:, None, :]
  repeat_BxC = (same_BxCxC & is_target_BxC[:, None] & before_CxC[None]).any(-1)
  first_BxC = is_target_BxC & ~repeat_BxC
  position_L = start + jnp.arange(length)
  past_LxC = position_C[None, :] < position_L[:, None]
  return first_BxC[:, None] & past_LxC[None]


@register('unlikelihood')
def unlikelihood(
  logits_BxLxV: Array,
  labels_BxL: Array,
  context: Context,
  weight_BxL: Array,
  *,
  alpha: Array | float = 1.0,
) -> LossTerms:
  """Token-level unlikelihood, l - alpha * sum_c log(1 - p(c)).

  c runs over the distinct types of earlier targets of the row, except y. As in
  published code, 1 - p has a floor of 1e-5, below which it has no gradient.
  alpha >= 0; 0 is cross-entropy. Source: arXiv:1908.04319.
  """
  check_number('alpha', alpha)
  logits_BxLxV = logits_BxLxV.astype(jnp.float32)
  log_z_BxL, nll_BxL = _nll(logits_BxLxV, labels_BxL)
  types_BxLxC, logits_BxLxC = _earlier_logits(logits_BxLxV, context)
  is_other_BxLxC = types_BxLxC != labels_BxL[..., None]
  is_wrong_BxLxC = context.earlier_BxLxC & is_other_BxLxC
  missing_BxLxC = -jnp.expm1(logits_BxLxC - log_z_BxL[..., None])
  penalty_BxLxC = -jnp.log(jnp.maximum(missing_BxLxC, 1e-5))
  penalty_BxL = jnp.where(is_wrong_BxLxC, penalty_BxLxC, 0.0).sum(axis=-1)
  return LossTerms(weight_BxL * (nll_BxL + alpha * penalty_BxL), weight_BxL)


@register('scale_grad')
def scale_grad(
  logits_BxLxV: Array,
  labels_BxL: Array,
  context: Context,
  weight_BxL: Array,
  *,
  gamma: Array | float = 0.5,
) -> LossTerms:
  """ScaleGrad, -log p~(y) with novel types scaled down by gamma.

    p~(v) = gamma p(v) / Z  if v is new to the earlier targets, else p(v) / Z
    Z     = gamma + (1 - gamma) * sum_{v not new} p(v)

  This is cross-entropy with log gamma added to the logits of novel types: the
  model must raise them to compensate. The gradient flows through Z. gamma is in
  (0, 1]; 1 is cross-entropy, and the default is in the paper's range
  (arXiv:2106.07207).
  """
  check_range('gamma', gamma, '(0, 1]')
  logits_BxLxV = logits_BxLxV.astype(jnp.float32)
  log_z_BxL, nll_BxL = _nll(logits_BxLxV, labels_BxL)
  types_BxLxC, logits_BxLxC = _earlier_logits(logits_BxLxV, context)
  # Each type occurs once in `earlier`, so no probability is added twice, and no
  # array of the vocabulary's size is needed.
  p_BxLxC = jnp.exp(logits_BxLxC - log_z_BxL[..., None])
  known_BxL = jnp.where(context.earlier_BxLxC, p_BxLxC, 0.0).sum(axis=-1)
  is_label_BxLxC = types_BxLxC == labels_BxL[..., None]
  is_known_BxL = (context.earlier_BxLxC & is_label_BxLxC).any(axis=-1)
  log_factor_BxL = jnp.where(is_known_BxL, 0.0, jnp.log(gamma))
  log_sum_BxL = jnp.log(gamma + (1.0 - gamma) * known_BxL)
  loss_BxL = nll_BxL - log_factor_BxL + log_sum_BxL
  return LossTerms(weight_BxL * loss_BxL, weight_BxL)


@register('emo')
def emo(
  logits_BxLxV: Array,
  labels_BxL: Array,
  context: Context,
  weight_BxL: Array,
) -> LossTerms:
  """Earth mover distance optimization, (l + r * D) / 2 with r = l / D detached.

    D = 1 - <E_y, sum_v q_v E_v> = sum_v q_v (1 - <E_y, E_v>),  q = softmax(z)

  E_v are the head's columns at unit length, detached. The published code takes
  E from the model before fine-tuning instead. The value is l; the gradient is
  half that of l and half that of D, scaled to the size of l. r divides by at
  least 1e-10, which the published code adds to D: at D = 0 the second half
  vanishes. Source: arXiv:2310.04691.
  """
  logits_BxLxV = logits_BxLxV.astype(jnp.float32)
  log_z_BxL, nll_BxL = _nll(logits_BxLxV, labels_BxL)
  cost_BxLxV = _costs(context.head_DxV, labels_BxL)
  q_BxLxV = jnp.exp(logits_BxLxV - log_z_BxL[..., None])
  distance_BxL = (q_BxLxV * cost_BxLxV).sum(axis=-1)
  ratio_BxL = stop_gradient(nll_BxL / jnp.maximum(distance_BxL, 1e-10))
  loss_BxL = 0.5 * (nll_BxL + ratio_BxL * distance_BxL)
  return LossTerms(weight_BxL * loss_BxL, weight_BxL)


def _costs(head_DxV: Array, labels_BxL: Array) -> Array:
  """Returns 1 - cosine of each label's and each type's column, detached.

  It is exactly 0 at the label and never negative. Near certainty D is then not
  the difference of two numbers near 1.
  """
  head_DxV = stop_gradient(head_DxV).astype(jnp.float32)
  length_V = jnp.linalg.norm(head_DxV, axis=0)
  tiny = jnp.finfo(jnp.float32).tiny
  unit_DxV = head_DxV / jnp.maximum(length_V, tiny)[None]
  cosine_BxLxV = jnp.einsum(
    'dbl,dv->blv', unit_DxV[:, labels_BxL], unit_DxV,
    preferred_element_type=jnp.float32,
  )
  cost_BxLxV = jnp.maximum(1.0 - cosine_BxLxV, 0.0)
  return jnp.where(is_label(cost_BxLxV, labels_BxL), 0.0, cost_BxLxV)


def _nll(logits_BxLxV: Array, labels_BxL: Array) -> tuple[Array, Array]:
  """Returns log Z and -log p(y) of fp32 logits."""
  log_z_BxL = jax.nn.logsumexp(logits_BxLxV, axis=-1)
  return log_z_BxL, log_z_BxL - label_logit(logits_BxLxV, labels_BxL)


def _earlier_logits(
  logits_BxLxV: Array, context: Context
) -> tuple[Array, Array]:
  """Returns types and logits of earlier targets; type 0 elsewhere."""
  labels_Bx1xC = context.labels_BxC[:, None].astype(jnp.int32)
  types_BxLxC = jnp.where(context.earlier_BxLxC, labels_Bx1xC, 0)
  return types_BxLxC, jnp.take_along_axis(logits_BxLxV, types_BxLxC, axis=-1)
