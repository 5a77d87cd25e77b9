"""Heads whose rows are not composed: tied, dense, low-rank and adaptive."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from pdl_jax.errors import ConfigError
from pdl_jax.losses.heads import AdaptiveHead, LinearHead
from pdl_jax.model import lora
from pdl_jax.model.layers import INIT

if TYPE_CHECKING:
  from pdl_jax.model.config import ModelConfig

Params = dict


def tied(c: 'ModelConfig', params: Params, bias_V: Array | None) -> LinearHead:
  """Returns the head whose rows are the input embedding's."""
  return LinearHead(params['embed_VxD'], bias_V, softcap=c.logit_softcap)


def init_dense(c: 'ModelConfig', make: Any) -> Params:
  """Makes a matrix, and its adapter if it has one."""
  made = {lora.MATRIX: make(('vocab', 'embed'), (c.vocab_size, c.width))}
  if c.lora.adapts(lora.HEAD):
    name_a, name_b = lora.names(lora.MATRIX)
    rank, start = c.lora.rank, lora.start(inputs=1)
    zeros = nn.initializers.zeros
    made[name_a] = make(('embed', None), (c.width, rank), start)
    made[name_b] = make((None, 'vocab'), (rank, c.vocab_size), zeros)
  return made


def dense(c: 'ModelConfig', params: Params, bias_V: Array | None) -> LinearHead:
  """Returns the matrix; merging its adapter costs V * D * r multiply-adds."""
  matrix = lora.merged(c.lora, params['head'])[lora.MATRIX]
  return LinearHead(matrix, bias_V, softcap=c.logit_softcap)


def check_rank(key: str, rank: int, width: int) -> None:
  """Refuses a rank that would save nothing."""
  if rank >= width:
    raise ConfigError(
      f'{key} {rank} must be below the width of the model, {width}'
    )


def check_low_rank(c: 'ModelConfig') -> None:
  """Refuses a rank that the model cannot have."""
  rank = c.head.rank
  if rank < 1:
    raise ConfigError(f'model.rank of a low_rank head must be >= 1, got {rank}')
  check_rank('model.rank', rank, c.width)


def factors(
  make: Any, types: int, width: int, rank: int,
  axis: str | None = None, left: Any = INIT,
) -> Params:  # fmt: skip
  """Makes the factors of rows; `axis` is the logical name of the types."""
  scale = nn.initializers.normal(width**-0.5)
  return {
    'left_VxR': make((axis, None), (types, rank), left),
    'right_DxR': make(('embed', None), (width, rank), scale),
  }


def init_low_rank(c: 'ModelConfig', make: Any) -> Params:
  """Makes the factors of all rows."""
  return factors(make, c.vocab_size, c.width, c.head.rank, 'vocab')


def low_rank(
  c: 'ModelConfig', params: Params, bias_V: Array | None
) -> LinearHead:
  """Returns the head that projects the state before its rows multiply it."""
  left, right = (params['head'][name] for name in ('left_VxR', 'right_DxR'))
  return LinearHead(left, bias_V, right, c.logit_softcap)


def check_adaptive(config: 'ModelConfig') -> None:
  """Refuses clusters without types, ranks that save nothing, and a bias."""
  c, v, d = config.head, config.vocab_size, config.width
  if not (0 < c.num_exact < c.tail_start < v and 0 < c.rank < d):
    raise ConfigError(
      f'model.head adaptive needs 0 < model.vq.num_exact {c.num_exact} < '
      f'model.vq.tail_start {c.tail_start} < {v} types, and 0 < model.rank '
      f'{c.rank} < width {d}'
    )
  if c.bias != 'none':
    raise ConfigError(
      "model.head adaptive has no bias; leave model.bias at 'none'"
    )


def init_adaptive(config: 'ModelConfig', make: Any) -> Params:
  """Makes rows of common types and of clusters, and each cluster's factors."""
  c, v, d = config.head, config.vocab_size, config.width
  return {
    'first_HxD': make((None, 'embed'), (c.num_exact + 2, d)),
    **factors(make, c.tail_start - c.num_exact, d, c.rank),
    'tail': factors(make, v - c.tail_start, d, max(1, c.rank // 4)),
    'places_V': make(('vocab',), (v,), places),
  }


def places(_: Array, shape: tuple[int]) -> Array:
  """Starts with the types in the order of their ids."""
  return jnp.arange(shape[0], dtype=jnp.int32)


def adaptive(_: 'ModelConfig', params: Params, __: None) -> AdaptiveHead:
  """Returns the head of clusters (arXiv:1609.04309)."""
  own = params['head']
  clusters = tuple(
    LinearHead(part['left_VxR'], None, part['right_DxR'])
    for part in (own, own['tail'])
  )
  return AdaptiveHead(own['first_HxD'], clusters, own['places_V'])
