"""Folders that are refused: one line that lists the names."""

import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from pdl_jax.errors import DataError
from pdl_jax.mesh import make_mesh, shardings
from pdl_jax.model import lm
from pdl_jax.pretrained import safetensors
from pdl_jax.pretrained.huggingface import HFModel, declared_config
from tests.hf_folder import CASES, write, write_case
from tests.hf_weights import weights


def refused(path):
  with pytest.raises(DataError) as error:
    HFModel(path)
  said = str(error.value)
  assert '\n' not in said and str(path) in said
  assert error.value.exit_code == 3
  return said


def test_missing_and_unknown_tensors(tmp_path):
  case = CASES['llama3']
  tensors = weights(case)
  del tensors['model.layers.1.mlp.up_proj.weight'], tensors['model.norm.weight']
  tensors['model.layers.0.self_attn.q_proj.bias'] = np.zeros(32, np.float32)
  said = refused(write(tmp_path / 'a', case['config'], tensors))
  assert 'missing tensors model.layers.1.mlp.up_proj.weight, model.n' in said
  assert 'unknown tensors model.layers.0.self_attn.q_proj.bias' in said


def test_wrong_shapes(tmp_path):
  said = refused(write_case(tmp_path / 'a', 'llama3', intermediate_size=44))
  assert 'of other shapes model.layers.0.mlp.down_proj.weight (32, 4' in said


def test_a_file_without_the_prefix_is_the_same_model(tmp_path):
  """As GPT-2 was published, with buffers that hold nothing."""
  case = CASES['gpt2']
  bare = {
    name.removeprefix('transformer.'): x for name, x in weights(case).items()
  }
  bare['h.0.attn.bias'] = np.ones((1, 1, 48, 48), np.float32)
  found = HFModel(write(tmp_path / 'a', case['config'], bare)).params()
  whole = HFModel(write_case(tmp_path / 'b', 'gpt2')).params()
  jax.tree.map(np.testing.assert_array_equal, found, whole)


def test_a_tied_model_with_another_head(tmp_path):
  case, name = CASES['llama3'], 'lm_head.weight'
  tensors = weights(case)
  tensors[name] = tensors['model.embed_tokens.weight'].copy()
  HFModel(write(tmp_path / 'same', case['config'], tensors))
  tensors[name][3, 4] += 1
  said = refused(write(tmp_path / 'other', case['config'], tensors))
  assert 'tied' in said and 'lm_head.weight is another matrix' in said


def test_an_untied_model_without_head(tmp_path):
  said = refused(write_case(tmp_path / 'a', 'llama2', ['lm_head.weight']))
  assert 'not tied' in said and 'no lm_head.weight' in said


def split(path, name='llama3'):
  """In two shards."""
  tensors = weights(CASES[name])
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(CASES[name]['config']), 'utf-8')
  names, index = sorted(tensors), {}
  for part, some in (('1', names[:7]), ('2', names[7:])):
    file = f'model-{part}.safetensors'
    safetensors.write_file(path / file, {n: tensors[n] for n in some})
    index |= dict.fromkeys(some, file)
  (path / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': index}), 'utf-8'
  )
  return path


def test_a_missing_shard(tmp_path):
  path = split(tmp_path / 'a')
  (path / 'model-2.safetensors').unlink()
  assert 'lacks shards that its index names: model-2.saf' in refused(path)


def test_a_tensor_that_no_shard_has(tmp_path):
  path = split(tmp_path / 'a')
  file = path / 'model-2.safetensors'
  kept = list(safetensors.open_file(file).items())[1:]
  safetensors.write_file(file, dict(kept))
  assert 'names tensors that are in no shard: model.' in refused(path)


def test_a_damaged_file(tmp_path):
  path = write_case(tmp_path / 'a', 'llama3')
  file = path / 'model.safetensors'
  whole = file.read_bytes()
  for content in (b'', whole[:5], whole[:50], whole[:-1], b'text' * 99):
    file.write_bytes(content)
    assert 'is not a whole safetensors file' in refused(path)


def as_folder(path):
  path.unlink()
  path.mkdir()


@pytest.mark.parametrize(
  ('file', 'harm', 'said'),
  [
    ('config.json', Path.unlink, 'has no config.json'),
    ('config.json', as_folder, 'config.json cannot be read (Is a directory)'),
    ('model.safetensors', as_folder, 'cannot be read (Is a directory)'),
    ('model.safetensors', Path.unlink, 'has neither model.safetensors nor'),
    (
      'model.safetensors', lambda x: x.rename(x.with_name('pytorch_model.bin')),
      'pickles (pytorch_model.bin)',
    ),
  ],
)  # fmt: skip
def test_a_file_that_is_none(tmp_path, file, harm, said):
  path = write_case(tmp_path / 'a', 'llama3')
  harm(path / file)
  assert said in refused(path)


BAD_JSON = [
  (b'', 'it is empty'),
  (b' \n', 'it is empty'),
  (b'{"hidden_size": 8', 'is not JSON (Expecting'),
  ('{"a": 1}'.encode('utf-16'), 'is not UTF-8 text'),
  (b'{"a": "\xe9"}', 'is not UTF-8 text'),
  (b'\xef\xbb\xbf{}', 'BOM'),
  (b'[]', 'is not a JSON object, but a list'),
  (b'"text"', 'is not a JSON object, but a str'),
  (b'null', 'is not a JSON object, but a NoneType'),
  (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice"),
  (b'{"a": {"b": 1, "b": 2}}', "the key 'b' stands twice"),
  (b'{"a": NaN}', 'NaN is no number'),
  (b'{"a": [-Infinity]}', '-Infinity is no number'),
  (b'{"a": ' + b'[' * 100_000 + b']' * 100_000 + b'}', 'nested too deeply'),
  (b'[' * 100_000, 'nested too deeply'),
]


@pytest.mark.parametrize(('content', 'said'), BAD_JSON, ids=range(15))
def test_a_config_that_is_no_strict_json_object(tmp_path, content, said):
  path = write_case(tmp_path / 'a', 'llama3')
  (path / 'config.json').write_bytes(content)
  assert said in refused(path)


def rewrite(file, change):
  """The header of a safetensors file, changed."""
  whole = file.read_bytes()
  size = int.from_bytes(whole[:8], 'little')
  header = json.loads(whole[8 : 8 + size])
  made = change(header) or header
  text = made if isinstance(made, bytes) else json.dumps(made).encode()
  content = len(text).to_bytes(8, 'little') + text + whole[8 + size :]
  file.write_bytes(content)


NORM = 'model.norm.weight'


def entry(**changes):
  def change(header):
    header[NORM] |= changes

  return change


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (entry(dtype='F8_E4M3'), f'{NORM} is of type F8_E4M3, which is not read'),
    (entry(dtype='F4'), f'{NORM} is of type F4, which is not read'),
    (entry(dtype='I32'), 'whole numbers, .*: model.norm.weight'),
    (entry(dtype=['F32']), 'is not a whole safetensors file'),
    (entry(data_offsets=[0, 128]), 'overlap'),
    (entry(data_offsets=[-128, 0]), 'is not a whole safetensors file'),
    (entry(data_offsets=[10**9, 10**9 + 128]), 'is not a whole safetensors'),
    (entry(data_offsets=['0', '128']), 'is not a whole safetensors file'),
    (entry(data_offsets=[0]), 'is not a whole safetensors file'),
    (entry(shape=[-1, -32]), 'is not a whole safetensors file'),
    (entry(shape=[32.0]), 'is not a whole safetensors file'),
    (entry(shape='32'), 'is not a whole safetensors file'),
    (lambda header: header | {NORM: 5}, 'is not a whole safetensors file'),
    (lambda header: header | {NORM: {}}, 'is not a whole safetensors file'),
    (lambda header: b'[' * 100_000, 'its header is not JSON .nested too'),
    (lambda header: b'[]', 'its header is not a JSON object'),
    (lambda header: json.dumps(header).encode('utf-16'), 'is not UTF-8'),
    (lambda header: b'{"a": {}, "a": {}}', 'stands twice'),
  ],
)
def test_a_header_that_is_not_one(tmp_path, change, said):
  path = write_case(tmp_path / 'a', 'llama3')
  rewrite(path / 'model.safetensors', change)
  assert re.search(said, refused(path))


@pytest.mark.parametrize(
  ('index', 'said'),
  [
    ([], 'is not a JSON object, but a list'),
    ({}, 'has no weight_map'),
    ({'weight_map': {}}, 'has no weight_map'),
    ({'weight_map': ['model-1.safetensors']}, 'has no weight_map'),
    ({'weight_map': {'a': 5}}, 'not 5'),
    ({'weight_map': {'a': '../model-1.safetensors'}}, 'not \'../model-1'),
    ({'weight_map': {'a': '/etc/passwd'}}, "not '/etc/passwd'"),
    ({'weight_map': {'a': '..'}}, 'a shard is a file beside it'),
  ],
)  # fmt: skip
def test_an_index_that_is_not_one(tmp_path, index, said):
  path = split(tmp_path / 'a')
  text = json.dumps(index)
  (path / 'model.safetensors.index.json').write_text(text, encoding='utf-8')
  assert said in refused(path)


@pytest.mark.parametrize(
  ('name', 'change', 'said'),
  [
    ('llama3', {'model_type': 'mamba'}, "'mamba'"),
    ('llama3', {'hidden_act': 'relu'}, "hidden_act 'relu'"),
    ('llama3', {'hidden_size': None}, 'does not declare hidden_size'),
    ('llama3', {'rope_parameters': {'rope_type': 'dynamic'}}, "'dynamic'"),
    ('llama3', {'rope_parameters': {'mscale': 2.0}}, 'mscale 2.0'),
    ('llama3', {'quantization_config': {'bits': 4}}, 'quantization_config'),
    ('llama3', {'sliding_window': 8}, 'sliding_window 8'),
    ('mistral', {'attention_bias': True}, 'attention_bias True'),
    ('qwen2', {'layer_types': ['chunked_attention'] * 2}, 'chunked_attention'),
    ('gemma2', {'use_bidirectional_attention': True}, 'bidirectional'),
    ('gemma3', {'rope_parameters': {'rope_type': 'default'}}, 'rope_param'),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'inverse_layer_idx'),
    ('gpt2', {'activation_function': 'relu'}, "activation_function 'relu'"),
    ('gpt2', {'hidden_size': 7}, 'hidden_size 7'),
    ('gpt2', {'n_head': 0}, 'n_head 0'),
    ('gpt2', {'layer_norm_epsilon': '1e-5'}, "layer_norm_epsilon '1e-5'"),
    ('llama3', {'model_type': ['llama']}, "model_type ['llama']"),
    ('llama3', {'hidden_size': '32'}, "hidden_size '32'"),
    ('llama3', {'hidden_size': 32.0}, 'hidden_size 32.0'),
    ('llama3', {'hidden_size': True}, 'hidden_size True'),
    ('llama3', {'num_attention_heads': 0}, 'num_attention_heads 0'),
    ('llama3', {'num_attention_heads': -4}, 'num_attention_heads -4'),
    ('llama3', {'num_key_value_heads': [2]}, 'num_key_value_heads [2]'),
    ('llama3', {'num_key_value_heads': 3}, 'not a multiple of kv_heads 3'),
    ('llama3', {'head_dim': 7}, 'head_dim must be even'),
    ('llama3', {'num_hidden_layers': {}}, 'num_hidden_layers {}'),
    ('llama3', {'num_hidden_layers': 10**9}, 'num_hidden_layers 1000000000'),
    ('gemma3', {'num_hidden_layers': 10**9}, 'num_hidden_layers 1000000000'),
    ('gpt2', {'n_layer': 10**9}, 'n_layer 1000000000'),
    ('llama3', {'vocab_size': 10**30}, 'vocab_size 1000000'),
    ('llama3', {'rms_norm_eps': 0}, 'rms_norm_eps 0'),
    ('llama3', {'tie_word_embeddings': 'false'}, "tie_word_embeddings 'false'"),
    ('llama3', {'tie_word_embeddings': 0}, 'tie_word_embeddings 0'),
    ('llama3', {'attention_bias': 'no'}, "attention_bias 'no'"),
    ('qwen2', {'use_sliding_window': 'false'}, "use_sliding_window 'false'"),
    ('qwen2', {'layer_types': 'full'}, "layer_types 'full'"),
    ('qwen2', {'layer_types': ['full_attention']}, 'one of each layer'),
    ('qwen2', {'layer_types': [[], {}]}, 'known are full_attention'),
    ('mistral', {'sliding_window': '4'}, "sliding_window '4'"),
    ('gemma2', {'query_pre_attn_scalar': -1}, 'query_pre_attn_scalar -1'),
    ('gemma2', {'attn_logit_softcapping': [1]}, 'attn_logit_softcapping [1]'),
    ('gemma3', {'layer_types': None, 'sliding_window_pattern': 0},
     'sliding_window_pattern 0'),
    ('llama3', {'mystery': 0}, 'mystery 0'),
    ('llama3', {'mystery': 0.0}, 'mystery 0.0'),
    ('llama3', {'mystery': [[[[[[[[[[1]]]]]]]]]] * 99}, 'mystery [[[[[[[...'),
  ],
)  # fmt: skip
def test_values_that_are_not_mapped_are_named(tmp_path, name, change, said):
  assert said in refused(write_case(tmp_path / 'a', name, **change))


def test_a_number_beyond_all_numbers(tmp_path):
  path = write_case(tmp_path / 'a', 'llama3', rms_norm_eps=1)
  text = (path / 'config.json').read_text(encoding='utf-8')
  text = text.replace('"rms_norm_eps": 1', '"rms_norm_eps": 1e999')
  (path / 'config.json').write_text(text, encoding='utf-8')
  assert 'rms_norm_eps inf' in refused(path)


# Beyond the shape: what tools of all ages leave in config.json of published
# models of these families (GPT-2 in all sizes, DialoGPT, Llama 1 to 3.2,
# TinyLlama, Vicuna, Mistral, Zephyr, Qwen 1.5 to 3, SmolLM2, Gemma 2 and 3).
GENERATION = {
  'bad_words_ids': [[5]], 'begin_suppress_tokens': [1],
  'decoder_start_token_id': 0, 'diversity_penalty': 0.5, 'do_sample': True,
  'early_stopping': True, 'encoder_no_repeat_ngram_size': 3,
  'exponential_decay_length_penalty': [5, 1.1], 'forced_bos_token_id': 1,
  'forced_eos_token_id': 2, 'length_penalty': 1.0, 'max_length': 20,
  'max_new_tokens': 20, 'min_length': 2, 'no_repeat_ngram_size': 3,
  'num_beam_groups': 1, 'num_beams': 1, 'num_return_sequences': 1,
  'output_scores': True, 'remove_invalid_values': True,
  'repetition_penalty': 1.0, 'return_dict_in_generate': True,
  'suppress_tokens': [3], 'temperature': 1.0, 'top_k': 50, 'top_p': 1.0,
  'typical_p': 1.0,
}  # fmt: skip
PUBLISHED = [
  ('gpt2', {
    'n_ctx': 48, 'n_special': 0, 'output_past': True,
    'predict_special_tokens': True, 'summary_type': 'cls_index',
    'summary_first_dropout': 0.1, 'summary_activation': None,
    'summary_proj_to_labels': True, 'summary_use_proj': True,
    'architectures': ['GPT2LMHeadModel'], 'attn_pdrop': 0.1,
    'embd_pdrop': 0.1, 'resid_pdrop': 0.1, 'bos_token_id': 50256,
    'eos_token_id': 50256, 'num_labels': 1, 'hidden_size': 32,
    'pruned_heads': {}, 'torchscript': True, 'use_bfloat16': True,
    'tf_legacy_loss': True, 'task_specific_params': {'conversational': {}},
  }),
  ('llama3', {
    'max_sequence_length': 2048, 'tokenizer_model_max_length': 2048,
    'pretraining_tp': 1, 'tokenizer_class': 'LlamaTokenizer', 'prefix': 'x',
    '_name_or_path': 'a/b', 'unsloth_version': '2025.1',
    'rope_interleaved': False, 'is_llama_config': True,
    'partial_rotary_factor': 1.0, 'model_max_length': 4096,
    'transformers.js_config': {'dtype': 'q4'}, 'classifier_dropout': 0.1,
  }),
  ('mistral', {'name_or_path': 'a/b', 'auto_map': {'AutoModel': 'x.Y'}}),
  ('qwen2', {'use_mrope': False, 'is_decoder': True, 'mask_token_id': 3}),
  ('qwen3', {'max_window_layers': 0, 'tie_encoder_decoder': False}),
  ('gemma2', {'cache_implementation': 'hybrid', 'sep_token_id': 4}),
  ('gemma3', {
    'use_bidirectional_attention': False, 'eos_token_id': [1, 106],
    'architectures': ['Gemma3ForCausalLM'], 'attention_dropout': 0.1,
    'initializer_range': 0.02, 'pad_token_id': 0, 'torch_dtype': 'bfloat16',
    'transformers_version': '4.50.0.dev0', 'use_cache': True,
  }),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'more'), PUBLISHED)
def test_what_published_files_say_besides(tmp_path, name, more):
  plain = declared_config(write_case(tmp_path / 'plain', name))
  path = write_case(tmp_path / 'more', name, **more, **GENERATION)
  assert declared_config(path) == plain


@pytest.mark.parametrize(
  ('name', 'value', 'dtype'),
  [
    ('model.norm.weight', np.nan, np.float32),
    ('model.layers.1.self_attn.q_proj.weight', -np.inf, ml_dtypes.bfloat16),
    ('lm_head.weight', np.inf, np.float16),
  ],
)
def test_weights_that_are_not_finite_are_named(tmp_path, name, value, dtype):
  case = CASES['llama2']
  made = {n: x.astype(dtype) for n, x in weights(case).items()}
  made[name].flat[7] = value
  model = HFModel(write(tmp_path / 'a', case['config'], made))
  shapes, axes = model.shapes(), lm.logical_axes(model.config())
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  dtypes = jax.tree.map(lambda x: x.dtype, shapes)
  with pytest.raises(DataError) as error:
    model.placed(shardings(mesh, axes, shapes), dtypes)
  said = f'NaN or infinite numbers in {name}; '
  assert said in str(error.value)
