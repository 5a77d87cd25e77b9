"""Low-rank adapters of linear layers (LoRA, arXiv:2106.09685).

A layer x W becomes x W + alpha / r (x A) B. A has the layer's input axes and
r, B has r and its output axes. B starts at 0, which leaves the model unchanged.
Parameter names follow the layer's: query_lora_a, query_lora_b.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pdl_jax.errors import ConfigError

ATTENTION = ('query', 'key', 'value', 'output')
MLP = ('gate', 'up', 'down')
# The output head can have an adapter if it is a separate matrix.
HEAD = 'head'
TARGETS = (*ATTENTION, *MLP, HEAD)
MATRIX = 'matrix_VxD'
_A, _B = '_lora_a', '_lora_b'


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
  """Which linear layers have an adapter, and of what size.

  Rank 0 means no adapter. Targets are a subset of TARGETS. Dropout is the
  probability that an adapter does not see an input in training; the head's
  adapter has none.
  """

  rank: int = 0
  alpha: float = 32.0
  dropout: float = 0.0
  targets: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.alpha > 0:
      raise ConfigError(f'model.lora.alpha must be > 0, got {self.alpha}')
    if not 0 <= self.dropout < 1:
      raise ConfigError(
        f'model.lora.dropout must be in [0, 1), got {self.dropout}'
      )
    wrong = [name for name in self.targets if name not in TARGETS]
    twice = len(set(self.targets)) < len(self.targets)
    if wrong or twice or (self.rank and not self.targets):
      raise ConfigError(
        f'model.lora.targets {",".join(self.targets)!r}: takes all (every '
        f'linear layer of the blocks), or some of {", ".join(TARGETS)}, each '
        'once, with commas between them'
      )

  @property
  def scale(self) -> float:
    """Factor of an adapter's product, alpha / r."""
    return self.alpha / self.rank

  def adapts(self, layer: str) -> bool:
    """Whether a layer has an adapter."""
    return self.rank > 0 and layer in self.targets

  def check(self, gated: bool, dense_head: bool) -> None:
    """Refuses targets that the model does not have."""
    if self.adapts('gate') and not gated:
      raise ConfigError(
        'model.lora.targets: the feed-forward layers of this model have no '
        'gate; leave it out'
      )
    if self.adapts(HEAD) and not dense_head:
      raise ConfigError(
        'model.lora.targets: the head of this model is no matrix of its own; '
        'leave head out, or take model.head=dense'
      )


NO_LORA = LoRAConfig()


def is_adapter(name: str) -> bool:
  """Whether a parameter name is an adapter's."""
  return name.endswith((_A, _B))


def names(layer: str) -> tuple[str, str]:
  """Returns the names of a layer's A and B."""
  return layer + _A, layer + _B


def start(inputs: int) -> nn.initializers.Initializer:
  """Initializes A: uniform up to 1 / sqrt(input width), as in PEFT.

  `inputs` is the number of leading axes that belong to the input.
  """
  return nn.initializers.variance_scaling(
    1 / 3, 'fan_in', 'uniform', in_axis=tuple(range(inputs)), out_axis=-1
  )


def adapters(params: Any) -> Any:
  """Keeps only the parameters of adapters, each at its place in the tree."""
  if isinstance(params, tuple):
    return tuple(map(adapters, params))
  if not isinstance(params, dict):
    return params
  return {
    name: adapters(x)
    for name, x in params.items()
    if is_adapter(name) or isinstance(x, dict | tuple)
  }


def merged(config: LoRAConfig, params: Any, stacked: bool = False) -> Any:
  """Adds adapters to their layers' matrices, in fp32, and removes them."""
  if isinstance(params, tuple):  # Groups of blocks, stacked over their layers.
    return tuple(merged(config, group, True) for group in params)
  if not isinstance(params, dict):
    return params
  product, made = partial(jnp.tensordot, axes=1), {}
  for name, leaf in params.items():
    name_a, name_b = names(name)
    if name_a in params:
      a, b = (jnp.asarray(params[x], jnp.float32) for x in (name_a, name_b))
      # The rows of the head's matrix belong to outputs.
      both = jax.vmap(product)(a, b) if stacked else product(a, b).T
      made[name] = jnp.asarray(leaf, jnp.float32) + config.scale * both
    elif not is_adapter(name):
      made[name] = merged(config, leaf, stacked)
  return made
