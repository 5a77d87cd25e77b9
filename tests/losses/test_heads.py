"""Output heads: against the matrix that each of them stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.losses import LOSSES, Loss, LossTables, head_nll
from pdl_jax.losses.fused.api import linear_token_stats
from pdl_jax.losses.heads import AdaptiveHead, CodeHead, LinearHead
from pdl_jax.mesh import make_mesh, put_batch, shardings
from pdl_jax.model import heads, lm
from pdl_jax.model.config import HeadConfig, ModelConfig
from pdl_jax.model.heads import fit, vq
from pdl_jax.model.heads.vq import code_dtype
from pdl_jax.train import optimizer
from tests import small

pytestmark = pytest.mark.usefixtures('quick_compile')

V, D, K, B, L = 40, 16, 8, 4, 6


def draw(seed=0):
  """Hidden states, labels, a mask, weights."""
  random = np.random.default_rng(seed)
  where = random.random((B, L)) < 0.8
  return (
    jnp.asarray(random.normal(size=(B, L, D)), jnp.float32),
    jnp.asarray(random.integers(0, V, (B, L)), jnp.int32),
    jnp.asarray(where),
    jnp.asarray(random.uniform(0.2, 3, V), jnp.float32),
  )


def code_head(seed=0, bias=True, empty=True):
  """Codes with 0, 1 and many types."""
  random = np.random.default_rng(seed)
  codes = random.integers(1 if empty else 0, K, V)
  codes[codes == 2] = 3
  codes[7] = 2
  return CodeHead(
    jnp.asarray(random.normal(size=(K, D)), jnp.float32),
    jnp.asarray(codes, jnp.int32),
    jnp.asarray(random.normal(size=V), jnp.float32) if bias else None,
  )


def as_matrix(head):
  return LinearHead(head.rows(), head.bias_V)


def compiled(loss):
  """(head, hidden, labels, where, tables) -> sums, and gradients by two."""

  def numerator(hidden, head, labels, where, tables):
    weighted, plain = loss.sums(head, hidden, labels, tables, where)
    return weighted.num, (weighted, plain)

  floats = jax.grad(numerator, argnums=(0, 1), has_aux=True, allow_int=True)
  run = jax.jit(floats)

  def call(head, hidden, *rest):
    (by_hidden, by_head), sums = run(hidden, head, *rest)
    return sums, by_hidden, by_head

  return call


@pytest.mark.parametrize(
  ('name', 'bias'),
  # Losses by type differ in their tables alone.
  [
    ('power_law', True), ('power_law', False),
    *((name, True) for name, spec in LOSSES.items() if not spec.weights),
  ],
)  # fmt: skip
def test_every_loss_of_codes_is_that_of_the_matrix(name, bias):
  hidden, labels, where, weights = draw()
  head = code_head(bias=bias)
  spec = LOSSES[name]
  own = jnp.linspace(-1, 1, V) if spec.bias is not None else None
  tables = LossTables(weights, own)
  settings = {'beta': 0.7} if name == 'gem' else {}
  loss = Loss(spec, settings)
  run, arguments = compiled(loss), (hidden, labels, where, tables)
  one, other = run(head, *arguments), run(as_matrix(head), *arguments)
  for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]),
                  strict=True):  # fmt: skip
    np.testing.assert_allclose(a, b, rtol=2e-6)
  np.testing.assert_allclose(one[1], other[1], rtol=1e-4, atol=2e-6)
  # The gradient of a code is the sum over its types.
  rows = np.zeros((K, D), np.float32)
  np.add.at(rows, np.asarray(head.codes_V), np.asarray(other[2].matrix_VxR))
  np.testing.assert_allclose(one[2].matrix_KxD, rows, rtol=1e-4, atol=3e-6)
  if bias:
    np.testing.assert_allclose(
      one[2].bias_V, other[2].bias_V, rtol=1e-4, atol=2e-6
    )


@pytest.mark.parametrize(('bias', 'temperature'), [(True, 0.5), (False, 1.0)])
def test_statistics_of_codes_are_those_of_the_matrix(bias, temperature):
  hidden, labels, _, _ = draw()
  head = code_head(bias=bias)
  tables = head.tables(temperature)
  found = head.stats(tables, hidden, labels, temperature)
  expected = linear_token_stats(
    hidden, as_matrix(head), labels, temperature=temperature
  )
  for name in ('log_z', 'label', 'average', 'expected'):
    np.testing.assert_allclose(
      getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5
    )
  np.testing.assert_array_equal(found.argmax, expected.argmax)
  # Ties go to the first type.
  if not bias:
    same = head._replace(matrix_KxD=jnp.zeros((K, D)))
    assert not same.stats(tables, hidden, labels, 1.0).argmax.any()


def test_loss_against_the_softmax_over_all_types_in_fp64():
  hidden, labels, where, weights = draw()
  head = code_head()
  z = np.asarray(hidden, np.float64) @ np.asarray(
    head.rows(), np.float64
  ).T + np.asarray(head.bias_V, np.float64)
  nll = np.log(np.exp(z).sum(-1)) - np.take_along_axis(
    z, np.asarray(labels)[..., None], -1
  )[..., 0]  # fmt: skip
  w = np.asarray(weights, np.float64)[np.asarray(labels)] * np.asarray(where)
  weighted, plain = Loss(LOSSES['power_law'], {}).sums(
    head, hidden, labels, LossTables(weights), where
  )
  np.testing.assert_allclose(weighted.num, (w * nll).sum(), rtol=1e-6)
  np.testing.assert_allclose(weighted.den, w.sum(), rtol=1e-6)
  np.testing.assert_allclose(plain.num, (nll * np.asarray(where)).sum(),
                             rtol=1e-6)  # fmt: skip
  found = head_nll(head, hidden, labels, where)
  np.testing.assert_allclose(found, nll * np.asarray(where), rtol=2e-5)


def adaptive_head(seed=0):
  random = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
  return AdaptiveHead(
    draw(12, D),
    (LinearHead(draw(10, 4), None, draw(D, 4)),
     LinearHead(draw(20, 1), None, draw(D, 1))),
    jnp.asarray(random.permutation(V), jnp.int32),
  )  # fmt: skip


def test_an_adaptive_head_gives_probabilities():
  hidden, labels, where, _ = draw()
  head = adaptive_head()
  logits = head.logits(hidden)
  np.testing.assert_allclose(jnp.exp(logits).sum(-1), 1, rtol=1e-5)
  expected = -np.take_along_axis(
    np.asarray(logits), np.asarray(labels)[..., None], -1
  )[..., 0]  # fmt: skip
  np.testing.assert_allclose(
    head_nll(head, hidden, labels, where), expected * np.asarray(where),
    rtol=1e-4, atol=1e-5,
  )  # fmt: skip


@pytest.mark.parametrize('name', ['power_law', 'gem', 'logit_adjustment'])
def test_losses_of_an_adaptive_head_are_those_of_its_log_probabilities(name):
  """A matrix whose logits are the same: hidden states one-hot, one a token."""
  hidden, labels, where, weights = draw()
  head, spec = adaptive_head(), LOSSES[name]
  own = jnp.linspace(-1, 1, V) if spec.bias is not None else None
  loss = Loss(spec, {'beta': 0.7} if name == 'gem' else {})
  tables = LossTables(weights, own)
  one = loss.sums(head, hidden, labels, tables, where)
  logits = head.logits(hidden).reshape(-1, V)
  other = loss.sums(
    LinearHead(logits.T), jnp.eye(B * L).reshape(B, L, B * L), labels, tables,
    where,
  )  # fmt: skip
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    ('power_law', 'linear'), ('unlikelihood', 'linear'), ('mile', 'codes'),
    ('unlikelihood', 'codes'), ('power_law', 'adaptive'),
  ],
)  # fmt: skip
def test_inside_jit_a_label_out_of_range_is_nan(name, kind):
  """A look-up of its code or place would take another type's."""
  hidden, labels, where, weights = draw()
  head = {
    'linear': as_matrix(code_head()), 'codes': code_head(),
    'adaptive': adaptive_head(),
  }[kind]  # fmt: skip
  run, tables = compiled(Loss(LOSSES[name], {})), LossTables(weights)
  nll_of = jax.jit(lambda labels: head_nll(head, hidden, labels, where))
  where = where.at[1, 2].set(True).at[0, 3].set(False)
  only = np.zeros((B, L), bool)
  only[1, 2] = True
  for bad in (-100, V):
    masked = labels.at[0, 3].set(bad)
    clean = run(head, hidden, masked, where, tables)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(clean[:2]))
    wrong = masked.at[1, 2].set(bad)
    (weighted, plain), by_hidden, _ = jax.jit(run)(
      head, hidden, wrong, where, tables
    )
    for x in (*weighted, plain.num, by_hidden[1, 2]):
      assert np.isnan(x).all()
    np.testing.assert_array_equal(np.isnan(nll_of(wrong)), only)


def test_a_mask_of_numbers_is_refused():
  hidden, labels, where, weights = draw()
  loss = Loss(LOSSES['power_law'], {})
  for head in (as_matrix(code_head()), code_head(), adaptive_head()):
    for refused in (
      lambda head=head: loss.sums(
        head, hidden, labels, LossTables(weights), where * 0.5
      ),
      lambda head=head: head_nll(head, hidden, labels, where * 0.5),
    ):
      with pytest.raises(ConfigError, match='where must be True or False'):
        refused()
    with pytest.raises(ConfigError, match='hidden must be floating-point'):
      head_nll(head, hidden.astype(int), labels, where)


def test_an_adaptive_head_has_no_rows():
  hidden, labels, where, weights = draw()
  with pytest.raises(ConfigError, match='adaptive has none'):
    Loss(LOSSES['emo'], {}).sums(
      adaptive_head(), hidden, labels, LossTables(weights), where
    )


HEADS = {
  'dense': HeadConfig('dense', bias='learned'),
  'low_rank': HeadConfig('low_rank', rank=4),
  'codes': HeadConfig('vq', codebook_size=8, bias='learned'),
  'concat': HeadConfig('vq', codebook_size=8, num_codebooks=4),
  'sum': HeadConfig(
    'vq', 'unigram', codebook_size=8, num_codebooks=3, combine='sum'
  ),
  'residual': HeadConfig('vq', codebook_size=8, rank=2),
  'learned': HeadConfig('vq', codebook_size=8, num_codebooks=2, learned=True),
  'tiers': HeadConfig(
    'vq', codebook_size=8, num_codebooks=4, num_exact=5, tail_start=30,
    tail_codebook_size=8, tail_num_codebooks=2,
  ),
  'tail of lower rank': HeadConfig(
    'vq', 'learned', codebook_size=8, num_codebooks=4, tail_start=30,
    tail_codebook_size=8, tail_num_codebooks=2, tail_rank=6,
  ),
  'learned tiers of lower rank': HeadConfig(
    'vq', codebook_size=8, num_codebooks=4, learned=True, num_exact=5,
    tail_start=30, tail_codebook_size=8, tail_num_codebooks=2, tail_rank=6,
  ),
  'learned tiers': HeadConfig(
    'vq', codebook_size=8, num_codebooks=4, learned=True, num_exact=5,
    tail_start=30, tail_codebook_size=8, tail_num_codebooks=2,
  ),
}  # fmt: skip


def model(head):
  return ModelConfig(
    vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48,
    context=16, head=head,
  )  # fmt: skip


@pytest.fixture(params=HEADS)
def built(request):
  config = model(HEADS[request.param])
  params = lm.init(config, jax.random.key(0))
  random = np.random.default_rng(0)

  def fill(path, x):
    name = path[-1].key
    if name == 'codes_MxV':
      return jnp.asarray(random.integers(0, 8, x.shape), x.dtype)
    if name == 'places_V':
      return jnp.asarray(random.permutation(x.size), jnp.int32)
    return jnp.asarray(random.normal(size=x.shape), jnp.float32)

  own = jax.tree_util.tree_map_with_path(fill, params['head'])
  return config, {**params, 'head': own}


def test_logits_are_those_of_the_effective_matrix(built):
  config, params = built
  hidden = jnp.asarray(
    np.random.default_rng(1).normal(size=(3, 5, 32)), jnp.float32
  )
  head = lm.head(config, params)
  rows, bias = head.rows(), head.bias_V
  expected = hidden @ rows.T
  if bias is not None:
    expected += bias[None, None]
  fixed = lm.fix_head(config, params)
  np.testing.assert_allclose(
    heads.logits(config, fixed, hidden), expected, rtol=1e-5, atol=1e-5
  )
  assert not any('shadow' in str(path) for path, _ in
                 jax.tree_util.tree_leaves_with_path(fixed))  # fmt: skip


def test_meshes_agree_with_one_device(built):
  config, params = built
  hidden, labels, where, weights = (
    np.asarray(x) for x in _tokens(config.vocab_size)
  )
  loss, tables = Loss(LOSSES['power_law'], {}), LossTables(jnp.asarray(weights))

  def numerator(floats, fixed, hidden, labels, where):
    merged = optimizer.merge(floats, fixed)
    head = lm.head(config, {**params, 'head': merged})
    weighted, _ = loss.sums(head, hidden, labels, tables, where)
    return weighted.num

  trains = lambda path, _: path[-1].key not in vq.FIXED
  mask = jax.tree_util.tree_map_with_path(trains, params['head'])
  floats, fixed = optimizer.partition(params['head'], mask)
  run = jax.jit(jax.value_and_grad(numerator))
  value, gradient = run(floats, fixed, hidden, labels, where)
  for shape in ((2, 2, 2), (1, 1, 8)):
    mesh = make_mesh(shape)
    axes = lm.logical_axes(config)['head']
    placed = shardings(mesh, axes, params['head'])
    apart = optimizer.partition(placed, mask)
    with jax.set_mesh(mesh):
      batch = put_batch(
        {'hidden': hidden, 'labels': labels, 'where': where}, mesh
      )
      put = map(jax.device_put, (floats, fixed), apart)
      got = run(*put, *batch.values())
    np.testing.assert_allclose(got[0], value, rtol=1e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
      got[1], gradient,
    )  # fmt: skip


def _tokens(vocab):
  random = np.random.default_rng(2)
  return (
    jnp.asarray(random.normal(size=(8, 6, 32)), jnp.float32),
    jnp.asarray(random.integers(0, vocab, (8, 6)), jnp.int32),
    jnp.asarray(random.random((8, 6)) < 0.8),
    jnp.asarray(random.uniform(0.2, 3, vocab), jnp.float32),
  )


@pytest.mark.parametrize('how', ['concat', 'sum'])
def test_nearest_codes_of_composed_rows_are_their_own(how):
  random = np.random.default_rng(0)
  # Codebooks of falling scale, so that a greedy search of a sum is exact.
  scale = np.asarray([1, 1e-2, 1e-4]) if how == 'sum' else np.ones(3)
  books = jnp.asarray(
    random.normal(size=(3, 8, 12)) * scale[:, None, None], jnp.float32
  )
  codes = jnp.asarray(random.integers(0, 8, (3, 30)), jnp.uint8)
  rows = vq.combine(books, codes, how)
  np.testing.assert_array_equal(vq.nearest(books, rows, how), codes)


@pytest.mark.parametrize(
  ('count', 'kind'),
  [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65_537, np.uint32)],
)
def test_codes_are_of_the_least_type_that_holds_them(count, kind):
  assert code_dtype(count) == kind
  assert np.arange(count).astype(code_dtype(count)).max() == count - 1


def test_the_gradient_of_learned_codes_reaches_codebooks_and_shadow():
  config = HEADS['learned']
  params = lm.init(model(config), jax.random.key(0))['head']
  target = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)),
                       jnp.float32)  # fmt: skip

  def loss(params):
    return (vq.head(config, params).rows() * target).sum()

  value, gradient = jax.value_and_grad(loss)(params)
  codes = vq.fix_codes(config, params)['codes_MxV']
  rows = vq.combine(params['codebooks_MxKxS'], codes, 'concat')
  # The value is of the codes alone; the shadow is passed what a row gets.
  assert float(value) == pytest.approx(float((rows * target).sum()), rel=1e-5)
  np.testing.assert_allclose(gradient['shadow_VxD'], target, rtol=1e-6)
  for m in range(2):
    part = np.zeros((8, 16), np.float32)
    np.add.at(part, np.asarray(codes[m]), target[:, 16 * m : 16 * m + 16])
    np.testing.assert_allclose(
      gradient['codebooks_MxKxS'][m], part, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
  ('changes', 'wanted'),
  [
    ({'kind': 'vqq'}, "head kind 'vqq' is not one of"),
    ({'bias': 'x'}, "head bias 'x' is not one of"),
    ({'kind': 'vq'}, 'codebook_size and num_codebooks .* got 0 and 1'),
    ({'kind': 'vq', 'codebook_size': 65}, 'size 65 are more than the 64 types'),
    ({'kind': 'vq', 'codebook_size': 20, 'tail_start': 16,
      'tail_codebook_size': 4, 'tail_num_codebooks': 1},
     'model.vq.codebook_size 20 are more than the 16 types'),
    ({'kind': 'vq', 'codebook_size': 8, 'tail_start': 56,
      'tail_codebook_size': 9, 'tail_num_codebooks': 1},
     'model.vq.tail_codebook_size 9 are more than the 8 types'),
    ({'kind': 'vq', 'codebook_size': 8, 'num_codebooks': 5},
     '32 does not divide into 5'),
    ({'kind': 'adaptive', 'num_exact': 4, 'rank': 2},
     'num_exact 4 < model.vq.tail_start 0 < 64'),
    ({'kind': 'low_rank'}, 'rank of a low_rank head must be >= 1'),
    ({'kind': 'low_rank', 'rank': 32}, 'rank 32 must be below the width'),
  ],
)  # fmt: skip
def test_bad_heads_are_refused(changes, wanted):
  with pytest.raises(ConfigError, match=wanted):
    model(HeadConfig(**changes))


def test_index_bits_and_floats():
  config = HeadConfig('vq', codebook_size=256, num_codebooks=4)
  assert vq.index_bits(config, 1000) == 1000 * 4 * 8
  adaptive = HeadConfig('adaptive', rank=2, num_exact=4, tail_start=9)
  # The order of the types, which clusters part: 10 bits a type.
  assert vq.index_bits(adaptive, 1000) == 1000 * 10
  params = lm.init(model(HEADS['residual']), jax.random.key(0))['head']
  assert vq.float_parameters(params) == 8 * 32 + (64 + 32) * 2


def test_a_small_model_has_the_head_that_it_had():
  """Keys of other heads leave the tied one's parameters as they were."""
  assert set(small.params()) == {'embed_VxD', 'blocks', 'norm'}


@pytest.mark.parametrize(
  ('mapping', 'count', 'excess'),
  [
    ('random', 1024, 2.27), ('random', 4096, 1.64),
    ('frequency_blocks', 1024, 0.28), ('frequency_blocks', 4096, 0.10),
  ],
)  # fmt: skip
def test_one_code_a_type_costs_what_zipf_says(mapping, count, excess):
  """The least loss of tied types, whatever the hidden state says.

  With the best logit of each code, log(mass / size), the loss of a Zipf
  distribution over 50,000 types exceeds its entropy by so many nats.
  """
  size = 50_000
  p = 1 / np.arange(1, size + 1)
  p /= p.sum()
  config = HeadConfig('vq', codebook_size=count)
  [tier] = config.tiers(size)
  codes = fit.assign(config, tier, mapping, p * 1e9, None, None, 0)[0]
  mass = np.bincount(codes, p, count)
  best = np.log(mass / np.bincount(codes, minlength=count))
  head = CodeHead(jnp.zeros((count, 1)), jnp.asarray(codes, jnp.int32))
  # A row a code: the logits are the same for all types.
  stats = head.code_stats(
    head.tables(), jnp.broadcast_to(jnp.float32(best)[None], (1, count)),
    jnp.zeros(1, int),
  )  # fmt: skip
  nll = float(stats.log_z[0]) - np.float64(best)[codes]
  entropy = -(p * np.log(p)).sum()
  assert (p * nll).sum() - entropy == pytest.approx(excess, abs=0.02)


@pytest.mark.usefixtures('full_compile')
def test_memory_of_the_loss_of_codes_knows_no_tokens_times_types():
  """A few arrays of V for all tokens together, and none of V for each."""
  loss, count = Loss(LOSSES['power_law'], {}), 64

  def temporary_bytes(tokens, types):
    def value(matrix_KxD, hidden, codes_V, labels, weights_V):
      head, where = CodeHead(matrix_KxD, codes_V), jnp.ones((1, tokens), bool)
      tables = LossTables(weights_V)
      return loss.sums(head, hidden, labels, tables, where)[0].num

    shapes = (
      ((count, D), jnp.float32), ((1, tokens, D), jnp.float32),
      ((types,), jnp.int32), ((1, tokens), jnp.int32), ((types,), jnp.float32),
    )  # fmt: skip
    run = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    compiled = run.lower(*(jax.ShapeDtypeStruct(*x) for x in shapes)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, more = 20_000, 80_000
  for tokens in (256, 1024):
    grows = temporary_bytes(tokens, more) - temporary_bytes(tokens, few)
    # One array of tokens and types would be 32 times this, or 128.
    assert grows <= 8 * 4 * (more - few)
