"""The linear layer of attention and of the feed-forward layer."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from pdl_jax.model import lora
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.parameter import parameter


def linear(
  module: nn.Module,
  config: ModelConfig,
  name: str,
  x: Array,
  axes: tuple[str, ...],
  shape: tuple[int, ...],
  *,
  inputs: int = 1,
  bias: bool = False,
) -> Array:
  """x W, plus a bias and an adapter where there are such.

  Args:
    module: whose parameters they are, called after `name`.
    config: of the model: dtype of the product, adapters.
    name: of the layer, see `lora.TARGETS`.
    x: [..., *shape[:inputs]].
    axes: logical names of the axes of W.
    shape: of W.
    inputs: how many of its axes, from the first, are of the input.
    bias: whether there is one.

  Returns:
    [..., *shape[inputs:]] in the compute dtype.
  """
  matrix = parameter(module, name, axes, shape).astype(config.compute_dtype)
  y = jnp.tensordot(x, matrix, inputs)
  if bias:
    start = nn.initializers.zeros
    b = parameter(module, f'{name}_bias', axes[inputs:], shape[inputs:], start)
    y += b.astype(y.dtype)[(None,) * (y.ndim - b.ndim)]
  if config.lora.adapts(name):
    y += lora.added(module, config.lora, name, x, axes, shape, inputs)
  return y
