"""What differs between layers that one compiled block serves."""

from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from pdl_jax.model import rotary
from pdl_jax.model.config import ModelConfig, RopeScaling

# More tokens than any context: of a layer that sees all.
_ALL = 2**30


class LayerKind(NamedTuple):
  """Of one layer, or stacked over layers to be scanned.

  Attributes:
    frequencies_P: of its rotary positions; None: those of `rope_base`.
    window: int32, how many of the last tokens it sees; None: all.
  """

  frequencies_P: Array | np.ndarray | None
  window: Array | np.ndarray | None


def layer_kinds(config: ModelConfig) -> LayerKind:
  """Of all layers, stacked; a model without any difference has no array."""
  table_LxP, sizes_L = None, None
  if config.windows:
    sizes_L = np.asarray([w or _ALL for w in config.windows], np.int32)
  if config.rope_scaling.kind != 'none' or config.local_rope_base is not None:
    layers = range(config.layers)
    table_LxP = np.stack([_frequencies(config, i) for i in layers])
  return LayerKind(table_LxP, sizes_L)


def _frequencies(config: ModelConfig, layer: int) -> np.ndarray:
  pairs, local = config.head_dim // 2, config.local_rope_base
  if local is not None and config.windows and config.windows[layer]:
    return rotary.frequencies(local, pairs, RopeScaling())
  return rotary.frequencies(config.rope_base, pairs, config.rope_scaling)


def take_layers(kinds: LayerKind, which: slice | int) -> LayerKind:
  """Some of the layers, or one."""
  return jax.tree.map(lambda x: x[which], kinds)
