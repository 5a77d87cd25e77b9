"""Weighted cross-entropy of a linear head, without the [N, V] logits.

The head's matmul, the softmax and the gradient are taken over chunks of the
length axis, so that one chunk of logits is alive at a time. The scalar forms
compute the gradient in the forward pass, 6NDV floating-point operations in
all rather than the 8NDV of recomputing: legal because the weight of a token
is known before its logits are.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.losses.cross_entropy import (
  check_labels,
  token_nll,
  token_weights,
)
from pdl_jax.losses.reduce import denominator
from pdl_jax.losses.terms import Sums
from pdl_jax.sharding import constrain

# Logits alive at once, in elements a chunk; 2**24 fp32 numbers are 64 MB.
CHUNK_ELEMENTS = 2**24


def linear_token_nll(
  hidden_BxLxD: Array, head_DxV: Array, labels_BxL: Array
) -> Array:
  """Unweighted loss of each label, in nats: for evaluation, no gradient.

  Args:
    hidden_BxLxD: last hidden states, any float dtype.
    head_DxV: output matrix; logits are hidden @ head, in fp32.
    labels_BxL: in [0, V); what a masked position holds does not matter as
      long as it is in range.

  Returns:
    nll_BxL, fp32.
  """

  def chunk_nll(_: None, chunk: tuple[Array, Array]) -> tuple[None, Array]:
    hidden, labels = chunk
    return None, token_nll(_logits(hidden, head_DxV), labels)

  chunks = (hidden_BxLxD, labels_BxL)
  length = labels_BxL.shape[1]
  split = partial(_chunks, count=_chunk_count(labels_BxL, head_DxV))
  _, nll = jax.lax.scan(chunk_nll, None, jax.tree.map(split, chunks))
  return jnp.moveaxis(nll, 0, 1).reshape(labels_BxL.shape[0], -1)[:, :length]


def linear_weighted_sums(
  hidden_BxLxD: Array,
  head_DxV: Array,
  labels_BxL: Array,
  weights_V: Array,
  where_BxL: Array,
  reduction: str = 'weighted_mean',
) -> tuple[Sums, Sums]:
  """Sums of the weighted and of the plain cross-entropy of a linear head.

  Args:
    hidden_BxLxD: last hidden states, any float dtype.
    head_DxV: output matrix; logits are hidden @ head, in fp32.
    labels_BxL: in [0, V).
    weights_V: >= 0, of each token type; ones is cross-entropy.
    where_BxL: True at targets; the hidden states of other tokens may be
      anything, NaN included.
    reduction: whose denominator to return, see `reduce.denominator`.

  Returns:
    weighted: Sums(sum w l, denominator); num is differentiable in hidden and
      head.
    plain: Sums(sum l, n); its gradient is zero, it is there to be watched.

  Raises:
    ConfigError: for labels out of range (outside jit), a table that does not
      fit the vocabulary, or an unknown reduction.
  """
  check_labels(labels_BxL, head_DxV.shape[1], where_BxL)
  hidden_BxLxD = jnp.where(where_BxL[..., None], hidden_BxLxD, 0)
  labels_BxL = jnp.where(where_BxL, labels_BxL, 0)
  weight = token_weights(weights_V, labels_BxL, head_DxV.shape[1])
  num, plain = _weighted_nll(
    hidden_BxLxD, head_DxV, labels_BxL, weight, where_BxL
  )
  ones = jnp.ones_like(weight)
  return (
    Sums(num, denominator(weight, where_BxL, reduction)),
    Sums(plain, denominator(ones, where_BxL, 'token_mean')),
  )


@jax.custom_vjp
def _weighted_nll(
  hidden: Array, head: Array, labels: Array, weight: Array, where: Array
) -> tuple[Array, Array]:
  nll = linear_token_nll(hidden, head, labels)
  nll = jnp.where(where, nll, 0.0)
  return (weight * nll).sum(), nll.sum()


def _forward(
  hidden: Array, head: Array, labels: Array, weight: Array, where: Array
) -> tuple[tuple[Array, Array], tuple]:
  def step(carry: tuple, chunk: tuple[Array, ...]) -> tuple:
    num, plain, d_head = carry
    hidden, labels, weight, where = chunk
    weight = jnp.where(where, weight, 0.0)
    logits = _logits(hidden, head)
    log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    iota = jax.lax.broadcasted_iota(jnp.int32, logits.shape, labels.ndim)
    is_label = iota == labels[..., None]
    nll = log_z[..., 0] - jnp.where(is_label, logits, 0.0).sum(axis=-1)
    # Gradient of w * nll; the one-hot is subtracted in fp32.
    d_logits = weight[..., None] * (jnp.exp(logits - log_z) - is_label)
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = jnp.einsum('blv,dv->bld', d_logits, head)
    d_head += jnp.einsum(
      'bld,blv->dv', hidden, d_logits, preferred_element_type=jnp.float32
    )
    num += (weight * nll).sum()
    plain += jnp.where(where, nll, 0.0).sum()
    return (num, plain, d_head), d_hidden

  count = _chunk_count(labels, head)
  chunks = jax.tree.map(
    partial(_chunks, count=count), (hidden, labels, weight, where)
  )
  zero = jnp.zeros((), jnp.float32)
  start = (zero, zero, jnp.zeros(head.shape, jnp.float32))
  (num, plain, d_head), d_hidden = jax.lax.scan(step, start, chunks)
  batch, length, width = hidden.shape
  d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(batch, -1, width)
  d_hidden = d_hidden[:, :length]
  # Empty arrays carry the dtypes to the backward pass.
  like = (jnp.zeros(0, hidden.dtype), jnp.zeros(0, head.dtype))
  return (num, plain), (d_hidden, d_head, like)


def _backward(residuals: tuple, cotangents: tuple[Array, Array]) -> tuple:
  d_hidden, d_head, (like_hidden, like_head) = residuals
  d_num, _ = cotangents
  return (
    (d_num * d_hidden).astype(like_hidden.dtype),
    (d_num * d_head).astype(like_head.dtype),
    None,
    None,
    None,
  )


_weighted_nll.defvjp(_forward, _backward)


def _logits(hidden_BxLxD: Array, head_DxV: Array) -> Array:
  logits = jnp.einsum(
    'bld,dv->blv', hidden_BxLxD, head_DxV,
    preferred_element_type=jnp.float32,
  )
  return constrain(logits, 'batch', 'length', 'vocab')


def _chunk_count(labels_BxL: Array, head_DxV: Array) -> int:
  """Chunks of the length axis that keep the logits within the budget."""
  batch, length = labels_BxL.shape
  per_position = batch * head_DxV.shape[1]
  size = max(1, min(length, CHUNK_ELEMENTS // per_position))
  return -(-length // size)


def _chunks(x: Array, count: int) -> Array:
  """[B, L, ...] to [count, B, L / count, ...], zero-padded at the end."""
  batch, length = x.shape[:2]
  size = -(-length // count)
  padding = [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2)
  x = jnp.pad(x, padding).reshape(batch, count, size, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)
