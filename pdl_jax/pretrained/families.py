"""Converts between config.json and ModelConfig: one function per family."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.model.config import AttentionConfig, HeadConfig, ModelConfig
from pdl_jax.pretrained.fields import NEEDED, Fields
from pdl_jax.pretrained.rope import read_rope, read_two_ropes

ACTIVATIONS = {
  'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_new': 'gelu_tanh',
}  # fmt: skip
FULL, SLIDING = 'full_attention', 'sliding_attention'
# Sizes of ModelConfig -> keys of config.json; GPT-2 has its own.
SIZES = {
  'width': 'hidden_size', 'mlp': 'intermediate_size',
  'layers': 'num_hidden_layers', 'heads': 'num_attention_heads',
  'kv_heads': 'num_key_value_heads', 'head_dim': 'head_dim',
  'context': 'max_position_embeddings',
}  # fmt: skip
GPT2_SIZES = {
  'width': 'n_embd', 'layers': 'n_layer', 'heads': 'n_head',
  'context': 'n_positions',
}  # fmt: skip
# Bounds lists that are made per layer; published models have up to 126.
_MOST_LAYERS = 10_000
Values = dict[str, Any]


class Family(NamedTuple):
  """The architecture of a family, and the reader of its config.json."""

  architecture: str
  read: Callable[[Fields], Values]  # returns the values of ModelConfig


def read_config(fields: Fields) -> ModelConfig:
  """Reads the model that a config.json declares."""
  fields.need('model_type')
  family = fields.one_of('model_type', FAMILIES, '')
  try:
    values = family.read(fields)
    fields.finish()
    return ModelConfig(**values)
  except ConfigError as error:  # The file is wrong, not the user.
    raise DataError(f'{fields.name}: {error}') from error


def _sizes(
  fields: Fields, names: dict[str, str], tied: bool, head_dim: int | None = None
) -> Values:
  """Reads the sizes; `tied` and `head_dim` are the family's defaults."""
  heads, width = (fields.count(names[key]) for key in ('heads', 'width'))
  defaults = {'kv_heads': heads, 'head_dim': head_dim or width // heads}
  is_tied = fields.flag('tie_word_embeddings', tied)
  fields.count(names['layers'], most=_MOST_LAYERS)
  return {
    'vocab_size': fields.count('vocab_size'),
    'head': HeadConfig('tied' if is_tied else 'dense'),
    **defaults,
    **{
      ours: fields.count(theirs, defaults.get(ours, NEEDED))
      for ours, theirs in names.items()
    },
  }


def _shape(fields: Fields, tied: bool, head_dim: int | None = None) -> Values:
  """Reads what all families except GPT-2 name alike."""
  sizes = _sizes(fields, SIZES, tied, head_dim)
  return sizes | {'norm_eps': fields.number('rms_norm_eps', 1e-6)}


def _one_rope(fields: Fields) -> Values:
  base, scaling = read_rope(fields)
  return {'rope_base': base, 'rope_scaling': scaling}


def _plain(fields: Fields, head_dim: int | None = None) -> Values:
  return {
    **_shape(fields, tied=False, head_dim=head_dim), **_one_rope(fields),
    'activation': fields.one_of('hidden_act', ACTIVATIONS, 'silu'),
  }  # fmt: skip


def _llama(fields: Fields) -> Values:
  fields.expect('rope_interleaved', False)
  bias = fields.flag('attention_bias', False)
  return {
    **_plain(fields), 'qkv_bias': bias, 'output_bias': bias,
    'mlp_bias': fields.flag('mlp_bias', False),
  }  # fmt: skip


def _mistral(fields: Fields) -> Values:
  values = _plain(fields)
  window = fields.count_or_null('sliding_window', 4096)
  return {**values, 'windows': (window,) * values['layers'] if window else ()}


def _qwen(fields: Fields, head_dim: int | None = None) -> Values:
  values = _plain(fields, head_dim)
  used = fields.flag('use_sliding_window', False)
  first = fields.count('max_window_layers', 28, least=0)
  pattern = [
    SLIDING if used and i >= first else FULL for i in range(values['layers'])
  ]
  window = fields.count('sliding_window', None) if used else None
  fields.ignore('sliding_window')
  return {**values, 'windows': _windows(fields, pattern, window)}


def _qwen2(fields: Fields) -> Values:
  return _qwen(fields) | {'qkv_bias': True}


def _qwen3(fields: Fields) -> Values:
  bias = fields.flag('attention_bias', False)
  found = _qwen(fields, head_dim=128)
  return found | {'qk_norm': True, 'qkv_bias': bias, 'output_bias': bias}


def _gemma(
  fields: Fields, full_each: int, attention_cap: float | None,
  logit_cap: float | None,
) -> Values:  # fmt: skip
  """Reads Gemma 2 and 3; every `full_each`-th layer has no window."""
  shape = _shape(fields, tied=True, head_dim=256)
  # Older files have hidden_act too; hidden_activation counts.
  fields.ignore('hidden_act')
  fields.expect('use_bidirectional_attention', False)
  bias = fields.flag('attention_bias', False)
  pattern = [
    SLIDING if (i + 1) % full_each else FULL for i in range(shape['layers'])
  ]
  return {
    **shape,
    'activation': fields.one_of(
      'hidden_activation', ACTIVATIONS, 'gelu_pytorch_tanh'
    ),
    'qkv_bias': bias, 'output_bias': bias,
    'norm': 'rms_offset', 'post_norms': True,
    'embed_scale': shape['width'] ** 0.5,
    'query_scale': fields.number('query_pre_attn_scalar', 256) ** -0.5,
    'windows': _windows(fields, pattern, fields.count('sliding_window', 4096)),
    'attention_softcap':
      fields.number_or_null('attn_logit_softcapping', attention_cap),
    'logit_softcap':
      fields.number_or_null('final_logit_softcapping', logit_cap),
  }  # fmt: skip


def _gemma2(fields: Fields) -> Values:
  return _gemma(fields, 2, 50.0, 30.0) | _one_rope(fields)


def _gemma3(fields: Fields) -> Values:
  each = fields.count(
    'sliding_window_pattern', fields.count('_sliding_window_pattern', 6)
  )
  base, scaling, local = read_two_ropes(fields, 1_000_000.0, 10_000.0)
  return _gemma(fields, each, None, None) | {
    'qk_norm': True, 'rope_base': base, 'rope_scaling': scaling,
    'local_rope_base': local,
  }  # fmt: skip


def _gpt2(fields: Fields) -> Values:
  fields.expect('scale_attn_weights', True)
  fields.expect('scale_attn_by_inverse_layer_idx', False)
  fields.expect('add_cross_attention', False)
  fields.ignore('reorder_and_upcast_attn', 'n_ctx')
  sizes = _sizes(fields, GPT2_SIZES, tied=True)
  for ours in GPT2_SIZES:  # Transformers accepts both names.
    fields.expect(SIZES[ours], sizes[ours])
  return sizes | {
    'mlp': fields.count('n_inner', 4 * sizes['width']),
    'norm_eps': fields.number('layer_norm_epsilon', 1e-5), 'norm': 'layer',
    'activation': fields.one_of('activation_function', ACTIVATIONS, 'gelu_new'),
    'gated': False, 'qkv_bias': True, 'output_bias': True, 'mlp_bias': True,
    'learned_positions': True, 'attention': AttentionConfig('none'),
  }  # fmt: skip


def _windows(
  fields: Fields, pattern: list[str], window: int | None
) -> tuple[int, ...]:
  kinds = fields.get('layer_types', pattern)
  if not isinstance(kinds, list) or len(kinds) != len(pattern):
    raise fields.refusal('layer_types', kinds, 'one of each layer is')
  if unknown := [kind for kind in kinds if kind not in (FULL, SLIDING)]:
    raise fields.refusal(
      'layer_types', unknown, f'known are {FULL}, {SLIDING}'
    )
  if SLIDING in kinds and not window:
    raise fields.refusal('sliding_window', window, f'layers are {SLIDING}')
  found = tuple((window or 0) if kind == SLIDING else 0 for kind in kinds)
  return found if any(found) else ()


FAMILIES = {
  'llama': Family('LlamaForCausalLM', _llama),
  'mistral': Family('MistralForCausalLM', _mistral),
  'qwen2': Family('Qwen2ForCausalLM', _qwen2),
  'qwen3': Family('Qwen3ForCausalLM', _qwen3),
  'gemma2': Family('Gemma2ForCausalLM', _gemma2),
  'gemma3_text': Family('Gemma3ForCausalLM', _gemma3),
  'gpt2': Family('GPT2LMHeadModel', _gpt2),
}
