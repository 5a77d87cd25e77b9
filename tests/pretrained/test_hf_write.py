"""Export: in, out and in again is the same, bit for bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.model import lm
from pdl_jax.model.config import AttentionConfig, HeadConfig
from pdl_jax.pretrained.hf_write import config_values, write_model
from pdl_jax.pretrained.huggingface import HFModel
from tests.hf_folder import CASES, write_case
from tests.tiny_model import CONFIG, random_params


def exported(path, config, params, shard_bytes=2**30):
  path.mkdir()
  write_model(path, config, params, config_values(config), shard_bytes)
  return HFModel(path)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('name', CASES)
def test_in_out_in(tmp_path, name):
  model = HFModel(write_case(tmp_path / 'in', name))
  params = model.params()
  again = exported(tmp_path / 'out', model.config(), params, 20_000)
  assert again.config() == model.config()
  assert_same(again.params(), params)
  assert len(list((tmp_path / 'out').glob('*.safetensors'))) > 1
  values = json.loads((tmp_path / 'out' / 'config.json').read_text('utf-8'))
  assert values['model_type'] == CASES[name]['config']['model_type']
  index = tmp_path / 'out' / 'model.safetensors.index.json'
  names = json.loads(index.read_text('utf-8'))['weight_map']
  assert names.keys() == CASES[name]['shapes'].keys()


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'attention': AttentionConfig('complex')}, 'attention complex'),
    ({'attention': AttentionConfig('alibi')}, 'attention alibi'),
    ({'head': HeadConfig('low_rank', rank=4)}, 'head low_rank'),
    ({'head': HeadConfig('dense', 'learned')}, 'head dense, bias learned'),
    ({'head': HeadConfig('vq', codebook_size=8, num_codebooks=2)}, 'head vq'),
    (
      {'head': HeadConfig('adaptive', rank=4, num_exact=8, tail_start=32)},
      'head adaptive',
    ),
  ],
)
def test_what_no_family_has_is_refused(changes, said):
  config = dataclasses.replace(CONFIG, **changes)
  with pytest.raises(ConfigError, match=said) as error:
    config_values(config)
  assert '--config.model.pretrained=run:FOLDER' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_model_of_ours_is_a_llama(tmp_path):
  params = jax.tree.map(np.asarray, random_params(CONFIG))
  again = exported(tmp_path / 'out', CONFIG, params)
  assert config_values(CONFIG)['model_type'] == 'llama'
  assert_same(again.params(), params)
  axes = lm.logical_axes(again.config())
  assert jax.tree.structure(axes) == jax.tree.structure(params)
