"""GGUF files as llama.cpp's converter leaves them, of the models in hf.json."""

import gguf
import numpy as np

from pdl_jax.pretrained.gguf import GGUFModel
from tests.hf_folder import CASES
from tests.hf_weights import weights

KINDS = {
  'llama': 'llama', 'mistral': 'llama', 'qwen2': 'qwen2', 'qwen3': 'qwen3',
  'gemma2': 'gemma2', 'gemma3_text': 'gemma3', 'gpt2': 'gpt2',
}  # fmt: skip
NAMES = {
  'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm',
  'lm_head': 'output', 'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output', 'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm', 'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down',
  'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm',
  'transformer.wte': 'token_embd', 'transformer.wpe': 'position_embd',
  'transformer.ln_f': 'output_norm', 'attn.c_attn': 'attn_qkv',
  'attn.c_proj': 'attn_output', 'mlp.c_fc': 'ffn_up', 'mlp.c_proj': 'ffn_down',
  'ln_1': 'attn_norm', 'ln_2': 'ffn_norm',
}  # fmt: skip
GEMMA = NAMES | {
  'post_attention_layernorm': 'post_attention_norm',
  'pre_feedforward_layernorm': 'ffn_norm',
  'post_feedforward_layernorm': 'post_ffw_norm',
}


def renamed(name, kind):
  """Of a tensor, by GGUF's convention."""
  body, _, ending = name.rpartition('.')
  names = GEMMA if kind.startswith('gemma') else NAMES
  for start in ('model.layers.', 'transformer.h.'):
    if body.startswith(start):
      layer, _, rest = body.removeprefix(start).partition('.')
      return f'blk.{layer}.{names[rest]}.{ending}'
  return f'{names[body]}.{ending}'


def interleaved(rows, heads):
  """The order of llama.cpp: the halves of each head, one row from each."""
  halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def tensors(case):
  """What the converter makes of a case's weights."""
  config, made = case['config'], {}
  kind = KINDS[config['model_type']]
  heads = {
    'attn_q': config.get('num_attention_heads'),
    'attn_k': config.get('num_key_value_heads'),
  }
  for theirs, x in weights(case).items():
    name = renamed(theirs, kind)
    part = name.split('.')[-2]
    if kind == 'llama' and part in heads:
      x = interleaved(x, heads[part])
    if kind == 'gpt2' and '.c_' in theirs:
      x = x.T
    if kind.startswith('gemma') and name.endswith('norm.weight'):
      x = x + 1
    # GGUF has no query_pre_attn_scalar: the file is made to need none.
    if part == {'gemma2': 'attn_q', 'gemma3': 'attn_q_norm'}.get(kind):
      x = x * (config['head_dim'] / config['query_pre_attn_scalar']) ** 0.5
    made[name] = np.ascontiguousarray(x, np.float32)
  rope = config.get('rope_parameters') or {}
  if rope.get('rope_type') == 'llama3':
    made['rope_freqs.weight'] = llama3_table(config, rope)
  return kind, made


def llama3_table(config, rope):
  """Of how many times a frequency is divided (arXiv:2407.21783)."""
  dim = config['hidden_size'] // config['num_attention_heads']
  freqs = rope['rope_theta'] ** -(np.arange(0, dim, 2) / dim)
  turns = rope['original_max_position_embeddings'] * freqs / (2 * np.pi)
  low, high = rope['low_freq_factor'], rope['high_freq_factor']
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return (1 / (kept + (1 - kept) / rope['factor'])).astype(np.float32)


def metadata(case):
  """The keys below the name of the architecture."""
  c = case['config']
  if c['model_type'] == 'gpt2':
    return {
      'context_length': c['n_positions'], 'embedding_length': c['n_embd'],
      'block_count': c['n_layer'], 'feed_forward_length': 4 * c['n_embd'],
      'attention.head_count': c['n_head'],
      'attention.layer_norm_epsilon': c['layer_norm_epsilon'],
    }  # fmt: skip
  head = c.get('head_dim') or c['hidden_size'] // c['num_attention_heads']
  found = {
    'context_length': c['max_position_embeddings'],
    'embedding_length': c['hidden_size'],
    'block_count': c['num_hidden_layers'],
    'feed_forward_length': c['intermediate_size'],
    'attention.head_count': c['num_attention_heads'],
    'attention.head_count_kv': c['num_key_value_heads'],
    'attention.key_length': head, 'attention.value_length': head,
    'attention.layer_norm_rms_epsilon': c['rms_norm_eps'],
    'attn_logit_softcapping': c.get('attn_logit_softcapping'),
    'final_logit_softcapping': c.get('final_logit_softcapping'),
  }  # fmt: skip
  if c['model_type'] == 'llama':
    found |= {'vocab_size': c['vocab_size'], 'rope.dimension_count': head}
  if c['model_type'].startswith('gemma'):
    found['attention.sliding_window'] = c['sliding_window']
  rope = c['rope_parameters']
  if c['model_type'] == 'gemma3_text':
    found['attention.sliding_window_pattern'] = [
      kind == 'sliding_attention' for kind in c['layer_types']
    ]
    found['rope.freq_base_swa'] = rope['sliding_attention']['rope_theta']
    rope = rope['full_attention']
  found['rope.freq_base'] = rope['rope_theta']
  if rope['rope_type'] in ('linear', 'yarn'):
    found['rope.scaling.type'] = rope['rope_type']
    found['rope.scaling.factor'] = rope['factor']
  if rope['rope_type'] == 'yarn':
    original = rope['original_max_position_embeddings']
    found['rope.scaling.original_context_length'] = original
  return {key: value for key, value in found.items() if value is not None}


def write(path, kind, keys, made, quantized=None, tokenizer=None):
  """One file.

  Args:
    path: of the file.
    kind: the architecture.
    keys: metadata below it.
    made: tensors.
    quantized: types of tensors, by name; the others are fp32.
    tokenizer: metadata below `tokenizer.`.
  """
  writer = gguf.GGUFWriter(path, kind)
  both = {f'{kind}.{key}': value for key, value in keys.items()}
  both |= {f'tokenizer.{key}': x for key, x in (tokenizer or {}).items()}
  for key, value in both.items():
    add = {
      bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array,
      float: writer.add_float32, str: writer.add_string,
    }  # fmt: skip
    add[type(value)](key, value)
  for name, x in made.items():
    dtype = (quantized or {}).get(name)
    if dtype is None:
      writer.add_tensor(name, x)
    else:
      packed = gguf.quants.quantize(x, dtype)
      writer.add_tensor(name, packed, raw_dtype=dtype)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return GGUFModel(path)


def write_case(path, name, without=(), quantized=None, **changes):
  """One of the cases; changes are of the metadata, None leaves a key out."""
  case = CASES[name]
  kind, made = tensors(case)
  keys = metadata(case) | changes
  keys = {key: value for key, value in keys.items() if value is not None}
  made = {key: x for key, x in made.items() if key not in without}
  return write(path, kind, keys, made, quantized)
