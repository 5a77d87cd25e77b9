"""The metadata of a GGUF file as the values of a config.json."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.model.config import RopeScaling
from pdl_jax.model.rotary import frequencies
from pdl_jax.pretrained.families import FULL, SLIDING
from pdl_jax.pretrained.fields import MOST_LAYERS, Fields

# What GGUF calls a family: Mistral is a llama there, without its window.
MODEL_TYPES = {
  'llama': 'llama', 'qwen2': 'qwen2', 'qwen3': 'qwen3', 'gemma2': 'gemma2',
  'gemma3': 'gemma3_text', 'gpt2': 'gpt2',
}  # fmt: skip
# Of the runtime, or said once more by the tensors.
_IGNORED = ('vocab_size', 'rope.scaling.finetuned', 'tensor_data_layout')
# Layers of Gemma's 27B, whose scores have another scale: no key says so.
_GEMMA_27B = {'gemma2': 46, 'gemma3': 62}
_PATTERN = {'gemma2': 2, 'gemma3': 6}
# The contexts that a table of Llama 3 may be made for.
_ORIGINALS = tuple(2**power for power in range(4, 18))
Values = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def config_values(
  metadata: Mapping[str, Any], shapes: Shapes, is_tied: bool,
  divisors_P: np.ndarray | None, name: str,
) -> Values:  # fmt: skip
  """What `hf_config` reads.

  Args:
    metadata: of the file.
    shapes: of its tensors, [out, in].
    is_tied: whether the output head is the embedding.
    divisors_P: of the rotary frequencies, as Llama 3 has them; None: none.
    name: of the file, for errors.

  Raises:
    DataError: for another architecture, and naming what is missing or not
      mapped.
  """
  kind = metadata.get('general.architecture')
  if not isinstance(kind, str) or kind not in MODEL_TYPES:
    raise DataError(
      f'{name} holds a {kind!r} model; of GGUF these are read: '
      f'{", ".join(MODEL_TYPES)}; a folder with config.json and safetensors '
      'may be of other families'
    )
  start = f'{kind}.'
  own = {
    key.removeprefix(start): value
    for key, value in metadata.items()
    if key.startswith(start)
  }
  fields = Fields(own, f'{name} ({kind})')
  fields.ignore(*_IGNORED)
  fields.expect('attention.causal', True)
  values = {
    'model_type': MODEL_TYPES[kind],
    'vocab_size': shapes.get('token_embd.weight', (0,))[0],
    'tie_word_embeddings': is_tied,
  }
  if kind == 'gpt2':
    values |= _gpt2(fields)
  else:
    values |= _llama(fields, kind, shapes, divisors_P)
  fields.finish()
  return values


def _gpt2(fields: Fields) -> Values:
  return {
    'n_embd': fields.count('embedding_length'),
    'n_layer': fields.count('block_count', most=MOST_LAYERS),
    'n_head': fields.count('attention.head_count'),
    'n_positions': fields.count('context_length'),
    'n_inner': fields.count('feed_forward_length'),
    'layer_norm_epsilon': fields.number('attention.layer_norm_epsilon'),
  }


def _llama(
  fields: Fields, kind: str, shapes: Shapes, divisors_P: np.ndarray | None
) -> Values:
  """All but GPT-2."""
  width, heads = fields.count('embedding_length'), _one(
    fields, 'attention.head_count'
  )
  turned = fields.count('rope.dimension_count', width // heads)
  head_dim = fields.count('attention.key_length', turned)
  fields.expect('attention.value_length', head_dim)
  fields.expect('rope.dimension_count', head_dim)
  values: Values = {
    'hidden_size': width,
    'num_hidden_layers': fields.count('block_count', most=MOST_LAYERS),
    'num_attention_heads': heads,
    'num_key_value_heads': _one(fields, 'attention.head_count_kv', heads),
    'head_dim': head_dim,
    'intermediate_size': _one(fields, 'feed_forward_length'),
    'max_position_embeddings': fields.count('context_length'),
    'rms_norm_eps': fields.number('attention.layer_norm_rms_epsilon'),
  }
  if kind in ('llama', 'qwen3'):
    values['attention_bias'] = 'blk.0.attn_q.bias' in shapes
  if kind == 'llama':
    values['mlp_bias'] = 'blk.0.ffn_gate.bias' in shapes
  rope = _rope(fields, head_dim, divisors_P)
  if kind not in _PATTERN:
    return values | {'rope_parameters': rope}
  return values | _gemma(fields, kind, values, rope)


def _gemma(fields: Fields, kind: str, values: Values, rope: Values) -> Values:
  layers, window = values['num_hidden_layers'], None
  if kind == 'gemma2' or fields.get('attention.sliding_window'):
    window = fields.count('attention.sliding_window', 4096)
  pattern = 'attention.sliding_window_pattern'
  found = fields.get(pattern, _PATTERN[kind])
  if not isinstance(found, list):
    each = fields.count(pattern, _PATTERN[kind])
    found = [(i + 1) % each != 0 for i in range(layers)]
  kinds = [SLIDING if window and near else FULL for near in found]
  scalar = values['head_dim']
  if layers == _GEMMA_27B[kind]:
    scalar = values['hidden_size'] // values['num_attention_heads']
  made: Values = {
    'sliding_window': window, 'layer_types': kinds,
    'query_pre_attn_scalar': scalar,
    'attn_logit_softcapping': fields.get('attn_logit_softcapping'),
    'final_logit_softcapping': fields.get('final_logit_softcapping'),
  }  # fmt: skip
  if kind == 'gemma2':
    return made | {'rope_parameters': rope}
  near = fields.get('rope.freq_base_swa', 10_000.0)
  return made | {
    'rope_parameters': {
      FULL: rope, SLIDING: {'rope_theta': near, 'rope_type': 'default'}
    }
  }  # fmt: skip


def _one(fields: Fields, key: str, default: int | None = None) -> int:
  """A number that GGUF may also give layer by layer."""
  value = fields.get(key)
  if isinstance(value, list):
    if len(set(map(str, value))) != 1:
      raise fields.refusal(key, value, 'all layers have the same')
    fields = Fields({key: value[0]}, fields.name)
  return fields.count(key) if default is None else fields.count(key, default)


def _rope(
  fields: Fields, head_dim: int, divisors_P: np.ndarray | None
) -> Values:
  """`rope_parameters`; a factor without a type is linear."""
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
  if kind != 'yarn':  # Linear, or `hf_rope` refuses it by its name.
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
  """The parameters behind a table, which is all that GGUF keeps of them.

  `low` and `high` are those of every release of Llama 3; the original context
  is tried.
  """
  pairs, factor = head_dim // 2, float(np.max(divisors_P))
  if np.all(divisors_P == 1):
    return {}
  plain_P = frequencies(base, pairs, RopeScaling())
  for original in _ORIGINALS:
    if factor < 1 or divisors_P.shape != plain_P.shape:
      break
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
