"""Static configuration of a linear head's loss."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh

from pdl_jax.errors import ConfigError
from pdl_jax.losses.checks import number_of
from pdl_jax.losses.core import LossTerms, TokenStats

STATS = ('average', 'expected', 'argmax')
METHODS = ('tokens', 'vocabulary')
# Budget of fp32 logits alive at once. Each group of tokens reads and writes the
# gradient of the head once; at V 32,768 groups have about 700 tokens.
MEMORY_BYTES = 88 * 2**20
# With fewer rows the matmuls of a tile are inefficient.
MIN_TOKENS = 512
# Sizes are multiples of these, which suits the hardware.
_ROW, _COLUMN = 8, 128

StatsFunction = Callable[[TokenStats, Array, Any], LossTerms]
"""(stats, weight, parameters) -> LossTerms, per token; differentiable."""


class Axes(NamedTuple):
  """Mesh axes that split a loss; axes missing in the mesh are left out.

  Attributes:
    batch: axes that split the tokens.
    embed: the batch axis that also splits the head's width, or None.
    vocab: axis that splits the vocabulary, or None.
  """

  batch: tuple[str, ...] = ('data', 'fsdp')
  embed: str | None = 'fsdp'
  vocab: str | None = 'tensor'


AXES = Axes()


@dataclasses.dataclass(frozen=True)
class FusedConfig:
  """How the loss of a linear head is computed.

  Attributes:
    method: 'tokens' or 'vocabulary'; None takes 'vocabulary' for reduction
      'none', else 'tokens'.
    memory_bytes: budget of fp32 logits alive at once, which determines the
      tile sizes; 'tokens' takes at least 512 tokens at a time.
    vocab_size: V, if the head ends in columns of padding.
    transposed: the head is [V, D], like a tied embedding, and stays so. A
      `LinearHead` always is.
    mesh: splits the arrays; None takes that of `jax.set_mesh`, if any. Sizes
      need not divide evenly, but an uneven head is padded by a copy.
    axes: names of the mesh axes.
  """

  method: str | None = None
  memory_bytes: int = MEMORY_BYTES
  vocab_size: int | None = None
  transposed: bool = False
  mesh: Mesh | AbstractMesh | None = None
  axes: Axes = AXES

  def __post_init__(self):
    if self.method not in (None, *METHODS):
      raise ConfigError(
        f'method {self.method!r} is not one of {", ".join(METHODS)}'
      )
    if not 0 < number_of(self.memory_bytes) < np.inf:
      raise ConfigError(f'memory_bytes must be > 0, got {self.memory_bytes}')

  @property
  def vocab_dim(self) -> int:
    """The vocabulary axis of the head."""
    return 0 if self.transposed else 1

  @property
  def used_axes(self) -> tuple[str, ...]:
    """Names of the mesh axes larger than 1."""
    sizes = {} if self.mesh is None else self.mesh.shape
    return tuple(name for name, size in sizes.items() if size > 1)

  def for_columns(self, columns: int) -> tuple['FusedConfig', int]:
    """Returns the config with vocabulary, mesh and axes filled in, and V.

    Raises:
      ConfigError: the vocabulary does not fit the columns of the head.
    """
    size = columns if self.vocab_size is None else self.vocab_size
    if not isinstance(size, int | np.integer) or not 0 < size <= columns:
      raise ConfigError(
        f'vocab_size {size} must be in [1, {columns}], the columns of the head'
      )
    mesh = jax.sharding.get_abstract_mesh() if self.mesh is None else self.mesh
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
      # One device, or the caller is already inside `jax.shard_map`.
      mesh = None
    made = dataclasses.replace(
      self, method=None, vocab_size=size, mesh=mesh,
      memory_bytes=int(self.memory_bytes),
    )  # fmt: skip
    batch, embed, vocab = self.axes
    batch = tuple(name for name in batch if name in made.used_axes)
    axes = Axes(
      batch,
      embed if embed in batch else None,
      vocab if vocab in made.used_axes else None,
    )
    return dataclasses.replace(made, axes=axes), size


@dataclasses.dataclass(frozen=True)
class Plan:
  """A loss, and how it is computed."""

  config: FusedConfig  # from `FusedConfig.for_columns`
  terms: StatsFunction | None  # None for statistics alone
  wants: tuple[str, ...]  # statistics besides log Z and the label's logit
  softcap: float | None
  temperature: float
  masked: bool  # whether some tokens may not count

  def __post_init__(self):
    unknown = [name for name in self.wants if name not in STATS]
    if unknown:
      raise ConfigError(
        f'wants {unknown[0]!r} is not one of {", ".join(STATS)}'
      )
    if not 0 < number_of(self.temperature) < np.inf:
      raise ConfigError(f'temperature must be > 0, got {self.temperature}')

  def tiles(self, rows: int, width: int, *, keep: bool) -> 'Tiles':
    """Returns tiles for one device: N rows and V columns of the head."""
    tokens, block = plan_tiles(rows, width, self.config.memory_bytes, keep)
    return Tiles(self, tokens, block, width)


@dataclasses.dataclass(frozen=True)
class Tiles:
  """A plan with its tile sizes."""

  plan: Plan
  tokens: int  # rows of a tile, a multiple of 8
  block: int  # columns of a tile
  width: int  # columns of this device's slice of the head

  @property
  def vocab_size(self) -> int:
    """V; later columns of the whole head are padding."""
    return self.plan.config.vocab_size or self.width

  @property
  def transposed(self) -> bool:
    """Whether the head is [V, D]."""
    return self.plan.config.transposed

  @property
  def vocab_dim(self) -> int:
    """The vocabulary axis of the head."""
    return self.plan.config.vocab_dim

  @property
  def vocab_axis(self) -> str | None:
    """The mesh axis that splits the vocabulary, or None."""
    return self.plan.config.axes.vocab

  @property
  def blocks(self) -> int:
    """Number of tiles side by side that cover the slice."""
    return -(-self.width // self.block)

  @property
  def ragged(self) -> bool:
    """Whether some tile has columns that do not count."""
    return (
      self.vocab_axis is not None
      or self.width % self.block > 0
      or self.vocab_size < self.width
    )


def plan_tiles(
  rows: int, width: int, memory_bytes: int, keep: bool
) -> tuple[int, int]:
  """Returns rows and columns of a tile for a budget of logits alive at once.

  Sizes are evened out to keep the last tile large; they need not divide
  anything. If the logits of a group of rows are kept (by_tokens), the budget
  covers all its columns. Such a group has at least MIN_TOKENS rows.
  """
  budget = max(1, int(memory_bytes) // 4)
  tokens = budget // width if keep else 2 * MIN_TOKENS
  tokens = _even(rows, max(MIN_TOKENS, tokens), _ROW)
  share = budget // 16 if keep else budget // 2
  # A power of two, because one often divides the size of a vocabulary.
  most = 2 ** (max(_COLUMN, share // tokens).bit_length() - 1)
  return tokens, min(width, _even(width, most, _COLUMN))


def _even(total: int, most: int, multiple: int) -> int:
  """Returns the size of equal parts of `total`, each at most about `most`."""
  total = max(1, total)
  size = -(-total // -(-total // most))
  return -(-size // multiple) * multiple
