"""The seam: pure functions of (config, params, arrays); no Flax type escapes.

Parameters are a nested dict of arrays, fp32 but for what is frozen:

  embed_VxD      token embedding, and the output head where it is tied
  head           parameters of another head, see `heads` and `vq_logits`
  blocks         a tuple of groups of layers; each leaf is stacked over the
                 group's layers, so that one compiled block serves them all.
                 Splitting the stack in two groups lets training leave the
                 lower one out of the backward pass.
  norm           scale (and bias) of the final norm
  positions_LxD  embedding of positions, of a model that learns them

Adapters (`lora`) are beside the matrices that they adapt.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from pdl_jax.losses.heads import Head
from pdl_jax.mesh import constrain
from pdl_jax.model import heads, lora
from pdl_jax.model.attention import LayerCache, cached
from pdl_jax.model.block import Block
from pdl_jax.model.config import AttentionConfig, ModelConfig
from pdl_jax.model.heads import vq
from pdl_jax.model.layer_kind import layer_kinds, take_layers
from pdl_jax.model.norm import Norm
from pdl_jax.model.parameter import INIT

Params = dict


class Cache(NamedTuple):
  """Everything decoding needs from the tokens before.

  Attributes:
    keys, values: of each layer, [B, K, Dh, S] and [B, K, S, Dh]; arrays of
      their own, which a loop writes in place.
    filled_BxS: True where a slot holds a real token.
    slot: scalar, where the next token goes: the same for every row.
    positions_B: position of the next token of each row in its document.
  """

  keys: tuple[Array, ...]
  values: tuple[Array, ...]
  filled_BxS: Array
  slot: Array
  positions_B: Array


def init(config: ModelConfig, key: Array) -> Params:
  """Random parameters: normal(0.02) matrices, ones in the norms.

  What models of one shape have in common is the same for a key, whatever their
  attention learns besides: Flax numbers the draws within a module.
  """
  plain = dataclasses.replace(
    config, attention=AttentionConfig(), lora=lora.NO_LORA
  )
  params: Params = nn.meta.unbox(_init(plain, key))
  return params if plain == config else extended(config, params, key)


def logical_axes(config: ModelConfig, groups: int = 1) -> Params:
  """The tree of `init` with logical axis names, a PartitionSpec, as leaves.

  Args:
    config: shape of the model.
    groups: 2 for the tree that `split_blocks` returns.
  """
  boxed = jax.eval_shape(lambda: _init(config, jax.random.key(0)))
  names = nn.get_partition_spec(boxed)
  blocks = jax.tree.map(lambda axes: P('layers', *axes), names['blocks'][0])
  return {**names, 'blocks': (blocks,) * groups}


def _init(config: ModelConfig, key: Array) -> Params:
  embed_key, block_key = jax.random.split(key)
  own = heads.init(config, jax.random.fold_in(key, 1))
  embed = nn.with_logical_partitioning(INIT, ('vocab', 'embed'))
  x = jnp.zeros((1, 1, config.width))
  positions, mask = jnp.zeros((1, 1), int), jnp.ones((1, 1, 1), bool)
  kind = take_layers(layer_kinds(config), 0)

  def block(key: Array) -> Any:
    return Block(config).init(key, x, positions, mask, None, kind)['params']

  keys = jax.random.split(block_key, config.layers)
  learned = {}
  if config.learned_positions:
    places = nn.with_logical_partitioning(INIT, (None, 'embed'))
    shape = (config.context, config.width)
    learned['positions_LxD'] = places(jax.random.fold_in(key, 2), shape)
  return {
    'embed_VxD': embed(embed_key, (config.vocab_size, config.width)),
    'blocks': (jax.vmap(block)(keys),),
    'norm': Norm(config).init(key, x)['params'],
    **learned,
    **({'head': own} if own else {}),
  }


def split_blocks(params: Params, last: int) -> Params:
  """The same model with its last layers in a group of their own."""
  (blocks,) = params['blocks']
  lower = jax.tree.map(lambda x: x[:-last], blocks)
  upper = jax.tree.map(lambda x: x[-last:], blocks)
  return {**params, 'blocks': (lower, upper)}


def join_blocks(params: Params) -> Params:
  """The same model with all its layers in one group."""
  if len(params['blocks']) == 1:
    return params
  joined = jax.tree.map(lambda *x: jnp.concatenate(x), *params['blocks'])
  return {**params, 'blocks': (joined,)}


def part_layers(params: Params) -> Params:
  """The same model with each layer in a group of its own.

  For a loop of decoding steps: there, taking a layer out of a stack would copy
  all weights at every token.
  """
  groups = [
    jax.tree.map(lambda x, i=i: x[i : i + 1], group)
    for group in params['blocks']
    for i in range(len(jax.tree.leaves(group)[0]))
  ]
  return {**params, 'blocks': tuple(groups)}


def hidden(
  config: ModelConfig,
  params: Params,
  tokens_BxL: Array,
  segments_BxL: Array,
  positions_BxL: Array,
  dropout_key: Array | None = None,
) -> Array:
  """Last hidden states, after the final norm.

  Args:
    config: shape of the model.
    params: from `init` or a pretrained reader.
    tokens_BxL: token ids in [0, V).
    segments_BxL: document of each token, from 1; 0 is padding. A token sees
      the tokens of its own segment up to itself.
    positions_BxL: position of each token in its document, from 0.
    dropout_key: in training, if adapters have dropout; None: nothing is
      dropped.

  Returns:
    hidden_BxLxD in the compute dtype; at padding, meaningless but finite.
  """
  x, _ = _run_blocks(
    config, params, tokens_BxL, segments_BxL, positions_BxL, dropout_key
  )
  return _final_norm(config, params, x)


def head(config: ModelConfig, params: Params) -> Head:
  """What turns hidden states into logits, as the losses take it."""
  return heads.head(config, params)


def with_head(config: ModelConfig, params: Params, key: Array) -> Params:
  """The same model with a head of the kind of the config, as initialised.

  Args:
    config: with the new head.
    params: of a model of that shape with any head.
    key: of what is random.
  """
  rest = {name: x for name, x in params.items() if name != 'head'}
  own = nn.meta.unbox(heads.init(config, key))
  return {**rest, 'head': own} if own else rest


def extended(config: ModelConfig, params: Params, key: Array) -> Params:
  """The same model with what the config has besides, as initialised.

  Args:
    config: with another attention, or adapters.
    params: of a model of that shape without.
    key: of what is random.
  """

  @jax.jit  # What is there already, the matrices, is not made.
  def absent(key: Array) -> Params:
    return _absent(nn.meta.unbox(_init(config, key)), params)

  return _union(params, absent(key))


def _absent(made: Any, old: Any) -> Any:
  """The parts of a tree that another one has not."""
  if isinstance(made, tuple):
    return tuple(map(_absent, made, old))
  return {
    name: _absent(x, old[name]) if name in old else x
    for name, x in made.items()
    if name not in old or isinstance(x, dict | tuple)
  }


def _union(one: Any, more: Any) -> Any:
  if isinstance(one, tuple):
    return tuple(map(_union, one, more))
  both = {name: _union(one[name], more[name]) for name in one.keys() & more}
  return {**one, **more, **both}


def without_adapters(
  config: ModelConfig, params: Params
) -> tuple[ModelConfig, Params]:
  """The same function of tokens, with adapters added to their matrices.

  Args:
    config: shape of the model.
    params: of `init`.
  """
  if not config.lora.rank:
    return config, params
  plain = dataclasses.replace(config, lora=lora.NO_LORA)
  return plain, jax.jit(partial(lora.merged, config.lora))(params)


def fix_head(config: ModelConfig, params: Params) -> Params:
  """The same model with codes that are learned written down.

  To be scored and to generate: training alone needs the rows behind them.
  """
  if 'head' not in params:
    return params
  fixed = vq.fix_codes(config.head, params['head'])
  return {**params, 'head': fixed}


def logits(
  config: ModelConfig,
  params: Params,
  tokens_BxL: Array,
  segments_BxL: Array,
  positions_BxL: Array,
) -> Array:
  """logits_BxLxV in fp32; for short sequences and tests: it is V wide."""
  x = hidden(config, params, tokens_BxL, segments_BxL, positions_BxL)
  return head_logits(config, params, x)


def head_logits(config: ModelConfig, params: Params, hidden: Array) -> Array:
  """logits [..., V] in fp32 of hidden states [..., D]."""
  return heads.logits(config, params, hidden)


def prefill(
  config: ModelConfig,
  params: Params,
  tokens_BxP: Array,
  filled_BxP: Array,
  size: int,
) -> tuple[Array, Cache]:
  """Reads left-padded prompts into a fresh cache.

  Args:
    config: shape of the model.
    params: with any groups of layers.
    tokens_BxP: prompts, padded on the left so that all end at one slot.
    filled_BxP: True at real tokens.
    size: S, slots in the cache, at least P.

  Returns:
    hidden_BxD that predicts the token after each prompt, and the cache.
  """
  length = tokens_BxP.shape[1]
  positions = jnp.maximum(jnp.cumsum(filled_BxP, axis=1) - 1, 0)
  x, kept = _run_blocks(
    config, params, tokens_BxP, filled_BxP.astype(int), positions
  )
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
  last = _final_norm(config, params, x[:, -1:])
  return last[:, 0], cache


def decode_step(
  config: ModelConfig, params: Params, cache: Cache, tokens_B: Array
) -> tuple[Array, Cache]:
  """Appends one token to every row.

  Args:
    config: shape of the model.
    params: with any groups of layers; `part_layers` for many steps.
    cache: with a free slot.
    tokens_B: ids.

  Returns:
    hidden_BxD that predicts the token after it, and the cache with it in.
  """
  filled_BxS = cache.filled_BxS.at[:, cache.slot].set(True)
  mask_BxLxS = filled_BxS[:, None, :]
  positions_BxL = cache.positions_B[:, None]
  x = _embed(config, params, tokens_B[:, None], positions_BxL)
  keys, values, kinds = [], [], layer_kinds(config)
  before = zip(cache.keys, cache.values, strict=True)
  for i, group in enumerate(part_layers(params)['blocks']):
    weights = jax.tree.map(lambda w: w[0], group)
    layer = LayerCache(*next(before), cache.slot)
    x, (k, v) = _apply(
      Block(config), weights, x, positions_BxL, mask_BxLxS, layer,
      take_layers(kinds, i),
    )  # fmt: skip
    keys.append(k)
    values.append(v)
  x = _final_norm(config, params, x)
  after = Cache(
    tuple(keys), tuple(values), filled_BxS, cache.slot + 1,
    cache.positions_B + 1,
  )  # fmt: skip
  return x[:, 0], after


def repeat_rows(cache: Cache, times: int) -> Cache:
  """The cache of rows 0, ..., 0, 1, ..., 1, ..., each so often."""

  def repeat(x: Array) -> Array:
    return jnp.repeat(x, times, axis=0)

  return Cache(
    tuple(map(repeat, cache.keys)), tuple(map(repeat, cache.values)),
    repeat(cache.filled_BxS), cache.slot, repeat(cache.positions_B),
  )  # fmt: skip


def take_rows(cache: Cache, rows_B: Array, start: int) -> Cache:
  """Row b becomes row rows_B[b] from slot `start` on.

  For beams, which differ in nothing before: neither the slots of the prompt
  nor which slots are filled.
  """

  def take(x: Array, axis: int) -> Array:
    tail = jax.lax.slice_in_dim(x, start, None, axis=axis)[rows_B]
    return jax.lax.dynamic_update_slice_in_dim(x, tail, start, axis)

  return cache._replace(
    keys=tuple(take(x, 3) for x in cache.keys),
    values=tuple(take(x, 2) for x in cache.values),
  )


def _run_blocks(
  config: ModelConfig,
  params: Params,
  tokens_BxL: Array,
  segments_BxL: Array,
  positions_BxL: Array,
  dropout_key: Array | None = None,
) -> tuple[Array, list]:
  length = tokens_BxL.shape[1]
  causal_LxL = jnp.tril(jnp.ones((length, length), bool))
  same_BxLxL = segments_BxL[:, :, None] == segments_BxL[:, None, :]
  mask_BxLxL = same_BxLxL & causal_LxL[None]

  def block(x: Array, layer: tuple) -> tuple[Array, tuple[Array, Array]]:
    weights, kind, key = layer
    return _apply(
      Block(config), weights, x, positions_BxL, mask_BxLxL, None, kind,
      dropout_key=key,
    )  # fmt: skip

  block = jax.checkpoint(block) if config.remat else block
  x, kept = _embed(config, params, tokens_BxL, positions_BxL), []
  kinds, first = layer_kinds(config), 0
  keys = None
  if dropout_key is not None:
    keys = jax.random.split(dropout_key, config.layers)
  for group in params['blocks']:
    last = first + len(jax.tree.leaves(group)[0])
    own_keys = None if keys is None else keys[first:last]
    layers = (group, take_layers(kinds, slice(first, last)), own_keys)
    x, keys_values = jax.lax.scan(block, x, layers)
    kept.append(keys_values)
    first = last
  return x, kept


def _embed(
  config: ModelConfig, params: Params, tokens_BxL: Array, positions_BxL: Array
) -> Array:
  table_VxD = params['embed_VxD'].astype(config.compute_dtype)
  # Whole rows before the look-up: rows split over the devices that split the
  # batch would have to be gathered for every token instead.
  table_VxD = constrain(table_VxD, 'vocab', 'activation')
  x = table_VxD[tokens_BxL]
  if config.embed_scale != 1:
    x *= jnp.asarray(config.embed_scale, x.dtype)
  if config.learned_positions:
    places_LxD = params['positions_LxD'].astype(x.dtype)
    x += constrain(places_LxD, None, 'activation')[positions_BxL]
  return constrain(x, 'batch', 'length', 'activation')


def _final_norm(config: ModelConfig, params: Params, x: Array) -> Array:
  return _apply(Norm(config), params['norm'], x)


def _apply(
  module: nn.Module,
  weights: Params,
  *inputs: Any,
  dropout_key: Array | None = None,
) -> Any:
  """A Linen module as a function of its weights."""
  rngs = None if dropout_key is None else {'dropout': dropout_key}
  return module.apply({'params': weights}, *inputs, rngs=rngs)
