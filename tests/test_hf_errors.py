"""Folders that are refused: one line that lists the names."""

import json

import numpy as np
import pytest

from pdl_jax.errors import DataError
from pdl_jax.model.pretrained import shards
from pdl_jax.model.pretrained.hf import HFModel
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
  assert 'missing tensors layers.1.mlp.up_proj.weight, norm.weight' in said
  assert 'unknown tensors layers.0.self_attn.q_proj.bias' in said


def test_wrong_shapes(tmp_path):
  said = refused(write_case(tmp_path / 'a', 'llama3', intermediate_size=44))
  assert 'layers.0.mlp.down_proj.weight (32, 40), not (32, 44)' in said


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


def test_a_pickle(tmp_path):
  path = write_case(tmp_path / 'a', 'llama3')
  (path / 'model.safetensors').rename(path / 'pytorch_model.bin')
  assert 'pickles (pytorch_model.bin)' in refused(path)


def split(path, name='llama3'):
  """In two shards."""
  tensors = weights(CASES[name])
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(CASES[name]['config']), 'utf-8')
  names, index = sorted(tensors), {}
  for part, some in (('1', names[:7]), ('2', names[7:])):
    file = f'model-{part}.safetensors'
    shards.write_file(path / file, {n: tensors[n] for n in some})
    index |= dict.fromkeys(some, file)
  (path / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': index}), 'utf-8'
  )
  return path


def test_shards_are_one_model(tmp_path):
  whole = HFModel(write_case(tmp_path / 'a', 'llama3')).params()
  parts = HFModel(split(tmp_path / 'b')).params()
  np.testing.assert_array_equal(whole['embed_VxD'], parts['embed_VxD'])
  for x, y in zip(
    *(p['blocks'][0]['mlp'].values() for p in (whole, parts)), strict=True
  ):
    np.testing.assert_array_equal(x, y)


def test_a_missing_shard(tmp_path):
  path = split(tmp_path / 'a')
  (path / 'model-2.safetensors').unlink()
  assert 'lacks shards that its index names: model-2.saf' in refused(path)


def test_a_tensor_that_no_shard_has(tmp_path):
  path = split(tmp_path / 'a')
  file = path / 'model-2.safetensors'
  shards.write_file(file, dict(list(shards.open_file(file).items())[1:]))
  assert 'names tensors that are in no shard: model.' in refused(path)


def test_a_damaged_file(tmp_path):
  path = write_case(tmp_path / 'a', 'llama3')
  file = path / 'model.safetensors'
  whole = file.read_bytes()
  for content in (b'', whole[:5], whole[:50], whole[:-1], b'text' * 99):
    file.write_bytes(content)
    assert 'is not a whole safetensors file' in refused(path)


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


def test_a_config_that_cannot_be_read(tmp_path):
  path = write_case(tmp_path / 'a', 'llama3')
  (path / 'config.json').unlink()
  (path / 'config.json').mkdir()
  assert 'config.json cannot be read (Is a directory)' in refused(path)


def test_no_config(tmp_path):
  assert 'has no config.json' in refused(tmp_path)


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
  ],
)  # fmt: skip
def test_values_that_are_not_mapped_are_named(tmp_path, name, change, said):
  assert said in refused(write_case(tmp_path / 'a', name, **change))
