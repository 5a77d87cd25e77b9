"""The model as pure functions of (config, params, arrays), without Flax types.

Parameters are a nested dict of arrays, fp32 unless frozen:

  embed_VxD      token embedding, and the output head if tied
  head           parameters of another head, see `heads`
  blocks         tuple of groups of layers; leaves are stacked over a group's
                 layers, so that one compiled block serves all. With two
                 groups, training leaves the lower out of the backward pass.
  norm           scale (and bias) of the final norm
  positions_LxD  embedding of positions, if learned

Adapters (`lora`) are beside the matrices that they adapt.
`decoding` continues prompts with a cache.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from pdl_jax.mesh import constrain
from pdl_jax.model import heads, kernels, lora
from pdl_jax.model.attention import layer_kinds, take_layers
from pdl_jax.model.block import Block
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.layers import INIT, KEPT, Norm
from pdl_jax.model.positions import ROPE

Params = dict
# The output head as losses take it, and its logits [..., V] of states [..., D].
head, head_logits = heads.head, heads.logits


def init(config: ModelConfig, key: Array) -> Params:
  """Makes random parameters: normal(0.02) matrices, ones in the norms.

  For one key, models of one shape share these, whatever else their attention
  learns. What it learns is drawn apart, as Flax numbers the draws in a module.
  """
  plain = dataclasses.replace(config, attention=ROPE, lora=lora.NO_LORA)
  params: Params = nn.meta.unbox(_init(plain, key))
  return params if plain == config else extended(config, params, key)


def logical_axes(config: ModelConfig, groups: int = 1) -> Params:
  """Returns the tree of `init` with logical axis names, as PartitionSpecs.

  `groups` is 2 for the tree that `split_blocks` returns.
  """
  boxed = jax.eval_shape(lambda: _init(config, jax.random.key(0)))
  names = nn.get_partition_spec(boxed)
  blocks = jax.tree.map(lambda axes: P('layers', *axes), names['blocks'][0])
  return {**names, 'blocks': (blocks,) * groups}


def _init(config: ModelConfig, key: Array) -> Params:
  embed_key, block_key = jax.random.split(key)
  own = heads.init(config, jax.random.fold_in(key, 1))
  table = nn.with_logical_partitioning(INIT, ('vocab', 'embed'))
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
    'embed_VxD': table(embed_key, (config.vocab_size, config.width)),
    'blocks': (jax.vmap(block)(keys),),
    'norm': Norm(config).init(key, x)['params'],
    **learned,
    **({'head': own} if own else {}),
  }


def split_blocks(params: Params, last: int) -> Params:
  """Puts the last layers in their own group; the model is the same."""
  (blocks,) = params['blocks']
  lower = jax.tree.map(lambda x: x[:-last], blocks)
  upper = jax.tree.map(lambda x: x[-last:], blocks)
  return {**params, 'blocks': (lower, upper)}


def join_blocks(params: Params) -> Params:
  """Puts all layers in one group; the model is the same."""
  if len(params['blocks']) == 1:
    return params
  joined = jax.tree.map(lambda *x: jnp.concatenate(x), *params['blocks'])
  return {**params, 'blocks': (joined,)}


def hidden(
  config: ModelConfig,
  params: Params,
  tokens_BxL: Array,
  segments_BxL: Array,
  positions_BxL: Array,
  dropout_key: Array | None = None,
) -> Array:
  """Returns the last hidden states, after the final norm.

  Args:
    tokens_BxL: token ids in [0, V).
    segments_BxL: document of each token, from 1; 0 is padding. A token sees the
      tokens of its own segment up to itself.
    positions_BxL: position of each token in its document, from 0.
    dropout_key: for the adapters' dropout in training; None drops nothing.

  Returns:
    hidden_BxLxD in the compute dtype; at padding, meaningless but finite.
  """
  x, _ = run_blocks(
    config, params, tokens_BxL, segments_BxL, positions_BxL, dropout_key
  )
  return final_norm(config, params, x)


def with_head(config: ModelConfig, params: Params, key: Array) -> Params:
  """Replaces the head by a newly initialised one of the config."""
  rest = {name: x for name, x in params.items() if name != 'head'}
  own = nn.meta.unbox(heads.init(config, key))
  return {**rest, 'head': own} if own else rest


def extended(config: ModelConfig, params: Params, key: Array) -> Params:
  """Adds the parameters of the config that are missing, newly initialised.

  They belong to another attention or to adapters.
  """
  by_path = jax.tree_util.tree_leaves_with_path

  def make(key: Array) -> Params:
    return nn.meta.unbox(_init(config, key))

  shapes, leaves = jax.eval_shape(make, key), dict(by_path(params))
  new = [path for path, _ in by_path(shapes) if path not in leaves]

  @jax.jit  # Does not make what exists already, above all the matrices.
  def absent(key: Array) -> list[Array]:
    made = dict(by_path(make(key)))
    return [made[path] for path in new]

  leaves |= zip(new, absent(key), strict=True)
  return jax.tree_util.tree_map_with_path(
    lambda path, _: leaves[path], shapes
  )


def without_adapters(
  config: ModelConfig, params: Params
) -> tuple[ModelConfig, Params]:
  """Merges adapters into their matrices; the model computes the same."""
  if not config.lora.rank:
    return config, params
  plain = dataclasses.replace(config, lora=lora.NO_LORA)
  return plain, jax.jit(partial(lora.merged, config.lora))(params)


def fix_head(config: ModelConfig, params: Params) -> Params:
  """Writes learned codes down for scoring and generating.

  Only training needs the rows behind them.
  """
  if 'head' not in params:
    return params
  fixed = heads.fix_codes(config.head, params['head'])
  return {**params, 'head': fixed}


def logits(
  config: ModelConfig,
  params: Params,
  tokens_BxL: Array,
  segments_BxL: Array,
  positions_BxL: Array,
) -> Array:
  """Returns logits_BxLxV in fp32, for short sequences, as they are V wide."""
  x = hidden(config, params, tokens_BxL, segments_BxL, positions_BxL)
  return head_logits(config, params, x)


def run_blocks(
  config: ModelConfig,
  params: Params,
  tokens_BxL: Array,
  segments_BxL: Array,
  positions_BxL: Array,
  dropout_key: Array | None = None,
) -> tuple[Array, list]:
  """Returns the residual stream after all blocks; see `hidden` for arguments.

  Returns:
    x_BxLxD, and keys and values of each group, [layers, B, L, K, Dh].
  """
  length, seen = tokens_BxL.shape[1], segments_BxL
  if kernels.chosen(config, length) == 'xla':
    causal_LxL = jnp.tril(jnp.ones((length, length), bool))
    same_BxLxL = segments_BxL[:, :, None] == segments_BxL[:, None, :]
    seen = same_BxLxL & causal_LxL[None]

  def block(x: Array, layer: tuple) -> tuple[Array, tuple[Array, Array]]:
    weights, kind, key = layer
    return apply(
      Block(config), weights, x, positions_BxL, seen, None, kind,
      dropout_key=key,
    )  # fmt: skip

  kept = () if config.remat else (KEPT,)
  policy = jax.checkpoint_policies.save_only_these_names(*kept)
  block = jax.checkpoint(block, policy=policy, prevent_cse=False)
  x, cache = embed(config, params, tokens_BxL, positions_BxL), []
  kinds, first = layer_kinds(config), 0
  keys = None
  if dropout_key is not None:
    keys = jax.random.split(dropout_key, config.layers)
  for group in params['blocks']:
    last = first + len(jax.tree.leaves(group)[0])
    own_keys = None if keys is None else keys[first:last]
    layers = (group, take_layers(kinds, slice(first, last)), own_keys)
    x, keys_values = jax.lax.scan(block, x, layers)
    cache.append(keys_values)
    first = last
  return x, cache


def embed(
  config: ModelConfig, params: Params, tokens_BxL: Array, positions_BxL: Array
) -> Array:
  """Returns the residual stream before the first block."""
  table_VxD = params['embed_VxD'].astype(config.compute_dtype)
  # Gather whole rows before the look-up. Split over the devices that split the
  # batch, they would be gathered for every token instead.
  table_VxD = constrain(table_VxD, 'vocab', 'activation')
  x = table_VxD[tokens_BxL]
  if config.embed_scale != 1:
    x *= jnp.asarray(config.embed_scale, x.dtype)
  if config.learned_positions:
    places_LxD = params['positions_LxD'].astype(x.dtype)
    x += constrain(places_LxD, None, 'activation')[positions_BxL]
  return constrain(x, 'batch', 'length', 'activation')


def final_norm(config: ModelConfig, params: Params, x: Array) -> Array:
  """Normalises the residual stream after the last block."""
  return apply(Norm(config), params['norm'], x)


def apply(
  module: nn.Module,
  weights: Params,
  *inputs: Any,
  dropout_key: Array | None = None,
) -> Any:
  """Applies a Linen module as a function of its weights."""
  rngs = None if dropout_key is None else {'dropout': dropout_key}
  return module.apply({'params': weights}, *inputs, rngs=rngs)
