"""Tiles of a linear head's logits, and their statistics, on one device.

A tile is `Tiles.tokens` rows by `Tiles.block` columns of the vocabulary. An
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
from pdl_jax.losses.fused.plan import Tiles

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


Steps = list[tuple[int, Array | int, Array | int]]
"""(rows per group, first row, number of groups) of consecutive steps."""


def compress(
  tiles: Tiles, tokens: Tokens
) -> tuple[Tokens, Steps, Array | None]:
  """Moves the rows that count to the front.

  Returns:
    the tokens, filled up to whole groups if masked; the groups with rows that
    count, whole ones and then smaller ones, to multiply few other rows; the
    original index of each row, None if none has moved.
  """
  if not tiles.plan.masked:
    # Exactly these rows: filling up the last group would multiply zeros.
    count, rest = divmod(tokens.labels_N.size, tiles.tokens)
    groups: Steps = [(tiles.tokens, 0, count), (rest, count * tiles.tokens, 1)]
    return tokens, [(n, i, k) for n, i, k in groups if n and k], None
  order_N = jnp.argsort(~tokens.where_N, stable=True)
  quarter = tiles.tokens // 4
  quarters = -(-tokens.where_N.sum() // quarter)
  if tiles.plan.config.used_axes:
    # A common number of steps keeps the collectives in step. Devices wait for
    # the slowest anyway.
    quarters = lax.pmax(quarters, tiles.plan.config.used_axes)
  # Three quarters of a group cost as much as a whole one.
  wholes = (quarters + 1) // 4
  left = jnp.maximum(quarters - 4 * wholes, 0)
  steps: Steps = [
    (tiles.tokens, 0, wholes), (quarter, wholes * tiles.tokens, left)
  ]  # fmt: skip
  moved = Tokens(*(fill(tiles, x[order_N]) for x in tokens))
  return moved, steps, order_N


def fill(tiles: Tiles, x: Array) -> Array:
  """Pads with zeros up to whole groups of rows."""
  groups = max(1, -(-x.shape[0] // tiles.tokens))
  missing = groups * tiles.tokens - x.shape[0]
  return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


def rows(tiles: Tiles, x: Array, start: Array | int) -> Array:
  """Returns the rows of one group."""
  return lax.dynamic_slice_in_dim(x, start, tiles.tokens)


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


def block_at(tiles: Tiles, number: Array) -> Block:
  """Returns the place of a tile, numbered from the left."""
  wanted = number * tiles.block
  start = jnp.minimum(wanted, tiles.width - tiles.block)
  columns = start + lax.iota(jnp.int32, tiles.block)
  ids = columns
  if tiles.vocab_axis is not None:
    ids = columns + lax.axis_index(tiles.vocab_axis) * tiles.width
  mine = None
  if tiles.ragged:
    mine = (columns >= wanted) & (ids < tiles.vocab_size)
  return Block(start, ids, mine)


def matrix_of(tiles: Tiles, matrix: Matrix, block: Block) -> Array:
  """Returns the tile's columns of the output matrix; rows if transposed."""
  return lax.dynamic_slice_in_dim(
    matrix.matrix, block.start, tiles.block, axis=tiles.vocab_dim
  )


def bias_of(tiles: Tiles, matrix: Matrix, block: Block) -> Array:
  """Returns the tile's bias, fp32, to add to logits; 0 without a bias."""
  if matrix.bias_V is None:
    return jnp.zeros((), jnp.float32)
  part = lax.dynamic_slice_in_dim(matrix.bias_V, block.start, tiles.block)
  return part.astype(jnp.float32)[None]


def logits_of(
  tiles: Tiles, matrix: Matrix, hidden_nxD: Array, block: Block
) -> Array:
  """Returns fp32 logits of a tile; -inf in columns that are not the tile's."""
  softcap = tiles.plan.softcap
  logits = lax.dot_general(
    hidden_nxD, matrix_of(tiles, matrix, block),
    (((1,), (1 - tiles.vocab_dim,)), ((), ())),
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  logits = logits + bias_of(tiles, matrix, block)
  if block.mine is not None:
    logits = jnp.where(block.mine[None], logits, -jnp.inf)
  return logits


def is_label(block: Block, labels_n: Array) -> Array:
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


def _start(labels_n: Array, hidden_nxD: Array) -> _Online:
  zero = jnp.zeros(labels_n.size, jnp.float32)
  argmax = jnp.zeros(labels_n.size, jnp.int32)
  start = _Online(zero + _LOWEST, zero, zero, zero, zero, argmax)
  return alike(start, hidden_nxD)


def _update(
  tiles: Tiles, seen: _Online, logits: Array, block: Block, labels_n: Array
) -> tuple[_Online, Array]:
  """Adds one tile; also returns exp((z - max_logit) / T) of its logits."""
  wants, temperature = tiles.plan.wants, tiles.plan.temperature
  inside = logits
  if block.mine is not None and {'average', 'expected'} & {*wants}:
    inside = jnp.where(block.mine[None], logits, 0.0)
  largest = logits.max(axis=1)
  max_logit = jnp.maximum(seen.max_logit, largest)
  fading = jnp.exp((seen.max_logit - max_logit) / temperature)
  powers = jnp.exp((logits - max_logit[:, None]) / temperature)
  label = jnp.where(is_label(block, labels_n), logits, 0.0).sum(axis=1)
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


def _finish(tiles: Tiles, seen: _Online) -> tuple[TokenStats, Scale]:
  max_logit, sum_exp, label, total, moment, argmax = seen
  axis, temperature = tiles.vocab_axis, tiles.plan.temperature
  if axis is not None:
    max_logit = lax.pmax(seen.max_logit, axis)
    fading = jnp.exp((seen.max_logit - max_logit) / temperature)
    sums = jnp.stack([sum_exp * fading, label, total, moment * fading])
    sum_exp, label, total, moment = lax.psum(sums, axis)
    if 'argmax' in tiles.plan.wants:
      is_best = seen.max_logit == max_logit
      first = jnp.where(is_best, argmax, jnp.iinfo(jnp.int32).max)
      argmax = lax.pmin(first, axis)
  log_z = max_logit / temperature + jnp.log(sum_exp)
  average, expected = total / tiles.vocab_size, moment / sum_exp
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

  @classmethod
  def empty(cls, tiles: Tiles) -> 'Residuals':
    """Returns room for a whole group of rows."""
    shape = (tiles.blocks, tiles.tokens, tiles.block)
    zeros = partial(jnp.zeros, dtype=jnp.float32)
    return cls(zeros(shape), zeros(shape[:2]))

  def write(
    self, number: Array, powers: Array, max_logit: Array
  ) -> 'Residuals':
    """Stores one tile of a group of rows."""
    write, start = lax.dynamic_update_slice, (number, 0)
    return Residuals(
      write(self.powers, powers[None], (*start, 0)),
      write(self.max_logits, max_logit[None], start),
    )

  def read(self, tiles: Tiles, number: Array) -> tuple[Array, Array]:
    """Returns one tile of a group of rows, and its largest logits so far."""
    size = (1, tiles.tokens, tiles.block)
    tile = lax.dynamic_slice(self.powers, (number, 0, 0), size)
    return tile[0], lax.dynamic_slice(
      self.max_logits, (number, 0), size[:2]
    )[0]


def stats_of_rows(
  tiles: Tiles,
  matrix: Matrix,
  hidden_nxD: Array,
  labels_n: Array,
  residuals: Residuals | None = None,
) -> tuple[TokenStats, Scale, Residuals | None]:
  """Returns statistics of one group of rows; overwrites `residuals`, if any."""

  def step(number: Array, carry: tuple) -> tuple:
    seen, residuals = carry
    block = block_at(tiles, number)
    logits = logits_of(tiles, matrix, hidden_nxD, block)
    seen, powers = _update(tiles, seen, logits, block, labels_n)
    if residuals is not None:
      keep = powers if tiles.plan.softcap is None else logits
      residuals = residuals.write(number, keep, seen.max_logit)
    return seen, residuals

  carry = (_start(labels_n, hidden_nxD), residuals)
  seen, residuals = lax.fori_loop(0, tiles.blocks, step, carry)
  return *_finish(tiles, seen), residuals
