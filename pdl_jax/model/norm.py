"""The normalisation of the residual stream, and of queries and keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.losses.heads import along
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.parameter import parameter


class Norm(nn.Module):
  """x / sqrt(mean(x**2) + eps) * scale, in fp32 (RMSNorm, arXiv:1910.07467).

  By the config the factor is 1 + scale, or x is without its mean and gets a
  bias (LayerNorm).

  Attributes:
    config: shape of the model.
    axis: logical name of the axis that is normalised, the last one.
  """

  config: ModelConfig
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis."""
    c = self.config
    width = (x.shape[-1],)
    start = 'zeros' if c.norm == 'rms_offset' else 'ones'
    scale_D = parameter(
      self, 'scale', (self.axis,), width, getattr(nn.initializers, start)
    )
    if c.norm == 'rms_offset':
      scale_D = 1.0 + scale_D
    y = x.astype(jnp.float32)
    if c.norm == 'layer':
      y -= y.mean(-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + c.norm_eps)
    y *= along(y, scale_D)
    if c.norm == 'layer':
      zeros = nn.initializers.zeros
      y += along(y, parameter(self, 'bias', (self.axis,), width, zeros))
    return y.astype(c.compute_dtype)
