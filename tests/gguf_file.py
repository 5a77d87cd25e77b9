"""GGUF files as llama.cpp's converter leaves them, of the models in hf.json."""

import gguf
import numpy as np

from pdl_jax.pretrained.gguf import GGUFModel
from tests.hf_folder import CASES
from tests.hf_weights import weights

NAMES = {
  'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm',
  'lm_head': 'output', 'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output', 'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm', 'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down',
  'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm',
}  # fmt: skip


def renamed(name):
  """Of a tensor, by GGUF's convention."""
  body, _, ending = name.rpartition('.')
  if body.startswith('model.layers.'):
    layer, _, rest = body.removeprefix('model.layers.').partition('.')
    return f'blk.{layer}.{NAMES[rest]}.{ending}'
  return f'{NAMES[body]}.{ending}'


def interleaved(rows, heads):
  """The order of llama.cpp: the halves of each head, one row from each."""
  halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def tensors(case):
  """What the converter makes of a case's weights."""
  config, made = case['config'], {}
  kind = config['model_type']
  heads = {
    'attn_q': config.get('num_attention_heads'),
    'attn_k': config.get('num_key_value_heads'),
  }
  for theirs, x in weights(case).items():
    name = renamed(theirs)
    part = name.split('.')[-2]
    if kind == 'llama' and part in heads:
      x = interleaved(x, heads[part])
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
  }  # fmt: skip
  if c['model_type'] == 'llama':
    found |= {'vocab_size': c['vocab_size'], 'rope.dimension_count': head}
  rope = c['rope_parameters']
  found['rope.freq_base'] = rope['rope_theta']
  if rope['rope_type'] in ('linear', 'yarn'):
    found['rope.scaling.type'] = rope['rope_type']
    found['rope.scaling.factor'] = rope['factor']
  if rope['rope_type'] == 'yarn':
    original = rope['original_max_position_embeddings']
    found['rope.scaling.original_context_length'] = original
  return found


def write(path, kind, keys, made, quantized=None, whole=None):
  """One file.

  Args:
    path: of the file.
    kind: the architecture.
    keys: metadata below it.
    made: tensors.
    quantized: types of tensors, by name; the others are fp32.
    whole: metadata by their whole names.
  """
  writer = gguf.GGUFWriter(path, kind)
  both = {f'{kind}.{key}': value for key, value in keys.items()}
  for key, value in (both | (whole or {})).items():
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
