"""Reads RoPE of a config.json, in keys of transformers 4 and 5; writes it."""

import math
from collections.abc import Mapping
from typing import Any

from pdl_jax.model.rotary import RopeScaling
from pdl_jax.pretrained.fields import NEEDED, Fields

_KINDS = {
  'default': 'none', 'linear': 'linear', 'llama3': 'llama3', 'yarn': 'yarn'
}  # fmt: skip
_CONTEXT = {'factor': 'factor', 'original': 'original_max_position_embeddings'}
# The fields of each kind of RopeScaling -> keys of config.json.
_KEYS = {
  'none': {}, 'linear': {'factor': 'factor'},
  'llama3': _CONTEXT | {'low': 'low_freq_factor', 'high': 'high_freq_factor'},
  'yarn': _CONTEXT | {
    'low': 'beta_slow', 'high': 'beta_fast', 'magnitude': 'attention_factor',
    'whole_dims': 'truncate',
  },
}  # fmt: skip


def read_rope(fields: Fields) -> tuple[float, RopeScaling]:
  """Reads base and scaling of a model with one of each.

  Precedence is that of transformers 5: `rope_scaling` before `rope_parameters`,
  and `rope_theta` inside these before the one outside.
  """
  newer, older = fields.group('rope_parameters'), fields.group('rope_scaling')
  return _read(
    fields, older or newer, fields.number_or_null('rope_theta', 10_000.0)
  )


def read_two_ropes(
  fields: Fields, base: float, local: float
) -> tuple[float, RopeScaling, float]:
  """Reads base and scaling of full layers, and the base of windowed layers.

  `rope_scaling` is for full layers, and precedes `rope_parameters`. `base` and
  `local` are the family's defaults.
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
    rope.ignore('factor')
  defaults: dict[str, Any] = {'original': context, 'whole_dims': True}
  if kind == 'yarn':
    defaults |= {'low': 1.0, 'high': 32.0, 'magnitude': _yarn_magnitude(rope)}
  read = {'original': rope.count, 'whole_dims': rope.flag}
  found = {
    ours: read.get(ours, rope.number)(theirs, defaults.get(ours, NEEDED))
    for ours, theirs in _KEYS[kind].items()
  }
  rope.finish()
  return theta, RopeScaling(kind, **found)


def _yarn_magnitude(rope: Fields) -> float:
  """Returns the default factor of queries and keys."""
  factor = rope.number('factor')
  own = rope.number('mscale', None)
  all_dims = rope.number('mscale_all_dim', None)
  if own and all_dims:
    return _magnitude(factor, own) / _magnitude(factor, all_dims)
  return _magnitude(factor, 1.0)


def _magnitude(factor: float, scale: float) -> float:
  return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def write_rope(base: float, scaling: RopeScaling) -> dict[str, Any]:
  """Makes `rope_parameters` of transformers 5."""
  kind = 'default' if scaling.kind == 'none' else scaling.kind
  keys = _KEYS[scaling.kind].items()
  return {
    'rope_theta': base, 'rope_type': kind,
    **{theirs: getattr(scaling, ours) for ours, theirs in keys},
  }  # fmt: skip
