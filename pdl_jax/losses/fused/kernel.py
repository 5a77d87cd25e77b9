"""The two algorithms for a linear head's loss, on one device.

by_tokens      loops over groups of rows: keeps the softmax of one group and
               computes its gradient in the same call, in 6NDV floating-point
               operations. A token's coefficient must be known once its own
               logits are.
by_vocabulary  loops over columns in the backward pass: recomputes the logits,
               8NDV in all, and keeps nothing larger than a tile.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses.core import LossTerms, TokenStats
from pdl_jax.losses.fused import tiles
from pdl_jax.losses.fused.plan import Gradients, Plan
from pdl_jax.losses.fused.tiles import (
  Matrix,
  Residuals,
  Scale,
  StatCotangents,
  Tokens,
  alike,
)

Steps = list[tuple[int, Array | int, Array | int]]
"""(rows per group, first row, number of groups) of consecutive steps."""


def compress(plan: Plan, tokens: Tokens) -> tuple[Tokens, Steps, Array | None]:
  """Moves the rows that count to the front.

  Returns:
    the tokens, filled up to whole groups if masked; the groups with rows that
    count, whole ones and then smaller ones, to multiply few other rows; the
    original index of each row, None if none has moved.
  """
  if not plan.masked:
    # Exactly these rows: filling up the last group would multiply zeros.
    count, rest = divmod(tokens.labels_N.size, plan.tokens)
    groups: Steps = [(plan.tokens, 0, count), (rest, count * plan.tokens, 1)]
    return tokens, [(n, i, k) for n, i, k in groups if n and k], None
  order_N = jnp.argsort(~tokens.where_N, stable=True)
  quarter = plan.tokens // 4
  quarters = -(-tokens.where_N.sum() // quarter)
  if plan.used_axes:
    # A common number of steps keeps the collectives in step. Devices wait for
    # the slowest anyway.
    quarters = lax.pmax(quarters, plan.used_axes)
  # Three quarters of a group cost as much as a whole one.
  wholes = (quarters + 1) // 4
  left = jnp.maximum(quarters - 4 * wholes, 0)
  steps: Steps = [
    (plan.tokens, 0, wholes), (quarter, wholes * plan.tokens, left)
  ]  # fmt: skip
  return Tokens(*(_fill(plan, x[order_N]) for x in tokens)), steps, order_N


def _fill(plan: Plan, x: Array) -> Array:
  """Pads with zeros up to whole groups of rows."""
  groups = max(1, -(-x.shape[0] // plan.tokens))
  missing = groups * plan.tokens - x.shape[0]
  return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


def _rows(plan: Plan, x: Array, start: Array | int) -> Array:
  """Returns the rows of one group."""
  return lax.dynamic_slice_in_dim(x, start, plan.tokens)


def _groups(
  plan: Plan, moved: Tokens, steps: Steps, take: Any, carry: Any
) -> Any:
  """Loops over groups of rows: take(plan, start, part, carry) -> carry."""
  for size, first, count in steps:
    own = dataclasses.replace(plan, tokens=size)

    def group(
      number: Array, carry: Any, first: Array | int = first, plan: Plan = own
    ) -> Any:
      start = first + number * plan.tokens
      part = Tokens(*(_rows(plan, x, start) for x in moved))
      return take(plan, start, part, carry)

    carry = lax.fori_loop(0, count, group, carry)
  return carry


def _back(found: Any, tokens: Tokens, order_N: Array | None) -> Any:
  """Undoes `compress` in a tree of arrays."""

  def one(x: Array) -> Array:
    x = x[: tokens.labels_N.size]
    if order_N is None:
      return x
    return jnp.zeros_like(x).at[order_N].set(x, unique_indices=True)

  return jax.tree.map(one, found)


def _zero_gradients(plan: Plan, hidden_NxD: Array) -> Gradients:
  """Returns fp32 zeros in which gradients add up."""
  of_matrix = (hidden_NxD.shape[1], plan.width)
  if plan.transposed:
    of_matrix = of_matrix[::-1]
  shapes = hidden_NxD.shape, of_matrix, plan.width
  return Gradients(*(
    jnp.zeros(shape, jnp.float32) if needed else None
    for shape, needed in zip(shapes, plan.needs, strict=True)
  ))  # fmt: skip


def _add(total: Any, part: Any) -> Any:
  """Adds two gradients; None if not needed."""
  return jax.tree.map(jnp.add, total, part)


def _write(total: Any, part: Any, start: Array | int, axis: int) -> Any:
  """Writes a part at `start` along an axis; None if not needed."""
  if total is None:
    return None
  return lax.dynamic_update_slice_in_dim(total, part, start, axis)


def _accumulate(total: Any, part: Any, start: Array | int, axis: int) -> Any:
  """Adds a part at `start` along an axis, in place; None if not needed."""
  if total is None:
    return None
  before = lax.dynamic_slice_in_dim(total, start, part.shape[axis], axis)
  return _write(total, before + part, start, axis)


def by_tokens(
  plan: Plan, matrix: Matrix, tokens: Tokens, parameters: Any
) -> tuple[tuple[Array, Array, Array], Gradients]:
  """Returns sums of the loss, and their gradient, one group of rows at a time.

  Returns:
    (sum loss, sum weight, sum nll) over the rows that count, and the gradients
    of the first; both are this device's share, in fp32.
  """
  moved, steps, order_N = compress(plan, tokens)
  zero = jnp.zeros((), jnp.float32)
  residuals = None
  if any(plan.needs):
    shape = (plan.blocks, plan.tokens, plan.block)
    float_zeros = partial(jnp.zeros, dtype=jnp.float32)
    residuals = Residuals(float_zeros(shape), float_zeros(shape[:2]))
  gradients = _zero_gradients(plan, moved.hidden_NxD)

  def take(plan: Plan, start: Array, part: Tokens, carry: tuple) -> tuple:
    sums, gradients, residuals = carry
    stats, scale, residuals = tiles.stats_of_rows(
      plan, matrix, part, residuals
    )
    values, cotangents = _values_and_cotangents(plan, stats, part, parameters)
    sums = tuple(a + b.sum() for a, b in zip(sums, values, strict=True))
    if residuals is not None:
      gradients = _add_group(
        plan, matrix, part, scale, cotangents, residuals, gradients, start
      )
    return sums, gradients, residuals

  carry = alike(((zero,) * 3, gradients, residuals), moved)
  sums, gradients, _ = _groups(plan, moved, steps, take, carry)
  hidden = _back(gradients.hidden_NxD, tokens, order_N)
  return sums, gradients._replace(hidden_NxD=hidden)


def _values_and_cotangents(
  plan: Plan, stats: TokenStats, part: Tokens, parameters: Any
) -> tuple[list[Array], StatCotangents]:
  """Returns loss, weight and nll of each row (0 if masked), and cotangents."""
  terms = plan.terms
  assert terms is not None

  def loss(log_z: Array, label: Array, average: Array) -> LossTerms:
    given = stats._replace(log_z=log_z, label=label, average=average)
    return terms(given, part.weight_N, parameters)

  (value, weight), pull = jax.vjp(loss, *stats[:3])
  inside = part.where_N.astype(jnp.float32)
  cotangents = pull(LossTerms(inside, jnp.zeros_like(weight)))
  nll = stats.log_z - stats.label / plan.temperature
  values = [jnp.where(part.where_N, x, 0.0) for x in (value, weight, nll)]
  return values, StatCotangents(*cotangents)


def _add_group(
  plan: Plan,
  matrix: Matrix,
  part: Tokens,
  scale: Scale,
  cotangents: StatCotangents,
  residuals: Residuals,
  gradients: Gradients,
  start: Array,
) -> Gradients:
  """Adds the gradients of one group of rows."""
  temperature = plan.temperature
  rate = cotangents.log_z / (temperature * scale.sum_exp)

  def tile(number: Array, total: Gradients) -> Gradients:
    block = tiles.block_at(plan, number)
    keep, max_logits = residuals.read(number, plan.tokens)
    if plan.softcap is None:
      # The powers are relative to an older maximum; rescale each row.
      older = plan.exp((max_logits - scale.max_logit) / temperature)
      softmax = keep * (rate * older)[:, None]
    else:
      z = (keep - scale.max_logit[:, None]) / temperature
      softmax = rate[:, None] * plan.exp(z)
    share = tiles.tile_gradient(
      plan, matrix, block, part, softmax, keep, cotangents
    )
    return Gradients(
      _add(total.hidden_NxD, share.hidden_NxD),
      _accumulate(
        total.matrix, share.matrix, block.start, plan.vocab_dim
      ),
      _accumulate(total.bias_V, share.bias_V, block.start, 0),
    )

  d_hidden = None
  if plan.needs.hidden_NxD:
    d_hidden = alike(jnp.zeros(part.hidden_NxD.shape, jnp.float32), part)
  found = lax.fori_loop(
    0, plan.blocks, tile, gradients._replace(hidden_NxD=d_hidden)
  )
  whole = _write(gradients.hidden_NxD, found.hidden_NxD, start, 0)
  return found._replace(hidden_NxD=whole)


def stats_by_vocabulary(
  plan: Plan, matrix: Matrix, tokens: Tokens
) -> tuple[TokenStats, Scale]:
  """Returns statistics of every row; zeros where it does not count."""
  moved, steps, order_N = compress(plan, tokens)
  size = moved.labels_N.size
  zeros = jnp.zeros(size, jnp.float32)
  stats = TokenStats(zeros, zeros, zeros, zeros, jnp.zeros(size, jnp.int32))

  def take(plan: Plan, start: Array, part: Tokens, found: Any) -> Any:
    *stats, _ = tiles.stats_of_rows(plan, matrix, part)
    stats = jax.tree.map(lambda x: jnp.where(part.where_N, x, 0), (*stats,))
    return jax.tree.map(
      lambda a, b: lax.dynamic_update_slice(a, b, (start,)), found, stats
    )

  found = alike((stats, Scale(zeros, zeros)), moved)
  return _back(_groups(plan, moved, steps, take, found), tokens, order_N)


def gradient_by_vocabulary(
  plan: Plan,
  matrix: Matrix,
  tokens: Tokens,
  scale: Scale,
  cotangents: StatCotangents,
) -> Gradients:
  """Returns the gradient from the statistics' cotangents; recomputes logits.

  Columns are the outer loop, so that each column of the matrix's gradient is
  written once.
  """
  moved, steps, order_N = compress(plan, tokens)
  by_row = [jnp.where(tokens.where_N, x, 0.0) for x in (*scale, *cotangents)]
  if order_N is not None:
    by_row = [_fill(plan, x[order_N]) for x in by_row]

  def columns(i: Array, gradients: Gradients) -> Gradients:
    # From last to first: the last tile overlaps its neighbour, which then
    # overwrites the shared columns. Only the neighbour answers for these.
    block = tiles.block_at(plan, plan.blocks - 1 - i)

    def take(
      plan: Plan, start: Array, part: Tokens, carry: Gradients
    ) -> Gradients:
      max_logit, sum_exp, *own = (_rows(plan, x, start) for x in by_row)
      own = StatCotangents(*own)
      logits = tiles.logits_of(plan, matrix, part.hidden_NxD, block)
      z = (logits - max_logit[:, None]) / plan.temperature
      # sum_exp is at least 1, except in masked rows, where it is 0.
      rate = own.log_z / (plan.temperature * jnp.maximum(sum_exp, 1.0))
      softmax = rate[:, None] * plan.exp(z)
      hidden, *others = tiles.tile_gradient(
        plan, matrix, block, part, softmax, logits, own
      )
      return Gradients(
        _accumulate(carry.hidden_NxD, hidden, start, 0),
        *_add(list(carry[1:]), others),
      )

    own_width = dataclasses.replace(plan, width=plan.block)
    fresh = alike(_zero_gradients(own_width, moved.hidden_NxD), moved)
    carry = fresh._replace(hidden_NxD=gradients.hidden_NxD)
    found = _groups(plan, moved, steps, take, carry)
    return Gradients(
      found.hidden_NxD,
      _write(gradients.matrix, found.matrix, block.start, plan.vocab_dim),
      _write(gradients.bias_V, found.bias_V, block.start, 0),
    )

  start = alike(_zero_gradients(plan, moved.hidden_NxD), moved)
  gradients = lax.fori_loop(0, plan.blocks, columns, start)
  hidden = _back(gradients.hidden_NxD, tokens, order_N)
  return gradients._replace(hidden_NxD=hidden)
