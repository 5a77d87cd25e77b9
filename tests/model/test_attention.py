"""What every kind of attention owes, and what complex attention is."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.model import decoding, lm
from pdl_jax.model.config import AttentionConfig, ModelConfig
from pdl_jax.model.lora import LoRAConfig
from pdl_jax.model.positions import (
  KINDS,
  LEARNED,
  ROPE,
  ComplexConfig,
  Kind,
  distance_bias,
)
from pdl_jax.model.rotary import RopeScaling
from pdl_jax.model.settings import ModelSettings

pytestmark = pytest.mark.usefixtures('quick_compile')
H = 4


def model(attention=ROPE, **changes):
  return ModelConfig(**{
    'vocab_size': 32, 'width': 16, 'layers': 2, 'heads': H, 'kv_heads': 2,
    'head_dim': 8, 'mlp': 24, 'context': 32, 'rope_base': 100.0,
    'attention': attention, **changes,
  })  # fmt: skip


def complex_model(**changes):
  return model(AttentionConfig('complex', ComplexConfig(**changes)))


VARIANTS = {
  **{kind: model(AttentionConfig(kind)) for kind in KINDS},
  'shared': complex_model(
    delta_sharing='shared', phase_bias=False, delta_init='published'
  ),
  'fixed': complex_model(
    delta_sharing='fixed', position_sign=-1, scale_scores=False
  ),
  'no delta': complex_model(delta_sharing='fixed', delta_init='zero'),
  'gemma': model(
    windows=(3, 0), attention_softcap=4.0, qk_norm=True, post_norms=True,
    rope_scaling=RopeScaling('linear', 2.0), local_rope_base=50.0,
  ),
}  # fmt: skip


@functools.cache
def moved(config):
  """Random parameters, whose learned angles are not where they begin."""
  random = np.random.default_rng(3)

  def draw(path, x):
    name = path[-1].key
    size = 0.3 if name in LEARNED else 0.4 if x.ndim > 2 else 0.02
    mean = name in ('scale', 'delta', 'factor')
    made = random.normal(mean, 0 if name == 'scale' else size, x.shape)
    return jnp.asarray(made, x.dtype)

  shapes = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def packed():
  """Two documents in a row and padding; one document alone."""
  tokens = np.random.default_rng(0).integers(0, 32, (2, 10))
  segments = np.asarray([[1] * 4 + [2] * 4 + [0] * 2, [1] * 10])
  positions = np.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 0, 0], list(range(10))])
  return jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(positions)


@pytest.mark.parametrize('name', VARIANTS)
def test_a_token_sees_its_own_document_up_to_itself(name):
  config = VARIANTS[name]
  params = moved(config)
  tokens, segments, positions = packed()
  # Each place has a row of the embedding of its own.
  places = jnp.arange(tokens.size).reshape(tokens.shape)
  direction = np.random.default_rng(4).normal(size=config.width)

  @jax.jit
  @jax.jacrev
  def jacobian(rows):
    own = {**params, 'embed_VxD': rows}
    return lm.hidden(config, own, places, segments, positions) @ direction

  rows = params['embed_VxD'][tokens].reshape(-1, config.width)
  # [B, L, B, L]: does a state depend on an input?
  found = np.abs(jacobian(rows)).max(-1).reshape(2, 10, 2, 10) > 0
  same = segments[:, :, None] == segments[:, None]
  sees = np.asarray(same & np.tri(10, dtype=bool)[None])
  for b, m in np.argwhere(np.asarray(segments) > 0):
    np.testing.assert_array_equal(found[b, m, b], sees[b, m])
    assert not found[b, m, 1 - b].any()


@pytest.mark.parametrize('name', VARIANTS)
def test_cached_decoding_is_the_full_forward_pass(name):
  config = VARIANTS[name]
  params = moved(config)
  tokens = np.random.default_rng(1).integers(0, 32, (3, 9))
  filled = np.arange(5)[None] >= np.asarray([2, 0, 4])[:, None]
  prefill = jax.jit(partial(decoding.prefill, config, size=9))
  step = jax.jit(partial(decoding.decode_step, config))
  state, cache = prefill(params, tokens[:, :5], filled)
  found = [state]
  for place in range(5, 9):
    state, cache = step(params, cache, tokens[:, place])
    found.append(state)
  segments = np.concatenate([filled, np.ones((3, 4), bool)], 1).astype(int)
  positions = np.maximum(np.cumsum(segments, 1) - 1, 0)
  hidden = jax.jit(partial(lm.hidden, config))
  expected = hidden(params, tokens, segments, positions)
  np.testing.assert_allclose(np.stack(found, 1), expected[:, 4:], atol=2e-4)


def test_models_of_a_seed_begin_with_the_same_matrices():
  """Else a paired run compares initial weights, and not the attention."""
  start = jax.jit(lm.init, static_argnums=0)
  params = start(model(), jax.random.key(1))
  adapted = model(lora=LoRAConfig(2, targets=('query', 'value')))
  # The kinds without parameters of their own are the same program.
  for name in ('alibi', 'complex', 'scaled_rope', 'shared', 'adapters'):
    found = start(VARIANTS.get(name, adapted), jax.random.key(1))
    flat = dict(jax.tree_util.tree_leaves_with_path(found))
    for path, x in jax.tree_util.tree_leaves_with_path(params):
      np.testing.assert_array_equal(flat[path], x, err_msg=f'{name} {path}')


def test_a_rope_model_stays_the_same_until_it_is_trained():
  params = moved(model())

  @partial(jax.jit, static_argnums=0)
  @partial(jax.value_and_grad, argnums=1)
  def loss(config, params):
    return (lm.logits(config, params, *packed()) ** 2).sum()

  before, gradients = loss(model(), params)
  for config in (
    *(model(AttentionConfig(k)) for k, x in KINDS.items() if x.extends_rope),
    complex_model(delta_sharing='shared', phase_bias=False),
    complex_model(delta_sharing='fixed'),
  ):
    assert config.attention == config.attention.begun_as_rope()
    extended = lm.extended(config, params, jax.random.key(0))
    after, found = loss(config, extended)
    np.testing.assert_allclose(after, before, rtol=1e-6)
    np.testing.assert_allclose(
      found['embed_VxD'], gradients['embed_VxD'], rtol=1e-4, atol=1e-5
    )
    attention = found['blocks'][0]['attention']
    for learned in {*LEARNED} & attention.keys():
      assert np.abs(attention[learned]).max() > 0
  for name in ('shared', 'fixed', 'no delta'):
    attention = VARIANTS[name].attention
    assert attention != attention.begun_as_rope()


def test_a_kind_of_ones_own_is_an_entry_of_the_table(monkeypatch):
  halved = Kind(lambda module, c, q, k, *_: (q / 2, k))
  monkeypatch.setitem(KINDS, 'halved', halved)
  asked = ModelSettings(attention='halved').positions
  assert asked is not None
  none = AttentionConfig('none')
  params = moved(model(none))
  found = lm.hidden(model(asked), params, *packed())
  scaled = model(none, query_scale=8**-0.5 / 2)
  expected = lm.hidden(scaled, params, *packed())
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_table_names_what_each_kind_learns():
  for name, kind in KINDS.items():
    config = model(AttentionConfig(name))
    shapes = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
    plain = {'query', 'key', 'value', 'output'}
    assert shapes['blocks'][0]['attention'].keys() - plain == {*kind.learns}


def test_at_delta_zero_the_angle_of_a_query_does_not_count():

  @partial(jax.jit, static_argnums=0)
  def logits(config, by):
    params = jax.tree.map(
      lambda x: 20 * x if x.ndim > 2 else x,
      lm.init(config, jax.random.key(0)),
    )
    attention = params['blocks'][0]['attention']
    real, imaginary = jnp.split(attention['query'], 2, axis=-1)
    cos, sin = jnp.cos(by), jnp.sin(by)
    parts = (real * cos - imaginary * sin, imaginary * cos + real * sin)
    attention['query'] = jnp.concatenate(parts, axis=-1)
    return lm.logits(config, params, *packed())

  def change(**changes):
    config = complex_model(**changes)
    return np.abs(logits(config, 0.7) - logits(config, 0.0)).max()

  for sharing in ('fixed', 'head'):
    assert change(delta_sharing=sharing, delta_init='zero') < 1e-4
  assert change() > 0.01


@pytest.mark.usefixtures('full_compile')
def test_no_array_of_heads_by_length_squared_by_width():
  config = complex_model()
  params = lm.init(config, jax.random.key(0))
  tokens, ones = jnp.zeros((1, 48), int), jnp.ones((1, 48), int)

  def loss(params):
    return lm.hidden(config, params, tokens, ones, ones).sum()

  text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
  sizes = [
    np.prod([int(n) for n in shape.split(',')])
    for shape in re.findall(r'f32\[([\d,]+)\]', text)
  ]
  # The shares of all heads of a layer; the backward pass makes them again.
  assert max(sizes) == H * 48 * 48


@pytest.mark.parametrize(
  ('changes', 'wanted'),
  [
    ({'delta_sharing': 'two'}, "delta_sharing 'two' is not one of head, shar"),
    ({'delta_init': 'one'}, "delta_init 'one' is not one of rope, published"),
    ({'position_sign': 0}, 'model.complex.position_sign 0 is not one of 1, -1'),
    (
      {'delta_sharing': 'fixed', 'delta_init': 'published'},
      'delta_init published is of a delta that is learned',
    ),
  ],
)
def test_what_does_not_exist_is_refused(changes, wanted):
  with pytest.raises(ConfigError, match=wanted):
    ComplexConfig(**changes)
  with pytest.raises(ConfigError, match="kind 'ropes' is not one of rope, co"):
    AttentionConfig('ropes')


def test_alibi_is_the_published_penalty():
  slopes = 0.5 ** np.arange(1, 9)
  back = np.arange(6)[:, None] - np.arange(6)[None]
  scores = np.random.default_rng(0).normal(size=(8, 6, 6))

  def shares(scores):
    masked = jnp.where((back >= 0)[None], scores, -jnp.inf)
    return jax.nn.softmax(masked, axis=-1)

  found = shares(scores + distance_bias(8, 6))
  expected = shares(scores - slopes[:, None, None] * back[None])
  np.testing.assert_allclose(found, expected, atol=1e-6)
