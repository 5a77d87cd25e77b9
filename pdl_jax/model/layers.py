"""Parameters with named axes, and the layers that blocks consist of."""

from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pdl_jax.losses.heads import along
from pdl_jax.model import lora

if TYPE_CHECKING:
  from pdl_jax.model.config import ModelConfig

ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu': partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': partial(jax.nn.gelu, approximate=True),
}
INIT = nn.initializers.normal(0.02)
# Name of what the backward pass keeps of a block, unless model.remat is set.
# It makes the rest again: norms, activations, rotations and scores.
KEPT = 'kept'


def parameter(
  module: nn.Module,
  name: str,
  axes: tuple[str | None, ...],
  shape: tuple[int, ...],
  init: nn.initializers.Initializer = INIT,
) -> Array:
  """Makes or reads a parameter that carries the logical names of its axes."""
  boxed = module.param(name, nn.with_logical_partitioning(init, axes), shape)
  return nn.meta.unbox(boxed)


def keep(x: Array) -> Array:
  """Marks what the backward pass of a block keeps."""
  return checkpoint_name(x, KEPT)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, matrix: Array, inputs: int) -> Array:
  """Returns x W over the last axes of x and the first of W, `inputs` of them.

  JAX would take the gradient of W as the transpose of (dy)^T x. XLA's CPU
  backend transposes dy for that, which takes longer than the product.
  """
  return jnp.tensordot(x, matrix, inputs)


def _product(
  x: Array, matrix: Array, inputs: int
) -> tuple[Array, tuple[Array, Array]]:
  return product(x, matrix, inputs), (x, matrix)


def _product_gradients(
  inputs: int, kept: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, matrix = kept
  rows = tuple(range(x.ndim - inputs))
  over_dy, over_matrix = (
    tuple(range(first, y.ndim))
    for first, y in ((len(rows), dy), (inputs, matrix))
  )
  dx = jax.lax.dot_general(dy, matrix, ((over_dy, over_matrix), ((), ())))
  return dx, jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))


product.defvjp(_product, _product_gradients)


def linear(
  module: nn.Module,
  config: 'ModelConfig',
  name: str,
  x: Array,
  axes: tuple[str, ...],
  shape: tuple[int, ...],
  *,
  inputs: int = 1,
  bias: bool = False,
) -> Array:
  """Returns x W, plus the layer's bias and adapter if it has them.

  Args:
    name: one of `lora.TARGETS`; parameter names begin with it.
    x: [..., *shape[:inputs]].
    axes, shape: of W; the axes by logical names.
    inputs: number of W's first axes that belong to the input.

  Returns:
    [..., *shape[inputs:]] in the compute dtype.
  """
  matrix = parameter(module, name, axes, shape).astype(config.compute_dtype)
  y = keep(product(x, matrix, inputs))
  if bias:
    start = nn.initializers.zeros
    b = parameter(module, f'{name}_bias', axes[inputs:], shape[inputs:], start)
    y += b.astype(y.dtype)[(None,) * (y.ndim - b.ndim)]
  if not config.lora.adapts(name):
    return y
  rank, (name_a, name_b) = config.lora.rank, lora.names(name)
  a = parameter(
    module, name_a, (*axes[:inputs], None), (*shape[:inputs], rank),
    lora.start(inputs),
  )  # fmt: skip
  b = parameter(
    module, name_b, (None, *axes[inputs:]), (rank, *shape[inputs:]),
    nn.initializers.zeros,
  )  # fmt: skip
  training = module.has_rng('dropout')
  x = nn.Dropout(config.lora.dropout, deterministic=not training)(x)
  inner = keep(product(x, a.astype(x.dtype), inputs))
  adapted: Any = product(inner, b.astype(x.dtype), 1)
  return y + config.lora.scale * adapted


class Norm(nn.Module):
  """x / sqrt(mean(x**2) + eps) * scale, in fp32 (RMSNorm, arXiv:1910.07467).

  The config may choose the factor 1 + scale, or LayerNorm, which subtracts the
  mean and adds a bias (arXiv:1607.06450). `axis` is the logical name of the
  last axis, which is normalised.
  """

  config: 'ModelConfig'
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis."""
    c = self.config
    width = (x.shape[-1],)
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    start = zeros if c.norm == 'rms_offset' else ones
    scale_D = parameter(self, 'scale', (self.axis,), width, start)
    if c.norm == 'rms_offset':
      scale_D = 1.0 + scale_D
    y = x.astype(jnp.float32)
    if c.norm == 'layer':
      y -= y.mean(-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + c.norm_eps)
    y *= along(y, scale_D)
    if c.norm == 'layer':
      y += along(y, parameter(self, 'bias', (self.axis,), width, zeros))
    return y.astype(c.compute_dtype)
