"""The two algorithms for a linear head's loss, on one device.

by_tokens      loops over groups of rows: keeps the softmax of one group and
               computes its gradient in the same call, in 6NDV floating-point
               operations. A token's coefficient must be known once its own
               logits are.
by_vocabulary  loops over columns in the backward pass: recomputes the logits,
               8NDV in all, and keeps nothing larger than a tile.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses.core import LossTerms, TokenStats
from pdl_jax.losses.fused.gradient import (
  Gradients,
  NeedsGrad,
  StatCotangents,
  accumulate,
  add,
  tile_gradient,
  write,
  zero_gradients,
)
from pdl_jax.losses.fused.plan import Tiles
from pdl_jax.losses.fused.tiles import (
  Matrix,
  Residuals,
  Scale,
  Steps,
  Tokens,
  alike,
  block_at,
  compress,
  fill,
  logits_of,
  rows,
  stats_of_rows,
)


def _groups(
  tiles: Tiles, moved: Tokens, steps: Steps, take: Any, carry: Any
) -> Any:
  """Loops over groups of rows: take(tiles, start, part, carry) -> carry."""
  for size, first, count in steps:
    group_tiles = dataclasses.replace(tiles, tokens=size)

    def group(
      number: Array, carry: Any, first: Array | int = first,
      tiles: Tiles = group_tiles,
    ) -> Any:  # fmt: skip
      start = first + number * tiles.tokens
      part = Tokens(*(rows(tiles, x, start) for x in moved))
      return take(tiles, start, part, carry)

    carry = lax.fori_loop(0, count, group, carry)
  return carry


def by_tokens(
  tiles: Tiles,
  needs_grad: NeedsGrad,
  matrix: Matrix,
  tokens: Tokens,
  parameters: Any,
) -> tuple[tuple[Array, Array, Array], Gradients]:
  """Returns sums of the loss, and their gradient, one group of rows at a time.

  Returns:
    (sum loss, sum weight, sum nll) over the rows that count, and the gradients
    of the first; both are this device's share, in fp32.
  """
  moved, steps, order_N = compress(tiles, tokens)
  zero = jnp.zeros((), jnp.float32)
  residuals = Residuals.empty(tiles) if any(needs_grad) else None
  gradients = zero_gradients(tiles, needs_grad, moved.hidden_NxD)
  carry = (zero,) * 3, gradients, residuals

  def take(tiles: Tiles, start: Array, part: Tokens, carry: tuple) -> tuple:
    sums, gradients, residuals = carry
    stats, scale, residuals = stats_of_rows(
      tiles, matrix, part.hidden_NxD, part.labels_N, residuals
    )
    values, stat_cotangents = _terms_and_cotangents(
      tiles, stats, part, parameters
    )
    sums = tuple(a + b.sum() for a, b in zip(sums, values, strict=True))
    if residuals is None:
      return sums, gradients, residuals
    gradients = _group_gradient(
      tiles, needs_grad, matrix, part, scale, stat_cotangents, residuals,
      gradients, start,
    )  # fmt: skip
    return sums, gradients, residuals

  carry = _groups(tiles, moved, steps, take, alike(carry, moved))
  sums, gradients, _ = carry
  return sums, _in_order(gradients, tokens, order_N)


def _group_gradient(
  tiles: Tiles,
  needs_grad: NeedsGrad,
  matrix: Matrix,
  part: Tokens,
  scale: Scale,
  stat_cotangents: StatCotangents,
  residuals: Residuals,
  gradients: Gradients,
  start: Array,
) -> Gradients:
  temperature = tiles.plan.temperature
  rate = stat_cotangents.log_z / (temperature * scale.sum_exp)

  def tile(number: Array, carry: tuple) -> tuple:
    d_hidden, d_matrix, d_bias = carry
    block = block_at(tiles, number)
    keep, max_logits = residuals.read(tiles, number)
    if tiles.plan.softcap is None:
      # The powers are relative to an older maximum; rescale each row.
      older = jnp.exp((max_logits - scale.max_logit) / temperature)
      softmax = keep * (rate * older)[:, None]
    else:
      z = (keep - scale.max_logit[:, None]) / temperature
      softmax = rate[:, None] * jnp.exp(z)
    share = tile_gradient(
      tiles, needs_grad, matrix, block, part, softmax, keep, stat_cotangents
    )
    return (
      add(d_hidden, share.hidden_NxD),
      accumulate(d_matrix, share.matrix, block.start, tiles.vocab_dim),
      accumulate(d_bias, share.bias_V, block.start, 0),
    )

  d_hidden, all_hidden = None, gradients.hidden_NxD
  if all_hidden is not None:
    d_hidden = jnp.zeros(part.hidden_NxD.shape, jnp.float32)
    d_hidden = alike(d_hidden, part)
  d_hidden, d_matrix, d_bias = lax.fori_loop(
    0, tiles.blocks, tile, (d_hidden, gradients.matrix, gradients.bias_V)
  )
  return Gradients(write(all_hidden, d_hidden, start, 0), d_matrix, d_bias)


def _in_order(
  gradients: Gradients, tokens: Tokens, order_N: Array | None
) -> Gradients:
  """Returns the gradients with hidden states in their original order."""
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


def _terms_and_cotangents(
  tiles: Tiles, stats: TokenStats, part: Tokens, parameters: Any
) -> tuple[tuple[Array, Array, Array], StatCotangents]:
  """Returns loss, weight and nll of each row (0 if masked), and cotangents."""
  terms = tiles.plan.terms
  assert terms is not None

  def loss(log_z: Array, label: Array, average: Array) -> LossTerms:
    given = stats._replace(log_z=log_z, label=label, average=average)
    return terms(given, part.weight_N, parameters)

  (value, weight), pull = jax.vjp(
    loss, stats.log_z, stats.label, stats.average
  )
  inside = part.where_N.astype(jnp.float32)
  stat_cotangents = StatCotangents(
    *pull(LossTerms(inside, jnp.zeros_like(weight)))
  )
  nll = stats.log_z - stats.label / tiles.plan.temperature
  values = (
    jnp.where(part.where_N, value, 0.0),
    jnp.where(part.where_N, weight, 0.0),
    jnp.where(part.where_N, nll, 0.0),
  )
  return values, stat_cotangents


def stats_by_vocabulary(
  tiles: Tiles, matrix: Matrix, tokens: Tokens
) -> tuple[TokenStats, Scale]:
  """Returns statistics of every row; zeros where it does not count."""
  moved, steps, order_N = compress(tiles, tokens)
  size = moved.labels_N.size
  zeros = jnp.zeros(size, jnp.float32)
  stats = TokenStats(zeros, zeros, zeros, zeros, jnp.zeros(size, jnp.int32))

  def take(tiles: Tiles, start: Array, part: Tokens, found: Any) -> Any:
    *stats, _ = stats_of_rows(tiles, matrix, part.hidden_NxD, part.labels_N)
    stats = jax.tree.map(lambda x: jnp.where(part.where_N, x, 0), (*stats,))
    return jax.tree.map(
      lambda a, b: lax.dynamic_update_slice(a, b, (start,)), found, stats
    )

  found = alike((stats, Scale(zeros, zeros)), moved)
  found = _groups(tiles, moved, steps, take, found)
  return jax.tree.map(lambda x: _back(x, tokens, order_N), found)


def gradient_by_vocabulary(
  tiles: Tiles,
  needs_grad: NeedsGrad,
  matrix: Matrix,
  tokens: Tokens,
  scale: Scale,
  stat_cotangents: StatCotangents,
) -> Gradients:
  """Returns the gradient from the statistics' cotangents; recomputes logits.

  Columns are the outer loop, so that each column of the matrix's gradient is
  written once.
  """
  temperature = tiles.plan.temperature
  moved, steps, order_N = compress(tiles, tokens)
  by_row = [
    x if order_N is None else fill(tiles, x[order_N])
    for x in (
      jnp.where(tokens.where_N, x, 0.0) for x in (*scale, *stat_cotangents)
    )
  ]

  def columns(i: Array, gradients: Gradients) -> Gradients:
    # From last to first: the last tile overlaps its neighbour, which then
    # overwrites the shared columns. Only the neighbour answers for these.
    block = block_at(tiles, tiles.blocks - 1 - i)

    def take(
      tiles: Tiles, start: Array, part: Tokens, carry: Gradients
    ) -> Gradients:
      max_logit, sum_exp, *own = (rows(tiles, x, start) for x in by_row)
      own = StatCotangents(*own)
      logits = logits_of(tiles, matrix, part.hidden_NxD, block)
      z = (logits - max_logit[:, None]) / temperature
      # sum_exp is at least 1, except in masked rows, where it is 0.
      rate = own.log_z / (temperature * jnp.maximum(sum_exp, 1.0))
      softmax = rate[:, None] * jnp.exp(z)
      share = tile_gradient(
        tiles, needs_grad, matrix, block, part, softmax, logits, own
      )
      return Gradients(
        accumulate(carry.hidden_NxD, share.hidden_NxD, start, 0),
        add(carry.matrix, share.matrix),
        add(carry.bias_V, share.bias_V),
      )

    fresh = zero_gradients(
      dataclasses.replace(tiles, width=tiles.block), needs_grad,
      moved.hidden_NxD,
    )  # fmt: skip
    carry = alike(fresh, moved)._replace(hidden_NxD=gradients.hidden_NxD)
    d_hidden, d_matrix, d_bias = _groups(tiles, moved, steps, take, carry)
    return Gradients(
      d_hidden,
      write(gradients.matrix, d_matrix, block.start, tiles.vocab_dim),
      write(gradients.bias_V, d_bias, block.start, 0),
    )

  start = alike(zero_gradients(tiles, needs_grad, moved.hidden_NxD), moved)
  gradients = lax.fori_loop(0, tiles.blocks, columns, start)
  return _in_order(gradients, tokens, order_N)
