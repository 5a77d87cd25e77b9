"""Hugging Face folders: what transformers computes, and what is refused."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax import decode
from pdl_jax.decode import DecodeSettings
from pdl_jax.model import api
from pdl_jax.model.pretrained import shards
from pdl_jax.model.pretrained.hf import HFModel, shapes_of
from tests import hf_folder

pytestmark = pytest.mark.usefixtures('quick_compile')
CASES = hf_folder.cases()
GOLDEN = np.load(hf_folder.GOLDEN / 'hf.npz')
TOKENS = hf_folder.tokens(48, 20)


def write(path, config, tensors):
  """A folder with one file of tensors."""
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps(config))
  shards.write_file(path / 'model.safetensors', tensors)
  return path


def write_case(path, name, without=(), **changes):
  """One of the cases; changes are of config.json."""
  case = CASES[name]
  tensors = hf_folder.weights(case)
  tensors = {n: x for n, x in tensors.items() if n not in without}
  return write(path, case['config'] | changes, tensors)


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """Each case, opened once."""
  root = tmp_path_factory.mktemp('hf')
  return cache(lambda name: HFModel(write_case(root / name, name)))


@partial(jax.jit, static_argnums=0)
def logits(config, params, tokens):
  where = jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None]
  return api.logits(config, params, tokens, *where)


@pytest.mark.parametrize('name', CASES)
def test_logits_are_those_of_transformers(opened, name):
  model = opened(name)
  params, expected = model.params(), GOLDEN[f'{name}/logits']
  assert jax.tree.map(np.shape, params) == shapes_of(model.config())
  found = np.asarray(logits(model.config(), params, TOKENS)[0])
  print(name, np.abs(found - expected).max(), np.abs(expected).max())
  np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('name', CASES)
def test_greedy_decoding_with_a_cache_is_that_of_transformers(opened, name):
  """The prompt is padded on the left, and longer than the windows."""
  model, expected = opened(name), GOLDEN[f'{name}/greedy']
  prompts = np.pad(TOKENS[:, :9], [(0, 0), (2, 0)])
  filled = np.arange(11)[None] >= 2
  made = jax.jit(partial(
    decode.generate, model.config(), settings=DecodeSettings(),
    max_new_tokens=len(expected), stop_ids=(),
  ))(model.params(), prompts, filled, None)  # fmt: skip
  np.testing.assert_array_equal(made.tokens_BxT[0], expected)
