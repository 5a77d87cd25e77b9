"""Gradients from a tile of logits, and their accumulation."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses.fused.plan import Tiles
from pdl_jax.losses.fused.tiles import (
  Block,
  Matrix,
  Tokens,
  bias_of,
  is_label,
  matrix_of,
)


class Gradients(NamedTuple):
  """Gradients of a scalar; None where not needed."""

  hidden_NxD: Array | None
  matrix: Array | None
  bias_V: Array | None


class NeedsGrad(NamedTuple):
  """Which gradients are computed."""

  hidden: bool
  matrix: bool
  bias: bool


class StatCotangents(NamedTuple):
  """Derivatives of the loss by the differentiable statistics, per token."""

  log_z: Array
  label: Array
  average: Array


def tile_gradient(
  tiles: Tiles,
  needs_grad: NeedsGrad,
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
  softcap = tiles.plan.softcap
  # The one-hot is subtracted in fp32, before any cast.
  label = is_label(block, part.labels_N)
  outer = softmax + jnp.where(label, stat_cotangents.label[:, None], 0.0)
  if 'average' in tiles.plan.wants:
    uniform = stat_cotangents.average[:, None] / tiles.vocab_size
    if block.mine is not None:
      uniform = jnp.where(block.mine[None], uniform, 0.0)
    outer = outer + uniform
  inner = outer
  if softcap is not None:
    # Columns of other tiles, or with bias -inf, have no share.
    capped = (logits - bias_of(tiles, matrix, block)) / softcap
    capped = jnp.where(jnp.isfinite(logits), capped, 0.0)
    inner = outer * (1.0 - jnp.square(capped))
  narrow = inner.astype(part.hidden_NxD.dtype)
  columns = matrix_of(tiles, matrix, block)
  if block.mine is not None:
    # Padding columns may hold NaN, and 0 * NaN is NaN.
    shape = (-1, 1) if tiles.transposed else (1, -1)
    columns = jnp.where(block.mine.reshape(shape), columns, 0)
  factors = (part.hidden_NxD, narrow)
  if tiles.transposed:
    factors = (narrow, part.hidden_NxD)
  product = partial(lax.dot_general, preferred_element_type=jnp.float32)
  return Gradients(
    product(
      narrow, columns, (((1,), (tiles.vocab_dim,)), ((), ())),
    ) if needs_grad.hidden else None,
    product(*factors, (((0,), (0,)), ((), ()))) if needs_grad.matrix else None,
    outer.sum(axis=0) if needs_grad.bias else None,
  )  # fmt: skip


def zero_gradients(
  tiles: Tiles, needs_grad: NeedsGrad, hidden_NxD: Array
) -> Gradients:
  """Returns fp32 zeros in which gradients add up."""
  zeros, shape = jnp.zeros, (hidden_NxD.shape[1], tiles.width)
  if tiles.transposed:
    shape = shape[::-1]
  return Gradients(
    zeros(hidden_NxD.shape, jnp.float32) if needs_grad.hidden else None,
    zeros(shape, jnp.float32) if needs_grad.matrix else None,
    zeros(tiles.width, jnp.float32) if needs_grad.bias else None,
  )


def add(total: Array | None, part: Array | None) -> Array | None:
  """Adds two gradients; None if not needed."""
  return None if total is None or part is None else total + part


def write(
  total: Array | None, part: Array | None, start: Array | int, axis: int
) -> Array | None:
  """Writes a part at `start` along an axis; None if not needed."""
  if total is None or part is None:
    return None
  return lax.dynamic_update_slice_in_dim(total, part, start, axis)


def accumulate(
  total: Array | None, part: Array | None, start: Array | int, axis: int
) -> Array | None:
  """Adds a part at `start` along an axis, in place; None if not needed."""
  if total is None or part is None:
    return None
  before = lax.dynamic_slice_in_dim(total, start, part.shape[axis], axis)
  return write(total, before + part, start, axis)
