"""Converts the metadata of a GGUF file to the values of a config.json."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.model.rotary import RopeScaling, frequencies
from pdl_jax.pretrained.families import SIZES
from pdl_jax.pretrained.fields import Fields
from pdl_jax.pretrained.layout import Shape

# GGUF calls Mistral a llama too, without its window.
ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
# Sizes without a default -> keys of GGUF.
_SIZES = {
  'width': 'embedding_length', 'layers': 'block_count',
  'heads': 'attention.head_count', 'mlp': 'feed_forward_length',
  'context': 'context_length',
}  # fmt: skip
# Keys of the runtime, or that repeat what the tensors say.
_IGNORED = ('vocab_size', 'rope.scaling.finetuned', 'tensor_data_layout')
# Original contexts that a table of Llama 3 may be made for.
_ORIGINALS = tuple(2**power for power in range(4, 18))
Values = dict[str, Any]


def config_values(
  metadata: Mapping[str, Any], shapes: Mapping[str, Shape], is_tied: bool,
  divisors_P: np.ndarray | None, name: str,
) -> Values:  # fmt: skip
  """Converts metadata to the values of a config.json.

  Shapes of tensors are [out, in]. Llama 3 divides the rotary frequencies by
  `divisors_P`. `name` is for errors.
  """
  kind = metadata.get('general.architecture')
  if kind not in ARCHITECTURES:
    raise DataError(
      f'{name} holds a {kind!r} model; of GGUF only {", ".join(ARCHITECTURES)} '
      'are read: take the model as a folder with config.json and safetensors'
    )
  own = {
    key.removeprefix(f'{kind}.'): _alike(value)
    for key, value in metadata.items()
    if key.startswith(f'{kind}.')
  }
  fields = Fields(own, f'{name} ({kind})')
  fields.ignore(*_IGNORED)
  fields.expect('attention.causal', True)
  sizes = {ours: fields.count(theirs) for ours, theirs in _SIZES.items()}
  heads = sizes['heads']
  turned = fields.count('rope.dimension_count', sizes['width'] // heads)
  head_dim = fields.count('attention.key_length', turned)
  fields.expect('attention.value_length', head_dim)
  fields.expect('rope.dimension_count', head_dim)
  values = {
    'model_type': kind,
    'vocab_size': shapes.get('token_embd.weight', (0,))[0],
    'tie_word_embeddings': is_tied,
    **{SIZES[ours]: size for ours, size in sizes.items()},
    SIZES['kv_heads']: fields.count('attention.head_count_kv', heads),
    SIZES['head_dim']: head_dim,
    'rms_norm_eps': fields.number('attention.layer_norm_rms_epsilon'),
    'rope_parameters': _rope(fields, head_dim, divisors_P),
  }
  if kind != 'qwen2':
    values['attention_bias'] = 'blk.0.attn_q.bias' in shapes
  if kind == 'llama':
    values['mlp_bias'] = 'blk.0.ffn_gate.bias' in shapes
  fields.finish()
  return values


def _alike(value: Any) -> Any:
  """Returns a list's common value; one that differs by layer stays a list."""
  is_list = isinstance(value, list) and len(set(map(str, value))) == 1
  return value[0] if is_list else value


def _rope(
  fields: Fields, head_dim: int, divisors_P: np.ndarray | None
) -> Values:
  """Makes `rope_parameters`; a factor without a type is linear."""
  base = fields.number('rope.freq_base', 10_000.0)
  start = 'rope.scaling.'
  kind = fields.get(f'{start}type', 'linear')
  older = fields.get('rope.scale_linear', 1.0)
  factor = fields.get(f'{start}factor', older) or 1.0
  made: Values = {'rope_theta': base, 'rope_type': 'default'}
  if divisors_P is not None:
    fields.expect(f'{start}factor', 1.0)
    return made | _llama3(fields, base, head_dim, divisors_P)
  if kind == 'none' or (kind == 'linear' and factor == 1):
    fields.ignore(f'{start}original_context_length')
    return made
  made |= {'rope_type': kind, 'factor': factor}
  if kind != 'yarn':  # Linear, or `read_rope` refuses it by its name.
    return made
  fields.expect(f'{start}yarn_ext_factor', 1.0)
  return made | {
    'original_max_position_embeddings': fields.need(
      f'{start}original_context_length'
    ),
    'beta_fast': fields.get(f'{start}yarn_beta_fast'),
    'beta_slow': fields.get(f'{start}yarn_beta_slow'),
    'attention_factor': fields.get(f'{start}yarn_attn_factor'),
  }


def _llama3(
  fields: Fields, base: float, head_dim: int, divisors_P: np.ndarray
) -> Values:
  """Finds the parameters behind the divisors, which are all GGUF keeps."""
  # All of Llama 3 has low 1 and high 4; the original context is tried.
  pairs = head_dim // 2
  plain_P = frequencies(base, pairs, RopeScaling())
  fits = divisors_P.shape == plain_P.shape
  if fits and np.all(divisors_P == 1):
    return {}
  factor = float(np.max(divisors_P)) if fits else 0.0
  for original in _ORIGINALS if factor >= 1 else ():
    scaling = RopeScaling('llama3', factor, 1.0, 4.0, original)
    made_P = plain_P / frequencies(base, pairs, scaling)
    if np.allclose(made_P, divisors_P, rtol=1e-4, atol=0):
      return {
        'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': 1.0,
        'high_freq_factor': 4.0, 'original_max_position_embeddings': original,
      }  # fmt: skip
  raise fields.refusal(
    'rope_freqs.weight', [round(float(x), 4) for x in divisors_P],
    'only tables of Llama 3 are: low_freq_factor 1, high_freq_factor 4',
  )
