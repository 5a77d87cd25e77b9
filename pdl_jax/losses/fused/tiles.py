"""Tiles of a linear head's logits, their statistics and gradients, on a device.

A tile is `Plan.tokens` rows by `Plan.block` columns of the vocabulary. An
online logsumexp takes the statistics of a group of rows tile by tile, without
an [N, V] array. Under `jax.shard_map` a device holds a slice of the
vocabulary; statistics are combined over the axis that splits it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses.core import TokenStats
from pdl_jax.losses.fused.plan import Gradients, Plan

_LOWEST = float(jnp.finfo(jnp.float32).min)


class Matrix(NamedTuple):
  """Output matrix, [D, V] or transposed, and the bias of its columns."""

  matrix: Any
  bias_V: Any


class Tokens(NamedTuple):
  """Tokens to score, one per row; masked hidden states are 0."""

  hidden_NxD: Any
  labels_N: Any
  weight_N: Any
  where_N: Any


def alike(tree: Any, like: Any = ()) -> Any:
  """Makes all arrays vary over the same axes of a caller's `jax.shard_map`.

  These are the axes of the tree and of `like`. JAX requires this of a loop's
  carry. Outside such a `shard_map` nothing changes.
  """

  def axes(x: Any) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying

  every = frozenset().union(*map(axes, jax.tree.leaves((tree, like))))

  def cast(x: Any) -> Any:
    missing = tuple(sorted(every - axes(x)))
    return lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(cast, tree)


class Block(NamedTuple):
  """Place of a tile in the vocabulary.

  Attributes:
    start: first column in the slice; the last tile is moved left to fit.
    ids: type of each column, in the whole vocabulary.
    mine: columns that this tile answers for; None means all.
  """

  start: Array
  ids: Array
  mine: Array | None


def block_at(plan: Plan, number: Array) -> Block:
  """Returns the place of a tile, numbered from the left."""
  wanted = number * plan.block
  start = jnp.minimum(wanted, plan.width - plan.block)
  columns = start + lax.iota(jnp.int32, plan.block)
  ids = columns
  if plan.axes.vocab is not None:
    ids = columns + lax.axis_index(plan.axes.vocab) * plan.width
  mine = None
  if plan.ragged:
    mine = (columns >= wanted) & (ids < plan.types)
  return Block(start, ids, mine)


def _columns(plan: Plan, matrix: Matrix, block: Block) -> Array:
  """Returns the tile's columns of the output matrix; rows if transposed."""
  return lax.dynamic_slice_in_dim(
    matrix.matrix, block.start, plan.block, axis=plan.vocab_dim
  )


def _bias(plan: Plan, matrix: Matrix, block: Block) -> Array:
  """Returns the tile's bias, fp32, to add to logits; 0 without a bias."""
  if matrix.bias_V is None:
    return jnp.zeros((), jnp.float32)
  part = lax.dynamic_slice_in_dim(matrix.bias_V, block.start, plan.block)
  return part.astype(jnp.float32)[None]


def logits_of(
  plan: Plan, matrix: Matrix, hidden_nxD: Array, block: Block
) -> Array:
  """Returns fp32 logits of a tile; -inf in columns that are not the tile's."""
  logits = lax.dot_general(
    hidden_nxD, _columns(plan, matrix, block),
    (((1,), (1 - plan.vocab_dim,)), ((), ())),
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  if plan.softcap is not None:
    logits = plan.softcap * jnp.tanh(logits / plan.softcap)
  logits = logits + _bias(plan, matrix, block)
  if block.mine is not None:
    logits = jnp.where(block.mine[None], logits, -jnp.inf)
  return logits


def _is_label(block: Block, labels_n: Array) -> Array:
  """Returns one-hot labels of the tile; iota == label needs no gather."""
  hit = block.ids[None] == labels_n[:, None]
  return hit if block.mine is None else hit & block.mine[None]


class _Online(NamedTuple):
  """Running statistics of a group of rows, over the tiles seen so far."""

  max_logit: Array
  sum_exp: Array  # sum exp((z - max_logit) / T)
  label: Array
  total: Array  # sum z
  moment: Array  # sum z exp((z - max_logit) / T)
  argmax: Array


def _update(
  plan: Plan, seen: _Online, logits: Array, block: Block, labels_n: Array
) -> tuple[_Online, Array]:
  """Adds one tile; also returns exp((z - max_logit) / T) of its logits."""
  wants, temperature = plan.wants, plan.temperature
  inside = logits
  if block.mine is not None and {'average', 'expected'} & {*wants}:
    inside = jnp.where(block.mine[None], logits, 0.0)
  largest = logits.max(axis=1)
  max_logit = jnp.maximum(seen.max_logit, largest)
  fading = plan.exp((seen.max_logit - max_logit) / temperature)
  powers = plan.exp((logits - max_logit[:, None]) / temperature)
  label = jnp.where(_is_label(block, labels_n), logits, 0.0).sum(axis=1)
  total, moment, argmax = seen.total, seen.moment, seen.argmax
  if 'average' in wants:
    total = total + inside.sum(axis=1)
  if 'expected' in wants:
    moment = moment * fading + (inside * powers).sum(axis=1)
  if 'argmax' in wants:
    best = block.ids[jnp.argmax(logits, axis=1)]
    argmax = jnp.where(largest > seen.max_logit, best, argmax)
  return _Online(
    max_logit, seen.sum_exp * fading + powers.sum(axis=1), seen.label + label,
    total, moment, argmax,
  ), powers  # fmt: skip


class Scale(NamedTuple):
  """softmax(z / T) = exp((z - max_logit) / T) / sum_exp, per token.

  Both are kept instead of log Z. Peaked logits have a large log Z, and
  exp(z - log Z) would spread its rounding over the whole row.
  """

  max_logit: Array
  sum_exp: Array


def _finish(plan: Plan, seen: _Online) -> tuple[TokenStats, Scale]:
  max_logit, sum_exp, label, total, moment, argmax = seen
  axis, temperature = plan.axes.vocab, plan.temperature
  if axis is not None:
    max_logit = lax.pmax(seen.max_logit, axis)
    fading = plan.exp((seen.max_logit - max_logit) / temperature)
    sums = jnp.stack([sum_exp * fading, label, total, moment * fading])
    sum_exp, label, total, moment = lax.psum(sums, axis)
    if 'argmax' in plan.wants:
      is_best = seen.max_logit == max_logit
      first = jnp.where(is_best, argmax, jnp.iinfo(jnp.int32).max)
      argmax = lax.pmin(first, axis)
  log_z = max_logit / temperature + plan.log(sum_exp)
  average, expected = total / plan.types, moment / sum_exp
  stats = TokenStats(log_z, label, average, expected, argmax)
  return stats, Scale(max_logit, sum_exp)


class Residuals(NamedTuple):
  """What gives the softmax of each tile in a group of rows.

  Attributes:
    powers: [blocks, rows, block], exp((z - max_logit) / T) with the largest
      logit so far; or the logits, which a soft cap needs again.
    max_logits: [blocks, rows], the largest logits so far.
  """

  powers: Array
  max_logits: Array

  def write(self, number: Array, *tile: Array) -> 'Residuals':
    """Stores both for one tile of a group of rows."""
    return Residuals(*(
      lax.dynamic_update_slice(x, new[None], (number, *(0,) * new.ndim))
      for x, new in zip(self, tile, strict=True)
    ))  # fmt: skip

  def read(self, number: Array, rows: int) -> list[Array]:
    """Returns both for one tile of a group of rows."""
    return [
      lax.dynamic_slice(x, (number, 0, 0)[: x.ndim], (1, rows, *x.shape[2:]))[0]
      for x in self
    ]


def stats_of_rows(
  plan: Plan, matrix: Matrix, part: Tokens, residuals: Residuals | None = None
) -> tuple[TokenStats, Scale, Residuals | None]:
  """Returns statistics of one group of rows; overwrites `residuals`, if any."""
  zero = jnp.zeros(part.labels_N.size, jnp.float32)
  argmax = jnp.zeros(part.labels_N.size, jnp.int32)
  start = _Online(zero + _LOWEST, zero, zero, zero, zero, argmax)

  def step(number: Array, carry: tuple) -> tuple:
    seen, residuals = carry
    block = block_at(plan, number)
    logits = logits_of(plan, matrix, part.hidden_NxD, block)
    seen, powers = _update(plan, seen, logits, block, part.labels_N)
    if residuals is not None:
      keep = powers if plan.softcap is None else logits
      residuals = residuals.write(number, keep, seen.max_logit)
    return seen, residuals

  carry = alike(start, part.hidden_NxD), residuals
  seen, residuals = lax.fori_loop(0, plan.blocks, step, carry)
  return *_finish(plan, seen), residuals


class StatCotangents(NamedTuple):
  """Derivatives of the loss by the differentiable statistics, per token."""

  log_z: Array
  label: Array
  average: Array


def tile_gradient(
  plan: Plan,
  matrix: Matrix,
  block: Block,
  part: Tokens,
  softmax: Array,
  logits: Array,
  stat_cotangents: StatCotangents,
) -> Gradients:
  """Returns one tile's share of each gradient, fp32.

  `softmax` comes multiplied by the cotangent of log Z and divided by T.
  `logits` are read only under a soft cap.
  """
  # The one-hot is subtracted in fp32, before any cast.
  label = _is_label(block, part.labels_N)
  outer = softmax + jnp.where(label, stat_cotangents.label[:, None], 0.0)
  if 'average' in plan.wants:
    uniform = stat_cotangents.average[:, None] / plan.types
    if block.mine is not None:
      uniform = jnp.where(block.mine[None], uniform, 0.0)
    outer = outer + uniform
  inner = outer
  if plan.softcap is not None:
    # Columns of other tiles, or with bias -inf, have no share.
    capped = (logits - _bias(plan, matrix, block)) / plan.softcap
    capped = jnp.where(jnp.isfinite(logits), capped, 0.0)
    inner = outer * (1.0 - jnp.square(capped))
  narrow = inner.astype(part.hidden_NxD.dtype)
  columns = _columns(plan, matrix, block)
  if block.mine is not None:
    # Padding columns may hold NaN, and 0 * NaN is NaN.
    shape = (-1, 1) if plan.transposed else (1, -1)
    columns = jnp.where(block.mine.reshape(shape), columns, 0)
  factors = (part.hidden_NxD, narrow)
  if plan.transposed:
    factors = (narrow, part.hidden_NxD)
  product = partial(lax.dot_general, preferred_element_type=jnp.float32)
  by_columns = ((1,), (plan.vocab_dim,)), ((), ())
  by_rows = ((0,), (0,)), ((), ())
  return Gradients(
    product(narrow, columns, by_columns) if plan.needs.hidden_NxD else None,
    product(*factors, by_rows) if plan.needs.matrix else None,
    outer.sum(axis=0) if plan.needs.bias_V else None,
  )
