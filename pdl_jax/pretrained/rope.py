"""RoPE of a config.json, in the keys of transformers 4 and of 5, and back."""

import math
from collections.abc import Mapping
from typing import Any

from pdl_jax.model.rotary import RopeScaling
from pdl_jax.pretrained.fields import Fields

_KINDS = {
  'default': 'none', 'linear': 'linear', 'llama3': 'llama3', 'yarn': 'yarn'
}  # fmt: skip


def read_rope(fields: Fields) -> tuple[float, RopeScaling]:
  """Reads base and scaling of a model that has one of each.

  Where several keys have them, as transformers 5 reads them: `rope_scaling`
  before `rope_parameters`, and `rope_theta` within before that beside.
  """
  newer, older = fields.group('rope_parameters'), fields.group('rope_scaling')
  return _read(
    fields, older or newer, fields.number_or_null('rope_theta', 10_000.0)
  )


def read_two_ropes(
  fields: Fields, base: float, local: float
) -> tuple[float, RopeScaling, float]:
  """Reads the same of layers that see all, and the base of windowed layers.

  `rope_scaling` is of the former, and before what `rope_parameters` has.

  Args:
    fields: of the model.
    base, local: bases of the family, where the file has none.
  """
  older = fields.group('rope_scaling')
  if 'type' in older and 'rope_type' not in older:
    raise fields.refusal(
      'rope_scaling', older, 'versions of transformers read `type` differently '
      'for this family: say `rope_type`'
    )  # fmt: skip
  name = f'{fields.name}: rope_parameters'
  both = Fields(fields.group('rope_parameters'), name)
  near, far = both.group('sliding_attention'), both.group('full_attention')
  both.finish()
  near_base, plain = _read(
    fields, near, fields.number_or_null('rope_local_base_freq', local)
  )
  if plain.kind != 'none':
    raise both.refusal(
      'sliding_attention', plain.kind, 'layers with a window have no scaling'
    )
  far_base, scaling = _read(
    fields, far | older, fields.number_or_null('rope_theta', base)
  )
  return far_base, scaling, near_base


def _read(
  fields: Fields, values: Mapping[str, Any], base: float | None
) -> tuple[float, RopeScaling]:
  rope = Fields(values, f'{fields.name}: RoPE')
  theta = rope.number('rope_theta', base)
  if theta is None:
    raise rope.refusal('rope_theta', None, 'it is no number > 0')
  context = fields.count('max_position_embeddings')
  for each in (rope, fields):
    each.expect('partial_rotary_factor', 1.0)
  rope.ignore('type')
  named = 'type' if rope.get('rope_type') is None else 'rope_type'
  kind = rope.one_of(named, _KINDS, 'default')
  if kind == 'none':
    rope.ignore('factor') if rope.number('factor', 1.0) == 1 else None
    scaling = RopeScaling()
  elif kind == 'linear':
    scaling = RopeScaling(kind, rope.number('factor'))
  elif kind == 'llama3':
    scaling = RopeScaling(
      kind, rope.number('factor'), rope.number('low_freq_factor'),
      rope.number('high_freq_factor'),
      rope.count('original_max_position_embeddings', context),
    )  # fmt: skip
  else:
    scaling = _yarn(rope, context)
  rope.finish()
  return theta, scaling


def _yarn(rope: Fields, context: int) -> RopeScaling:
  factor = rope.number('factor')
  own = rope.number('mscale', None)
  all_dims = rope.number('mscale_all_dim', None)
  magnitude = _magnitude(factor, 1.0)
  if own and all_dims:
    magnitude = _magnitude(factor, own) / _magnitude(factor, all_dims)
  return RopeScaling(
    'yarn', factor, rope.number('beta_slow', 1.0),
    rope.number('beta_fast', 32.0),
    rope.count('original_max_position_embeddings', context),
    rope.number('attention_factor', magnitude), rope.flag('truncate', True),
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
