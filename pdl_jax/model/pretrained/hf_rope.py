"""RoPE of a config.json, in the keys of transformers 4 and of 5, and back."""

import math
from collections.abc import Mapping
from typing import Any

from pdl_jax.model.config import RopeScaling
from pdl_jax.model.pretrained.hf_fields import Fields

_KINDS = {
  'default': 'none', 'linear': 'linear', 'llama3': 'llama3', 'yarn': 'yarn'
}  # fmt: skip


def read_rope(
  fields: Fields, base: float = 10_000.0
) -> tuple[float, RopeScaling]:
  """Base and stretching of a model that has one of each.

  Args:
    fields: of the model.
    base: of the family, where the file has none.
  """
  older = {
    'rope_theta': fields.get('rope_theta', base),
    **(fields.get('rope_scaling') or {}),
  }
  found = fields.get('rope_parameters') or older
  return _read(fields, found, base)


def read_two_ropes(
  fields: Fields, base: float, local: float
) -> tuple[float, RopeScaling, float]:
  """The same of layers that see all, and the base of those with a window."""
  both = fields.get('rope_parameters')
  if both is None:
    local = fields.get('rope_local_base_freq', local)
    return *read_rope(fields, base), local
  fields.ignore('rope_theta', 'rope_scaling', 'rope_local_base_freq')
  if not isinstance(both, Mapping) or set(both) != {
    'full_attention', 'sliding_attention'
  }:  # fmt: skip
    raise fields.refusal(
      'rope_parameters', both, 'one of each kind of layer is'
    )
  near, plain = _read(fields, both['sliding_attention'], local)
  if plain.kind != 'none':
    raise fields.refusal(
      'rope_parameters', both['sliding_attention'],
      'layers with a window have no scaling',
    )
  return *_read(fields, both['full_attention'], base), near


def _read(
  fields: Fields, values: Mapping[str, Any], base: float
) -> tuple[float, RopeScaling]:
  rope = Fields(values, f'{fields.name}: RoPE')
  theta = float(rope.get('rope_theta', base))
  rope.expect('partial_rotary_factor', 1.0)
  rope.ignore('rope_type', 'type')
  named = rope.get('rope_type', rope.get('type', 'default'))
  if named not in _KINDS:
    raise rope.refusal('rope_type', named, f'known are {", ".join(_KINDS)}')
  kind = _KINDS[named]
  if kind == 'none':
    rope.ignore('factor') if rope.get('factor', 1.0) == 1 else None
    scaling = RopeScaling()
  elif kind == 'linear':
    scaling = RopeScaling(kind, rope.need('factor'))
  elif kind == 'llama3':
    scaling = RopeScaling(
      kind, rope.need('factor'), rope.need('low_freq_factor'),
      rope.need('high_freq_factor'),
      rope.need('original_max_position_embeddings'),
    )  # fmt: skip
  else:
    scaling = _yarn(fields, rope)
  rope.finish()
  return theta, scaling


def _yarn(fields: Fields, rope: Fields) -> RopeScaling:
  factor = rope.need('factor')
  own, all_dims = rope.get('mscale'), rope.get('mscale_all_dim')
  magnitude = _magnitude(factor, 1.0)
  if own and all_dims:
    magnitude = _magnitude(factor, own) / _magnitude(factor, all_dims)
  return RopeScaling(
    'yarn', factor, rope.get('beta_slow', 1.0), rope.get('beta_fast', 32.0),
    rope.get(
      'original_max_position_embeddings', fields.get('max_position_embeddings')
    ),
    rope.get('attention_factor', magnitude),
    bool(rope.get('truncate', True)) if rope.has('truncate') else True,
  )  # fmt: skip


def _magnitude(factor: float, scale: float) -> float:
  return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def write_rope(base: float, scaling: RopeScaling) -> dict[str, Any]:
  """`rope_parameters` of transformers 5."""
  made: dict[str, Any] = {'rope_theta': base, 'rope_type': 'default'}
  if scaling.kind == 'none':
    return made
  made |= {'rope_type': scaling.kind, 'factor': scaling.factor}
  if scaling.kind == 'linear':
    return made
  made['original_max_position_embeddings'] = scaling.original
  if scaling.kind == 'llama3':
    return made | {
      'low_freq_factor': scaling.low, 'high_freq_factor': scaling.high
    }  # fmt: skip
  return made | {
    'beta_slow': scaling.low, 'beta_fast': scaling.high,
    'attention_factor': scaling.magnitude, 'truncate': scaling.whole_dims,
  }  # fmt: skip
