"""Causal self-attention with grouped key-value heads."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdl_jax.mesh import constrain
from pdl_jax.model.complex_attention import turn
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.layer_kind import LayerKind
from pdl_jax.model.linear import linear
from pdl_jax.model.norm import Norm
from pdl_jax.model.parameter import parameter


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
  q_BxLxHxDh: Array,
  keys: Array,
  values: Array,
  mask_BxLxS: Array,
  scale: float,
  bias_HxLxS: Array | None = None,
  softcap: float | None = None,
) -> Array:
  """softmax(scale q k + bias) v of the keys and values of a `LayerCache`.

  With a soft cap c, scores are c tanh(scale q k / c) + bias.

  Returns:
    [B, L, H, Dh] in the dtype of q; the softmax is fp32.
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


def distance_bias(heads: int, keys: int) -> Array:
  """[H, 1, S], fp32: 2**(-8h/H) times the place of a key (ALiBi).

  What the published penalty has besides, the place of the query, is the same
  for all of its keys, and a softmax does not see it. Within a document tokens
  follow each other, so that places differ as positions do.

  Args:
    heads: H; h counts from 1.
    keys: S.
  """
  slopes_H = 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)
  return slopes_H[:, None, None] * jnp.arange(keys)[None, None]


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
    kind: LayerKind,
  ) -> tuple[Array, Array, Array]:
    """Attends to what the mask allows.

    Args:
      x_BxLxD: normalised hidden states.
      positions_BxL: position of each token in its document.
      mask_BxLxS: True where a query may look.
      cache: with S slots, to be written and attended to; None: the keys are
        those of x and S = L.
      kind: of this layer.

    Returns:
      output_BxLxD, and keys and values: the cache's with those of x written,
      or those of x alone, [B, L, K, Dh].
    """
    c = self.config
    q = self._project('query', x_BxLxD, c.heads, 'heads')
    k = self._project('key', x_BxLxD, c.kv_heads, 'kv_heads')
    v = self._project('value', x_BxLxD, c.kv_heads, 'kv_heads')
    if c.qk_norm:
      q = Norm(c, 'head_dim', name='query_norm')(q)
      k = Norm(c, 'head_dim', name='key_norm')(k)
    q, k = self._place(q, k, positions_BxL, kind)
    scale, softcap = _scale(c), c.attention_softcap
    if kind.window is not None:
      first = 0 if cache is None else cache.slot
      _, length, slots = mask_BxLxS.shape
      mask_BxLxS &= near(first, length, slots, kind.window)[None]
    bias_HxLxS = None
    if c.attention.kind == 'alibi':
      bias_HxLxS = distance_bias(c.heads, mask_BxLxS.shape[2])
    if cache is None and softcap is not None:
      mixed = attend(
        q, *cached(k, v), mask_BxLxS, scale, bias_HxLxS, softcap
      )
    elif cache is None:
      mixed = jax.nn.dot_product_attention(
        q, k, v, None if bias_HxLxS is None else bias_HxLxS[None],
        mask_BxLxS[:, None, :, :], scale=scale,
      )  # fmt: skip
    else:
      k, v = write(cache, k, v)
      mixed = attend(q, k, v, mask_BxLxS, scale, bias_HxLxS, softcap)
    y = linear(
      self, c, 'output', mixed, ('heads', 'head_dim', 'embed'),
      (c.heads, c.head_dim, c.width), inputs=2, bias=c.output_bias,
    )  # fmt: skip
    return y, k, v

  def _place(
    self, q: Array, k: Array, positions_BxL: Array, kind: LayerKind
  ) -> tuple[Array, Array]:
    """Queries and keys that know where they are."""
    c, how = self.config, self.config.attention
    pairs = c.head_dim // 2
    if how.kind in ('alibi', 'none'):
      return q, k
    of_q, of_k = {}, {}
    if how.learns_delta:
      one = how.delta_sharing == 'shared'
      delta = parameter(
        self, 'delta', (None if one else 'kv_heads', 'head_dim'),
        (1 if one else c.kv_heads, pairs), _delta_start(how.delta_init, pairs),
      )  # fmt: skip
      of_k['delta_HxP'] = delta
      groups = 1 if one else c.heads // c.kv_heads
      of_q['delta_HxP'] = jnp.repeat(delta, groups, axis=0)
    elif how.kind == 'complex' and how.delta_init == 'zero':
      of_q['delta_HxP'] = of_k['delta_HxP'] = jnp.zeros((1, pairs))
    if how.learns_offset:
      of_q['offset_HxP'] = parameter(
        self, 'offset', ('heads', 'head_dim'), (c.heads, pairs),
        nn.initializers.zeros,
      )  # fmt: skip
    place = (positions_BxL, c.rope_base)
    turns = {'sign': how.position_sign, 'frequencies_P': kind.frequencies_P}
    q = turn(q, *place, **turns, **of_q)
    k = turn(k, *place, **turns, **of_k)
    if how.kind == 'scaled_rope':
      factor_HxP = parameter(
        self, 'factor', ('heads', 'head_dim'), (c.heads, pairs),
        nn.initializers.ones,
      )  # fmt: skip
      factor_HxDh = jnp.tile(factor_HxP, 2).astype(q.dtype)
      q *= factor_HxDh[None, None]
    return q, k

  def _project(self, name: str, x: Array, heads: int, axis: str) -> Array:
    c = self.config
    y = linear(
      self, c, name, x, ('embed', axis, 'head_dim'),
      (c.width, heads, c.head_dim), bias=c.qkv_bias,
    )  # fmt: skip
    return constrain(y, 'batch', 'length', axis, 'head_dim')


def near(
  first: Array | int, length: int, slots: int, window: Array | np.ndarray
) -> Array:
  """[L, S]: whether a slot is one of the last `window` before a query.

  Within a document tokens follow each other, so that slots differ as
  positions do.

  Args:
    first: slot of the first query.
    length: L queries.
    slots: S.
    window: scalar, the query itself included.
  """
  queries_L = first + jnp.arange(length)
  return queries_L[:, None] - jnp.arange(slots)[None] < window


def _scale(c: ModelConfig) -> float:
  """Of scores."""
  usual = c.head_dim**-0.5 if c.attention.scale_scores else 1.0
  scale = c.query_scale or usual
  # YaRN's magnitude is of queries and of keys.
  return scale * c.rope_scaling.magnitude**2


def _delta_start(start: str, pairs: int) -> nn.initializers.Initializer:
  return {
    'rope': nn.initializers.ones,
    'published': nn.initializers.normal(pairs**-0.5),
    'zero': nn.initializers.zeros,
  }[start]
