"""Output heads: a table of kinds, with their parameters and what losses get."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
from jax import Array

from pdl_jax.losses.heads import Head
from pdl_jax.model.heads import plain, vq
from pdl_jax.model.heads.vq import FIXED, Tier, bias_of, fix_codes
from pdl_jax.model.layers import INIT

if TYPE_CHECKING:
  from pdl_jax.model.config import ModelConfig

__all__ = [
  'FIXED', 'HEADS', 'Kind', 'Tier', 'fix_codes', 'head', 'init', 'logits'
]  # fmt: skip

Params = dict


class Kind(NamedTuple):
  """A kind of output head; `config` is the model's, `params` all it has.

  Attributes:
    head: (config, params, bias_V) -> head as losses take it.
    init: (config, make) -> parameters; make(axes, shape, initializer) draws.
    check: (config) raises ConfigError if the head does not fit.
    keys: keys of `model`, or groups of keys, that it reads.
    has_rows: whether its logits can have a soft cap.
  """

  head: Callable[..., Head]
  init: Callable[..., Params] = lambda *_: {}
  check: Callable[['ModelConfig'], None] = lambda _: None
  keys: tuple[str, ...] = ()
  has_rows: bool = True


HEADS = {
  'tied': Kind(plain.tied),
  'dense': Kind(plain.dense, plain.init_dense),
  'low_rank': Kind(
    plain.low_rank, plain.init_low_rank, plain.check_low_rank, ('rank',)
  ),
  'vq': Kind(
    lambda config, params, _: vq.head(config.head, params['head']),
    vq.init, vq.check, ('rank', 'vq'), has_rows=False,
  ),
  'adaptive': Kind(
    plain.adaptive, plain.init_adaptive, plain.check_adaptive,
    ('rank', 'vq.num_exact', 'vq.tail_start'), has_rows=False,
  ),
}  # fmt: skip


def init(config: 'ModelConfig', key: Array) -> Params:
  """Makes parameters with logical axis names; a tied head has none.

  Types take the codes in turn, and a fixed bias is 0: a run knows the data, and
  replaces both.
  """
  keys = iter(jax.random.split(key, 16))

  def make(axes: tuple, shape: tuple, how: Any = INIT) -> Any:
    return nn.with_logical_partitioning(how, axes)(next(keys), shape)

  made = HEADS[config.head.kind].init(config, make)
  if config.head.bias != 'none':
    name = 'bias_V' if config.head.bias == 'learned' else 'prior_V'
    shape, zeros = (config.vocab_size,), nn.initializers.zeros
    made[name] = make(('vocab',), shape, zeros)
  return made


def head(config: 'ModelConfig', params: Params) -> Head:
  """Returns the head as losses take it, from the whole model's parameters."""
  bias_V = bias_of(params.get('head', {}))
  return HEADS[config.head.kind].head(config, params, bias_V)


def logits(config: 'ModelConfig', params: Params, hidden: Array) -> Array:
  """Returns logits [..., V], fp32."""
  own = params.get('head', {})
  if config.head.kind == 'vq' and 'codes_MxV' in own:
    return vq.logits(config.head, own, hidden)
  return head(config, params).logits(hidden)
