"""Causal self-attention with rotary positions and grouped key-value heads."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.model.config import ModelConfig
from pdl_jax.sharding import constrain

INIT = nn.initializers.normal(0.02)


def parameter(
  module: nn.Module,
  name: str,
  axes: tuple[str, ...],
  shape: tuple[int, ...],
  init: nn.initializers.Initializer = INIT,
) -> Array:
  """A parameter that carries the logical names of its axes."""
  boxed = module.param(name, nn.with_logical_partitioning(init, axes), shape)
  return nn.meta.unbox(boxed)


class LayerCache(NamedTuple):
  """The keys and values of all layers, and where one layer writes its next.

  Attributes:
    keys, values: [layers, B, S, K, Dh]; whole, so that one slot can be written
      in place: a layer's own copy would be copied at every token.
    layer: scalar, whose turn it is.
    slot: scalar, where the new token goes.
  """

  keys: Array
  values: Array
  layer: Array
  slot: Array


def rotate(x_BxLxHxDh: Array, positions_BxL: Array, base: float) -> Array:
  """Rotary positions (RoPE, arXiv:2104.09864) on halves of the head width.

  Pair i is (x_i, x_{i + Dh/2}), turned by position * base**(-2i/Dh). Phases
  are fp32 whatever the dtype of x.
  """
  half = x_BxLxHxDh.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  phase = positions_BxL[:, :, None, None] * frequency[None, None, None, :]
  cos, sin = jnp.cos(phase), jnp.sin(phase)
  real, imaginary = jnp.split(x_BxLxHxDh.astype(jnp.float32), 2, axis=-1)
  turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
  return jnp.concatenate(turned, axis=-1).astype(x_BxLxHxDh.dtype)


class Attention(nn.Module):
  """softmax(q k / sqrt(Dh)) v, then the output projection."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BxLxD: Array,
    positions_BxL: Array,
    mask_BxLxS: Array,
    cache: LayerCache | None,
  ) -> tuple[Array, Array, Array]:
    """Attends to what the mask allows.

    Args:
      x_BxLxD: normalised hidden states.
      positions_BxL: position of each token in its document.
      mask_BxLxS: True where a query may look.
      cache: with S slots, to be written and attended to; None: the keys are
        those of x and S = L.

    Returns:
      output_BxLxD, and keys and values: the cache's with those of x written,
      or those of x alone, [B, L, K, Dh].
    """
    c = self.config
    q = self._project('query', x_BxLxD, c.heads, 'heads')
    k = self._project('key', x_BxLxD, c.kv_heads, 'kv_heads')
    v = self._project('value', x_BxLxD, c.kv_heads, 'kv_heads')
    q = rotate(q, positions_BxL, c.rope_base)
    k = rotate(k, positions_BxL, c.rope_base)
    kept = (k, v)
    if cache is not None:
      at = (cache.layer, 0, cache.slot, 0, 0)
      kept = (
        jax.lax.dynamic_update_slice(cache.keys, k[None], at),
        jax.lax.dynamic_update_slice(cache.values, v[None], at),
      )
      k, v = (x[cache.layer] for x in kept)
    mixed = jax.nn.dot_product_attention(
      q, k, v, mask=mask_BxLxS[:, None, :, :]
    )
    out_HxDhxD = parameter(
      self,
      'output',
      ('heads', 'head_dim', 'embed'),
      (c.heads, c.head_dim, c.width),
    )
    y = jnp.einsum('blhk,hkd->bld', mixed, out_HxDhxD.astype(c.compute_dtype))
    return y, *kept

  def _project(self, name: str, x: Array, heads: int, axis: str) -> Array:
    c = self.config
    axes = ('embed', axis, 'head_dim')
    kernel_DxHxDh = parameter(self, name, axes, (c.width, heads, c.head_dim))
    y = jnp.einsum('bld,dhk->blhk', x, kernel_DxHxDh.astype(c.compute_dtype))
    return constrain(y, 'batch', 'length', axis, 'head_dim')
