"""Parameters with the logical names of their axes."""

import flax.linen as nn
from jax import Array

INIT = nn.initializers.normal(0.02)


def parameter(
  module: nn.Module,
  name: str,
  axes: tuple[str | None, ...],
  shape: tuple[int, ...],
  init: nn.initializers.Initializer = INIT,
) -> Array:
  """A parameter that carries the logical names of its axes."""
  boxed = module.param(name, nn.with_logical_partitioning(init, axes), shape)
  return nn.meta.unbox(boxed)
