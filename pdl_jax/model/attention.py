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
  """The keys and values of one layer, and where it writes the next.

  Attributes:
    keys: [B, K, Dh, S] and
    values: [B, K, S, Dh]: each as the product that reads it wants it, so that
      no step copies them.
    slot: scalar, where the first new token goes.
  """

  keys: Array
  values: Array
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


def cached(keys: Array, values: Array) -> tuple[Array, Array]:
  """Keys and values [..., B, L, K, Dh] in the order of `LayerCache`."""
  return jnp.moveaxis(keys, -3, -1), jnp.swapaxes(values, -3, -2)


def write(cache: LayerCache, keys: Array, values: Array) -> tuple[Array, Array]:
  """The cache's keys and values with [B, L, K, Dh] new ones in."""
  keys, values = cached(keys, values)
  update = jax.lax.dynamic_update_slice
  return (
    update(cache.keys, keys, (0, 0, 0, cache.slot)),
    update(cache.values, values, (0, 0, cache.slot, 0)),
  )


def attend(
  q_BxLxHxDh: Array, keys: Array, values: Array, mask_BxLxS: Array
) -> Array:
  """softmax(q k / sqrt(Dh)) v of the keys and values of a `LayerCache`.

  Returns:
    [B, L, H, Dh] in the dtype of q; the softmax is fp32.
  """
  batch, length, heads, width = q_BxLxHxDh.shape
  groups = (batch, length, keys.shape[1], -1, width)
  scores_BxKxLxGxS = jnp.einsum(
    'blkgd,bkds->bklgs', q_BxLxHxDh.reshape(groups), keys,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  scores_BxKxLxGxS = jnp.where(
    mask_BxLxS[:, None, :, None, :], scores_BxKxLxGxS * width**-0.5,
    jnp.finfo(jnp.float32).min,
  )  # fmt: skip
  share = jax.nn.softmax(scores_BxKxLxGxS, axis=-1).astype(values.dtype)
  mixed = jnp.einsum('bklgs,bksd->blkgd', share, values)
  return mixed.reshape(batch, length, heads, width)


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
    if cache is None:
      mixed = jax.nn.dot_product_attention(
        q, k, v, mask=mask_BxLxS[:, None, :, :]
      )
    else:
      k, v = write(cache, k, v)
      mixed = attend(q, k, v, mask_BxLxS)
    out_HxDhxD = parameter(
      self,
      'output',
      ('heads', 'head_dim', 'embed'),
      (c.heads, c.head_dim, c.width),
    )
    y = jnp.einsum('blhk,hkd->bld', mixed, out_HxDhxD.astype(c.compute_dtype))
    return y, k, v

  def _project(self, name: str, x: Array, heads: int, axis: str) -> Array:
    c = self.config
    axes = ('embed', axis, 'head_dim')
    kernel_DxHxDh = parameter(self, name, axes, (c.width, heads, c.head_dim))
    y = jnp.einsum('bld,dhk->blhk', x, kernel_DxHxDh.astype(c.compute_dtype))
    return constrain(y, 'batch', 'length', axis, 'head_dim')
