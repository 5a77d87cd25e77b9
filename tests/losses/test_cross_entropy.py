"""Losses: identities first, then a double-precision truth of their own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pdl_jax import (
  LossTerms,
  Sums,
  cross_entropy,
  divide,
  pdl_loss,
  power_law_weights,
)
from pdl_jax.errors import ConfigError
from pdl_jax.losses import reduce

B, L, V = 3, 5, 7
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(B, L, V)) * 3, jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, V, (B, L)))
WHERE = jnp.asarray(RNG.random((B, L)) < 0.7)
COUNTS = np.array([1, 2, 5, 40, 300, 7, 1], float)
WEIGHTS = power_law_weights(COUNTS, alpha=0.8, epsilon=0.1)
SCALARS = ('weighted_mean', 'token_mean', 'sum')


def true_nll(
  logits, labels, label_smoothing=0.0, z_loss=0.0, softcap=None
):
  """Per token, in double precision, from the formulas."""
  z = np.asarray(logits, np.float64)
  if softcap is not None:
    z = softcap * np.tanh(z / softcap)
  top = z.max(-1, keepdims=True)
  log_z = np.log(np.exp(z - top).sum(-1, keepdims=True)) + top
  log_p = z - log_z
  chosen = np.take_along_axis(log_p, np.asarray(labels)[..., None], -1)[..., 0]
  return (
    -(1 - label_smoothing) * chosen
    - label_smoothing * log_p.mean(-1)
    + z_loss * log_z[..., 0] ** 2
  )


def true_loss(nll, weights, where, reduction):
  where = np.asarray(where)
  num = (weights * nll)[where].sum()
  den = {
    'weighted_mean': weights[where].sum(), 'token_mean': where.sum(), 'sum': 1,
  }
  return num / den[reduction]


def value_and_gradient(loss, **arguments):
  return jax.value_and_grad(lambda z: loss(z, LABELS, **arguments))



@pytest.mark.parametrize('where', [None, WHERE], ids=['all', 'masked'])
@pytest.mark.parametrize('reduction', SCALARS)
def test_alpha_zero_is_cross_entropy_bit_for_bit(reduction, where):
  options = {'reduction': reduction, 'where': where}

  def pdl(logits, alpha):
    weights = power_law_weights(COUNTS, alpha=alpha, epsilon=1e-7)
    ours = value_and_gradient(pdl_loss, weights_V=weights, **options)
    return ours(logits)

  plain = value_and_gradient(cross_entropy, **options)
  for ours, theirs in (
    (pdl(LOGITS, 0.0), plain(LOGITS)),
    (jax.jit(pdl)(LOGITS, 0.0), jax.jit(plain)(LOGITS)),
  ):
    for a, b in zip(ours, theirs, strict=True):
      assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_schedule_of_alpha_traces_once():
  traces = []

  @jax.jit
  def loss(alpha):
    traces.append(alpha)
    weights = power_law_weights(COUNTS, alpha=alpha, epsilon=1.0, clip=4.0)
    return pdl_loss(LOGITS, LABELS, weights)

  alphas = np.linspace(0, 1.5, 7)
  found = [float(loss(alpha)) for alpha in alphas]
  assert len(traces) == 1
  for alpha, value in zip(alphas, found, strict=True):
    weights = power_law_weights(COUNTS, alpha=alpha, epsilon=1.0, clip=4.0)
    outside = float(pdl_loss(LOGITS, LABELS, weights))
    assert value == pytest.approx(outside, rel=1e-5)


def test_unit_of_frequency_only_matters_to_the_plain_sum():
  alpha, total = 0.7, COUNTS.sum()
  one, other = (
    power_law_weights(f, alpha=alpha, epsilon=0.0, normalize='none')
    for f in (COUNTS, COUNTS / total)
  )
  mean = [float(pdl_loss(LOGITS, LABELS, w)) for w in (one, other)]
  assert mean[0] == pytest.approx(mean[1], rel=1e-6)
  plain = [
    float(pdl_loss(LOGITS, LABELS, w, reduction='sum')) for w in (one, other)
  ]
  assert plain[1] / plain[0] == pytest.approx(total**alpha, rel=1e-5)


@pytest.mark.parametrize('reduction', SCALARS)
def test_gradient_is_weight_times_probability_minus_one_hot(reduction):
  gradient = jax.grad(pdl_loss)(
    LOGITS, LABELS, WEIGHTS, where=WHERE, reduction=reduction
  )
  z, w = np.asarray(LOGITS, np.float64), np.asarray(WEIGHTS)[LABELS]
  w = np.where(WHERE, w, 0)
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  den = {'weighted_mean': w.sum(), 'token_mean': WHERE.sum(), 'sum': 1}
  expected = w[..., None] * (p - np.eye(V)[np.asarray(LABELS)])
  np.testing.assert_allclose(
    gradient, expected / den[reduction], rtol=1e-5, atol=1e-7
  )


def test_formulas_in_double_precision():
  weights = np.asarray(WEIGHTS, np.float64)[np.asarray(LABELS)]
  for options in (
    {}, {'label_smoothing': 0.1}, {'z_loss': 1e-2}, {'softcap': 5.0},
    {'label_smoothing': 0.2, 'z_loss': 1e-3, 'softcap': 10.0},
  ):  # fmt: skip
    nll = true_nll(LOGITS, LABELS, **options)
    for reduction in SCALARS:
      found = pdl_loss(
        LOGITS, LABELS, WEIGHTS, where=WHERE, reduction=reduction, **options
      )
      expected = true_loss(nll, weights, WHERE, reduction)
      assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_logits_of_a_hundred(smoothing):
  logits = jnp.asarray(RNG.choice([-100.0, 0.0, 100.0], (B, L, V)))
  loss = lambda z: pdl_loss(z, LABELS, WEIGHTS, label_smoothing=smoothing)
  value, gradient = jax.value_and_grad(loss)(logits)
  weights = np.asarray(WEIGHTS, np.float64)[np.asarray(LABELS)]
  expected = true_loss(
    true_nll(logits, LABELS, smoothing), weights, np.ones((B, L), bool),
    'weighted_mean',
  )
  assert float(value) == pytest.approx(expected, rel=1e-6)
  assert np.isfinite(gradient).all()


def test_numerical_gradients():
  loss = lambda z: pdl_loss(
    z, LABELS, WEIGHTS, where=WHERE, label_smoothing=0.1, z_loss=1e-2,
    softcap=8.0,
  )
  check_grads(loss, (LOGITS,), order=1, eps=1e-2, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('reduction', [*SCALARS, 'none'])
def test_masked_tokens_reach_neither_loss_nor_gradient(reduction):
  @jax.jit
  def run(logits, where):
    loss = lambda logits: pdl_loss(
      logits, LABELS, WEIGHTS, where=where, reduction=reduction, z_loss=1e-4
    ).sum()
    return jax.value_and_grad(loss)(logits)

  clean = run(LOGITS, WHERE)
  for poison in (np.nan, np.inf, -np.inf):
    poisoned = run(jnp.where(WHERE[..., None], LOGITS, poison), WHERE)
    for a, b in zip(clean, poisoned, strict=True):
      np.testing.assert_array_equal(a, b)
    assert (poisoned[1][~WHERE] == 0).all()
  value, gradient = run(LOGITS * jnp.nan, WHERE & False)
  assert value == 0
  assert (gradient == 0).all()
  # A mask may broadcast.
  row = WHERE[:1]
  whole = run(LOGITS, jnp.broadcast_to(row, (B, L)))
  np.testing.assert_allclose(run(LOGITS, row)[0], whole[0], rtol=1e-6)


@pytest.mark.parametrize('where', [WHERE * 0.5, WHERE.astype(int), [True] * L])
def test_a_mask_of_anything_but_truth_values_is_refused(where):
  """A weight of a single token would be lost in it: 0.5 is True."""
  words = 'where must be True or False, got (float32|int32|list)'
  terms = LossTerms(jnp.ones((B, L)), jnp.ones((B, L)))
  for refused in (
    lambda: pdl_loss(LOGITS, LABELS, WEIGHTS, where=where),
    lambda: cross_entropy(LOGITS, LABELS, where=where),
    lambda: reduce.sums(terms, where),
    lambda: reduce.denominator(terms.weight_BxL, where, 'sum'),
  ):
    with pytest.raises(ConfigError, match=words):
      refused()


def test_sums_of_micro_batches_make_the_global_mean():
  def total(logits):
    return sum(
      (
        pdl_loss(z, y, WEIGHTS, where=m, reduction='sums')
        for z, y, m in zip(logits, LABELS, WHERE, strict=True)
      ),
      start=Sums(jnp.zeros(()), jnp.zeros(())),
    )

  whole = lambda z: pdl_loss(z, LABELS, WEIGHTS, where=WHERE)
  full = jax.jit(jax.value_and_grad(whole))(LOGITS)
  micro = jax.jit(jax.value_and_grad(lambda z: divide(total(z))))(LOGITS)
  for a, b in zip(full, micro, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
  means = [
    float(pdl_loss(z, y, WEIGHTS, where=m))
    for z, y, m in zip(LOGITS, LABELS, WHERE, strict=True)
  ]
  assert abs(np.mean(means) / float(full[0]) - 1) > 0.01


def test_denominator_of_the_whole_batch():
  whole = pdl_loss(LOGITS, LABELS, WEIGHTS, where=WHERE, reduction='sums')
  parts = [
    float(pdl_loss(z, y, WEIGHTS, where=m, denominator=whole.den))
    for z, y, m in zip(LOGITS, LABELS, WHERE, strict=True)
  ]
  assert sum(parts) == pytest.approx(float(divide(whole)), rel=1e-6)


def test_none_gives_each_token():
  found = pdl_loss(LOGITS, LABELS, WEIGHTS, where=WHERE, reduction='none')
  expected = np.asarray(WEIGHTS)[LABELS] * true_nll(LOGITS, LABELS)
  np.testing.assert_allclose(found, np.where(WHERE, expected, 0), rtol=1e-5)


def test_bfloat16_logits_are_computed_in_float32():
  logits = LOGITS.astype(jnp.bfloat16)
  found = pdl_loss(logits, LABELS, WEIGHTS)
  assert found.dtype == jnp.float32
  expected = pdl_loss(logits.astype(jnp.float32), LABELS, WEIGHTS)
  assert found == expected


@pytest.mark.parametrize('bad', [-1, V])
def test_labels_out_of_range_are_refused_unless_masked(bad):
  labels = LABELS.at[1, 2].set(bad)
  with pytest.raises(
    ConfigError, match=rf'1 of 15 labels .* \[0, 7\), the first is {bad};'
  ):
    pdl_loss(LOGITS, labels, WEIGHTS)
  where = jnp.ones((B, L), bool).at[1, 2].set(False)
  found = pdl_loss(LOGITS, labels, WEIGHTS, where=where)
  assert found == pdl_loss(LOGITS, LABELS, WEIGHTS, where=where)


@pytest.mark.parametrize('reduction', [*SCALARS, 'none', 'sums'])
def test_the_ignored_label_is_a_mask(reduction):
  """In value and in gradient, even behind logits that are NaN."""
  for ignored, where in ((-100, None), (3, WHERE)):
    labels = jnp.where(LABELS % 3 == 1, ignored, LABELS)
    kept = labels != ignored
    dirty = jnp.where(kept[..., None], LOGITS, jnp.nan)

    def total(logits, labels, where, **options):
      found = pdl_loss(
        logits, labels, WEIGHTS, where=where, reduction=reduction, **options
      )
      return sum(x.sum() for x in jax.tree.leaves(found))

    both = kept if where is None else kept & where
    one = jax.value_and_grad(total)
    expected = one(LOGITS, jnp.where(kept, labels, 0), both)
    ours = partial(one, ignore_index=ignored)
    for call in (ours, jax.jit(ours)):
      found = call(dirty, labels, where)
      for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('reduction', [*SCALARS, 'none', 'sums'])
def test_inside_jit_a_label_out_of_range_is_nan(reduction):
  """Not the weight of another type: in the gradient of its row, too."""

  @jax.jit
  def found(logits, labels):
    def total(logits):
      loss = pdl_loss(logits, labels, WEIGHTS, reduction=reduction)
      return jax.tree.leaves(loss)[0].sum(), loss

    return jax.value_and_grad(total, has_aux=True)(logits)

  for bad in (-1, -99, V, V + 50, 2**31 - 1):
    (_, loss), gradient = found(LOGITS, LABELS.at[1, 2].set(bad))
    assert np.isnan(gradient[1, 2]).all()
    if reduction == 'none':
      only = jnp.zeros((B, L), bool).at[1, 2].set(True)
      np.testing.assert_array_equal(jnp.isnan(loss), only)
    else:
      assert all(np.isnan(x) for x in jax.tree.leaves(loss))
  clean = found(LOGITS, LABELS)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(clean))


def test_without_an_ignored_label_it_is_out_of_range():
  labels = LABELS.at[1, 2].set(-100)
  with pytest.raises(ConfigError, match='the first is -100'):
    cross_entropy(LOGITS, labels, ignore_index=None)
  found = jax.jit(partial(cross_entropy, ignore_index=None))(LOGITS, labels)
  assert np.isnan(found)
  for index in (0.5, '-100', True):
    with pytest.raises(ConfigError, match='ignore_index must be a label or'):
      cross_entropy(LOGITS, labels, ignore_index=index)


@pytest.mark.parametrize('dtype', ['int8', 'int16', 'uint8', 'uint16'])
def test_narrow_labels_inside_jit(dtype):
  """Types and weights of a vocabulary that their width does not hold."""
  size = 70_000
  logits = jnp.asarray(RNG.normal(size=(4, size)), jnp.float32)
  weights = jnp.arange(size) / 1000.0 + 1
  labels = np.array([0, 3, 43, 127])
  if dtype.startswith('int'):
    labels[1] = -100
  found = jax.jit(pdl_loss)(logits, jnp.asarray(labels, dtype), weights)
  assert found == jax.jit(pdl_loss)(logits, jnp.asarray(labels), weights)
  outside = jnp.asarray([0, 3, 43, -1 if dtype == 'int8' else 44], dtype)
  narrow = jax.jit(pdl_loss)(logits[:, :44], outside, weights[:44])
  assert np.isnan(narrow)


def test_a_label_beyond_int32_is_not_ignored_inside_jit():
  labels = jnp.asarray([0, 2**32 - 100], jnp.uint32)
  assert np.isnan(jax.jit(cross_entropy)(LOGITS[0, :2], labels))


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    ({'labels': LABELS[:, 1:]}, r'have shape \(3, 4\), the logits \(3, 5'),
    ({'labels': jax.nn.one_hot(LABELS, V, dtype=int)}, r'one integer for each'),
    ({'labels': LABELS > 2}, 'labels must be integers, got bool'),
    ({'labels': [[0] * L] * B}, 'labels must be an array .* got list'),
    ({'logits': LOGITS.astype(int)}, 'logits must be floating-point .* int32'),
    ({'logits': [1.0, 2.0]}, 'logits must be an array of .* got list'),
    ({'logits': LOGITS[0, 0, 0]}, r'the logits \(\)'),
    ({'weights_V': [1.0] * V}, 'weights_V must be an array .* got list'),
    ({'weights_V': WEIGHTS[:-1]}, r'table has shape \(6,\).* has 7 types'),
    ({'weights_V': WEIGHTS.at[2].set(jnp.nan)}, '1 of its 7 are negative or'),
    ({'weights_V': -WEIGHTS}, '7 of its 7 are negative or non-finite'),
    ({'where': WHERE[:, 1:]}, r'where has shape \(3, 4\), the labels have'),
    ({'where': WHERE[None]}, r'where has shape \(1, 3, 5\), the labels have'),
    ({'denominator': -1.0}, 'denominator must be a finite number >= 0'),
    ({'label_smoothing': 'a bit'}, r'label_smoothing must be in \[0, 1'),
    ({'label_smoothing': 1.5}, r'label_smoothing must be in \[0, 1'),
    ({'reduction': 'mean'}, "'mean' is not one of weighted_mean.*, none, sums"),
    ({'reduction': 'sums', 'denominator': 2.0}, 'divides by nothing'),
    ({'z_loss': np.inf}, 'z_loss must be in .* got inf'),
    ({'z_loss': np.nan}, 'z_loss must be in .* got nan'),
    ({'softcap': np.inf}, 'softcap must be > 0 or None, got inf'),
  ],
  ids=lambda x: x if isinstance(x, str) else '',
)
def test_what_does_not_fit_is_refused_in_one_line(changed, words):
  """Inside jit too, but for what has to be looked at."""
  given = {'logits': LOGITS, 'labels': LABELS, 'weights_V': WEIGHTS, **changed}
  with pytest.raises(ConfigError, match=words) as refused:
    pdl_loss(**given)
  assert '\n' not in str(refused.value)
