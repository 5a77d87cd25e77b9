"""Output heads: their parameters, and what losses and decoders get."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.losses.heads import AdaptiveHead, Head, LinearHead
from pdl_jax.model import lora
from pdl_jax.model.config import HeadConfig, ModelConfig, Tier, code_dtype
from pdl_jax.model.heads import vq
from pdl_jax.model.heads.vq import FIXED, fix_codes
from pdl_jax.model.layers import INIT

__all__ = ['FIXED', 'fix_codes', 'head', 'init', 'logits']

Params = dict


def init(config: ModelConfig, key: Array) -> Params:
  """Makes parameters with logical axis names; a tied head has none.

  Types take the codes in turn, and a fixed bias is 0. `setup` knows the data
  and replaces both.
  """
  c, v, d = config.head, config.vocab_size, config.width
  keys = iter(jax.random.split(key, 8))

  def made_of(axes: tuple, shape: tuple, how: Any = INIT) -> Any:
    return nn.with_logical_partitioning(how, axes)(next(keys), shape)

  def add(name: str, axes: tuple, shape: tuple, how: Any = INIT) -> None:
    made[name] = made_of(axes, shape, how)

  made: Params = {}
  if c.kind == 'dense':
    add(lora.MATRIX, ('vocab', 'embed'), (v, d))
    if config.lora.adapts(lora.HEAD):
      name_a, name_b = lora.names(lora.MATRIX)
      rank, zeros = config.lora.rank, nn.initializers.zeros
      add(name_a, ('embed', None), (d, rank), lora.start(inputs=1))
      add(name_b, (None, 'vocab'), (rank, v), zeros)
  if c.kind == 'vq':
    # Tiers have any size, which need not divide over a mesh.
    types = None if c.in_tiers else 'vocab'
    first, *rest = (
      _tier(c, tier, d, types, made_of) for tier in c.tiers(v)
    )  # fmt: skip
    made |= first
    if rest:
      made['tail'] = rest[0]
    if c.in_tiers and c.num_exact:
      add('own_NxD', (None, 'embed'), (c.num_exact, d))
    if c.in_tiers:
      add('places_V', ('vocab',), (v,), _places)
  if c.kind == 'adaptive':
    add('first_HxD', (None, 'embed'), (c.num_exact + 2, d))
    made |= _cluster(c.tail_start - c.num_exact, d, c.rank, made_of)
    made['tail'] = _cluster(v - c.tail_start, d, max(1, c.rank // 4), made_of)
    add('places_V', ('vocab',), (v,), _places)
  if c.kind == 'low_rank' or (c.kind == 'vq' and c.rank):
    # One factor of vq's residual is 0, so that the residual starts at 0.
    zero = nn.initializers.zeros
    add('left_VxR', ('vocab', None), (v, c.rank),
        INIT if c.kind == 'low_rank' else zero)  # fmt: skip
    scale = nn.initializers.normal(d**-0.5)
    add('right_DxR', ('embed', None), (d, c.rank), scale)
  if c.bias != 'none':
    name = 'bias_V' if c.bias == 'learned' else 'prior_V'
    made[name] = nn.with_logical_partitioning(
      nn.initializers.zeros, ('vocab',)
    )(key, (v,))  # fmt: skip
  return made


def _tier(
  c: HeadConfig, tier: Tier, width: int, types: str | None, made_of: Any
) -> Params:
  """Makes codebooks, and codes or the rows that learned codes follow."""
  wide, count = tier.rank or width, tier.end - tier.first
  embed = 'embed' if c.combine == 'sum' and not tier.rank else None
  shape = (tier.num_codebooks, tier.codebook_size, c.code_width(wide, tier))
  made = {'codebooks_MxKxS': made_of((None, 'codes', embed), shape)}
  if tier.rank:
    scale = nn.initializers.normal(width**-0.5)
    made['projection_DxR'] = made_of(
      ('embed', None), (width, tier.rank), scale
    )
  if c.learned:
    axes = (types, None if tier.rank else 'embed')
    return made | {'shadow_VxD': made_of(axes, (count, wide))}
  codes = made_of(
    (None, types), (tier.num_codebooks, count), _in_turn(tier.codebook_size)
  )
  return made | {'codes_MxV': codes}


def _cluster(types: int, width: int, rank: int, made_of: Any) -> Params:
  scale = nn.initializers.normal(width**-0.5)
  return {
    'left_VxR': made_of((None, None), (types, rank)),
    'right_DxR': made_of(('embed', None), (width, rank), scale),
  }


def _places(_: Array, shape: tuple[int]) -> Array:
  return jnp.arange(shape[0], dtype=jnp.int32)


def _in_turn(count: int) -> Any:
  def codes(_: Array, shape: tuple[int, int]) -> Array:
    row_V = jnp.arange(shape[1]) % count
    return jnp.broadcast_to(row_V.astype(code_dtype(count)), shape)

  return codes


def head(config: ModelConfig, params: Params) -> Head:
  """Returns the head as losses take it, from the whole model's parameters."""
  own = params.get('head', {})
  bias_V = vq.bias_of(own)
  if config.head.kind == 'vq':
    return vq.head(config.head, own)
  cap = config.logit_softcap
  if config.head.kind == 'low_rank':
    return LinearHead(own['left_VxR'], bias_V, own['right_DxR'], cap)
  if config.head.kind == 'adaptive':
    clusters = tuple(
      LinearHead(part['left_VxR'], None, part['right_DxR'])
      for part in (own, own['tail'])
    )
    return AdaptiveHead(own['first_HxD'], clusters, own['places_V'])
  if config.head.kind == 'dense':
    # A loss needs one matrix; merging costs V * D * r multiply-adds.
    whole = lora.merged(config.lora, {'head': own, 'blocks': ()})['head']
    return LinearHead(whole[lora.MATRIX], bias_V, softcap=cap)
  return LinearHead(params['embed_VxD'], bias_V, softcap=cap)


def logits(config: ModelConfig, params: Params, hidden: Array) -> Array:
  """Returns logits [..., V], fp32."""
  own = params.get('head', {})
  if config.head.kind == 'vq' and 'codes_MxV' in own:
    return vq.logits(config.head, own, hidden)
  return head(config, params).logits(hidden)
