"""Static configuration of a linear head's loss."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.losses.checks import check_positive
from pdl_jax.losses.core import LossTerms, TokenStats
from pdl_jax.mesh import platform

STATS = ('average', 'expected', 'argmax')
METHODS = ('tokens', 'vocabulary')
ACCURACIES = ('', 'highest')
# Budget of fp32 logits alive at once. Each group of tokens reads and writes the
# gradient of the head once; on a CPU at V 32,768 groups have about 700 tokens.
_CPU_BYTES = 88 * 2**20
# On an accelerator: a share of its memory, up to where more saves little (8,192
# tokens at V 131,072); and what is taken if its memory is not known.
_DEVICE_SHARE, _MOST_BYTES, _UNKNOWN_BYTES = 1 / 16, 2**32, 2**30
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
    method: one of METHODS; None takes 'vocabulary' for reduction 'none', else
      'tokens'.
    memory_bytes: budget of fp32 logits alive at once, which determines the
      tile sizes; 'tokens' takes at least 512 tokens at a time. None takes
      `device_budget`.
    vocab_size: V, if the head ends in columns of padding.
    transposed: the head is [V, D], like a tied embedding, and stays so. A
      `LinearHead` always is.
    mesh: splits the arrays; None takes that of `jax.set_mesh`, if any. Sizes
      need not divide evenly, but an uneven head is padded by a copy.
    axes: names of the mesh axes.
    exp_accuracy: of exp and log behind log Z, one of ACCURACIES; '' is the
      device's own, which on a TPU is fast and inexact.
  """

  method: str | None = None
  memory_bytes: int | None = None
  vocab_size: int | None = None
  transposed: bool = False
  mesh: Mesh | AbstractMesh | None = None
  axes: Axes = AXES
  exp_accuracy: str = ''

  def __post_init__(self):
    if self.method is not None:
      one_of('method', self.method, METHODS)
    check_positive('memory_bytes', self.memory_bytes, or_none=True)
    one_of('exp_accuracy', self.exp_accuracy, ACCURACIES)


class Gradients(NamedTuple):
  """Gradients by a loss's inputs, or one thing about each; None: not needed."""

  hidden_NxD: Any
  matrix: Any
  bias_V: Any


NOTHING = Gradients(None, None, None)


@dataclasses.dataclass(frozen=True)
class Plan(FusedConfig):
  """A loss, and how it is computed; `of` fills in the configuration."""

  terms: StatsFunction | None = None  # None for statistics alone
  wants: tuple[str, ...] = ()  # statistics besides log Z and the label's logit
  softcap: float | None = None
  temperature: float = 1.0
  masked: bool = False  # whether some tokens may not count
  needs: Gradients = NOTHING
  # On one device: rows and columns of a tile, columns of its slice of the head.
  tokens: int = 0
  block: int = 0
  width: int = 0

  def __post_init__(self):
    for name in self.wants:
      one_of('wants', name, STATS)
    check_positive('temperature', self.temperature)

  @classmethod
  def of(cls, config: FusedConfig, columns: int, **loss: Any) -> 'Plan':
    """Returns the plan of a loss, with vocabulary, mesh and axes filled in.

    Raises:
      ConfigError: the vocabulary does not fit the columns of the head.
    """
    size = columns if config.vocab_size is None else config.vocab_size
    if not isinstance(size, int | np.integer) or not 0 < size <= columns:
      raise ConfigError(
        f'vocab_size {size} must be in [1, {columns}], the columns of the head'
      )
    mesh = config.mesh
    if mesh is None:
      mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
      # One device, or the caller is already inside `jax.shard_map`.
      mesh = None
    made = cls(
      None, config.memory_bytes, size, config.transposed, mesh,
      exp_accuracy=config.exp_accuracy, **loss,
    )  # fmt: skip
    used = made.used_axes
    batch = tuple(name for name in config.axes.batch if name in used)
    embed, vocab = config.axes.embed, config.axes.vocab
    axes = Axes(
      batch, embed if embed in batch else None, vocab if vocab in used else None
    )
    return dataclasses.replace(made, axes=axes)

  def for_device(self, rows: int, width: int, *, keep: bool) -> 'Plan':
    """Returns the plan for N rows and V columns of the head on one device."""
    memory_bytes = int(self.memory_bytes or device_budget())
    tokens, block = plan_tiles(rows, width, memory_bytes, keep)
    return dataclasses.replace(self, tokens=tokens, block=block, width=width)

  def exp(self, x: Array) -> Array:
    """Returns e**x as accurately as is asked."""
    return lax.exp(x, accuracy=self._accuracy)

  def log(self, x: Array) -> Array:
    """Returns log x as accurately as is asked."""
    return lax.log(x, accuracy=self._accuracy)

  @property
  def _accuracy(self) -> lax.AccuracyMode | None:
    return lax.AccuracyMode.HIGHEST if self.exp_accuracy else None

  @property
  def used_axes(self) -> tuple[str, ...]:
    """Names of the mesh axes larger than 1."""
    sizes = {} if self.mesh is None else self.mesh.shape
    return tuple(name for name, size in sizes.items() if size > 1)

  @property
  def vocab_dim(self) -> int:
    """The vocabulary axis of the head."""
    return 0 if self.transposed else 1

  @property
  def types(self) -> int:
    """V; later columns of the whole head are padding."""
    return self.vocab_size or self.width

  @property
  def blocks(self) -> int:
    """Number of tiles side by side that cover the slice."""
    return -(-self.width // self.block)

  @property
  def ragged(self) -> bool:
    """Whether some tile has columns that do not count."""
    uneven = self.width % self.block > 0 or self.types < self.width
    return self.axes.vocab is not None or uneven


def device_budget() -> int:
  """Returns the bytes of logits alive at once that suit the device."""
  if platform() == 'cpu':
    return _CPU_BYTES
  here, limit = jax.local_devices()[0], None
  if here.platform == platform():
    limit = (here.memory_stats() or {}).get('bytes_limit')
  if limit is None:
    return _UNKNOWN_BYTES
  return min(int(limit * _DEVICE_SHARE), _MOST_BYTES)


def plan_tiles(
  rows: int, width: int, memory_bytes: int, keep: bool
) -> tuple[int, int]:
  """Returns rows and columns of a tile for a budget of logits alive at once.

  Sizes are evened out to keep the last tile large; they need not divide
  anything. If the logits of a group of rows are kept (by_tokens), the budget
  covers all its columns. Such a group has at least MIN_TOKENS rows.
  """
  budget = max(1, memory_bytes // 4)
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
