"""Weights of token types, against the formula of arXiv:2505.16900."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdl_jax import power_law_weights
from pdl_jax.errors import ConfigError
from pdl_jax.losses import type_weights

COUNTS = np.array([1, 2, 5, 40, 300, 7, 1], float)
count_lists = st.lists(st.integers(0, 10**5), min_size=7, max_size=7)


def corpus_mean(weights, counts):
  return np.average(np.asarray(weights, np.float64), weights=counts)


@pytest.mark.parametrize('alpha', [0.25, 1.0, 1.5])
def test_paper_formula(alpha):
  for epsilon in (0.0, 1e-7, 2.0):
    found = power_law_weights(
      COUNTS, alpha=alpha, epsilon=epsilon, normalize='none'
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (COUNTS + epsilon) ** -alpha, rtol=1e-5)


@pytest.mark.parametrize('normalize', ['none', 'corpus_mean'])
def test_alpha_zero_is_exactly_one(normalize):
  found = power_law_weights(
    COUNTS, alpha=0.0, epsilon=1e-7, normalize=normalize, clip=3.0
  )
  assert (np.asarray(found) == 1).all()


@settings(deadline=None, max_examples=40)
@given(count_lists, st.floats(0, 1.5), st.sampled_from([None, 1.0, 1.5, 8.0]))
def test_running_tokens_weigh_one_on_average(counts, alpha, clip):
  assume(sum(counts))
  found = power_law_weights(counts, alpha=alpha, epsilon=0.5, clip=clip)
  assert corpus_mean(found, counts) == pytest.approx(1, rel=1e-4)
  if clip is not None:
    assert (np.asarray(found) <= clip).all()


def test_a_clip_that_no_weight_reaches_changes_nothing():
  free = power_law_weights(COUNTS, alpha=0.5, epsilon=1.0)
  clipped = power_law_weights(COUNTS, alpha=0.5, epsilon=1.0, clip=1e3)
  np.testing.assert_allclose(clipped, free, rtol=1e-5)


def test_clip_holds_the_mean_and_raises_the_others():
  # 100 types seen once, one seen 1000 times: at alpha 1 the rare ones weigh
  # 10.9. At a clip of 2 they hold 200 of the total weight of 1100.
  counts = np.array([1.0] * 100 + [1000.0])
  found = power_law_weights(counts, alpha=1.0, epsilon=0.0, clip=2.0)
  np.testing.assert_allclose(found, [2.0] * 100 + [0.9], rtol=1e-5)


def test_clip_of_the_plain_formula():
  found = power_law_weights(
    [0, 5], alpha=1.0, epsilon=0.1, clip=2.0, normalize='none'
  )
  np.testing.assert_allclose(found, [2.0, 1 / 5.1], rtol=1e-6)


@pytest.mark.parametrize('normalize', ['none', 'corpus_mean'])
def test_neutral_types_weigh_exactly_one_and_leave_the_mean_alone(normalize):
  options = {'alpha': 0.9, 'epsilon': 1.0, 'normalize': normalize}
  found = np.asarray(power_law_weights(COUNTS, special_ids=(4, 0), **options))
  assert (found[[0, 4]] == 1).all()
  others = [1, 2, 3, 5, 6]
  expected = power_law_weights(COUNTS[others], **options)
  np.testing.assert_allclose(found[others], expected, rtol=1e-6)


@pytest.mark.parametrize('clip', [None, 1.3])
def test_neutral_types_may_be_unseen_at_epsilon_zero(clip):
  found = power_law_weights(
    [0, 5, 3], alpha=1.0, epsilon=0.0, special_ids=[0], clip=clip
  )
  expected = [1, 8 / 10, 8 / 6] if clip is None else [1, 4.1 / 5, 1.3]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_policies_for_unseen_types():
  counts = np.array([0, 5, 10, 0])

  def weights(unseen, frequency=counts, epsilon=1.0):
    return np.asarray(
      power_law_weights(
        frequency, alpha=1.0, epsilon=epsilon, unseen=unseen, normalize='none'
      )
    )

  np.testing.assert_allclose(weights('formula')[[0, 3]], 1.0)
  np.testing.assert_allclose(weights('min_count')[[0, 3]], 1 / 6, rtol=1e-6)
  assert (weights('neutral')[[0, 3]] == 1).all()
  for unseen in ('formula', 'min_count', 'neutral'):
    np.testing.assert_allclose(weights(unseen)[1:3], [1 / 6, 1 / 11], rtol=1e-6)
  # The unit does not change what "as once" is relative to the seen.
  ratio = weights('min_count', counts / 15, 0.0) / weights(
    'min_count', epsilon=0.0
  )
  np.testing.assert_allclose(ratio, 15, rtol=1e-5)


def test_nothing_seen_at_all_is_finite():
  for unseen in ('formula', 'min_count', 'neutral'):
    found = power_law_weights(
      np.zeros(4), alpha=0.5, epsilon=1.0, unseen=unseen, clip=2.0
    )
    assert np.isfinite(found).all()


def test_as_once_may_take_the_frequency_of_a_neutral_type():
  found = np.asarray(
    power_law_weights(
      [0, 1, 5, 9], alpha=1.0, epsilon=0.0, unseen='min_count',
      normalize='none', special_ids=[1],
    )
  )
  np.testing.assert_allclose(found, [1, 1, 1 / 5, 1 / 9], rtol=1e-6)


def test_epsilon_times_median_against_float64():
  # Unseen 0s and the neutral 10**6 do not move the median of 1, 2, 5, 7, 40.
  counts = np.array([0, 40, 2, 10**6, 1, 0, 5, 7, 0], float)
  for epsilon in (1e-7, 0.3, 2.0):
    found = power_law_weights(
      counts, alpha=0.5, epsilon=epsilon, epsilon_policy='times_median',
      special_ids=[3], normalize='none',
    )
    expected = (counts + epsilon * 5) ** -0.5
    expected[3] = 1
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
  count_lists,
  st.floats(0, 1.5),
  st.sampled_from(['formula', 'min_count', 'neutral']),
  st.sampled_from([None, 2.0]),
)
def test_epsilon_times_median_has_no_unit(counts, alpha, unseen, clip):
  counts = np.array(counts, float)
  assume(counts[1:].sum())

  def weights(frequency):
    return power_law_weights(
      frequency, alpha=alpha, epsilon=0.5, epsilon_policy='times_median',
      unseen=unseen, clip=clip, special_ids=[0],
    )

  of_counts = weights(counts)
  for other in (counts / counts.sum(), 1000 * counts):
    np.testing.assert_allclose(weights(other), of_counts, rtol=2e-5)


@pytest.mark.parametrize('special_ids', [(), (2,)])
def test_epsilon_times_the_median_of_nothing_is_epsilon(special_ids):
  counts = [0, 0, 8 * len(special_ids)]
  absolute, relative = (
    power_law_weights(
      counts, alpha=0.5, epsilon=0.5, epsilon_policy=policy,
      special_ids=special_ids, normalize='none',
    )
    for policy in ('absolute', 'times_median')
  )
  np.testing.assert_array_equal(relative, absolute)


def test_epsilon_carries_its_unit():
  # An unseen type against one seen once, alpha 1, epsilon 1e-7.
  counts = np.array([0, 1, 999_999.0])
  for frequency, ratio in ((counts, 1e7), (counts / 1e6, 11.0)):
    found = power_law_weights(frequency, alpha=1.0, epsilon=1e-7)
    assert float(found[0] / found[1]) == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'alpha': -0.5}, r'alpha must be a finite number >= 0, got -0\.5'),
    ({'alpha': float('nan')}, 'alpha .* got nan'),
    ({'alpha': '0.5'}, r"alpha .* got '0\.5'"),
    ({'alpha': None}, 'alpha must be a finite number >= 0, got None'),
    ({'epsilon': -1e-7}, 'epsilon .* got -1e-07'),
    ({'epsilon': float('inf')}, 'epsilon .* got inf'),
    ({'clip': 0.5}, r'clip must be at least 1 .* got 0\.5'),
    ({'clip': float('inf')}, 'clip .* got inf'),
    ({'clip': '2'}, 'clip .* got 2'),
    ({'normalize': 'mean'}, "'mean' is not one of corpus_mean, none"),
    ({'unseen': 'zero'}, "'zero' is not one of formula, min_count, neutral"),
    (
      {'epsilon_policy': 'relative'},
      "epsilon_policy 'relative' is not one of absolute, times_median",
    ),
    (
      {
        'frequency_V': [0, 1, 9], 'epsilon': 0.0,
        'epsilon_policy': 'times_median',
      },
      'epsilon 0 gives 1 of 3 token types.* infinite weight',
    ),
    ({'special_ids': [2, 7]}, 'special_ids has 7, outside the 7 types'),
    ({'special_ids': [True, False]}, 'special_ids must be token ids, got bool'),
    ({'frequency_V': [1, -2.0]}, r'shape \(2,\) with 1 negative'),
    ({'frequency_V': [np.nan, np.inf]}, 'with 2 negative or non-finite'),
    ({'frequency_V': np.ones((2, 2))}, r'got shape \(2, 2\)'),
    (
      {'frequency_V': [0, 1, 0], 'epsilon': 0.0},
      'epsilon 0 gives 2 of 3 token types.* infinite weight',
    ),
    (
      {'frequency_V': [0, 1, 9], 'epsilon': 1e-30, 'alpha': 1.5},
      r'1 of 3 weights overflow fp32 at alpha 1\.5 and epsilon 1e-30',
    ),
  ],
)
def test_errors_name_the_numbers(arguments, message):
  valid = {'frequency_V': COUNTS, 'alpha': 0.5, 'epsilon': 1.0}
  with pytest.raises(ConfigError, match=message):
    power_law_weights(**{**valid, **arguments})


def true_weights(counts, alpha, epsilon, normalize='corpus_mean', neutral=()):
  """In double precision, by the formula; never-counted types too."""
  w = (np.asarray(counts, np.float64) + epsilon) ** -alpha
  mass = np.array(counts, np.float64)
  mass[list(neutral)] = 0
  if normalize == 'corpus_mean':
    w = w * mass.sum() / (mass * w)[mass > 0].sum()
  w[list(neutral)] = 1
  return w


UNSEEN = np.array([0, 1, 5, 100, 100_000, 0])


@pytest.mark.parametrize('special_ids', [(), (0, 3)])
@pytest.mark.parametrize('normalize', ['corpus_mean', 'none'])
@pytest.mark.parametrize('clip', [None, 1e4])
def test_derivative_by_alpha(clip, normalize, special_ids):
  """Also at 0, where the weights are set to exactly one."""
  options = {'normalize': normalize, 'special_ids': special_ids}
  weights = lambda alpha: power_law_weights(
    UNSEEN, alpha=alpha, epsilon=1.0, clip=clip, **options
  )
  step = 1e-5
  slopes = [jax.jit(f(weights)) for f in (jax.jacrev, jax.jacfwd)]
  for alpha in (0.0, 1e-3, 0.5):
    above, below = (
      true_weights(UNSEEN, alpha + s, 1.0, normalize, special_ids)
      for s in (step, -step)
    )
    expected = (above - below) / (2 * step)
    for found in slopes:
      np.testing.assert_allclose(found(alpha), expected, rtol=1e-4, atol=1e-5)
  for ones in (weights(0.0), jax.jit(weights)(0.0)):
    np.testing.assert_array_equal(ones, np.ones(6, np.float32))


def test_derivative_by_the_exponent_of_a_rival_at_zero():
  weights = lambda x: type_weights.inverse_frequency_weights(
    COUNTS, special_ids=(), exponent=x
  )
  at_zero, near = (jax.jacfwd(weights)(x) for x in (0.0, 1e-4))
  assert np.abs(near).max() > 1
  np.testing.assert_allclose(at_zero, near, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('clip', [None, 1e4])
@pytest.mark.parametrize('normalize', ['corpus_mean', 'none'])
def test_derivative_by_an_epsilon_of_zero_with_unseen_types(normalize, clip):
  """The weights that are defined there, and their derivatives, are right."""
  weights = lambda epsilon: power_law_weights(
    UNSEEN, alpha=0.5, epsilon=epsilon, normalize=normalize, clip=clip
  )
  seen = UNSEEN > 0
  found = jax.jit(weights)(0.0)
  with np.errstate(all='ignore'):
    expected = true_weights(UNSEEN, 0.5, 0.0, normalize)
    above, below = (
      true_weights(UNSEEN, 0.5, s, normalize) for s in (1e-5, -1e-5)
    )
  if clip is not None:
    # No type weighs so much but one that is never seen.
    expected = np.minimum(expected, clip)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  for derivative in (jax.jacrev(weights), jax.jacfwd(weights)):
    slopes = jax.jit(derivative)(0.0)
    np.testing.assert_allclose(
      slopes[seen], ((above - below) / 2e-5)[seen], rtol=1e-3, atol=1e-6
    )
  total = lambda epsilon: weights(epsilon)[seen].sum()
  assert np.isfinite(jax.jit(jax.grad(total))(0.0))


def test_derivatives_with_a_neutral_type_that_is_unseen_at_epsilon_zero():
  weights = lambda alpha, epsilon: power_law_weights(
    [0, 1, 5, 100], alpha=alpha, epsilon=epsilon, special_ids=[0]
  )
  for point in ((0.5, 0.0), (0.0, 0.0), (0.0, 1.0)):
    for slopes in jax.jacrev(weights, (0, 1))(*point):
      assert np.isfinite(slopes).all()
      assert slopes[0] == 0
    assert weights(*point)[0] == 1
  np.testing.assert_array_equal(
    jax.jit(weights)(0.0, 0.0), np.ones(4, np.float32)
  )


@settings(deadline=None, max_examples=15)
@given(
  st.lists(st.integers(0, 10**6), min_size=5, max_size=5).filter(any),
  st.floats(0, 2), st.sampled_from([0.0, 0.5, 3.0]),
  st.sampled_from(['formula', 'min_count', 'neutral']),
  st.sampled_from([None, 2.0]), st.sampled_from(['absolute', 'times_median']),
)
def test_no_derivative_of_a_seen_type_is_nan(
  counts, alpha, epsilon, unseen, clip, policy
):
  counts = np.array(counts)
  weights = lambda alpha, epsilon: power_law_weights(
    counts, alpha=alpha, epsilon=epsilon, unseen=unseen, clip=clip,
    epsilon_policy=policy, special_ids=[0],
  )  # fmt: skip
  slopes = jax.jacrev(weights, (0, 1))(alpha, epsilon)
  assert all(np.isfinite(x)[counts > 0].all() for x in slopes)


@pytest.mark.parametrize(
  'table', [{3: 1}, 'text', ['a', 'b'], [None, 1], [True, False], [1j, 2]]
)
def test_frequencies_that_are_no_numbers_are_refused_in_one_line(table):
  valid = {'alpha': 0.5, 'epsilon': 1.0}
  for refused in (
    lambda: power_law_weights(table, **valid),
    lambda: power_law_weights([1, 2], mass_V=table, **valid),
    lambda: type_weights.face_weights(table, special_ids=()),
    lambda: type_weights.logit_adjustment_bias(table),
  ):
    with pytest.raises(ConfigError, match='one row of finite numbers') as error:
      refused()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('policy', ['absolute', 'times_median'])
def test_traced_epsilon(policy):
  weights = lambda e: power_law_weights(
    COUNTS, alpha=0.5, epsilon=e, epsilon_policy=policy
  )
  traced = jax.jit(weights)
  for epsilon in (2.0, 0.25):
    np.testing.assert_allclose(traced(epsilon), weights(epsilon), rtol=1e-6)


@pytest.mark.parametrize(
  ('was', 'unseen'), [('paper', 'formula'), ('as_once', 'min_count')]
)
def test_names_of_the_first_version_work_and_warn(was, unseen):
  made = partial(power_law_weights, [4, 0, 2], alpha=0.5, epsilon=1.0)
  with pytest.warns(DeprecationWarning, match=f'is called .{unseen}. now'):
    found = made(unseen=was)
  np.testing.assert_array_equal(found, made(unseen=unseen))


def test_the_old_name_of_an_argument_works_and_warns():
  made = partial(power_law_weights, [4, 0, 2], alpha=0.5, epsilon=1.0)
  with pytest.warns(DeprecationWarning, match='neutral_ids is called special'):
    found = made(neutral_ids=[1])
  np.testing.assert_array_equal(found, made(special_ids=[1]))
  with pytest.raises(TypeError, match='neutral_ids and special_ids are the'):
    made(neutral_ids=[1], special_ids=[2])
