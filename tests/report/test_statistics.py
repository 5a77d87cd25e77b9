import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate.registry import f1, perplexity, ratio
from pdl_jax.report.statistics import (
  MOST_SEEDS,
  Difference,
  best_of,
  bootstrap,
  difference_of,
  half_interval,
  holm,
  over_seeds,
  seed_floor,
  seeds_alone,
  sign_flip_p,
)

Z = stats.norm.ppf(0.975)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def of_items(values_SxD):
  """Sums whose `ratio` is the plain mean over documents."""
  values_SxD = np.asarray(values_SxD, float)
  return np.stack([values_SxD, np.ones_like(values_SxD)], axis=-1)


def counts(rng, S=3, D=40):
  """Random matches, generated and reference counts."""
  generated, reference = rng.integers(5, 20, (2, S, D))
  matches = rng.integers(np.minimum(generated, reference) + 1)
  return np.stack([matches, generated, reference], axis=-1).astype(float)


def interval(found):
  return found.low, found.high


@pytest.fixture
def rng():
  return np.random.default_rng(7)


# Intervals.


@pytest.mark.parametrize('axis', ['documents', 'seeds'])
def test_the_interval_of_a_mean_is_the_t_interval(rng, axis):
  a, b = rng.normal(size=(2, 40)) + rng.normal(size=40)
  shape = (1, 40) if axis == 'documents' else (40, 1)
  pair = [of_items(np.broadcast_to(
    x.reshape(shape), (1, 40) if axis == 'documents' else (40, 2)
  )) for x in (a, b)]  # fmt: skip
  found = bootstrap(*pair, ratio, resamples=8000)
  half = half_interval(a - b)
  assert found.value == pytest.approx(np.mean(a - b), rel=1e-9)
  # A quantile of 8,000 resamples has a standard error of 1.5 % of `half`.
  assert np.subtract(interval(found), found.value) == pytest.approx(
    [-half, half], rel=0.07
  )


@pytest.mark.parametrize('statistic', [f1, perplexity])
def test_one_seed_against_scipy(rng, statistic):
  K = 3 if statistic is f1 else 2
  a, b = (counts(rng, S=1, D=400)[..., :K] for _ in 'ab')

  def difference(*columns, axis):
    sums = np.stack([column.sum(axis=axis) for column in columns], axis=-1)
    return statistic(sums[..., :K]) - statistic(sums[..., K:])

  expected = stats.bootstrap(
    [*a[0].T, *b[0].T], difference, paired=True, method='percentile',
    n_resamples=4000, rng=1,
  )  # fmt: skip
  found = bootstrap(a, b, statistic, resamples=4000)
  # Two independent quantiles of 4,000 resamples: 3 sqrt(2) x .04 errors.
  assert interval(found) == pytest.approx(
    tuple(expected.confidence_interval), abs=0.17 * expected.standard_error
  )


def test_seeds_and_documents_by_brute_force(rng):
  """Both are drawn, each part widened to that of a t interval."""
  S, D = 5, 12
  a, b = counts(rng, S, D), counts(rng, S, D)

  def mean(seeds, documents):
    by_seed = [f1(x[:, documents].sum(axis=1)) for x in (a, b)]
    return (seeds @ by_seed[0]) - (seeds @ by_seed[1])

  def stretch(n):
    return math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1) / Z

  all_of, even = np.arange(D), np.full(S, 1 / S)
  value, differences = mean(even, all_of), []
  for _ in range(4000):
    documents = rng.integers(D, size=D)
    drawn = np.bincount(rng.integers(S, size=S), minlength=S) / S
    seeds = even + stretch(S) * (drawn - even)
    differences.append(
      mean(seeds, documents)
      + (stretch(D) - 1) * (mean(even, documents) - value)
    )
  found = bootstrap(a, b, f1, resamples=4000)
  assert found.value == pytest.approx(value, rel=1e-12)
  assert interval(found) == pytest.approx(
    np.quantile(differences, [0.025, 0.975]), abs=0.17 * np.std(differences)
  )


def test_coverage_with_few_seeds_and_documents(rng):
  """Of 300 experiments without a difference; standard error .013."""
  for S, D, noise, least in (
    (3, 2, (1, 0, 0), 0.91), (3, 20, (0.3, 1, 1), 0.93), (1, 6, (0, 0, 1), 0.91)
  ):  # fmt: skip
    held = 0
    for trial in range(300):
      a, b = (
        of_items(
          sum(
            part * rng.normal(size=size)
            for part, size in zip(noise, ((S, 1), (1, D), (S, D)), strict=True)
          )
        )
        for _ in 'ab'
      )  # fmt: skip
      # A few resamplings in turn: drawing them anew each time is slow.
      found = bootstrap(a, b, ratio, seed=trial % 5, resamples=400)
      held += found.holds_zero
      assert found.p is None or found.p > 0.05
    assert held / 300 >= least, (S, D)


def test_pairs_take_out_what_documents_have_in_common(rng):
  common = 100 * rng.normal(size=(1, 200))
  a = of_items(common + rng.normal(size=(1, 200)))
  low, high = interval(bootstrap(a, of_items(common), ratio))
  assert high - low < 4 * Z / math.sqrt(200)


def test_swapping_flips_the_sign_and_a_seed_repeats_the_numbers(rng):
  a, b = counts(rng), counts(rng)
  found, flipped = bootstrap(a, b, f1), bootstrap(b, a, f1)
  assert (flipped.value, flipped.p) == (-found.value, found.p)
  assert interval(flipped) == pytest.approx((-found.high, -found.low))
  assert bootstrap(a, b, f1) == found
  assert interval(bootstrap(a, b, f1, seed=1)) != interval(found)


# p values.


@pytest.mark.parametrize(
  ('S', 'p'), [(2, 2 / 2**2), (3, 2 / 2**3), (5, 2 / 2**5), (12, 2 / 100)]
)
def test_p_never_falls_below_the_floors_of_seeds_and_resamples(S, p):
  a, b = of_items(np.full((S, 9), 5.0)), of_items(np.zeros((S, 9)))
  found = bootstrap(a, b, ratio, resamples=99)
  assert found.p == p >= seed_floor(S)
  assert interval(found) == pytest.approx((5, 5), rel=1e-12)


def test_p_values_are_uniform_where_nothing_differs(rng):
  p_values = [
    bootstrap(
      *(of_items(rng.normal(size=(20, 1)).repeat(2, axis=1)) for _ in 'ab'),
      ratio, seed=trial % 5, resamples=400,
    ).p
    for trial in range(300)
  ]  # fmt: skip
  # 99 % point of the Kolmogorov-Smirnov distance of 300 values: .094.
  assert stats.kstest(p_values, 'uniform').statistic < 0.094


def test_nothing_differs_where_only_rounding_does():
  a = of_items(np.random.default_rng(0).normal(size=(3, 30)) + 10)
  # Three times all sums: the same metric by other roundings.
  found = bootstrap(a, 3 * a, ratio)
  assert (found.value, *interval(found), found.p) == (0, 0, 0, 1)
  a, b = np.array([1.0, 1.0, 1e-20]), np.array([1.0 - 1e-15, 1.0 - 1e-9, 0.0])
  assert difference_of(a, b).tolist() == [0, 1.0 - (1.0 - 1e-9), 1e-20]


# What cannot be said.


def test_one_seed_and_one_document(rng):
  for low, high, holds in ((0, 2, 1), (-2, 0, 1), (0.5, 2, 0), (-2, -0.5, 0)):
    assert Difference(1.0, low, high).holds_zero == bool(holds)
  one = bootstrap(counts(rng, S=1), counts(rng, S=1), f1)
  assert one.p is None and one.low < one.high
  found = bootstrap(counts(rng, D=1), counts(rng, D=1), f1)
  assert found.value is not None and found.holds_zero
  assert (found.low, found.high, found.p) == (None, None, None)


def test_a_target_compares_the_distance_of_the_means():
  # 1 above the target and 3 below it: 2 closer, though 4 higher.
  found = bootstrap(
    of_items(np.full((3, 9), 6.0)), of_items(np.full((3, 9), 2.0)), ratio,
    target=5.0,
  )  # fmt: skip
  assert (found.value, *interval(found)) == pytest.approx((-2, -2, -2))
  # Not the mean of the distances, which are all 1.
  a, b = of_items([[4.0, 4.0], [6.0, 6.0]]), of_items([[4.0, 4.0], [4.0, 4.0]])
  assert bootstrap(a, b, ratio, target=5.0).value == -1


def test_an_undefined_metric_is_none_not_zero():
  nothing = np.zeros((2, 9, 3))
  assert bootstrap(nothing, nothing, f1) == Difference(None)
  # exp overflows in both: inf - inf.
  huge = np.full((2, 9, 2), [1e6, 1.0])
  assert bootstrap(huge, huge, perplexity) == Difference(None)


@pytest.mark.parametrize(
  ('D', 'full', 'ends'),
  [
    # One document of 20 has all tokens: 36 % of the resamples have no value.
    (20, 1, (-math.inf, math.inf)),
    # Four of 50 have them: 1.5 %, fewer than are left out at either end.
    (50, 4, (0.75, 0.75)),
  ],
)
def test_resamples_without_a_value_could_lie_anywhere(D, full, ends):
  sums = np.zeros((20, D, 3))
  sums[:, :full] = [3, 4, 4]
  found = bootstrap(sums, sums * [0, 1, 1], f1)
  assert (found.value, *interval(found)) == pytest.approx((0.75, *ends))
  # Twice the share of the resamples; standard error .02.
  assert found.p == pytest.approx(2 * (1 - full / D) ** D, abs=0.06)


def test_other_documents_are_refused(rng):
  with pytest.raises(DataError, match=r'\(3, 40, 3\) and \(3, 39, 3\)'):
    bootstrap(counts(rng), counts(rng, D=39), f1)


# One number a seed.


def test_spread_divides_by_n_minus_1_and_order_changes_no_bit():
  found = over_seeds([1.0, 2.0, 4.0])
  assert found.mean == pytest.approx(7 / 3)
  assert found.std == pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2))
  assert over_seeds([0.25]).std is None and over_seeds([0.1] * 3).std == 0
  orders = itertools.permutations([0.1, 1e9, 0.3, -1e9, 0.7])
  assert len({over_seeds(order) for order in orders}) == 1


def test_the_half_interval_is_that_of_students_t():
  # With two degrees of freedom its quantiles have a closed form.
  quantile = (2 * 0.975 - 1) / math.sqrt(2 * 0.975 * 0.025)
  expected = quantile * math.sqrt(7 / 3) / math.sqrt(3)
  assert half_interval([1.0, 2.0, 4.0]) == pytest.approx(expected, rel=1e-12)
  found = seeds_alone([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
  assert found.high - found.value == pytest.approx(expected, rel=1e-12)
  assert seeds_alone([2.0], [1.0]) == Difference(1.0)
  # Distances 1, 1 and 3, 1.
  assert seeds_alone([4.0, 6.0], [2.0, 6.0], target=5.0).value == -1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=7))
def test_sign_flips_by_brute_force(differences):
  n, seen = len(differences), abs(sum(differences))
  flips = itertools.product([-1, 1], repeat=n)
  sums = [np.dot(flip, differences) for flip in flips]
  # All patterns come with their mirror image, so that both tails are equal.
  expected = sum(abs(s) >= seen for s in sums) / 2**n
  p = sign_flip_p(np.array(differences))
  assert p == pytest.approx(expected, abs=1e-12) and p >= seed_floor(n)
  assert sign_flip_p(-np.array(differences)) == p
  if min(differences) > 0:
    assert p == seed_floor(n)


def test_sign_flips_are_of_pairs_and_of_few_seeds():
  # Both vary far more over seeds than they differ, in every pair by the same.
  a = [1.0, 20.0, -7.0, 400.0, 3.0, 90.0]
  assert seeds_alone(a, [value - 0.5 for value in a]).p == seed_floor(6)
  # 0.1 + 0.2 and 0.3 differ in the last bit.
  assert seeds_alone([0.1 + 0.2] * 8, [0.3] * 8).p == 1
  assert sign_flip_p(np.ones(MOST_SEEDS)) == seed_floor(MOST_SEEDS)
  with pytest.raises(ConfigError, match='17 paired seeds.* at most 16'):
    sign_flip_p(np.ones(MOST_SEEDS + 1))


# Several comparisons.


def test_holm_by_hand():
  raw = {'a': 0.01, 'b': 0.04, 'c': 0.03, 'd': 0.005}
  adjusted = holm(raw)
  assert list(adjusted) == list(raw)
  # d: 4 x .005; a: 3 x .01; c: 2 x .03; b: 1 x .04, below c and so raised.
  assert adjusted == pytest.approx({'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': 0.02})
  assert holm({'a': 0.04}) == {'a': 0.04} and holm({}) == {}


@settings(deadline=None)
@given(P_VALUES, st.floats(0.001, 0.999), st.randoms())
def test_holm_rejects_what_the_step_down_procedure_rejects(raw, level, random):
  rejected = set()
  order = sorted(range(len(raw)), key=raw.__getitem__)
  for i, cell in enumerate(order):
    if raw[cell] * (len(raw) - i) > level:
      break
    rejected.add(cell)
  items = list(enumerate(raw))
  adjusted = holm(dict(items))
  assert {cell for cell, p in adjusted.items() if p <= level} == rejected
  for i, p in enumerate(raw):
    assert p <= adjusted[i] <= min(1.0, len(raw) * p)
  random.shuffle(items)
  assert holm(dict(items)) == adjusted


# The best.


SHOWN = (0.8349, 0.84, 0.8351)


@pytest.mark.parametrize(
  ('values', 'direction', 'digits', 'best'),
  [
    *(((0.0, 0.4, 0.8), direction, 2, best) for direction, best in (
      ('higher', 'c'), ('lower', 'a'), (0.42, 'b'), (9.0, 'c'), (-9.0, 'a')
    )),
    # What is the same at the digits shown is tied.
    (SHOWN, 'higher', 4, 'b'), (SHOWN, 'higher', 2, 'bc'),
    (SHOWN, 'higher', 1, 'bac'),
    # As far above the target as below it.
    ((0.401, 0.6, 0.7), 0.5, 2, 'ab'), ((0.401, 0.6, 0.7), 0.5, 3, 'a'),
    # Both print as 0.40, at distances that print as 0.00 and 0.01.
    ((0.4049, 0.3951), 0.405, 2, 'ab'),
  ],
)  # fmt: skip
def test_best_by_direction_and_by_what_is_shown(
  values, direction, digits, best
):
  named = dict(zip('abc', values, strict=False))
  found = best_of(named, direction, digits, lambda best, other: False)
  assert ''.join(found) == best


def test_best_asks_for_ties_with_the_best_only():
  asked = []

  def tied(best, other):
    asked.append((best, other))
    return other == 'a'

  values = {'a': 1.0, 'b': 3.0, 'c': 2.0, 'd': 3.0}
  assert best_of(values, 'higher', 1, tied) == ('b', 'a', 'd')
  assert asked == [('b', 'a'), ('b', 'c')]
