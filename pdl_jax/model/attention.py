"""Causal self-attention with grouped key-value heads."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdl_jax.mesh import constrain
from pdl_jax.model import chunked_attention, kernels, rotary
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.layers import Norm, keep, linear
from pdl_jax.model.positions import KINDS

# Window of a layer that sees all tokens: longer than any context.
_ALL = 2**30


class LayerKind(NamedTuple):
  """What differs between layers that share one compiled block.

  It describes one layer, or layers stacked for a scan. `frequencies_P` are
  rotary; None takes those of `rope_base`. `window` is the number of last tokens
  seen, int32; None means all.
  """

  frequencies_P: Array | np.ndarray | None
  window: Array | np.ndarray | None


def layer_kinds(config: ModelConfig) -> LayerKind:
  """Stacks the kinds of all layers; fields that do not differ are None."""
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
    return rotary.frequencies(local, pairs, rotary.UNSCALED)
  return rotary.frequencies(config.rope_base, pairs, config.rope_scaling)


def take_layers(kinds: LayerKind, which: slice | int) -> LayerKind:
  """Takes one layer or a slice of layers."""
  return jax.tree.map(lambda x: x[which], kinds)


class LayerCache(NamedTuple):
  """Keys and values of one layer, and the slot of the first new token.

  Keys are [B, K, Dh, S] and values [B, K, S, Dh]. The products that read them
  want this order, so no step copies them.
  """

  keys: Array
  values: Array
  slot: Array


def cached(keys: Array, values: Array) -> tuple[Array, Array]:
  """Reorders keys and values [..., B, L, K, Dh] as in `LayerCache`."""
  return jnp.moveaxis(keys, -3, -1), jnp.swapaxes(values, -3, -2)


def write(cache: LayerCache, keys: Array, values: Array) -> tuple[Array, Array]:
  """Returns the cache's keys and values with new ones [B, L, K, Dh] added."""
  keys, values = cached(keys, values)
  update = jax.lax.dynamic_update_slice
  return (
    update(cache.keys, keys, (0, 0, 0, cache.slot)),
    update(cache.values, values, (0, 0, cache.slot, 0)),
  )


def attend(
  q_BxLxHxDh: Array,
  keys: Array,
  values: Array,
  mask_BxLxS: Array,
  scale: float,
  bias_HxLxS: Array | None = None,
  softcap: float | None = None,
) -> Array:
  """Returns softmax(scale q k + bias) v of a cache, [B, L, H, Dh].

  With a soft cap c, scores are c tanh(scale q k / c) + bias. The softmax is
  fp32; the result has the dtype of the values.
  """
  batch, length, heads, width = q_BxLxHxDh.shape
  groups = (batch, length, keys.shape[1], -1, width)
  scores_BxKxLxGxS = jnp.einsum(
    'blkgd,bkds->bklgs', q_BxLxHxDh.reshape(groups), keys,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  scores_BxKxLxGxS *= scale
  if softcap is not None:
    scores_BxKxLxGxS = softcap * jnp.tanh(scores_BxKxLxGxS / softcap)
  if bias_HxLxS is not None:
    of_groups = (keys.shape[1], -1, *bias_HxLxS.shape[1:])
    bias_KxLxGxS = bias_HxLxS.reshape(of_groups).swapaxes(1, 2)
    scores_BxKxLxGxS += bias_KxLxGxS[None]
  scores_BxKxLxGxS = jnp.where(
    mask_BxLxS[:, None, :, None, :], scores_BxKxLxGxS,
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
    seen: Array,
    cache: LayerCache | None,
    kind: LayerKind,
  ) -> tuple[Array, Array, Array]:
    """Attends to what may be seen.

    Args:
      x_BxLxD: normalised hidden states.
      seen: a mask [B, L, S], True where a query may look; without a cache,
        S = L. Or segments [B, L], without a cache, where no mask is made.
      cache: has S slots to write and attend to; None attends to x alone.

    Returns:
      output_BxLxD, and keys and values: the updated cache's, or without a cache
      those of x, [B, L, K, Dh].
    """
    c = self.config
    q = self._project('query', x_BxLxD, c.heads, 'heads')
    k = self._project('key', x_BxLxD, c.kv_heads, 'kv_heads')
    v = self._project('value', x_BxLxD, c.kv_heads, 'kv_heads')
    if c.qk_norm:
      q = Norm(c, 'head_dim', name='query_norm')(q)
      k = Norm(c, 'head_dim', name='key_norm')(k)
    position = KINDS[c.attention.kind]
    if position.place is not None:
      q, k = position.place(self, c, q, k, positions_BxL, kind.frequencies_P)
    if seen.ndim == 2:
      mixed = _in_blocks(c, q, k, v, seen, kind.window)
    else:
      mixed, k, v = _dense(c, q, k, v, seen, cache, kind.window)
    y = linear(
      self, c, 'output', mixed, ('heads', 'head_dim', 'embed'),
      (c.heads, c.head_dim, c.width), inputs=2, bias=c.output_bias,
    )  # fmt: skip
    return y, k, v

  def _project(self, name: str, x: Array, heads: int, axis: str) -> Array:
    c = self.config
    y = linear(
      self, c, name, x, ('embed', axis, 'head_dim'),
      (c.width, heads, c.head_dim), bias=c.qkv_bias,
    )  # fmt: skip
    return constrain(y, 'batch', 'length', axis, 'head_dim')


def _dense(
  c: ModelConfig, q: Array, k: Array, v: Array, mask_BxLxS: Array,
  cache: LayerCache | None, window: Array | np.ndarray | None,
) -> tuple[Array, Array, Array]:  # fmt: skip
  """Returns mixed values, keys and values, as `Attention` does."""
  scale, softcap = _scale(c), c.attention_softcap
  if window is not None:
    first = 0 if cache is None else cache.slot
    _, length, slots = mask_BxLxS.shape
    mask_BxLxS &= near(first, length, slots, window)[None]
  bias_HxLxS = _bias(c, mask_BxLxS.shape[2])
  if cache is not None:
    k, v = write(cache, k, v)
    mixed = attend(q, k, v, mask_BxLxS, scale, bias_HxLxS, softcap)
  elif softcap is not None:
    mixed = attend(q, *cached(k, v), mask_BxLxS, scale, bias_HxLxS, softcap)
  else:
    mixed = jax.nn.dot_product_attention(
      q, k, v, None if bias_HxLxS is None else bias_HxLxS[None],
      mask_BxLxS[:, None, :, :], scale=scale,
    )  # fmt: skip
  return keep(mixed), k, v


def _in_blocks(
  c: ModelConfig, q: Array, k: Array, v: Array, segments_BxL: Array,
  window: Array | np.ndarray | None,
) -> Array:  # fmt: skip
  window = None if window is None else jnp.asarray(window)
  rule = chunked_attention.Rule(
    _scale(c), c.attention_softcap, chunked_attention.BLOCK
  )
  if kernels.chosen(c, q.shape[1]) != 'chunked':
    return kernels.attend(c, q, k, v, segments_BxL, window, rule)
  bias_HxLxS = _bias(c, segments_BxL.shape[1])
  seen = chunked_attention.Seen(
    segments_BxL, window, None if bias_HxLxS is None else bias_HxLxS[:, 0]
  )
  return chunked_attention.attend(q, k, v, seen, rule)


def _bias(c: ModelConfig, keys: int) -> Array | None:
  bias = KINDS[c.attention.kind].bias
  return None if bias is None else bias(c.heads, keys)


def near(
  first: Array | int, length: int, slots: int, window: Array | np.ndarray
) -> Array:
  """Whether a slot is one of the last `window` up to a query, [L, S].

  Tokens of a document are consecutive, so slots differ as positions do.
  `first` is the slot of the first query; the window includes the query itself.
  """
  queries_L = first + jnp.arange(length)
  return queries_L[:, None] - jnp.arange(slots)[None] < window


def _scale(c: ModelConfig) -> float:
  scale = c.query_scale
  if scale is None:
    scale = c.head_dim**-0.5 if c.attention.complex.scale_scores else 1.0
  # Queries and keys each carry YaRN's magnitude.
  return scale * c.rope_scaling.magnitude**2
