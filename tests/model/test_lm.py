"""The model: what its outputs depend on, and one model in several forms."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.losses.heads import LinearHead
from pdl_jax.model import decoding, lm
from pdl_jax.model.heads import HEADS, Kind
from pdl_jax.model.settings import ModelSettings
from tests.tiny_model import CONFIG, PARAMS, tiny_tokens

pytestmark = pytest.mark.usefixtures('quick_compile')
L = 9
TOKENS = tiny_tokens(2, L)


def one_document(*shape):
  positions = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
  return jnp.ones(shape, int), positions


@partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, segments, positions):
  return lm.logits(config, params, tokens, segments, positions)


def assert_same_leaves(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_packing_and_padding_change_no_real_logit():
  """Documents of 4 and 5 tokens: each alone, packed, and before padding."""
  tokens = TOKENS[:1]
  ends = (tokens[:, :4], tokens[:, 4:])
  first, second = (
    logits(CONFIG, PARAMS, x, *one_document(*x.shape)) for x in ends
  )
  segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 2]])
  positions = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
  packed = logits(CONFIG, PARAMS, tokens, segments, positions)
  np.testing.assert_allclose(packed[:, :4], first, atol=1e-5)
  np.testing.assert_allclose(packed[:, 4:], second, atol=1e-5)
  padding = (segments == 1).astype(int)
  padded, others = (
    logits(CONFIG, PARAMS, x, padding, positions * padding)
    for x in (tokens, jnp.concatenate([tokens[:, :4], ends[1][:, ::-1]], 1))
  )
  assert np.isfinite(padded).all()
  np.testing.assert_array_equal(padded[:, :4], others[:, :4])
  np.testing.assert_allclose(padded[:, :4], first, atol=1e-5)


def test_only_distances_between_positions_matter():
  segments, positions = one_document(2, L)
  here, shifted, spread = (
    logits(CONFIG, PARAMS, TOKENS, segments, x)
    for x in (positions, positions + 37, positions * 2)
  )
  np.testing.assert_allclose(here, shifted, atol=2e-4)
  assert np.abs(here - spread).max() > 0.1


def test_grouped_heads_are_repeated_heads():
  where = one_document(2, L)
  grouped = logits(CONFIG, PARAMS, TOKENS, *where)
  params = jax.tree.map(lambda x: x, PARAMS)
  attention = params['blocks'][0]['attention']
  for name in ('key', 'value'):
    attention[name] = attention[name].repeat(2, axis=2)
  whole = dataclasses.replace(CONFIG, kv_heads=CONFIG.heads)
  repeated = logits(whole, params, TOKENS, *where)
  np.testing.assert_allclose(grouped, repeated, atol=1e-5)


def test_remat_changes_no_number_but_the_program():
  where = one_document(2, L)

  def loss(params, config):
    x = lm.hidden(config, params, TOKENS, *where)
    return jnp.square(x[:, :, 0]).sum()

  gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  configs = CONFIG, dataclasses.replace(CONFIG, remat=True)
  products = [
    str(gradient.trace(PARAMS, config).jaxpr).count('dot_general[')
    for config in configs
  ]
  # A block has 9 products and 18 of its gradients, and makes its scores again;
  # with remat all the others too, except the last, which no gradient needs.
  assert products == [9 + 18 + 1, 9 + 18 + 8]
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    *(gradient(PARAMS, config) for config in configs),
  )


def test_groups_of_layers_are_one_model():
  expected = logits(CONFIG, PARAMS, TOKENS, *one_document(2, L))
  for made, groups in (
    (lm.split_blocks(PARAMS, 1), 2),
    (decoding.part_layers(PARAMS), CONFIG.layers),
  ):
    assert len(made['blocks']) == groups
    assert_same_leaves(lm.join_blocks(made), PARAMS)
    found = logits(CONFIG, made, TOKENS, *one_document(2, L))
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert lm.join_blocks(PARAMS) is PARAMS


@pytest.mark.parametrize('groups', [1, 2])
def test_every_axis_of_every_parameter_has_a_name(groups):
  params = lm.split_blocks(PARAMS, 1) if groups == 2 else PARAMS
  axes = lm.logical_axes(CONFIG, groups)
  assert jax.tree.structure(axes) == jax.tree.structure(params)
  sizes = {
    'vocab': 64, 'embed': 32, 'heads': 4, 'kv_heads': 2, 'head_dim': 8,
    'mlp': 48, 'layers': 2 // groups,
  }  # fmt: skip
  for names, leaf in zip(*map(jax.tree.leaves, (axes, params)), strict=True):
    assert tuple(sizes[name] for name in names) == leaf.shape


def test_init():
  # This generator compiles faster than the default one.
  key = jax.random.key(0, impl='rbg')
  params = jax.jit(partial(lm.init, CONFIG))(key)
  (blocks,) = params['blocks']
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  assert (params['norm']['scale'] == 1).all()
  assert (blocks['mlp_norm']['scale'] == 1).all()
  query = blocks['attention']['query']
  assert float(query.std()) == pytest.approx(0.02, rel=0.1)
  assert not np.allclose(query[0], query[1])


@pytest.mark.usefixtures('full_compile')
def test_bfloat16_activations_keep_float32_logits():
  half = dataclasses.replace(CONFIG, dtype='bfloat16')
  where = one_document(2, L)
  small = jax.tree.map(lambda x: x / 10, PARAMS)
  states = jax.eval_shape(partial(lm.hidden, half), small, TOKENS, *where)
  assert states.dtype == jnp.bfloat16
  found = logits(half, small, TOKENS, *where)
  assert found.dtype == jnp.float32
  expected = logits(CONFIG, small, TOKENS, *where)
  np.testing.assert_allclose(found, expected, atol=0.01)


def test_rows_of_a_cache_are_taken_from_a_slot_on():
  prompt, size = 4, 6
  start = jax.jit(partial(decoding.prefill, CONFIG, size=size))
  _, cache = start(PARAMS, tiny_tokens(2, prompt), np.ones((2, prompt), bool))
  cache = decoding.repeat_rows(cache, 2)
  step = jax.jit(partial(decoding.decode_step, CONFIG))
  _, cache = step(PARAMS, cache, np.array([1, 2, 3, 4]))
  rows = np.array([1, 1, 2, 3])
  taken = decoding.take_rows(cache, rows, prompt)
  # The rows of one prompt are equal before: taking them whole is the same.
  for found, x in zip(
    (*taken.keys, *taken.values), (*cache.keys, *cache.values), strict=True
  ):
    np.testing.assert_array_equal(found, x[rows])
    assert not np.array_equal(found, x)
  before, _ = step(PARAMS, cache, np.full(4, 7))
  after, _ = step(PARAMS, taken, np.full(4, 7))
  np.testing.assert_array_equal(after, before[rows])


def test_a_head_of_ones_own_is_an_entry_of_the_table(monkeypatch):
  own = Kind(
    lambda c, params, bias_V: LinearHead(
      params['head']['twice'] * params['embed_VxD'], bias_V
    ),
    lambda c, make: {
      'twice': make((None, None), (1, 1), lambda _, shape: jnp.full(shape, 2.0))
    },
  )
  monkeypatch.setitem(HEADS, 'twice', own)
  asked = ModelSettings(head='twice').output
  config = dataclasses.replace(CONFIG, head=asked)
  params = lm.with_head(config, PARAMS, jax.random.key(0))
  found = lm.logits(config, params, TOKENS, *one_document(2, L))
  expected = 2 * logits(CONFIG, PARAMS, TOKENS, *one_document(2, L))
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'width': 0}, 'model width must be > 0, got 0'),
    ({'layers': -1}, 'model layers must be > 0, got -1'),
    ({'rope_base': 0.0}, r'rope_base must be > 0, got 0\.0'),
    ({'norm_eps': float('nan')}, 'norm_eps must be > 0, got nan'),
    ({'kv_heads': 3}, 'heads 4 is not a multiple of kv_heads 3'),
    ({'head_dim': 7}, 'head_dim must be even, got 7'),
    ({'dtype': 'float16'}, "'float16' is not one of float32, bfloat16"),
    ({'norm': 'l2'}, "model norm 'l2' is not one of rms"),
    ({'windows': (1,)}, 'model windows are 1, the layers 2'),
  ],
)
def test_a_wrong_shape_is_refused(change, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(CONFIG, **change)
