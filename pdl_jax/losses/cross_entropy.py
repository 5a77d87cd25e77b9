"""Cross-entropy of labels under logits, plain or weighted by token type."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.losses.checks import (
  check_array,
  check_floats,
  check_number,
  check_positive,
  check_range,
  is_zero,
  read_labels,
)
from pdl_jax.losses.core import LossTerms, Sums, TokenStats
from pdl_jax.losses.reduce import REDUCTIONS, divide, sums


def is_label(logits: Array, labels: Array) -> Array:
  """Returns one-hot labels in the shape of the logits, [..., V].

  iota == label, rather than a gather, partitions over a sharded vocabulary
  without collecting the logits. The iota is int32, because the labels' own
  dtype may be too narrow for the vocabulary.
  """
  iota = jax.lax.broadcasted_iota(jnp.int32, logits.shape, labels.ndim)
  return iota == labels[..., None]


def label_logit(logits: Array, labels: Array) -> Array:
  """Returns the logit z_y of each label, [...]."""
  return jnp.where(is_label(logits, labels), logits, 0.0).sum(axis=-1)


def token_nll(logits: Array, labels: Array) -> Array:
  """Returns -log p of each label in nats, fp32. Labels must be in [0, V)."""
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  return log_z - label_logit(logits, labels)


def cross_entropy_terms(
  stats: TokenStats,
  weight: Array,
  *,
  label_smoothing: Array | float = 0.0,
  z_loss: Array | float = 0.0,
) -> LossTerms:
  """Weighted cross-entropy with label smoothing e and z-loss coefficient c.

    l = (1 - e) * (log Z - z_y) + e * (log Z - mean_v z_v) + c * (log Z)**2

  e: Szegedy et al. 2016; c: PaLM, arXiv:2204.02311, section 5 (1e-4 is usual).
  Both may be traced. A Python zero leaves no trace in the program; without e,
  `stats.average` is not read.
  """
  check_options(label_smoothing, z_loss)
  loss = stats.nll
  if not is_zero(label_smoothing):
    smooth = stats.log_z - stats.average
    loss = (1.0 - label_smoothing) * loss + label_smoothing * smooth
  if not is_zero(z_loss):
    loss = loss + z_loss * jnp.square(stats.log_z)
  return LossTerms(weight * loss, weight)


def check_options(
  label_smoothing: Array | float,
  z_loss: Array | float,
  reduction: str = 'none',
  denominator: Array | float | None = None,
) -> None:
  """Refuses options out of range and a denominator that is not used."""
  check_range('label_smoothing', label_smoothing, '[0, 1)')
  check_range('z_loss', z_loss, '[0, inf)')
  one_of('reduction', reduction, (*REDUCTIONS, 'none', 'sums'))
  if denominator is None:
    return
  if reduction in ('none', 'sums'):
    raise ConfigError(
      f'reduction {reduction!r} divides by nothing; leave out the denominator'
    )
  check_number('denominator', denominator)


def pdl_loss(
  logits: Array,
  labels: Array,
  weights_V: Array | None,
  *,
  where: Array | None = None,
  reduction: str = 'weighted_mean',
  denominator: Array | float | None = None,
  label_smoothing: Array | float = 0.0,
  z_loss: Array | float = 0.0,
  softcap: float | None = None,
  ignore_index: int | None = -100,
) -> Any:
  """Power-Law Decay Loss, or any cross-entropy weighted by token type.

  The gradient by a logit row is w(y) * (softmax - onehot(y)), divided by the
  denominator.

  Args:
    logits: [..., V], any float dtype; computed in fp32.
    labels: [...], integers in [0, V) wherever a token counts. Any other label
      makes value and gradient NaN inside `jax.jit`, and is an error outside.
    weights_V: [V], from `power_law_weights`; None gives cross-entropy.
    where: [...], True at tokens that count (targets); None counts all. Masked
      tokens reach neither loss nor gradient, even if their logits are NaN.
    reduction: 'weighted_mean' sum(w l) / sum(w); 'token_mean' sum(w l) / n;
      'sum' sum(w l), as in the paper; 'none' w l per token; 'sums' the pair
      (sum(w l), sum(w)), to be added over micro-batches and divided once.
    denominator: replaces that of the reduction, e.g. with the sum of weights
      of the global batch.
    label_smoothing, z_loss: in [0, 1) and >= 0; see `cross_entropy_terms`.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2); > 0.
    ignore_index: label that also masks its token; None: no such label.

  Returns:
    fp32: a scalar, an array in the labels' shape, or Sums. If every token is
    masked, value and gradients are 0.

  Raises:
    ConfigError: labels out of range (outside jit), arrays of the wrong shape
      or type, an unknown reduction, or an option out of range.
  """
  check_options(label_smoothing, z_loss, reduction, denominator)
  check_positive('softcap', softcap, or_none=True)
  check_floats(logits=logits)
  check_array('labels', labels, jnp.integer, 'integers')
  if labels.shape != logits.shape[:-1] or not logits.shape:
    raise ConfigError(
      f'labels have shape {labels.shape}, the logits {logits.shape}; give one '
      f'integer for each row of logits, {logits.shape[:-1]}'
    )
  labels, where = read_labels(labels, where, logits.shape[-1], ignore_index)
  if where is not None:
    # Mask the logits, not the loss: behind a mask on the loss, a NaN would
    # still reach the gradient.
    logits = jnp.where(where[..., None], logits, 0.0)
  logits = logits.astype(jnp.float32)
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  label = label_logit(logits, labels)
  average = log_z if is_zero(label_smoothing) else logits.mean(axis=-1)
  stats = TokenStats(log_z, label, average, expected=log_z, argmax=labels)
  weight = token_weights(weights_V, labels, logits.shape[-1])
  terms = cross_entropy_terms(
    stats, weight, label_smoothing=label_smoothing, z_loss=z_loss
  )
  return finish(terms, where, reduction, denominator)


def cross_entropy(logits: Array, labels: Array, **options: Any) -> Any:
  """Cross-entropy: `pdl_loss` with all weights 1; takes the same options."""
  return pdl_loss(logits, labels, None, **options)


def token_weights(weights_V: Array | None, labels: Array, size: int) -> Array:
  """Returns the weight w(y) of each token, fp32; ones without a table.

  A label outside [0, size) gives NaN, which makes the loss of its token NaN.
  """
  if weights_V is None:
    weights_V = jnp.ones(size, jnp.float32)
  check_array('weights_V', weights_V, jnp.number, 'numbers >= 0')
  if weights_V.shape != (size,):
    raise ConfigError(
      f'the weight table has shape {weights_V.shape}, the vocabulary has '
      f'{size} types; count with the tokenizer that the model uses'
    )
  if not isinstance(weights_V, Tracer):
    known = np.asarray(weights_V, np.float32)
    bad = int((~np.isfinite(known) | (known < 0)).sum())
    if bad:
      raise ConfigError(
        f'the weight table must have finite numbers >= 0; {bad} of its {size} '
        'are negative or non-finite'
      )
  # The compiler must not treat a constant table (such as ones) differently:
  # alpha 0 is cross-entropy bit for bit.
  table_V = jax.lax.optimization_barrier(weights_V.astype(jnp.float32))
  placed = jax.typeof(labels).sharding
  explicit = AxisType.Explicit in placed.mesh.axis_types
  return table_V.at[labels].get(
    out_sharding=placed if explicit else None, mode='fill', fill_value=jnp.nan,
    wrap_negative_indices=False,
  )


def finish(
  terms: LossTerms,
  where: Array | None,
  reduction: str,
  denominator: Array | float | None,
) -> Array | Sums:
  """Returns the loss per token ('none'), Sums ('sums'), or one number."""
  if reduction == 'none':
    loss, _ = terms
    return loss if where is None else jnp.where(where, loss, 0.0)
  if reduction == 'sums':
    return sums(terms, where)
  total = sums(terms, where, reduction)
  if denominator is not None:
    total = Sums(total.num, jnp.asarray(denominator, jnp.float32))
  return divide(total)
