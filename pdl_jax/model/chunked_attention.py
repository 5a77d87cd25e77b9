"""Causal attention in blocks: no array of queries x keys is made.

The softmax is computed online over blocks of keys (arXiv:2112.05682), and the
backward pass makes each block of scores again from log Z of its rows
(arXiv:2205.14135). It is plain JAX, for any device. Blocks that no query may
see, by order or by window, are left out.

Shapes within the module: G query heads share each of K key-value heads, and
lengths are padded to whole blocks of b.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.model.layers import keep

BLOCK = 256
_LOWEST = float(jnp.finfo(jnp.float32).min)


class Rule(NamedTuple):
  """How scores are made: softcap tanh(scale q k / softcap), in blocks."""

  scale: float
  softcap: float | None
  block: int


class Seen(NamedTuple):
  """What a query sees of the keys up to its own.

  Attributes:
    segments_BxL: those of its own segment.
    window: the last so many, int32 scalar; None means all.
    bias_HxL: added to the scores of a key, without a gradient; or None.
  """

  segments_BxL: Array
  window: Array | None = None
  bias_HxL: Array | None = None


class _Block(NamedTuple):
  """Scores of a block of queries and a block of keys, and d capped / d raw."""

  scores_BxKxGxbxb: Array
  slope: Array | None


def attend(
  q_BxLxHxDh: Array,
  k_BxLxKxDh: Array,
  v_BxLxKxDh: Array,
  seen: Seen,
  rule: Rule,
) -> Array:
  """Returns softmax(scale q k + bias) v, [B, L, H, Dh].

  The softmax is fp32; the result has the dtype of the values. Memory is
  B x H x block^2 beside arrays of the size of the arguments.
  """
  batch, length, heads, width = q_BxLxHxDh.shape
  groups, whole = k_BxLxKxDh.shape[2], length + -length % rule.block

  def filled(x: Array, axis: int, value: int = 0) -> Array:
    room = [(0, 0)] * x.ndim
    room[axis] = (0, whole - length)
    return jnp.pad(x, room, constant_values=value)

  def heads_first(x: Array) -> Array:
    return filled(x, 1).swapaxes(1, 2)

  bias = seen.bias_HxL
  if bias is not None:
    bias = filled(bias, 1).reshape(groups, -1, whole)
  padded = Seen(filled(seen.segments_BxL, 1, -1), seen.window, bias)
  q = heads_first(q_BxLxHxDh).reshape(batch, groups, -1, whole, width)
  k, v = heads_first(k_BxLxKxDh), heads_first(v_BxLxKxDh)
  out: Any = _attend(rule, q, k, v, padded)
  out = out.reshape(batch, heads, whole, width)
  return out[:, :, :length].swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: Rule, q: Array, k: Array, v: Array, seen: Seen) -> Array:
  return _forward(rule, q, k, v, seen)[0]


def _forward(
  rule: Rule, q: Array, k: Array, v: Array, seen: Seen
) -> tuple[Array, Array]:
  """Returns the mix of values [B, K, G, L, Dh] and log Z [B, K, G, L]."""

  def row(i: Array) -> tuple[Array, Array]:
    q_i = _at(rule, q, i, 3)

    def add(j: Array, carry: tuple) -> tuple:
      out, highest, total = carry
      scores, _ = _scores(rule, q_i, _at(rule, k, j, 2), seen, i, j)
      higher = jnp.maximum(highest, scores.max(-1))
      share = jnp.exp(scores - higher[..., None])
      keep = jnp.exp(highest - higher)
      mixed = _product(
        'bkgqs,bksd->bkgqd', share.astype(v.dtype), _at(rule, v, j, 2)
      )
      out = out * keep[..., None] + mixed
      return out, higher, total * keep + share.sum(-1)

    zero = jnp.zeros(q_i.shape, jnp.float32)
    start = zero, jnp.full(zero.shape[:-1], _LOWEST), zero[..., 0]
    out, highest, total = jax.lax.fori_loop(
      _first(rule, seen, i), i + 1, add, start
    )
    return (out / total[..., None]).astype(v.dtype), highest + jnp.log(total)

  blocks = jnp.arange(q.shape[3] // rule.block)
  out, log_z = jax.lax.map(row, blocks)
  return _joined(out), _joined(log_z)


def _saved(
  rule: Rule, q: Array, k: Array, v: Array, seen: Seen
) -> tuple[Array, tuple]:
  out, log_z = map(keep, _forward(rule, q, k, v, seen))
  return out, (q, k, v, seen, out, log_z)


def _backward(rule: Rule, kept: tuple, g: Array) -> tuple:
  q, k, v, seen, out, log_z = kept
  # Sum over the keys of p dp, from the output instead.
  mean = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)

  def row(sums: tuple, i: Array) -> tuple[tuple, Array]:
    q_i, g_i = _at(rule, q, i, 3), _at(rule, g, i, 3)
    log_z_i, mean_i = _at(rule, log_z, i, 3), _at(rule, mean, i, 3)

    def add(j: Array, carry: tuple) -> tuple:
      d_q, d_k, d_v = carry
      k_j, v_j = _at(rule, k, j, 2), _at(rule, v, j, 2)
      scores, slope = _scores(rule, q_i, k_j, seen, i, j)
      share = jnp.exp(scores - log_z_i[..., None])
      d_share = _product('bkgqd,bksd->bkgqs', g_i, v_j)
      d_scores = share * (d_share - mean_i[..., None]) * rule.scale
      if slope is not None:
        d_scores *= slope
      d_scores = d_scores.astype(q.dtype)
      d_k_j = _product('bkgqs,bkgqd->bksd', d_scores, q_i)
      d_v_j = _product('bkgqs,bkgqd->bksd', share.astype(g.dtype), g_i)
      return (
        d_q + _product('bkgqs,bksd->bkgqd', d_scores, k_j),
        _added(rule, d_k, d_k_j, j), _added(rule, d_v, d_v_j, j),
      )  # fmt: skip

    start = jnp.zeros(q_i.shape, jnp.float32), *sums
    d_q, d_k, d_v = jax.lax.fori_loop(
      _first(rule, seen, i), i + 1, add, start
    )
    return (d_k, d_v), d_q.astype(q.dtype)

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  blocks = jnp.arange(q.shape[3] // rule.block)
  (d_k, d_v), d_q = jax.lax.scan(row, zeros, blocks)
  return _joined(d_q), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_saved, _backward)


def _scores(
  rule: Rule, q: Array, k: Array, seen: Seen, i: Array, j: Array
) -> _Block:
  """Scores block i of the queries and block j of the keys."""
  scores, slope = _product('bkgqd,bksd->bkgqs', q, k) * rule.scale, None
  if rule.softcap is not None:
    bent = jnp.tanh(scores / rule.softcap)
    scores, slope = rule.softcap * bent, 1 - bent * bent
  if seen.bias_HxL is not None:
    scores += _at(rule, seen.bias_HxL, j, 2)[None, :, :, None, :]
  places = jnp.arange(rule.block)
  back = (i - j) * rule.block + places[:, None] - places[None]
  near = back >= 0
  if seen.window is not None:
    near &= back < seen.window
  own, others = (_at(rule, seen.segments_BxL, n, 1) for n in (i, j))
  mask = (own[:, :, None] == others[:, None]) & near[None]
  masked = jnp.where(mask[:, None, None], scores, _LOWEST)
  return _Block(masked, slope)


def _product(subscripts: str, *x: Array) -> Array:
  return jnp.einsum(subscripts, *x, preferred_element_type=jnp.float32)


def _first(rule: Rule, seen: Seen, i: Array) -> Array:
  """The first block of keys that a query of block i may see."""
  if seen.window is None:
    return jnp.zeros_like(i)
  return jnp.maximum(i * rule.block - seen.window + 1, 0) // rule.block


def _at(rule: Rule, x: Array, index: Array, axis: int) -> Array:
  start = index * rule.block
  return jax.lax.dynamic_slice_in_dim(x, start, rule.block, axis)


def _added(rule: Rule, x: Array, part: Array, index: Array) -> Array:
  total, start = _at(rule, x, index, 2) + part, index * rule.block
  return jax.lax.dynamic_update_slice_in_dim(x, total, start, 2)


def _joined(x: Array) -> Array:
  """[blocks, B, K, G, b, ...] -> [B, K, G, L, ...]."""
  x = jnp.moveaxis(x, 0, 3)
  return x.reshape(*x.shape[:3], -1, *x.shape[5:])
