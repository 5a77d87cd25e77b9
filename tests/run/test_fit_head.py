"""Codes, codebooks and biases of a new head, from rows and counts."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.model import lm
from pdl_jax.model.config import HeadConfig, ModelConfig
from pdl_jax.model.heads import fit
from pdl_jax.model.heads import vq as vq_head
from pdl_jax.model.settings import CodeSettings, ModelSettings
from pdl_jax.run.fit_head import Moments, fit_head
from pdl_jax.run.head_report import codes_report
from pdl_jax.run.load_model import Model

pytestmark = pytest.mark.usefixtures('quick_compile')
V, D = 60, 8
COUNTS = np.random.default_rng(0).permutation(
  (1000 / np.arange(1, V + 1)).astype(np.int64)
)
# Twelve places in space, five types at each.
PLACES = np.random.default_rng(1).normal(size=(12, D)).astype(np.float32)
ROWS = np.repeat(PLACES, 5, axis=0)
# Rows that are all different.
NOISE = np.random.default_rng(5).normal(size=(V, D)).astype(np.float32)


def head(**changes):
  return HeadConfig('vq', **{'codebook_size': 12, **changes})


def codes(mapping, seed=0, **changes):
  config = head(**changes)
  [tier] = config.tiers(V)
  return fit.assign(config, tier, mapping, COUNTS, ROWS, None, seed)


def test_codes_by_number_by_frequency_and_at_random():
  np.testing.assert_array_equal(codes('blocks')[0], np.arange(V) // 5)
  found = codes('frequency_blocks')[0]
  lowest = [COUNTS[found == k].min() for k in range(12)]
  highest = [COUNTS[found == k].max() for k in range(12)]
  assert all(a >= b for a, b in zip(lowest[:-1], highest[1:], strict=True))
  found, again, other = (codes('random', seed=seed)[0] for seed in (0, 0, 1))
  assert (np.bincount(found) == 5).all()
  np.testing.assert_array_equal(found, again)
  assert (found != other).any()


def test_kmeans_finds_the_places():
  found = codes('kmeans_output')[0]
  assert len({tuple(found[i : i + 5]) for i in range(0, V, 5)}) == 12
  [tier] = head().tiers(V)
  books = fit.codebooks(head(), tier, 'rows', found[None], COUNTS, ROWS, D, 0)
  np.testing.assert_allclose(books[0][found], ROWS, atol=1e-5)


@pytest.mark.parametrize('combine', ['concat', 'sum'])
def test_several_codebooks_come_nearer(combine):
  errors = []
  for count in (1, 2, 4):
    config = head(codebook_size=6, num_codebooks=count, combine=combine)
    found = fit.fit(
      config, 'kmeans_output', 'rows', COUNTS, NOISE, NOISE, None, D, 0
    )
    books, code = found['codebooks_MxKxS'], found['codes_MxV']
    composed = vq_head.combine(books, code, combine)
    errors.append(float(np.square(composed - NOISE).mean()))
  assert errors[0] > errors[1] > errors[2]


def test_the_commonest_types_have_codes_of_their_own():
  found = codes('random', num_exact=4)[0]
  common = np.argsort(-COUNTS, kind='stable')[:4]
  np.testing.assert_array_equal(found[common], np.arange(4))
  assert (np.bincount(found)[:4] == 1).all()


def options(kind, bias='none', rank=0, **vq):
  return ModelSettings(
    pretrained='x', width=D, layers=1, heads=2, kv_heads=1, head_dim=4, mlp=8,
    vocab_size=V, dtype='float32', remat=False, head=kind, bias=bias, rank=rank,
    vq=CodeSettings(**vq),
  )  # fmt: skip


def moments():
  """Of states that vary in some directions more than in others."""
  random = np.random.default_rng(8)
  states = random.normal(size=(400, D)) @ random.normal(size=(D, D))
  return Moments(random.normal(size=D), np.cov(states, rowvar=False))


def converted(settings, rows=ROWS, moments=None):
  config = ModelConfig(
    vocab_size=V, width=D, layers=1, heads=2, kv_heads=1, head_dim=4, mlp=8,
    context=8, head=settings.output,
  )  # fmt: skip
  # Nothing stays as it was initialized.
  init = functools.partial(lm.init, config)
  shapes = jax.eval_shape(init, jax.random.key(0))
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  if rows is not None:
    params['embed_VxD'] = rows
  model = Model('m', config, params, None, rows, head_is_new=True)
  return fit_head(settings, model, COUNTS, moments, 0)


def effective(model):
  return np.asarray(lm.head(model.config, model.params).rows())


def test_a_dense_head_begins_as_the_trained_rows():
  np.testing.assert_array_equal(effective(converted(options('dense'))), ROWS)


def test_a_low_rank_head_begins_as_the_best_approximation():
  """Of the logits on the data, the commoner types first (Eckart-Young)."""
  read = moments()
  found = effective(converted(options('low_rank', rank=3), NOISE, read))
  wanted = NOISE - np.average(NOISE, axis=0, weights=COUNTS + 1)
  metric = np.linalg.cholesky(fit.smoothed(read.covariance_DxD))
  weight = np.sqrt(fit.importance(COUNTS))[:, None]
  error = np.square(weight * (found - wanted) @ metric).sum()
  values = np.linalg.svd(weight * wanted @ metric, compute_uv=False)
  assert error == pytest.approx(np.square(values[3:]).sum(), rel=1e-4)


def test_of_full_rank_nothing_is_lost():
  left, right = fit.truncate(NOISE, COUNTS, moments().covariance_DxD, D)
  np.testing.assert_allclose(left @ right.T, NOISE, atol=1e-4)


def test_rows_are_near_that_give_near_logits():
  """Far apart where hidden states do not go, is near."""
  random = np.random.default_rng(5)
  rows = np.zeros((V, 2))
  rows[:, 0] = np.repeat([0.0, 1.0], V // 2) + 0.01 * random.normal(size=V)
  rows[:, 1] = 10 * random.normal(size=V)
  config = head(codebook_size=2)
  [tier] = config.tiers(V)
  found = {
    name: fit.assign(
      config, tier, 'kmeans_output', np.ones(V), rows, covariance, 0
    )[0]
    for name, covariance in (('plain', None), ('data', np.diag([1e4, 1e-4])))
  }
  split = np.repeat([0, 1], V // 2)
  agree = {name: (code == split).mean() for name, code in found.items()}
  assert agree['data'] in (0, 1)
  assert 0 < agree['plain'] < 1


def test_a_learned_bias_begins_at_the_mean_logit_that_the_rows_lost():
  read = moments()
  for kind, extra in (
    ('low_rank', {'rank': 3}), ('vq', {'codebook_size': 5, 'num_codebooks': 2})
  ):  # fmt: skip
    model = converted(options(kind, 'learned', **extra), NOISE, read)
    lost = NOISE @ read.mean_D - effective(model) @ read.mean_D
    # A softmax does not see what is added to all types.
    bias = model.params['head']['bias_V']
    np.testing.assert_allclose(bias - bias.mean(), lost - lost.mean(),
                               atol=1e-4)  # fmt: skip


@pytest.mark.parametrize('mapping', ['kmeans_output', 'learned', 'random'])
def test_the_tail_can_be_of_lower_rank(mapping):
  model = converted(
    options(
      'vq', codebook_size=8, num_codebooks=4, num_exact=5, tail_start=25,
      tail_codebook_size=9, tail_num_codebooks=2, tail_rank=4, mapping=mapping,
    ), NOISE, moments(),
  )  # fmt: skip
  order = np.argsort(-COUNTS, kind='stable')
  centered = NOISE - np.average(NOISE, axis=0, weights=COUNTS + 1)
  found = effective(model)
  np.testing.assert_allclose(found[order[:5]], centered[order[:5]], atol=1e-5)
  assert np.linalg.matrix_rank(found[order[25:]], tol=1e-3) == 4
  if mapping != 'random':
    error = np.square(found - centered).mean(1)[order[25:]].mean()
    assert error < np.square(centered[order[25:]]).mean()


def test_columns_are_spread_so_that_each_codebook_has_as_much_to_tell():
  scale = np.asarray([1e3, 1e3, 10, 10, 1, 1])
  rows = np.random.default_rng(5).normal(size=(1000, 6)) * scale
  first, second = fit.spread(rows, 2)[:3], fit.spread(rows, 2)[3:]
  assert sorted([*first, *second]) == list(range(6))
  for pair in ((0, 1), (2, 3), (4, 5)):
    assert len(set(pair) & set(first)) == len(set(pair) & set(second)) == 1


def test_a_learned_bias_parts_a_code_by_frequency_and_keeps_its_mass():
  model = converted(options('vq', 'learned', codebook_size=12))
  bias = model.params['head']['bias_V']
  code = model.params['head']['codes_MxV'][0]
  for k in range(12):
    share = np.exp(bias[code == k])
    counts = np.maximum(COUNTS[code == k], 1)
    assert share.sum() == pytest.approx((code == k).sum(), rel=1e-5)
    np.testing.assert_allclose(
      share / share.sum(), counts / counts.sum(), rtol=1e-5
    )


def test_own_rows_stand_in_place_of_composed_ones():
  model = converted(
    options('vq', codebook_size=3, num_codebooks=2, num_exact=5)
  )
  common = np.argsort(-COUNTS, kind='stable')[:5]
  np.testing.assert_allclose(effective(model)[common], ROWS[common], rtol=1e-6)


def test_clusters_of_an_adaptive_head_are_by_frequency():
  model = converted(
    options('adaptive', rank=4, num_exact=6, tail_start=20), NOISE
  )
  head = lm.head(model.config, model.params)
  order = np.argsort(-COUNTS, kind='stable')
  np.testing.assert_array_equal(head.places_V[order], np.arange(V))
  np.testing.assert_allclose(head.first_HxD[:6], NOISE[order[:6]])
  assert [x.matrix_VxR.shape for x in head.clusters] == [(14, 4), (40, 1)]


def test_tiers_are_of_falling_frequency_and_rising_error():
  model = converted(
    options(
      'vq', codebook_size=8, num_codebooks=4, num_exact=5, tail_start=25,
      tail_codebook_size=4, tail_num_codebooks=1,
    ), NOISE,
  )  # fmt: skip
  head = model.params['head']
  assert head['own_NxD'].shape == (5, D)
  assert head['codes_MxV'].shape == (4, 20)
  assert head['tail']['codes_MxV'].shape == (1, 35)
  order = np.argsort(-COUNTS, kind='stable')
  error = np.square(effective(model) - NOISE).mean(1)[order]
  np.testing.assert_allclose(error[:5], 0, atol=1e-6)
  assert 0 < error[5:25].mean() < error[25:].mean() / 2


TAIL = {
  'codebook_size': 4, 'tail_start': 9, 'tail_codebook_size': 4,
  'tail_num_codebooks': 1,
}  # fmt: skip


@pytest.mark.parametrize(
  ('rows', 'bias', 'changes', 'wanted'),
  [
    (None, 'none', {'start': 'random'}, 'kmeans_output needs a trained embed'),
    (None, 'none', {'mapping': 'random'}, 'start rows needs a trained embed'),
    (ROWS, 'none', {'codebook_size': 13},
     'vq.codebook_size: 13 codes are more than'),
    (ROWS, 'none', {
      'codebook_size': 4, 'num_codebooks': 2, 'tail_start': 20,
      'tail_codebook_size': 30, 'tail_num_codebooks': 1,
     }, 'model.vq.tail_codebook_size: 30 codes are'),
    # Frequencies are not added to logits that hold them.
    (ROWS, 'unigram', {'codebook_size': 6, 'num_codebooks': 2},
     'unigram of the trained m is for one'),
    (ROWS, 'none', {'tail_start': 60}, 'tail_start 60 leaves nothing of 60'),
    (ROWS, 'none', {'tail_start': 9, 'num_exact': 9},
     'num_exact 9 must be at most 8'),
    (ROWS, 'none', TAIL | {'tail_num_codebooks': 3},
     'does not divide into 3 codebooks'),
    (ROWS, 'none', {'num_exact': 12}, 'num_exact 12 must be at most 11'),
    (ROWS, 'none', {'tail_rank': 2}, 'tail_rank 2 needs a tail: set tail_star'),
    (ROWS, 'none', TAIL | {'tail_rank': 99},
     'tail_rank 99 must be below the width of the model, '),
    (ROWS, 'none', TAIL | {'tail_num_codebooks': 2, 'tail_rank': 3},
     'the width 3 does not divide into 2 codebooks of the tail'),
  ],
)  # fmt: skip
def test_codes_that_do_not_fit_are_refused(rows, bias, changes, wanted):
  with pytest.raises(ConfigError, match=wanted):
    converted(options('vq', bias, **{'codebook_size': 12, **changes}), rows)


@pytest.mark.parametrize('kind', ['tied', 'dense'])
def test_frequencies_are_not_added_to_logits_that_hold_them(kind):
  with pytest.raises(ConfigError, match='unigram of the trained m is for one'):
    converted(options(kind, 'unigram'))


def test_learned_codes_begin_nearest_to_the_rows():
  model = converted(options('vq', codebook_size=12, mapping='learned'))
  np.testing.assert_allclose(effective(model), ROWS, atol=1e-4)
  fixed = lm.fix_head(model.config, model.params)
  np.testing.assert_allclose(
    effective(dataclasses.replace(model, params=fixed)), ROWS, atol=1e-4
  )


def test_a_code_of_rows_that_no_token_has_is_reported():
  """Models have more rows than tokens, and k-means puts those together."""
  backend = Backend(models.BPE(vocab={f'p{i}': i for i in range(9)}, merges=[]))
  backend.add_special_tokens([AddedToken('</s>', special=True)])
  tokenizer = Tokenizer(backend, 'tiny', '</s>', '</s>', 12)
  config = ModelConfig(
    vocab_size=12, width=4, layers=1, heads=1, kv_heads=1, head_dim=4, mlp=4,
    context=8, head=HeadConfig('vq', codebook_size=4, num_codebooks=1),
  )  # fmt: skip
  codes = np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]])
  counts_V = np.arange(12) * (np.arange(12) < 10)
  params = {'head': {'codes_MxV': codes}}
  text = codes_report(config, params, tokenizer, counts_V)
  assert "code 3: 2 types, 0 tokens (0.0 %): '<10>':0 '<11>':0" in text
  with pytest.raises(DataError, match='has no token 12, only 12'):
    tokenizer.token(12)
