"""The model: what each token sees, and one model in several forms."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.model import lm
from pdl_jax.model.complex_attention import turn
from tests.tiny_model import CONFIG, PARAMS, tiny_tokens

L = 9


def one_document(*shape):
  positions = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
  return jnp.ones(shape, int), positions


@partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, segments, positions):
  return lm.logits(config, params, tokens, segments, positions)


def influence(tokens, segments, positions):
  """[t, s]: does the embedding of token s change the hidden state of t?"""
  params, direction = PARAMS, jnp.linspace(-1, 1, CONFIG.width)

  @jax.jit
  @jax.jacrev
  def jacobian(embed):
    x = lm.hidden(
      CONFIG, {**params, 'embed_VxD': embed}, tokens, segments, positions
    )
    return x[0] @ direction

  return np.abs(jacobian(params['embed_VxD'])[:, tokens[0]]).max(-1) > 0


def test_no_token_sees_the_future():
  seen = influence(jnp.arange(L)[None], *one_document(1, L))
  np.testing.assert_array_equal(seen, np.tri(L, dtype=bool))


def test_segments_do_not_see_each_other():
  segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
  positions = jnp.asarray([[0, 1, 2, 0, 1, 2, 3, 0, 0]])
  seen = influence(jnp.arange(L)[None], segments, positions)
  same = np.asarray(segments[0][:, None] == segments[0][None])
  np.testing.assert_array_equal(seen, np.tri(L, dtype=bool) & same)


def test_a_packed_document_has_the_logits_of_its_own():
  tokens = tiny_tokens(1, L)
  alone = logits(CONFIG, PARAMS, tokens[:, 4:], *one_document(1, 5))
  segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 2]])
  positions = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
  packed = logits(CONFIG, PARAMS, tokens, segments, positions)
  np.testing.assert_allclose(packed[:, 4:], alone, atol=1e-5)


def test_padding_changes_no_real_logit():
  tokens = np.repeat(tiny_tokens(1, L), 2, axis=0)
  tokens[1, 6:] = [3, 1, 2]
  segments = jnp.ones((2, L), int).at[:, 6:].set(0)
  positions = jnp.arange(L)[None].repeat(2, 0).at[:, 6:].set(0)
  found = logits(CONFIG, PARAMS, tokens, segments, positions)
  assert np.isfinite(found).all()
  np.testing.assert_array_equal(found[0, :6], found[1, :6])
  short = logits(CONFIG, PARAMS, tokens[:1, :6], *one_document(1, 6))
  np.testing.assert_allclose(found[:1, :6], short, atol=1e-5)


def test_only_distances_between_positions_matter():
  tokens = tiny_tokens(2, L)
  segments, positions = one_document(2, L)
  here = logits(CONFIG, PARAMS, tokens, segments, positions)
  shifted = logits(CONFIG, PARAMS, tokens, segments, positions + 37)
  np.testing.assert_allclose(here, shifted, atol=2e-4)
  spread = logits(CONFIG, PARAMS, tokens, segments, positions * 2)
  assert np.abs(here - spread).max() > 0.1


def test_rotation_is_a_complex_product():
  x = np.random.default_rng(0).normal(size=(2, 5, 3, 8))
  positions = np.array([[0, 1, 2, 3, 4], [7, 0, 30, 2, 1000]])
  pairs = x[..., :4] + 1j * x[..., 4:]
  angle = positions[..., None, None] * 500.0 ** (-2 * np.arange(4) / 8)
  turned = pairs * np.exp(1j * angle)
  expected = np.concatenate([turned.real, turned.imag], -1)
  found = turn(jnp.asarray(x, jnp.float32), jnp.asarray(positions), 500.0)
  np.testing.assert_allclose(found, expected, atol=2e-4)
  half = turn(jnp.asarray(x, jnp.bfloat16), jnp.asarray(positions), 500.0)
  assert half.dtype == jnp.bfloat16
  # A phase of 1000 in bfloat16 would be off by radians.
  np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.05)


def test_grouped_heads_are_repeated_heads():
  tokens, where = tiny_tokens(2, L), one_document(2, L)
  grouped = logits(CONFIG, PARAMS, tokens, *where)
  params = jax.tree.map(lambda x: x, PARAMS)
  attention = params['blocks'][0]['attention']
  for name in ('key', 'value'):
    attention[name] = attention[name].repeat(2, axis=2)
  whole = dataclasses.replace(CONFIG, kv_heads=CONFIG.heads)
  repeated = logits(whole, params, tokens, *where)
  np.testing.assert_allclose(grouped, repeated, atol=1e-5)


def test_remat_changes_no_number_but_the_program():
  tokens, where = tiny_tokens(2, L), one_document(2, L)

  def loss(params, config):
    x = lm.hidden(config, params, tokens, *where)
    return jnp.square(x[:, :, 0]).sum()

  gradient = jax.value_and_grad(loss)
  recomputed = dataclasses.replace(CONFIG, remat=True)
  a, b = (
    jax.jit(gradient, static_argnums=1)(PARAMS, config)
    for config in (CONFIG, recomputed)
  )
  for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
  programs = [
    str(jax.make_jaxpr(gradient, static_argnums=1)(PARAMS, config))
    for config in (CONFIG, recomputed)
  ]
  assert ['remat' in program for program in programs] == [False, True]


def test_split_and_join():
  whole = PARAMS
  split = lm.split_blocks(whole, 1)
  assert len(split['blocks']) == 2
  joined = lm.join_blocks(split)
  assert jax.tree.structure(joined) == jax.tree.structure(whole)
  for a, b in zip(*map(jax.tree.leaves, (joined, whole)), strict=True):
    np.testing.assert_array_equal(a, b)
  assert lm.join_blocks(whole) is whole
  tokens, where = tiny_tokens(2, L), one_document(2, L)
  np.testing.assert_allclose(
    logits(CONFIG, split, tokens, *where),
    logits(CONFIG, whole, tokens, *where), atol=1e-5,
  )


@pytest.mark.parametrize('groups', [1, 2])
def test_every_axis_of_every_parameter_has_a_name(groups):
  params = PARAMS
  params = lm.split_blocks(params, 1) if groups == 2 else params
  axes = lm.logical_axes(CONFIG, groups)
  assert jax.tree.structure(axes) == jax.tree.structure(params)
  sizes = {
    'vocab': 64, 'embed': 32, 'heads': 4, 'kv_heads': 2, 'head_dim': 8,
    'mlp': 48, 'layers': 2 // groups,
  }
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


def test_bfloat16_activations_keep_float32_logits():
  half = dataclasses.replace(CONFIG, dtype='bfloat16')
  tokens, where = tiny_tokens(2, L), one_document(2, L)
  small = jax.tree.map(lambda x: x / 10, PARAMS)
  states = jax.eval_shape(partial(lm.hidden, half), small, tokens, *where)
  assert states.dtype == jnp.bfloat16
  found = logits(half, small, tokens, *where)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(
    found, logits(CONFIG, small, tokens, *where), atol=0.01
  )


def test_decoding_with_a_cache_is_the_full_forward_pass():
  lengths, extra = np.array([6, 1, 4]), 4
  rows, prompt = len(lengths), 6
  tokens = tiny_tokens(rows, prompt + extra)
  left = np.arange(prompt)[None] >= prompt - lengths[:, None]
  padded = np.where(left, tokens[:, :prompt], 63)
  step, cached = jax.jit(partial(lm.decode_step, CONFIG)), []
  start = jax.jit(partial(lm.prefill, CONFIG, size=prompt + extra))
  found, cache = start(PARAMS, padded, left)
  for index in range(extra):
    cached.append(found)
    found, cache = step(PARAMS, cache, tokens[:, prompt + index])
  cached = lm.head_logits(CONFIG, PARAMS, np.stack([*cached, found], axis=1))
  # The same tokens without padding on the left, but with some on the right.
  real = np.zeros_like(tokens)
  for row, length in enumerate(lengths):
    real[row, : length + extra] = tokens[row, prompt - length :]
  full = logits(CONFIG, PARAMS, real, *one_document(*real.shape))
  for row, length in enumerate(lengths):
    expected = full[row, length - 1 : length + extra]
    np.testing.assert_allclose(cached[row], expected, atol=1e-5)


def test_layers_apart_are_the_same_model():
  parts = lm.part_layers(PARAMS)
  assert len(parts['blocks']) == CONFIG.layers
  tokens, where = tiny_tokens(2, L), one_document(2, L)
  found = logits(CONFIG, parts, tokens, *where)
  whole = logits(CONFIG, PARAMS, tokens, *where)
  np.testing.assert_allclose(found, whole, atol=1e-5)
  for a, b in zip(
    *map(jax.tree.leaves, (lm.join_blocks(parts), PARAMS)), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_rows_of_a_cache_are_taken_from_a_slot_on():
  prompt, size = 4, 6
  start = jax.jit(partial(lm.prefill, CONFIG, size=size))
  _, cache = start(PARAMS, tiny_tokens(2, prompt), np.ones((2, prompt), bool))
  cache = lm.repeat_rows(cache, 2)
  step = jax.jit(partial(lm.decode_step, CONFIG))
  _, cache = step(PARAMS, cache, np.array([1, 2, 3, 4]))
  rows = np.array([1, 1, 2, 3])
  taken = lm.take_rows(cache, rows, prompt)
  # The rows of one prompt are equal before: taking them whole is the same.
  for found, x in zip(
    (*taken.keys, *taken.values), (*cache.keys, *cache.values), strict=True
  ):
    np.testing.assert_array_equal(found, x[rows])
    assert not np.array_equal(found, x)
  before, _ = step(PARAMS, cache, np.full(4, 7))
  after, _ = step(PARAMS, taken, np.full(4, 7))
  np.testing.assert_array_equal(after, before[rows])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'width': 0}, 'model width must be > 0, got 0'),
    ({'layers': -1}, 'model layers must be > 0, got -1'),
    ({'rope_base': 0.0}, r'rope_base must be > 0, got 0\.0'),
    ({'norm_eps': float('nan')}, 'norm_eps must be > 0, got nan'),
    ({'kv_heads': 3}, 'heads 4 is not a multiple of kv_heads 3'),
    ({'head_dim': 7}, 'head_dim must be even, got 7'),
    ({'dtype': 'float16'}, "float32 or bfloat16, got 'float16'"),
  ],
)
def test_a_wrong_shape_is_refused(change, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(CONFIG, **change)
