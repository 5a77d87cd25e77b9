"""Complex attention against the paper's sum, and what every attention owes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.model import lm
from pdl_jax.model.attention import distance_bias
from pdl_jax.model.complex_attention import angle, cos_sin, turn
from pdl_jax.model.config import AttentionConfig, ModelConfig
from pdl_jax.model.lora import LoRAConfig

pytestmark = pytest.mark.usefixtures('quick_compile')

B, L, H, K, DH = 2, 7, 4, 2, 8
P = DH // 2
BASE = 100.0
KINDS = {
  'complex': AttentionConfig('complex'),
  'one delta for all heads': AttentionConfig('complex', delta_sharing='shared'),
  'fixed delta': AttentionConfig('complex', delta_sharing='fixed'),
  'no delta': AttentionConfig('complex', delta_sharing='fixed',
  delta_init='zero'),
  'no offset': AttentionConfig('complex', phase_bias=False),
  'as published': AttentionConfig('complex', delta_init='published',
  scale_scores=False),
  'positions negative': AttentionConfig('complex', delta_sharing='fixed',
  position_sign=-1),
  'scaled rope': AttentionConfig('scaled_rope'),
  'alibi': AttentionConfig('alibi'),
  'none': AttentionConfig('none'),
}


def arrays(heads=H, seed=0):
  random = np.random.default_rng(seed)
  x = random.normal(size=(B, L, heads, DH))
  positions = np.broadcast_to(np.arange(L), (B, L))
  return x, positions, random


def direct_scores(q, k, positions, delta, offset, sign=1):
  """The sum of cosines of the paper, in fp64: [B, H, M, N]."""
  modulus = lambda x: np.hypot(x[..., :P], x[..., P:])
  theta = lambda x: np.arctan2(x[..., P:], x[..., :P])
  g = BASE ** (-np.arange(P) / P)
  m, n = positions[:, :, None, None, None], positions[:, None, :, None, None]
  between = theta(q)[:, :, None] - theta(k)[:, None]
  phase = delta * between + offset + sign * (m - n) * g
  product = modulus(q)[:, :, None] * modulus(k)[:, None]
  return (product * np.cos(phase)).sum(-1).transpose(0, 3, 1, 2)


@pytest.mark.parametrize('sign', [1, -1])
def test_turned_products_are_the_sum_of_cosines(sign):
  q, positions, random = arrays()
  k = arrays(seed=1)[0]
  delta, offset = random.normal(size=(2, H, P))
  expected = direct_scores(q, k, positions, delta, offset, sign)
  f32 = lambda x: jnp.asarray(x, jnp.float32)
  turned_q = turn(f32(q), positions, BASE, f32(delta), f32(offset), sign)
  turned_k = turn(f32(k), positions, BASE, f32(delta), sign=sign)
  found = jnp.einsum('bmhd,bnhd->bhmn', turned_q, turned_k)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_delta_one_and_no_offset_is_rope_bit_for_bit():
  x, positions, _ = arrays()
  x = jnp.asarray(x, jnp.float32)
  rope = turn(x, positions, BASE)
  found = turn(x, positions, BASE, jnp.ones((H, P)), jnp.zeros((H, P)))
  np.testing.assert_array_equal(found, rope)


def test_scores_do_not_change_with_a_shift_of_all_positions():
  q, positions, random = arrays()
  k = arrays(seed=1)[0]
  delta, offset = jnp.asarray(random.normal(size=(2, H, P)), jnp.float32)

  def scores(shift):
    a = turn(jnp.asarray(q), positions + shift, BASE, delta, offset)
    b = turn(jnp.asarray(k), positions + shift, BASE, delta)
    return jnp.einsum('bmhd,bnhd->bhmn', a, b)

  np.testing.assert_allclose(scores(50), scores(0), atol=2e-4)


@pytest.mark.parametrize(
  'pair',
  [(0.0, 0.0), (1e-20, -1e-20), (-1.0, 0.0), (-1.0, 1e-12), (-1.0, -1e-12)],
)
def test_gradients_are_finite_at_zero_and_where_the_angle_jumps(pair):
  x = jnp.asarray(np.tile(np.repeat(pair, P), (1, 1, 1, 1)), jnp.float32)
  delta, offset = jnp.full((1, P), 0.37), jnp.full((1, P), 0.2)

  def total(x, delta, offset):
    return turn(x, jnp.ones((1, 1)), BASE, delta, offset).sum()

  for gradient in jax.grad(total, (0, 1, 2))(x, delta, offset):
    assert np.isfinite(gradient).all()
    # A turned pair is no longer than it was: so is what reaches a parameter.
    assert np.abs(gradient).max() < 10


def test_the_angle_is_that_of_the_number():
  x, _, _ = arrays()
  found = angle(jnp.asarray(x[..., :P]), jnp.asarray(x[..., P:]))
  expected = np.angle(x[..., :P] + 1j * x[..., P:])
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('far', [1.0, 100.0, 1e4, 1.9e5])
def test_cosines_are_exact_to_rounding_at_any_position(far):
  phase = np.random.default_rng(2).uniform(-far, far, 50_000)
  phase = phase.astype(np.float32)
  cos, sin = cos_sin(jnp.asarray(phase))
  np.testing.assert_allclose(cos, np.cos(phase.astype(float)), atol=1.2e-7)
  np.testing.assert_allclose(sin, np.sin(phase.astype(float)), atol=1.2e-7)


def test_angles_are_exact_to_rounding_in_every_direction():
  turns = np.linspace(-np.pi, np.pi, 20_001)[1:-1]
  for modulus in (1e-14, 1.0, 1e18):
    real = (modulus * np.cos(turns)).astype(np.float32)
    imaginary = (modulus * np.sin(turns)).astype(np.float32)
    expected = np.arctan2(imaginary.astype(float), real.astype(float))
    np.testing.assert_allclose(
      angle(jnp.asarray(real), jnp.asarray(imaginary)), expected, atol=4e-7
    )
  axes = jnp.asarray([1.0, 0.0, -1.0, 0.0]), jnp.asarray([0.0, 1.0, 0.0, -1.0])
  np.testing.assert_allclose(
    angle(*axes), np.asarray([0, 0.5, 1, -0.5]) * np.pi, atol=4e-7
  )


def test_gradients_are_those_of_finite_differences():
  x, positions, random = arrays()
  delta, offset = 1 + 0.3 * random.normal(size=(2, H, P))
  x, delta, offset = (
    jnp.asarray(a, jnp.float32) for a in (x + np.sign(x), delta, offset)
  )
  check = functools.partial(
    jax.test_util.check_grads, order=1, modes=['rev'], atol=2e-2, rtol=2e-2
  )
  place = functools.partial(turn, positions_BxL=positions, base=BASE)
  check(lambda *given: place(given[0], delta_HxP=given[1], offset_HxP=given[2]),
        (x, delta, offset))  # fmt: skip
  check(lambda x, one: place(x, delta_HxP=one), (x, delta[:1]))
  check(lambda x, b: place(x, offset_HxP=b), (x, offset))


def model(attention):
  return ModelConfig(
    vocab_size=32, width=16, layers=2, heads=H, kv_heads=K, head_dim=DH, mlp=24,
    context=32, rope_base=BASE, attention=attention,
  )  # fmt: skip


@pytest.fixture(
  params=['complex', 'one delta for all heads', 'as published',
          'no delta', 'positions negative', 'scaled rope', 'alibi', 'none']
)  # fmt: skip
def built(request):
  """A model whose learned angles are not where they begin."""
  config = model(KINDS[request.param])
  params = lm.init(config, jax.random.key(0))
  random = np.random.default_rng(3)

  def moved(path, x):
    if path[-1].key not in ('delta', 'offset', 'factor'):
      return 20 * x if x.ndim > 2 else x
    return x + jnp.asarray(random.normal(0, 0.3, x.shape), x.dtype)

  return config, jax.tree_util.tree_map_with_path(moved, params)


@pytest.mark.parametrize(
  'more', [*({'attention': kind} for kind in KINDS.values()),
           {'lora': LoRAConfig(2, targets=('query', 'value'))}],
)  # fmt: skip
def test_models_of_a_seed_begin_with_the_same_matrices(more):
  """Else a paired run compares initial weights, and not the attention."""
  rope = model(AttentionConfig())
  params = lm.init(rope, jax.random.key(1))
  other = lm.init(dataclasses.replace(rope, **more), jax.random.key(1))
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    found = other
    for step in path:
      found = found[step.idx if hasattr(step, 'idx') else step.key]
    np.testing.assert_array_equal(found, x, err_msg=str(path))


def with_turned_queries(params, by):
  """Every pair of every query by an angle, before positions."""

  def turned(path, x):
    if 'query' not in (getattr(step, 'key', '') for step in path):
      return x
    real, imaginary = jnp.split(x, 2, axis=-1)
    cos, sin = np.cos(by), np.sin(by)
    parts = (real * cos - imaginary * sin, imaginary * cos + real * sin)
    return jnp.concatenate(parts, axis=-1)

  return jax.tree_util.tree_map_with_path(turned, params)


def test_a_delta_that_is_drawn_is_not_fixed():
  with pytest.raises(ConfigError, match='delta_init published draws a del'):
    AttentionConfig('complex', delta_sharing='fixed', delta_init='published')


@pytest.mark.parametrize('delta', ['fixed', 'head', 'shared'])
def test_at_delta_zero_the_angle_of_a_query_does_not_count(delta):
  tokens, segments, positions = packed()

  def logits(start, by):
    config = model(AttentionConfig('complex', delta_sharing=delta,
    delta_init=start))
    params = lm.init(config, jax.random.key(0))
    params = jax.tree.map(lambda x: 20 * x if x.ndim > 2 else x, params)
    turned = with_turned_queries(params, by)
    return lm.logits(config, turned, tokens, segments, positions)

  np.testing.assert_allclose(logits('zero', 0.7), logits('zero', 0), atol=1e-4)
  assert np.abs(logits('rope', 0.7) - logits('rope', 0)).max() > 0.01


def packed():
  """Two documents in a row and padding; one document alone."""
  tokens = np.random.default_rng(0).integers(0, 32, (2, 10))
  segments = np.asarray([[1] * 4 + [2] * 4 + [0] * 2, [1] * 10])
  positions = np.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 0, 0], list(range(10))])
  return jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(positions)


def test_nothing_sees_the_future_other_documents_or_padding(built):
  config, params = built
  tokens, segments, positions = packed()
  embedded = params['embed_VxD'][tokens]

  def states(x):
    # Each place has a row of the embedding of its own.
    own = {**params, 'embed_VxD': x.reshape(-1, config.width)}
    places = jnp.arange(tokens.size).reshape(tokens.shape)
    return lm.hidden(config, own, places, segments, positions)

  # [B, L, B, L]: the gradient of a product with each state, by each input.
  found, pull = jax.vjp(states, embedded)
  pull = jax.jit(pull)
  along = np.random.default_rng(4).normal(size=found.shape)
  moves = np.zeros((2, 10, 2, 10))
  for b, m in np.ndindex(2, 10):
    one = jnp.zeros_like(found).at[b, m].set(along[b, m])
    moves[b, m] = np.abs(pull(one)[0]).max(-1)
  for b in range(2):
    for m in range(10):
      for other in range(2):
        for n in range(10):
          same = other == b and segments[b, n] == segments[b, m]
          sees = same and n <= m and segments[b, m] > 0
          if sees:
            assert moves[b, m, other, n] > 0
          elif segments[b, m] > 0:
            assert moves[b, m, other, n] == 0


def test_cached_decoding_is_the_full_forward(built):
  config, params = built
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 32, (2, 9)))
  filled = jnp.asarray([[False, False, True, True, True], [True] * 5])
  state, cache = lm.prefill(config, params, tokens[:, :5], filled, 9)
  found = [state]
  for step in range(5, 9):
    state, cache = lm.decode_step(config, params, cache, tokens[:, step])
    found.append(state)
  segments = jnp.concatenate([filled, jnp.ones((2, 4), bool)], 1).astype(int)
  positions = jnp.maximum(jnp.cumsum(segments, 1) - 1, 0)
  expected = lm.hidden(config, params, tokens, segments, positions)
  np.testing.assert_allclose(
    np.stack(found, 1), expected[:, 4:], atol=2e-4
  )


@pytest.mark.parametrize(
  'kind', ['complex', 'one delta for all heads', 'fixed delta', 'no offset',
           'scaled rope']
)  # fmt: skip
def test_a_rope_model_stays_the_same_until_it_is_trained(kind):
  rope = model(AttentionConfig())
  params = lm.init(rope, jax.random.key(0))
  config = dataclasses.replace(rope, attention=KINDS[kind])
  assert config.attention.extends_rope
  extended = lm.extended(config, params, jax.random.key(0))
  made = jax.eval_shape(lambda: lm.init(config, jax.random.key(0)))
  assert jax.tree.structure(extended) == jax.tree.structure(made)
  inputs = packed()
  before, after = (
    jax.value_and_grad(
      lambda p, c=c: (lm.logits(c, p, *inputs) ** 2).sum(), allow_int=True
    )(p)
    for c, p in ((rope, params), (config, extended))
  )
  np.testing.assert_allclose(after[0], before[0], rtol=1e-6)
  np.testing.assert_allclose(
    after[1]['embed_VxD'], before[1]['embed_VxD'], rtol=1e-4, atol=1e-5
  )
  learned = set(extended['blocks'][0]['attention']) - set(
    params['blocks'][0]['attention']
  )
  for name in learned:
    gradient = after[1]['blocks'][0]['attention'][name]
    assert np.abs(gradient).max() > 0


@pytest.mark.usefixtures('full_compile')
def test_no_array_of_heads_by_length_squared_by_width():
  config = model(AttentionConfig('complex'))
  params = lm.init(config, jax.random.key(0))
  tokens = jnp.zeros((1, 48), int)
  ones = jnp.ones((1, 48), int)

  def loss(params):
    return lm.hidden(config, params, tokens, ones, ones).sum()

  text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
  sizes = [
    np.prod([int(n) for n in shape.split(',')])
    for shape in re.findall(r'f32\[([\d,]+)\]', text)
  ]
  # The shares of all heads and layers, for the backward pass.
  assert max(sizes) == config.layers * H * 48 * 48


@pytest.mark.parametrize(
  ('changes', 'wanted'),
  [
    ({'kind': 'ropes'}, "attention kind 'ropes' is not one of rope, complex"),
    ({'delta_sharing': 'two'},
    "attention delta_sharing 'two' is not one of head, shared"),
    ({'position_sign': 0}, 'attention position_sign 0 is not one of 1, -1'),
  ],
)
def test_what_does_not_exist_is_refused(changes, wanted):
  with pytest.raises(ConfigError, match=wanted):
    AttentionConfig(**{'kind': 'complex', **changes})


def test_alibi_is_the_published_penalty():
  slopes = 0.5 ** np.arange(1, 9)
  back = np.arange(6)[:, None] - np.arange(6)[None]
  scores = np.random.default_rng(0).normal(size=(8, 6, 6))
  seen = back >= 0

  def shares(scores):
    return jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf), axis=-1)

  found = shares(scores + distance_bias(8, 6))
  expected = shares(scores - slopes[:, None, None] * back[None])
  np.testing.assert_allclose(found, expected, atol=1e-6)
