"""The two algorithms of a linear head's loss, on one device.

  by_tokens      rows outside: the softmax of one group of rows is kept, and
                 the gradient follows in the same call, 6NDV floating-point
                 operations in all. Legal where the coefficient of a token is
                 known once its own logits are.
  by_vocabulary  columns outside in the backward pass: the logits are made
                 again, 8NDV, and nothing larger than a tile is ever kept.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses.core import LossTerms, TokenStats
from pdl_jax.losses.fused.tiles import (
  Block,
  Head,
  Scale,
  Tiles,
  Tokens,
  alike,
  bias_of,
  block_at,
  compress,
  empty_kept,
  fill,
  is_label,
  kept_stats,
  kept_tile,
  logits_of,
  matrix_of,
  rows,
  stats_of_rows,
)


class Gradients(NamedTuple):
  """Of a scalar; None where nobody asked."""

  hidden_NxD: Array | None
  matrix: Array | None
  bias_V: Array | None


class Wanted(NamedTuple):
  """Which gradients are computed."""

  hidden: bool
  matrix: bool
  bias: bool


class Slopes(NamedTuple):
  """Derivative of the loss by each differentiable statistic, per token."""

  log_z: Array
  label: Array
  average: Array


def _tile_gradient(
  tiles: Tiles,
  wanted: Wanted,
  head: Head,
  block: Block,
  part: Tokens,
  softmax: Array,
  logits: Array | None,
  slopes: Slopes,
) -> Gradients:
  """One tile's share of each gradient, fp32.

  `softmax` comes multiplied by the slope of log Z and divided by T; `logits`
  are needed under a soft cap alone.
  """
  # The one-hot is taken off in fp32, before any cast.
  label = is_label(block, part.labels_N)
  outer = softmax + jnp.where(label, slopes.label[:, None], 0.0)
  if 'average' in tiles.wants:
    uniform = slopes.average[:, None] / tiles.vocab_size
    if block.mine is not None:
      uniform = jnp.where(block.mine[None], uniform, 0.0)
    outer = outer + uniform
  inner = outer
  if tiles.softcap is not None:
    assert logits is not None
    # A column that is not the tile's, or has a bias of -inf, has no share.
    capped = (logits - bias_of(tiles, head, block)) / tiles.softcap
    capped = jnp.where(jnp.isfinite(logits), capped, 0.0)
    inner = outer * (1.0 - jnp.square(capped))
  narrow = inner.astype(part.hidden_NxD.dtype)
  matrix = matrix_of(tiles, head, block)
  if block.mine is not None:
    # What stands in padding columns is nobody's business: 0 * NaN is NaN.
    shape = (-1, 1) if tiles.transposed else (1, -1)
    matrix = jnp.where(block.mine.reshape(shape), matrix, 0)
  factors = (part.hidden_NxD, narrow)
  if tiles.transposed:
    factors = (narrow, part.hidden_NxD)
  product = partial(lax.dot_general, preferred_element_type=jnp.float32)
  return Gradients(
    product(
      narrow, matrix, (((1,), (tiles.vocab_dim,)), ((), ())),
    ) if wanted.hidden else None,
    product(*factors, (((0,), (0,)), ((), ()))) if wanted.matrix else None,
    outer.sum(axis=0) if wanted.bias else None,
  )  # fmt: skip


def _accumulate(
  total: Array | None, part: Array | None, start: Array | int, axis: int
) -> Array | None:
  """Adds to the columns from `start` on, in place."""
  if total is None or part is None:
    return None
  before = lax.dynamic_slice_in_dim(total, start, part.shape[axis], axis)
  return lax.dynamic_update_slice_in_dim(total, before + part, start, axis)


def _zeros(tiles: Tiles, wanted: Wanted, hidden_NxD: Array) -> Gradients:
  zeros, shape = jnp.zeros, (hidden_NxD.shape[1], tiles.width)
  if tiles.transposed:
    shape = shape[::-1]
  return Gradients(
    zeros(hidden_NxD.shape, jnp.float32) if wanted.hidden else None,
    zeros(shape, jnp.float32) if wanted.matrix else None,
    zeros(tiles.width, jnp.float32) if wanted.bias else None,
  )


StatsFunction = Callable[[TokenStats, Array, Any], LossTerms]
"""(stats, weight, parameters) -> LossTerms, per token; differentiable."""


def by_tokens(
  tiles: Tiles,
  wanted: Wanted,
  terms: StatsFunction,
  head: Head,
  tokens: Tokens,
  parameters: Any,
) -> tuple[tuple[Array, Array, Array], Gradients]:
  """Sums of the loss, and their gradient, a group of rows at a time.

  Args:
    tiles: sizes.
    wanted: which gradients; with none, only the sums.
    terms: of the loss.
    head: this device's slice.
    tokens: this device's rows.
    parameters: of the terms, any pytree.

  Returns:
    (sum loss, sum weight, sum nll) over the rows that count, fp32, and the
    gradients of the first, fp32: this device's share of each.
  """
  moved, steps, order_N = compress(tiles, tokens)
  zero = jnp.zeros((), jnp.float32)
  carry = ((zero, zero, zero), _zeros(tiles, wanted, moved.hidden_NxD))
  carry = (*carry, empty_kept(tiles) if any(wanted) else ())
  carry = alike(carry, moved)
  for size, first, count in steps:
    group = partial(
      _group, dataclasses.replace(tiles, tokens=size), wanted, terms, head,
      moved, parameters, first,
    )  # fmt: skip
    carry = lax.fori_loop(0, count, group, carry)
  sums, gradients, _ = carry
  return sums, _in_order(gradients, tokens, order_N)


def _group(
  tiles: Tiles,
  wanted: Wanted,
  terms: StatsFunction,
  head: Head,
  moved: Tokens,
  parameters: Any,
  first: Array | int,
  number: Array,
  carry: tuple,
) -> tuple:
  """Takes in one group of rows: its sums, its share of the gradients."""
  sums, gradients, kept = carry
  start = first + number * tiles.tokens
  part = Tokens(*(rows(tiles, x, start) for x in moved))
  if not any(wanted):
    stats, _ = stats_of_rows(tiles, head, part.hidden_NxD, part.labels_N)
    values, _ = _terms_and_slopes(tiles, terms, stats, part, parameters)
    return _add(sums, values), gradients, kept
  stats, scale, kept = kept_stats(
    tiles, head, part.hidden_NxD, part.labels_N, kept
  )
  values, slopes = _terms_and_slopes(tiles, terms, stats, part, parameters)
  rate = slopes.log_z / (tiles.temperature * scale.mass)

  def tile(number: Array, carry: tuple) -> tuple:
    d_hidden, d_matrix, d_bias = carry
    block = block_at(tiles, number)
    keep, tops = kept_tile(tiles, kept, number)
    if tiles.softcap is None:
      # The powers are relative to an older top: one factor a row mends it.
      older = jnp.exp((tops - scale.top) / tiles.temperature)
      softmax = keep * (rate * older)[:, None]
    else:
      z = (keep - scale.top[:, None]) / tiles.temperature
      softmax = rate[:, None] * jnp.exp(z)
    share = _tile_gradient(
      tiles, wanted, head, block, part, softmax, keep, slopes
    )
    return (
      _sum(d_hidden, share.hidden_NxD),
      _accumulate(d_matrix, share.matrix, block.start, tiles.vocab_dim),
      _accumulate(d_bias, share.bias_V, block.start, 0),
    )

  d_hidden, all_hidden = None, gradients.hidden_NxD
  if all_hidden is not None:
    d_hidden = jnp.zeros(part.hidden_NxD.shape, jnp.float32)
    d_hidden = alike(d_hidden, part)
  d_hidden, d_matrix, d_bias = lax.fori_loop(
    0, tiles.blocks, tile, (d_hidden, gradients.matrix, gradients.bias_V)
  )
  all_hidden = _write(all_hidden, d_hidden, start, 0)
  return _add(sums, values), Gradients(all_hidden, d_matrix, d_bias), kept


def _add(sums: tuple, values: tuple) -> tuple:
  return tuple(a + b.sum() for a, b in zip(sums, values, strict=True))


def _in_order(
  gradients: Gradients, tokens: Tokens, order_N: Array | None
) -> Gradients:
  """The gradient of the hidden states in the order that these came in."""
  if gradients.hidden_NxD is None:
    return gradients
  hidden = _back(gradients.hidden_NxD, tokens, order_N)
  return gradients._replace(hidden_NxD=hidden)


def _back(x: Array, tokens: Tokens, order_N: Array | None) -> Array:
  """Undoes `compress`."""
  x = x[: tokens.labels_N.size]
  if order_N is None:
    return x
  return jnp.zeros_like(x).at[order_N].set(x, unique_indices=True)


def _terms_and_slopes(
  tiles: Tiles,
  terms: StatsFunction,
  stats: TokenStats,
  part: Tokens,
  parameters: Any,
) -> tuple[tuple[Array, Array, Array], Slopes]:
  """Loss, weight and nll of each row, 0 where masked, and the slopes."""

  def loss(log_z: Array, label: Array, average: Array) -> LossTerms:
    given = stats._replace(log_z=log_z, label=label, average=average)
    return terms(given, part.weight_N, parameters)

  (value, weight), pull = jax.vjp(
    loss, stats.log_z, stats.label, stats.average
  )
  inside = part.where_N.astype(jnp.float32)
  slopes = Slopes(*pull(LossTerms(inside, jnp.zeros_like(weight))))
  nll = stats.log_z - stats.label / tiles.temperature
  values = (
    jnp.where(part.where_N, value, 0.0),
    jnp.where(part.where_N, weight, 0.0),
    jnp.where(part.where_N, nll, 0.0),
  )
  return values, slopes


def stats_by_vocabulary(
  tiles: Tiles, head: Head, tokens: Tokens
) -> tuple[TokenStats, Scale]:
  """Statistics of every row; zeros where it does not count."""
  moved, steps, order_N = compress(tiles, tokens)
  size = moved.labels_N.size
  zeros = jnp.zeros(size, jnp.float32)
  stats = TokenStats(zeros, zeros, zeros, zeros, jnp.zeros(size, jnp.int32))
  found = alike((stats, Scale(zeros, zeros)), moved)
  for size, first, count in steps:
    part_of = dataclasses.replace(tiles, tokens=size)

    def group(
      number: Array, found: tuple[TokenStats, Scale],
      first: Array | int = first, tiles: Tiles = part_of,
    ) -> tuple[TokenStats, Scale]:  # fmt: skip
      start = first + number * tiles.tokens
      part = Tokens(*(rows(tiles, x, start) for x in moved))
      stats = stats_of_rows(tiles, head, part.hidden_NxD, part.labels_N)
      stats = jax.tree.map(lambda x: jnp.where(part.where_N, x, 0), stats)
      return jax.tree.map(
        lambda a, b: lax.dynamic_update_slice(a, b, (start,)), found, stats
      )

    found = lax.fori_loop(0, count, group, found)
  return jax.tree.map(lambda x: _back(x, tokens, order_N), found)


def gradient_by_vocabulary(
  tiles: Tiles,
  wanted: Wanted,
  head: Head,
  tokens: Tokens,
  scale: Scale,
  slopes: Slopes,
) -> Gradients:
  """Gradient from the slope of each statistic; the logits are made again.

  Columns of the vocabulary outside: each column of the matrix's gradient is
  written once.
  """
  moved, steps, order_N = compress(tiles, tokens)
  top, mass, *slope = (
    x if order_N is None else fill(tiles, x[order_N])
    for x in (jnp.where(tokens.where_N, x, 0.0) for x in (*scale, *slopes))
  )

  def columns(i: Array, gradients: Gradients) -> Gradients:
    # From the last to the first: the last tile's neighbour writes over the
    # columns that it shares with it and does not answer for.
    block = block_at(tiles, tiles.blocks - 1 - i)

    def group(
      tiles: Tiles, first: Array | int, number: Array, carry: Gradients
    ) -> Gradients:
      start = first + number * tiles.tokens
      part = Tokens(*(rows(tiles, x, start) for x in moved))
      mine = Slopes(*(rows(tiles, x, start) for x in slope))
      logits = logits_of(tiles, head, part.hidden_NxD, block)
      z = (logits - rows(tiles, top, start)[:, None]) / tiles.temperature
      # At least 1 but in rows that do not count, where it is 0.
      sum_exp = jnp.maximum(rows(tiles, mass, start), 1.0)
      rate = mine.log_z / (tiles.temperature * sum_exp)
      softmax = rate[:, None] * jnp.exp(z)
      share = _tile_gradient(
        tiles, wanted, head, block, part, softmax, logits, mine
      )
      return Gradients(
        _accumulate(carry.hidden_NxD, share.hidden_NxD, start, 0),
        _sum(carry.matrix, share.matrix),
        _sum(carry.bias_V, share.bias_V),
      )

    fresh = _zeros(
      dataclasses.replace(tiles, width=tiles.block), wanted, moved.hidden_NxD
    )
    carry = alike(fresh, moved)._replace(hidden_NxD=gradients.hidden_NxD)
    for size, first, count in steps:
      smaller = dataclasses.replace(tiles, tokens=size)
      carry = lax.fori_loop(0, count, partial(group, smaller, first), carry)
    d_hidden, d_matrix, d_bias = carry
    return Gradients(
      d_hidden,
      _write(gradients.matrix, d_matrix, block.start, tiles.vocab_dim),
      _write(gradients.bias_V, d_bias, block.start, 0),
    )

  start = alike(_zeros(tiles, wanted, moved.hidden_NxD), moved)
  gradients = lax.fori_loop(0, tiles.blocks, columns, start)
  return _in_order(gradients, tokens, order_N)


def _sum(total: Array | None, part: Array | None) -> Array | None:
  return None if total is None or part is None else total + part


def _write(
  total: Array | None, part: Array | None, start: Array | int, axis: int
) -> Array | None:
  if total is None or part is None:
    return None
  return lax.dynamic_update_slice_in_dim(total, part, start, axis)
