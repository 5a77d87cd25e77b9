"""Decoding with a cache: reads prompts, appends tokens, moves rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.model import kernels, lm
from pdl_jax.model.attention import (
  LayerCache,
  cached,
  layer_kinds,
  take_layers,
)
from pdl_jax.model.block import Block
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.lm import Params


class Cache(NamedTuple):
  """What decoding keeps of earlier tokens.

  Attributes:
    keys, values: one array per layer, [B, K, Dh, S] and [B, K, S, Dh], which a
      loop writes in place.
    filled_BxS: True where a slot holds a real token.
    slot: scalar, where the next token of every row goes.
    positions_B: position of each row's next token in its document.
  """

  keys: tuple[Array, ...]
  values: tuple[Array, ...]
  filled_BxS: Array
  slot: Array
  positions_B: Array


def part_layers(params: Params) -> Params:
  """Puts each layer in its own group, for a loop of decoding steps.

  There, taking a layer out of a stack would copy all weights at every token.
  """
  groups = [
    jax.tree.map(lambda x, i=i: x[i : i + 1], group)
    for group in params['blocks']
    for i in range(len(jax.tree.leaves(group)[0]))
  ]
  return {**params, 'blocks': tuple(groups)}


def prefill(
  config: ModelConfig,
  params: Params,
  tokens_BxP: Array,
  filled_BxP: Array,
  size: int,
) -> tuple[Array, Cache]:
  """Reads prompts into a fresh cache of `size` slots, at least P.

  Args:
    tokens_BxP: prompts, padded on the left so that all end at one slot.
    filled_BxP: True at real tokens.

  Returns:
    hidden_BxD, which predicts the token after each prompt, and the cache.
  """
  length = tokens_BxP.shape[1]
  positions = jnp.maximum(jnp.cumsum(filled_BxP, axis=1) - 1, 0)
  x, kept = lm.run_blocks(
    kernels.for_prompts(config), params, tokens_BxP, filled_BxP.astype(int),
    positions,
  )  # fmt: skip
  keys, values = [], []
  for group in kept:
    group_keys, group_values = cached(*group)
    room = (0, size - length)
    keys += list(jnp.pad(group_keys, [(0, 0)] * 4 + [room]))
    values += list(jnp.pad(group_values, [(0, 0)] * 3 + [room, (0, 0)]))
  filled = jnp.pad(filled_BxP, [(0, 0), (0, size - length)])
  cache = Cache(
    tuple(keys), tuple(values), filled, jnp.asarray(length),
    filled_BxP.sum(axis=1),
  )  # fmt: skip
  last = lm.final_norm(config, params, x[:, -1:])
  return last[:, 0], cache


def decode_step(
  config: ModelConfig, params: Params, cache: Cache, tokens_B: Array
) -> tuple[Array, Cache]:
  """Appends one token to every row of a cache with a free slot.

  For many steps, take params from `part_layers`.

  Returns:
    hidden_BxD, which predicts the next token, and the updated cache.
  """
  filled_BxS = cache.filled_BxS.at[:, cache.slot].set(True)
  mask_BxLxS = filled_BxS[:, None, :]
  positions_BxL = cache.positions_B[:, None]
  x = lm.embed(config, params, tokens_B[:, None], positions_BxL)
  keys, values, kinds = [], [], layer_kinds(config)
  before = zip(cache.keys, cache.values, strict=True)
  for i, group in enumerate(part_layers(params)['blocks']):
    weights = jax.tree.map(lambda w: w[0], group)
    layer = LayerCache(*next(before), cache.slot)
    x, (k, v) = lm.apply(
      Block(config), weights, x, positions_BxL, mask_BxLxS, layer,
      take_layers(kinds, i),
    )  # fmt: skip
    keys.append(k)
    values.append(v)
  x = lm.final_norm(config, params, x)
  after = Cache(
    tuple(keys), tuple(values), filled_BxS, cache.slot + 1,
    cache.positions_B + 1,
  )  # fmt: skip
  return x[:, 0], after


def repeat_rows(cache: Cache, times: int) -> Cache:
  """Repeats each row of the cache: 0, ..., 0, 1, ..., 1, ..."""
  return jax.tree.map(
    lambda x: jnp.repeat(x, times, axis=0) if x.ndim else x, cache
  )


def take_rows(cache: Cache, rows_B: Array, start: int) -> Cache:
  """Replaces row b by row rows_B[b], from slot `start` on.

  Beams differ only from there: they share the slots of the prompt, and which
  slots are filled.
  """

  def take(x: Array, axis: int) -> Array:
    tail = jax.lax.slice_in_dim(x, start, None, axis=axis)[rows_B]
    return jax.lax.dynamic_update_slice_in_dim(x, tail, start, axis)

  return cache._replace(
    keys=tuple(take(x, 3) for x in cache.keys),
    values=tuple(take(x, 2) for x in cache.values),
  )
