"""The block of the transformer: RMSNorm, attention, gated feed-forward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.model.attention import Attention, LayerCache, parameter
from pdl_jax.model.config import ModelConfig
from pdl_jax.sharding import constrain


class RMSNorm(nn.Module):
  """x / sqrt(mean(x**2) + eps) * scale, in fp32 (arXiv:1910.07467)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis."""
    c = self.config
    scale_D = parameter(
      self, 'scale', ('embed',), (c.width,), nn.initializers.ones
    )
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + c.norm_eps)
    return (y * scale_D[None, None]).astype(c.compute_dtype)


class MLP(nn.Module):
  """down(silu(gate x) * up x) (SwiGLU, arXiv:2002.05202)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxLxD: Array) -> Array:
    """Maps each position on its own."""
    c = self.config
    gate_DxF = parameter(self, 'gate', ('embed', 'mlp'), (c.width, c.mlp))
    up_DxF = parameter(self, 'up', ('embed', 'mlp'), (c.width, c.mlp))
    down_FxD = parameter(self, 'down', ('mlp', 'embed'), (c.mlp, c.width))
    dtype = c.compute_dtype
    gate = jax.nn.silu(x_BxLxD @ gate_DxF.astype(dtype))
    inner = gate * (x_BxLxD @ up_DxF.astype(dtype))
    inner = constrain(inner, 'batch', 'length', 'mlp')
    return inner @ down_FxD.astype(dtype)


class Block(nn.Module):
  """One pre-norm layer of the residual stream."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BxLxD: Array,
    positions_BxL: Array,
    mask_BxLxS: Array,
    cache: LayerCache | None,
  ) -> tuple[Array, tuple[Array, Array]]:
    """Returns the new residual stream, and what Attention keeps."""
    c = self.config
    mixed, keys, values = Attention(c, name='attention')(
      RMSNorm(c, name='attention_norm')(x_BxLxD),
      positions_BxL,
      mask_BxLxS,
      cache,
    )
    x = constrain(x_BxLxD + mixed, 'batch', 'length', 'activation')
    x += MLP(c, name='mlp')(RMSNorm(c, name='mlp_norm')(x))
    return constrain(x, 'batch', 'length', 'activation'), (keys, values)
