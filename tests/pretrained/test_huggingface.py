"""Hugging Face folders: what transformers computes, and what is refused."""

import dataclasses
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pdl_jax import generate
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.generate import DecodeSettings
from pdl_jax.losses import LOSSES, Loss, LossTables, head_nll
from pdl_jax.mesh import make_mesh, shardings
from pdl_jax.model import lm
from pdl_jax.model.config import HeadConfig
from pdl_jax.model.fingerprint import fingerprint
from pdl_jax.pretrained.families import read_config
from pdl_jax.pretrained.fields import Fields
from pdl_jax.pretrained.huggingface import HFModel, Weight
from tests import hf_folder
from tests.hf_folder import CASES, write, write_case
from tests.hf_weights import tokens, weights

pytestmark = pytest.mark.usefixtures('quick_compile')
GOLDEN = np.load(hf_folder.GOLDEN / 'hf.npz')
TOKENS = tokens(48, 20)


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """Each case, opened once."""
  root = tmp_path_factory.mktemp('hf')
  return cache(lambda name: HFModel(write_case(root / name, name)))


@partial(jax.jit, static_argnums=0)
def logits(config, params, tokens):
  where = jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None]
  return lm.logits(config, params, tokens, *where)


@pytest.mark.parametrize('name', CASES)
def test_logits_are_those_of_transformers(opened, name):
  model = opened(name)
  params, expected = model.params(), GOLDEN[f'{name}/logits']
  ours = jax.eval_shape(partial(lm.init, model.config()), jax.random.key(0))
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, ours)
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
    generate.generate, model.config(), settings=DecodeSettings(),
    max_new_tokens=len(expected), stop_ids=(),
  ))(model.params(), prompts, filled, None)  # fmt: skip
  np.testing.assert_array_equal(made.tokens_BxT[0], expected)


@pytest.mark.parametrize('name', ['gemma3', 'gpt2'])
def test_on_a_mesh_each_device_reads_its_own_part(opened, monkeypatch, name):
  model, mesh = opened(name), make_mesh((2, 2, 2))
  axes = lm.logical_axes(model.config())
  whole, read, sizes = model.params(), Weight.read, []

  def recorded(self, index=None, dtype=np.float32):
    part = read(self, index, dtype)
    sizes.append((part.size, np.prod(self.shape)))
    return part

  monkeypatch.setattr(Weight, 'read', recorded)
  shapes = model.shapes()
  dtypes = jax.tree.map(lambda x: x.dtype, shapes)
  placed = model.placed(shardings(mesh, axes, shapes), dtypes)
  # Of what can be split in four at least.
  most = max(sizes, key=lambda pair: pair[1])
  assert most[0] * 4 == most[1]
  jax.tree.map(np.testing.assert_array_equal, placed, whole)
  with jax.set_mesh(mesh):
    found = logits(model.config(), placed, np.repeat(TOKENS, 4, 0))
  expected = GOLDEN[f'{name}/logits']
  np.testing.assert_allclose(found[3], expected, atol=1e-4, rtol=0)


def test_losses_and_scores_see_the_soft_cap(opened):
  model = opened('gemma2')
  config, params, labels = model.config(), model.params(), TOKENS[:, 1:]
  read, ones = TOKENS[:, :-1], jnp.ones((1, 19), int)
  x = lm.hidden(config, params, read, ones, jnp.arange(19)[None])
  log_p = jax.nn.log_softmax(GOLDEN['gemma2/logits'])[:-1]
  expected = -log_p[np.arange(19), labels[0]]
  head, where = lm.head(config, params), jnp.ones((1, 19), bool)
  found = head_nll(head, x, labels, where)[0]
  np.testing.assert_allclose(found, expected, atol=1e-4)
  # By tiles, and on all logits.
  losses = {'cross_entropy': {}, 'unlikelihood': {'alpha': 1.0}}
  for name, settings in losses.items():
    loss, tables = Loss(LOSSES[name], settings), LossTables(jnp.ones(48))
    _, plain = loss.sums(head, x, labels, tables, where)
    np.testing.assert_allclose(plain.num, expected.sum(), rtol=1e-4)


def test_a_soft_cap_without_rows_is_refused(opened):
  config = opened('gemma2').config()
  head = HeadConfig('vq', codebook_size=8)
  with pytest.raises(ConfigError, match=r'head vq cannot .* \(3\.0\)'):
    dataclasses.replace(config, head=head)


def test_bfloat16_and_float16_files_are_read_exactly(tmp_path):
  for dtype in (ml_dtypes.bfloat16, np.float16):
    small = {n: x.astype(dtype) for n, x in weights(CASES['llama3']).items()}
    path = write(tmp_path / 'a', CASES['llama3']['config'], small)
    params = HFModel(path).params()
    expected = small['model.embed_tokens.weight'].astype(np.float32)
    np.testing.assert_array_equal(params['embed_VxD'], expected)
    assert params['embed_VxD'].dtype == np.float32


def test_a_fingerprint_tells_models_apart(opened):
  model = opened('qwen3')
  a = fingerprint(model.config(), model.params())
  assert a == fingerprint(model.config(), model.params()) and a.near(a)
  params = model.params()
  params['norm']['scale'][0] += 1
  b = fingerprint(model.config(), params)
  assert a.digest != b.digest and not a.near(b)


def test_a_shape_of_7b_splits_over_eight_devices():
  config = read_config(Fields({
    'model_type': 'llama', 'vocab_size': 32_000, 'hidden_size': 4096,
    'intermediate_size': 11_008, 'num_hidden_layers': 32,
    'num_attention_heads': 32, 'max_position_embeddings': 4096,
  }, 'config.json'))  # fmt: skip
  shapes = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
  leaves = jax.tree.leaves(shapes)
  assert sum(x.size for x in leaves) == 6_738_415_616
  mesh = make_mesh((1, 4, 2))
  placed = shardings(mesh, lm.logical_axes(config), shapes)
  parts = [
    np.prod(s.shard_shape(x.shape))
    for x, s in zip(leaves, jax.tree.leaves(placed), strict=True)
  ]
  # All but the norms are split by eight.
  assert sum(parts) < 1.001 * 6_738_415_616 / 8


LLAMA3 = {
  'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
}  # fmt: skip
# What a file has of RoPE; base, kind, factor, original context, as transformers
# 5.24 standardizes them. Versions 4 had `rope_theta` beside `rope_scaling`.
ONE_ROPE = [
  ({}, (1e4, 'none', 1, 0)),
  ({'rope_theta': 2e5}, (2e5, 'none', 1, 0)),
  ({'rope_theta': 2e5, 'rope_scaling': None}, (2e5, 'none', 1, 0)),
  ({'rope_theta': 2e5, 'rope_scaling': {}}, (2e5, 'none', 1, 0)),
  ({'rope_theta': 2e5, 'rope_parameters': {}}, (2e5, 'none', 1, 0)),
  ({'rope_theta': 2e5, 'rope_parameters': {'rope_type': 'default'}},
   (2e5, 'none', 1, 0)),
  ({'rope_theta': 2e5, 'rope_parameters': LLAMA3}, (2e5, 'llama3', 8, 128)),
  ({'rope_theta': 2e5, 'rope_scaling': {'type': 'linear', 'factor': 2}},
   (2e5, 'linear', 2, 0)),
  ({'rope_scaling': {'type': 'linear', 'factor': 2}}, (1e4, 'linear', 2, 0)),
  ({'rope_theta': 2e5,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 3e5}},
   (3e5, 'none', 1, 0)),
  ({'rope_theta': 2e5,
    'rope_scaling': {'type': 'linear', 'factor': 2, 'rope_theta': 3e5}},
   (3e5, 'linear', 2, 0)),
  ({'rope_theta': 2e5, 'rope_scaling': {'type': 'linear', 'factor': 2},
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 3e5}},
   (2e5, 'linear', 2, 0)),
  ({'rope_scaling': {}, 'rope_parameters': {'rope_theta': 3e5}},
   (3e5, 'none', 1, 0)),
  ({'rope_parameters': {'rope_type': 'linear', 'type': 'yarn', 'factor': 4}},
   (1e4, 'linear', 4, 0)),
  ({'rope_parameters': {**LLAMA3, 'original_max_position_embeddings': 32,
                        'rope_theta': 3e5}}, (3e5, 'llama3', 8, 32)),
  ({'rope_theta': 2e5, 'rope_scaling': {'rope_type': 'yarn', 'factor': 4}},
   (2e5, 'yarn', 4, 128)),
  ({'rope_theta': None, 'rope_parameters': {'rope_theta': 3e5}},
   (3e5, 'none', 1, 0)),
]  # fmt: skip
FAR, NEAR = 'full_attention', 'sliding_attention'
# And the base of layers with a window.
TWO_ROPES = [
  ({}, (1e6, 'none', 1, 0, 1e4)),
  ({'rope_theta': 2e5, 'rope_local_base_freq': 5e4}, (2e5, 'none', 1, 0, 5e4)),
  ({'rope_scaling': {'rope_type': 'linear', 'factor': 2}},
   (1e6, 'linear', 2, 0, 1e4)),
  ({'rope_theta': 2e5, 'rope_local_base_freq': 5e4, 'rope_parameters': {
      FAR: {'rope_type': 'default'}, NEAR: {'rope_type': 'default'}}},
   (2e5, 'none', 1, 0, 5e4)),
  ({'rope_parameters': {
      FAR: {'rope_type': 'default', 'rope_theta': 3e5}, NEAR: {}}},
   (3e5, 'none', 1, 0, 1e4)),
  ({'rope_local_base_freq': 5e4, 'rope_parameters': {FAR: LLAMA3}},
   (1e6, 'llama3', 8, 128, 5e4)),
  ({'rope_theta': 2e5, 'rope_parameters': {NEAR: {'rope_theta': 4e4}}},
   (2e5, 'none', 1, 0, 4e4)),
  ({'rope_theta': 2e5, 'rope_local_base_freq': 5e4,
    'rope_scaling': {'rope_type': 'linear', 'factor': 2}, 'rope_parameters': {
      FAR: {'rope_type': 'default', 'rope_theta': 3e5},
      NEAR: {'rope_type': 'default', 'rope_theta': 4e4}}},
   (3e5, 'linear', 2, 0, 4e4)),
  ({'rope_theta': 2e5, 'rope_parameters': {FAR: None, NEAR: None}},
   (2e5, 'none', 1, 0, 1e4)),
]  # fmt: skip
ROPES = [
  (family, *row)
  for family in ('llama', 'mistral', 'qwen2', 'qwen3', 'gemma2')
  for row in ONE_ROPE
] + [('gemma3_text', *row) for row in TWO_ROPES]


def declared(family, **more):
  shape = {
    'model_type': family, 'vocab_size': 64, 'hidden_size': 32,
    'num_hidden_layers': 6, 'num_attention_heads': 4, 'head_dim': 8,
    'intermediate_size': 40, 'max_position_embeddings': 128,
  }  # fmt: skip
  return read_config(Fields({**shape, **more}, 'config.json'))


@pytest.mark.parametrize(('family', 'values', 'expected'), ROPES)
def test_where_transformers_looks_for_rope(family, values, expected):
  c = declared(family, **values)
  found = (
    c.rope_base, c.rope_scaling.kind, c.rope_scaling.factor,
    c.rope_scaling.original, c.local_rope_base,
  )  # fmt: skip
  assert found[: len(expected)] == expected


@pytest.mark.parametrize(
  ('family', 'values', 'said'),
  [
    ('llama', {'rope_theta': None}, 'rope_theta None'),
    ('gemma3_text', {'rope_local_base_freq': None}, 'rope_theta None'),
    ('llama', {'rope_theta': '10000'}, "rope_theta '10000'"),
    ('llama', {'rope_scaling': 'linear'}, 'it is no object'),
    ('llama', {'rope_parameters': [1]}, 'it is no object'),
    ('qwen2', {'rope_parameters': {FAR: {'rope_theta': 3e5}}}, FAR),
    ('llama', {'rope_scaling': {'type': ['linear']}}, 'known are default'),
    ('llama', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor 0.5'),
    ('gemma3_text', {'rope_scaling': {'type': 'linear', 'factor': 2}},
     'say `rope_type`'),
    ('gemma3_text', {'rope_parameters': {NEAR: {
      'rope_type': 'linear', 'factor': 2}}}, 'have no scaling'),
  ],
)  # fmt: skip
def test_rope_that_is_refused(family, values, said):
  with pytest.raises(DataError, match=re.escape(said)):
    declared(family, **values)
