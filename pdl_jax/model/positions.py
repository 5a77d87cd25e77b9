"""How attention uses positions: a table of kinds, with their code."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.model.layers import parameter
from pdl_jax.model.rotary import turn

if TYPE_CHECKING:
  from pdl_jax.model.config import ModelConfig

DELTAS = ('head', 'shared', 'fixed')
DELTA_STARTS = ('rope', 'published', 'zero')


@dataclasses.dataclass(frozen=True)
class ComplexConfig:
  """Complex attention (CMHA, arXiv:2505.10222), see `rotary`."""

  # How the factor of the angle between query and key is learned: for each
  # key-value head and pair (head; the queries of a group share cached keys),
  # for each pair (shared), or not at all (fixed).
  delta_sharing: str = 'head'
  # Whether each query head and pair learns an offset b, which starts at 0.
  phase_bias: bool = True
  # Initial delta: rope (1), zero (0: only moduli and distance affect a score),
  # or published (normal, standard deviation (head_dim / 2)**-0.5, as in the
  # published code).
  delta_init: str = 'rope'
  # Whether scores are divided by sqrt(head_dim); published code does not.
  scale_scores: bool = True
  # Sign of the position, 1 or -1; learned projections can compensate for it.
  position_sign: int = 1

  def __post_init__(self):
    key = 'model.complex.'
    one_of(f'{key}delta_sharing', self.delta_sharing, DELTAS)
    one_of(f'{key}delta_init', self.delta_init, DELTA_STARTS)
    one_of(f'{key}position_sign', self.position_sign, (1, -1))
    if self.delta_sharing == 'fixed' and self.delta_init == 'published':
      raise ConfigError(
        f'{key}delta_init published is of a delta that is learned, and '
        f'{key}delta_sharing is fixed; take {key}delta_init rope (1) or '
        'zero (0)'
      )


COMPLEX = ComplexConfig()


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
  """How attention uses positions; only complex attention reads `complex`."""

  kind: str = 'rope'
  complex: ComplexConfig = COMPLEX

  def __post_init__(self):
    one_of('attention kind', self.kind, KINDS)

  def begun_as_rope(self) -> 'AttentionConfig':
    """Returns the nearest config that starts as RoPE, if this kind can."""
    plain = dataclasses.replace(
      self.complex, delta_init='rope', scale_scores=True, position_sign=1
    )
    return dataclasses.replace(self, complex=plain)


def _rope(
  _: nn.Module, c: 'ModelConfig', q: Array, k: Array,
  positions_BxL: Array, frequencies_P: Array | np.ndarray | None,
) -> tuple[Array, Array]:  # fmt: skip
  how = partial(
    turn, positions_BxL=positions_BxL, base=c.rope_base,
    frequencies_P=frequencies_P,
  )  # fmt: skip
  return how(q), how(k)


def _complex(
  module: nn.Module, c: 'ModelConfig', q: Array, k: Array,
  positions_BxL: Array, frequencies_P: Array | np.ndarray | None,
) -> tuple[Array, Array]:  # fmt: skip
  how, pairs = c.attention.complex, c.head_dim // 2
  delta_q = delta_k = offset = None
  if how.delta_sharing != 'fixed':
    one = how.delta_sharing == 'shared'
    delta_k = parameter(
      module, 'delta', (None if one else 'kv_heads', 'head_dim'),
      (1 if one else c.kv_heads, pairs),
      {
        'rope': nn.initializers.ones,
        'published': nn.initializers.normal(pairs**-0.5),
        'zero': nn.initializers.zeros,
      }[how.delta_init],
    )  # fmt: skip
    delta_q = jnp.repeat(delta_k, 1 if one else c.heads // c.kv_heads, axis=0)
  elif how.delta_init == 'zero':
    delta_q = delta_k = jnp.zeros((1, pairs))
  if how.phase_bias:
    offset = parameter(
      module, 'offset', ('heads', 'head_dim'), (c.heads, pairs),
      nn.initializers.zeros,
    )  # fmt: skip
  sign = how.position_sign
  place = (positions_BxL, c.rope_base)
  return (
    turn(q, *place, delta_q, offset, sign, frequencies_P),
    turn(k, *place, delta_k, None, sign, frequencies_P),
  )


def _scaled_rope(
  module: nn.Module, c: 'ModelConfig', *where: Any
) -> tuple[Array, Array]:
  q, k = _rope(module, c, *where)
  factor_HxP = parameter(
    module, 'factor', ('heads', 'head_dim'), (c.heads, c.head_dim // 2),
    nn.initializers.ones,
  )  # fmt: skip
  return q * jnp.tile(factor_HxP, 2).astype(q.dtype)[None, None], k


def distance_bias(heads: int, keys: int) -> Array:
  """Returns 2**(-8h/H) times the place of a key, [H, 1, S], fp32 (ALiBi).

  h counts from 1. Adding a constant to all scores does not change a softmax, so
  a key's place serves as its distance. Tokens of a document are consecutive, so
  places differ as positions do.
  """
  slopes_H = 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)
  return slopes_H[:, None, None] * jnp.arange(keys)[None, None]


class Kind(NamedTuple):
  """A kind of attention.

  Attributes:
    place: (module, config, queries, keys, positions_BxL, frequencies_P) ->
      queries and keys with positions; None leaves them alone.
    bias: (heads, keys) -> [H, 1, S], added to the scores, or None.
    keys: keys of `model`, or groups of keys, that it reads.
    learns: parameters, which train with adapters and have no weight decay.
    extends_rope: whether training can continue from a RoPE model.
  """

  place: Callable[..., tuple[Array, Array]] | None = None
  bias: Callable[[int, int], Array] | None = None
  keys: tuple[str, ...] = ()
  learns: tuple[str, ...] = ()
  extends_rope: bool = False


KINDS = {
  'rope': Kind(_rope, keys=('rope_base',)),
  'complex': Kind(
    _complex, keys=('rope_base', 'complex'), learns=('delta', 'offset'),
    extends_rope=True,
  ),
  # RoPE with a learned factor per head and pair: a trainable baseline.
  'scaled_rope': Kind(
    _scaled_rope, keys=('rope_base',), learns=('factor',), extends_rope=True
  ),
  # A penalty that grows with distance (arXiv:2108.12409).
  'alibi': Kind(bias=distance_bias),
  'none': Kind(),
}  # fmt: skip
LEARNED = tuple(name for kind in KINDS.values() for name in kind.learns)
ROPE = AttentionConfig()
