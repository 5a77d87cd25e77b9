"""Tiles of a linear head's logits, and their statistics, on one device.

A tile is `Tiles.tokens` rows by `Tiles.block` columns of the vocabulary. The
statistics of a group of rows are taken tile by tile, with an online logsumexp:
no array of size [N, V] exists. Under `jax.shard_map` a device holds a slice of
the vocabulary, and the statistics are combined over the axis that splits it.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses.core import TokenStats

# Rows below which the matmuls of a tile starve.
MIN_TOKENS = 512
# Sizes are multiples of these: what hardware likes.
_ROW, _COLUMN = 8, 128
_LOWEST = float(jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class Tiles:
  """What is fixed when a loss is compiled.

  Attributes:
    tokens: rows of a tile, a multiple of 8.
    block: columns of a tile.
    width: columns of this device's slice of the head.
    vocab_size: V; columns of the whole head from V on are padding.
    softcap: see `linear_pdl_loss`.
    temperature: T of the softmax.
    masked: whether some rows may not count.
    transposed: whether the head is [V, D].
    wants: which of 'average', 'expected', 'argmax' are computed.
    vocab_axis: mesh axis that splits the vocabulary, or None.
    all_axes: mesh axes over which the number of steps must agree.
  """

  tokens: int
  block: int
  width: int
  vocab_size: int
  softcap: float | None
  temperature: float
  masked: bool
  transposed: bool
  wants: tuple[str, ...]
  vocab_axis: str | None
  all_axes: tuple[str, ...]

  @property
  def vocab_dim(self) -> int:
    """The axis of the head that the vocabulary is on."""
    return 0 if self.transposed else 1

  @property
  def blocks(self) -> int:
    """Tiles side by side that cover the slice."""
    return -(-self.width // self.block)

  @property
  def ragged(self) -> bool:
    """Whether some columns of some tile do not count."""
    return (
      self.vocab_axis is not None
      or self.width % self.block > 0
      or self.vocab_size < self.width
    )


class Head(NamedTuple):
  """This device's slice of the output matrix, and the bias of its columns.

  The matrix is [D, V], or [V, D] where `Tiles.transposed`.
  """

  matrix: Array
  bias_V: Array | None


class Tokens(NamedTuple):
  """Tokens to be scored, one a row; masked ones have hidden states of 0."""

  hidden_NxD: Array
  labels_N: Array
  weight_N: Array
  where_N: Array


def alike(tree: Any, like: Any = ()) -> Any:
  """Arrays that vary over the same axes of a caller's `jax.shard_map`.

  Those axes are of all of them and of `like`. JAX asks it of the carry of a
  loop; elsewhere no array varies over any axis, and nothing is done.
  """

  def axes(x: Any) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying

  every = frozenset().union(*map(axes, jax.tree.leaves((tree, like))))

  def cast(x: Any) -> Any:
    missing = tuple(sorted(every - axes(x)))
    return lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(cast, tree)


def plan_tiles(
  rows: int, width: int, memory_bytes: int, keep: bool
) -> tuple[int, int]:
  """Rows and columns of a tile for a budget of logits alive at once.

  Sizes are chosen by the budget, then evened out so that the last tile is no
  smaller than need be; they need not divide anything.

  Args:
    rows: N on this device.
    width: V on this device.
    memory_bytes: of fp32 logits; where `keep`, of all the columns of a group
      of rows, which has at least MIN_TOKENS of them.
    keep: whether the logits of a group of rows are kept (by_tokens).
  """
  budget = max(1, memory_bytes // 4)
  tokens = budget // width if keep else 2 * MIN_TOKENS
  tokens = _even(rows, max(MIN_TOKENS, tokens), _ROW)
  share = budget // 16 if keep else budget // 2
  # A power of two: sizes of vocabularies often divide by a large one.
  most = 2 ** (max(_COLUMN, share // tokens).bit_length() - 1)
  return tokens, min(width, _even(width, most, _COLUMN))


def _even(total: int, most: int, multiple: int) -> int:
  """The size of equal parts of `total`, each at most about `most`."""
  total = max(1, total)
  parts = -(-total // most)
  size = -(-total // parts)
  return -(-size // multiple) * multiple


Steps = list[tuple[int, Array | int, Array | int]]
"""(rows of a group, first row, number of groups), one after the other."""


def compress(
  tiles: Tiles, tokens: Tokens
) -> tuple[Tokens, Steps, Array | None]:
  """Rows that count first.

  Returns:
    the tokens, where masked filled up to whole groups; the groups that have
    any that counts, whole ones and then smaller ones, so that little more than
    these rows is ever multiplied; the row that each came from, None where none
    has moved.
  """
  if not tiles.masked:
    # Exactly these rows: a last group filled up would multiply zeros.
    count, rest = divmod(tokens.labels_N.size, tiles.tokens)
    groups: Steps = [(tiles.tokens, 0, count), (rest, count * tiles.tokens, 1)]
    return tokens, [(n, i, k) for n, i, k in groups if n and k], None
  order_N = jnp.argsort(~tokens.where_N, stable=True)
  quarter = tiles.tokens // 4
  quarters = -(-tokens.where_N.sum() // quarter)
  if tiles.all_axes:
    # Devices wait for the slowest anyway; a common number of steps keeps their
    # collectives in step.
    quarters = lax.pmax(quarters, tiles.all_axes)
  # Three quarters cost as much as the whole.
  wholes = (quarters + 1) // 4
  left = jnp.maximum(quarters - 4 * wholes, 0)
  steps: Steps = [
    (tiles.tokens, 0, wholes), (quarter, wholes * tiles.tokens, left)
  ]  # fmt: skip
  moved = Tokens(*(fill(tiles, x[order_N]) for x in tokens))
  return moved, steps, order_N


def fill(tiles: Tiles, x: Array) -> Array:
  """Zeros at the end, up to whole groups of rows."""
  groups = max(1, -(-x.shape[0] // tiles.tokens))
  missing = groups * tiles.tokens - x.shape[0]
  return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


def rows(tiles: Tiles, x: Array, start: Array | int) -> Array:
  """The rows of one group."""
  return lax.dynamic_slice_in_dim(x, start, tiles.tokens)


class Block(NamedTuple):
  """One tile's place in the vocabulary.

  Attributes:
    start: first column in the slice; the last tile is moved left to fit.
    ids: type of each column, in the whole vocabulary.
    mine: columns that this tile answers for; None: all.
  """

  start: Array
  ids: Array
  mine: Array | None


def block_at(tiles: Tiles, number: Array) -> Block:
  """The place of a tile, numbered from the left."""
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


def matrix_of(tiles: Tiles, head: Head, block: Block) -> Array:
  """The tile's columns of the output matrix; rows where it is transposed."""
  return lax.dynamic_slice_in_dim(
    head.matrix, block.start, tiles.block, axis=tiles.vocab_dim
  )


def bias_of(tiles: Tiles, head: Head, block: Block) -> Array:
  """The tile's bias, fp32, to be added to logits; 0 without one."""
  if head.bias_V is None:
    return jnp.zeros((), jnp.float32)
  part = lax.dynamic_slice_in_dim(head.bias_V, block.start, tiles.block)
  return part.astype(jnp.float32)[None]


def logits_of(
  tiles: Tiles, head: Head, hidden_nxD: Array, block: Block
) -> Array:
  """Of one tile, fp32; -inf in columns that are not the tile's."""
  matrix = matrix_of(tiles, head, block)
  logits = lax.dot_general(
    hidden_nxD, matrix, (((1,), (1 - tiles.vocab_dim,)), ((), ())),
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  if tiles.softcap is not None:
    logits = tiles.softcap * jnp.tanh(logits / tiles.softcap)
  logits = logits + bias_of(tiles, head, block)
  if block.mine is not None:
    logits = jnp.where(block.mine[None], logits, -jnp.inf)
  return logits


def is_label(block: Block, labels_n: Array) -> Array:
  """One-hot labels of the tile; iota == label needs no gather."""
  hit = block.ids[None] == labels_n[:, None]
  return hit if block.mine is None else hit & block.mine[None]


class _Online(NamedTuple):
  """Running statistics of a group of rows, over the tiles seen so far."""

  top: Array  # largest logit
  mass: Array  # sum exp((z - top) / T)
  label: Array
  total: Array  # sum z
  moment: Array  # sum z exp((z - top) / T)
  argmax: Array


def _start(labels_n: Array, hidden_nxD: Array) -> _Online:
  zero = jnp.zeros(labels_n.size, jnp.float32)
  argmax = jnp.zeros(labels_n.size, jnp.int32)
  start = _Online(zero + _LOWEST, zero, zero, zero, zero, argmax)
  return alike(start, hidden_nxD)


def update(
  tiles: Tiles, seen: _Online, logits: Array, block: Block, labels_n: Array
) -> tuple[_Online, Array]:
  """Takes in one tile; also exp((z - top) / T) of its logits."""
  inside = logits
  if block.mine is not None and set(tiles.wants) & {'average', 'expected'}:
    inside = jnp.where(block.mine[None], logits, 0.0)
  largest = logits.max(axis=1)
  top = jnp.maximum(seen.top, largest)
  fading = jnp.exp((seen.top - top) / tiles.temperature)
  powers = jnp.exp((logits - top[:, None]) / tiles.temperature)
  label = jnp.where(is_label(block, labels_n), logits, 0.0).sum(axis=1)
  total, moment, argmax = seen.total, seen.moment, seen.argmax
  if 'average' in tiles.wants:
    total = total + inside.sum(axis=1)
  if 'expected' in tiles.wants:
    moment = moment * fading + (inside * powers).sum(axis=1)
  if 'argmax' in tiles.wants:
    best = block.ids[jnp.argmax(logits, axis=1)]
    argmax = jnp.where(largest > seen.top, best, argmax)
  return _Online(
    top, seen.mass * fading + powers.sum(axis=1), seen.label + label, total,
    moment, argmax,
  ), powers


class Scale(NamedTuple):
  """softmax(z / T) = exp((z - top) / T) / mass, per token.

  Apart, because exp(z - log Z) would turn the rounding of log Z, which is that
  of a large number where logits are peaked, into an error of a whole row.
  """

  top: Array
  mass: Array


def _finish(tiles: Tiles, seen: _Online) -> tuple[TokenStats, Scale]:
  """Statistics over the whole vocabulary."""
  top, mass, label, total, moment, argmax = seen
  if tiles.vocab_axis is not None:
    axis = tiles.vocab_axis
    top = lax.pmax(seen.top, axis)
    fading = jnp.exp((seen.top - top) / tiles.temperature)
    sums = jnp.stack([mass * fading, label, total, moment * fading])
    mass, label, total, moment = lax.psum(sums, axis)
    if 'argmax' in tiles.wants:
      first = jnp.where(seen.top == top, argmax, jnp.iinfo(jnp.int32).max)
      argmax = lax.pmin(first, axis)
  log_z = top / tiles.temperature + jnp.log(mass)
  average, expected = total / tiles.vocab_size, moment / mass
  return TokenStats(log_z, label, average, expected, argmax), Scale(top, mass)


def stats_of_rows(
  tiles: Tiles, head: Head, hidden_nxD: Array, labels_n: Array
) -> tuple[TokenStats, Scale]:
  """Statistics of one group of rows; no logits are kept."""

  def step(number: Array, seen: _Online) -> _Online:
    block = block_at(tiles, number)
    logits = logits_of(tiles, head, hidden_nxD, block)
    return update(tiles, seen, logits, block, labels_n)[0]

  seen = lax.fori_loop(0, tiles.blocks, step, _start(labels_n, hidden_nxD))
  return _finish(tiles, seen)


class Kept(NamedTuple):
  """What the softmax of each tile of a group of rows is made from.

  Attributes:
    tiles: [blocks, rows, block], exp((z - top) / T) under the top known at the
      time, or the logits where the soft cap needs them again.
    tops: [blocks, rows].

  A group may have fewer rows; the others are left alone.
  """

  tiles: Array
  tops: Array


def empty_kept(tiles: Tiles) -> Kept:
  """Room for a whole group of rows."""
  shape = (tiles.blocks, tiles.tokens, tiles.block)
  zeros = partial(jnp.zeros, dtype=jnp.float32)
  return Kept(zeros(shape), zeros(shape[:2]))


def kept_tile(tiles: Tiles, kept: Kept, number: Array) -> tuple[Array, Array]:
  """One tile of a group of rows, and the tops of these."""
  size = (1, tiles.tokens, tiles.block)
  tile = lax.dynamic_slice(kept.tiles, (number, 0, 0), size)
  return tile[0], lax.dynamic_slice(kept.tops, (number, 0), size[:2])[0]


def kept_stats(
  tiles: Tiles, head: Head, hidden_nxD: Array, labels_n: Array, kept: Kept
) -> tuple[TokenStats, Scale, Kept]:
  """Statistics of one group of rows; `kept` is written over."""

  def step(number: Array, carry: tuple) -> tuple:
    seen, kept = carry
    block = block_at(tiles, number)
    logits = logits_of(tiles, head, hidden_nxD, block)
    seen, powers = update(tiles, seen, logits, block, labels_n)
    keep = powers if tiles.softcap is None else logits
    written = lax.dynamic_update_slice(kept.tiles, keep[None], (number, 0, 0))
    tops = lax.dynamic_update_slice(kept.tops, seen.top[None], (number, 0))
    return seen, Kept(written, tops)

  carry = (_start(labels_n, hidden_nxD), kept)
  seen, kept = lax.fori_loop(0, tiles.blocks, step, carry)
  return *_finish(tiles, seen), kept
