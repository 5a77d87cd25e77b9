import math

import numpy as np
import pytest
from scipy import stats

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate.registry import f1, perplexity, ratio
from pdl_jax.report.bootstrap import (
  Difference,
  hierarchical_bootstrap,
  paired_bootstrap,
)
from pdl_jax.report.statistics import seed_floor, unpaired_seed_floor
from pdl_jax.report.systems import System, item_sums

Z = stats.norm.ppf(0.975)


def make(name, sums_SxDxK, seeds=None):
  S, D = sums_SxDxK.shape[:2]
  documents = [f'd{i:04d}' for i in range(D)]
  return System(
    name, range(S) if seeds is None else seeds, documents, sums_SxDxK
  )


def of_items(name, values_SxD):
  return make(name, item_sums(np.asarray(values_SxD, float)))


def counts(name, rng, S=3, D=40):
  """Random matches, generated and reference counts."""
  generated, reference = rng.integers(5, 20, (2, S, D))
  matches = rng.integers(np.minimum(generated, reference) + 1)
  return make(name, np.stack([matches, generated, reference], axis=-1))


def interval(found):
  return found.low, found.high


@pytest.fixture
def rng():
  return np.random.default_rng(7)


def both_ways(a, b, statistic, **options):
  """Every kind of bootstrap of the two systems."""
  return [paired_bootstrap(a, b, statistic, seed=0, **options)] + [
    hierarchical_bootstrap(
      a,
      b,
      statistic,
      seed=0,
      paired_seeds=paired,
      stretch_seeds=stretch,
      **options,
    )
    for paired in (True, False)
    for stretch in (True, False)
  ]


def test_normal_interval_of_a_mean(rng):
  a, b = rng.normal(size=(2, 1, 2000))
  found = paired_bootstrap(
    of_items('a', a), of_items('b', b), ratio, seed=0, resamples=4000
  )
  half = Z * np.std(a - b, ddof=1) / math.sqrt(2000)
  assert found.value == pytest.approx(np.mean(a - b), rel=1e-9)
  # A quantile of 4,000 resamples has a standard error of 2.1 % of `half`.
  assert np.subtract(interval(found), found.value) == pytest.approx(
    [-half, half], rel=0.07
  )


def test_pairs_take_out_what_documents_have_in_common(rng):
  common = 100 * rng.normal(size=(1, 200))
  a = of_items('a', common + rng.normal(size=(1, 200)))
  b = of_items('b', common)
  low, high = interval(paired_bootstrap(a, b, ratio, seed=0))
  assert high - low < 4 * Z / math.sqrt(200)


@pytest.mark.parametrize(
  'statistic', [f1, perplexity], ids=lambda f: f.__name__
)
def test_against_scipy(rng, statistic):
  a, b = counts('a', rng, S=1), counts('b', rng, S=1)
  if statistic is perplexity:
    a, b = (make(s.name, s.sums_SxDxK[..., :2]) for s in (a, b))
  K = a.sums_SxDxK.shape[2]

  def difference(*columns, axis):
    sums = np.stack([column.sum(axis=axis) for column in columns], axis=-1)
    return statistic(sums[..., :K]) - statistic(sums[..., K:])

  expected = stats.bootstrap(
    [*a.sums_SxDxK[0].T, *b.sums_SxDxK[0].T],
    difference,
    paired=True,
    method='percentile',
    n_resamples=8000,
    rng=1,
  )
  found = paired_bootstrap(a, b, statistic, seed=0, resamples=8000)
  # Two independent quantiles of 8,000 resamples: 3 x sqrt(2) x .03 / 1 errors.
  assert interval(found) == pytest.approx(
    tuple(expected.confidence_interval), abs=0.13 * expected.standard_error
  )


def test_value_is_the_mean_over_seeds_of_corpus_metrics(rng):
  a, b = counts('a', rng), counts('b', rng)
  by_seed = [
    2 * s[:, 0].sum() / (s[:, 1].sum() + s[:, 2].sum())
    for system in (a, b)
    for s in system.sums_SxDxK
  ]
  expected = np.mean(by_seed[:3]) - np.mean(by_seed[3:])
  for found in both_ways(a, b, f1):
    assert found.value == pytest.approx(expected, rel=1e-12)


def test_hierarchical_without_noise_of_seeds_is_the_paired_bootstrap(rng):
  a, b = (np.repeat(rng.normal(size=(1, 50)), 4, axis=0) for _ in 'ab')
  paired, *others = both_ways(of_items('a', a), of_items('b', b), ratio)
  for found in others:
    assert interval(found) == pytest.approx(interval(paired), rel=1e-9)


def test_hierarchical_interval_of_seeds_alone(rng):
  # Far from independent: pairs matter.
  a, b = rng.normal(size=(60, 1)) + 0.3 * rng.normal(size=(2, 60, 1))
  systems = [
    of_items(name, np.repeat(values, 2, axis=1))
    for name, values in (('a', a), ('b', b))
  ]
  for paired, variance in (
    (True, np.var(a - b)),
    (False, np.var(a) + np.var(b)),
  ):
    found = hierarchical_bootstrap(
      *systems,
      ratio,
      seed=0,
      paired_seeds=paired,
      stretch_seeds=False,
      resamples=4000,
    )
    half = Z * math.sqrt(variance / 60)
    assert np.subtract(interval(found), found.value) == pytest.approx(
      [-half, half], rel=0.1
    )


def test_variances_of_seeds_and_documents_add_up(rng):
  # As many seeds as documents, both sorted: drawn alike they would correlate.
  seeds, documents = np.sort(rng.normal(size=(2, 60)), axis=1)
  seeds, documents = seeds[:, np.newaxis], 2 * documents[np.newaxis]
  a, b = of_items('a', seeds + documents), of_items('b', np.zeros((60, 60)))
  found = hierarchical_bootstrap(
    a,
    b,
    ratio,
    seed=0,
    paired_seeds=True,
    stretch_seeds=False,
    resamples=4000,
  )
  half = Z * math.sqrt(np.var(seeds) / 60 + np.var(documents) / 60)
  assert np.subtract(interval(found), found.value) == pytest.approx(
    [-half, half], rel=0.07
  )


def test_hierarchical_by_brute_force(rng):
  a, b = counts('a', rng, S=4), counts('b', rng, S=7)
  means = []
  for _ in range(4000):
    documents = rng.integers(40, size=40)
    means.append([])
    for system, S in ((a, 4), (b, 7)):
      drawn = system.sums_SxDxK[rng.integers(S, size=S)][:, documents]
      means[-1].append(np.mean([f1(run.sum(axis=0)) for run in drawn]))
  differences = np.subtract(*np.transpose(means))
  found = hierarchical_bootstrap(
    a,
    b,
    f1,
    seed=0,
    paired_seeds=False,
    stretch_seeds=False,
    resamples=4000,
  )
  # Each quantile of 4,000 resamples has an error of .04 standard deviations.
  assert interval(found) == pytest.approx(
    np.quantile(differences, [0.025, 0.975]), abs=0.17 * np.std(differences)
  )


def test_stretched_interval_of_seeds_is_the_t_interval(rng):
  values = rng.normal(size=(40, 1))
  found = hierarchical_bootstrap(
    of_items('a', np.repeat(values, 2, axis=1)),
    of_items('b', np.zeros((40, 2))),
    ratio,
    seed=0,
    paired_seeds=True,
    stretch_seeds=True,
    resamples=8000,
  )
  half = stats.t.ppf(0.975, 39) * np.std(values, ddof=1) / math.sqrt(40)
  assert np.subtract(interval(found), found.value) == pytest.approx(
    [-half, half], rel=0.06
  )


def test_plain_interval_of_seeds_stays_in_their_range():
  values = np.repeat([[1.0], [2.0], [4.0]], 2, axis=1)
  a, b = of_items('a', values), of_items('b', np.zeros((3, 2)))
  options = {'seed': 0, 'paired_seeds': True}
  plain = hierarchical_bootstrap(a, b, ratio, stretch_seeds=False, **options)
  assert interval(plain) == (1, 4)
  wide = hierarchical_bootstrap(a, b, ratio, stretch_seeds=True, **options)
  factor = math.sqrt(3 / 2) * stats.t.ppf(0.975, 2) / Z
  mean = 7 / 3
  assert interval(wide) == pytest.approx(
    (mean + factor * (1 - mean), mean + factor * (4 - mean))
  )


def coverage(rng, S, D, noise, trials=500, **options):
  """Share of experiments without a difference whose interval holds 0, and
  whose p is at most .05."""
  held = rejected = 0
  for trial in range(trials):
    a, b = (
      of_items(
        name,
        noise[0] * rng.normal(size=(S, 1))
        + noise[1] * rng.normal(size=(1, D))
        + noise[2] * rng.normal(size=(S, D)),
      )
      for name in 'ab'
    )
    # A few resamplings in turn: drawing them anew each time is slow.
    found = hierarchical_bootstrap(
      a, b, ratio, seed=trial % 5, resamples=400, **options
    )
    held += found.holds_zero
    rejected += found.p <= 0.05
  return held / trials, rejected / trials


# Of 500 trials a share near .95 has a standard error of .01.
THREE_ERRORS = 0.03
SEEDS_ALONE = (1, 0, 0)
ALL_OF_IT = (0.3, 1, 1)


@pytest.mark.parametrize('paired', [True, False])
def test_coverage_with_many_seeds(rng, paired):
  held, rejected = coverage(
    rng, 20, 60, ALL_OF_IT, paired_seeds=paired, stretch_seeds=False
  )
  assert held == pytest.approx(0.95, abs=THREE_ERRORS)
  assert rejected == pytest.approx(0.05, abs=THREE_ERRORS)


@pytest.mark.parametrize(('S', 'paired'), [(10, True), (20, True), (20, False)])
def test_coverage_of_the_plain_interval_of_seeds_alone(rng, S, paired):
  held, _ = coverage(
    rng, S, 2, SEEDS_ALONE, paired_seeds=paired, stretch_seeds=False
  )
  # A normal interval with the variance of the sample itself, seen by a t.
  freedom = S - 1 if paired else 2 * (S - 1)
  expected = 1 - 2 * stats.t.sf(Z * math.sqrt((S - 1) / S), freedom)
  assert held == pytest.approx(expected, abs=THREE_ERRORS)


@pytest.mark.parametrize('S', [3, 5])
def test_coverage_with_few_seeds(rng, S):
  options = {'paired_seeds': True}
  for D, noise in ((60, ALL_OF_IT), (2, SEEDS_ALONE)):
    held, rejected = coverage(rng, S, D, noise, stretch_seeds=True, **options)
    # The stretched interval errs on the side of too wide.
    assert held >= 0.95 - THREE_ERRORS
    assert rejected == 0
  # The plain one is no wider than the seeds are apart.
  held, _ = coverage(rng, S, 2, SEEDS_ALONE, stretch_seeds=False, **options)
  assert held <= 1 - seed_floor(S) + THREE_ERRORS


@pytest.mark.parametrize('S', [1, 2])
def test_coverage_with_few_documents(rng, S):
  """Of one seed, and of seeds that do not differ."""
  held = {}
  for stretch in (False, True):
    held[stretch] = 0
    for trial in range(500):
      values = rng.normal(size=(2, 1, 6)).repeat(S, axis=1)
      a, b = of_items('a', values[0]), of_items('b', values[1])
      options = {'seed': trial % 5, 'resamples': 400}
      options['stretch_documents'] = stretch
      if S == 1:
        found = paired_bootstrap(a, b, ratio, **options)
      else:
        found = hierarchical_bootstrap(
          a, b, ratio, paired_seeds=True, stretch_seeds=True, **options
        )
      held[stretch] += found.holds_zero / 500
  assert held[True] == pytest.approx(0.95, abs=THREE_ERRORS)
  assert held[False] < 0.91


def test_coverage_of_a_true_difference_in_perplexity(rng):
  held, trials = 0, 500
  for trial in range(trials):
    tokens = rng.integers(5, 40, size=(1, 100))
    systems = [
      make(name, np.stack([rng.gamma(tokens * nats), tokens], axis=-1))
      for name, nats in (('a', 2.0), ('b', 1.5))
    ]
    found = paired_bootstrap(
      *systems, perplexity, seed=trial % 5, resamples=400
    )
    held += found.low <= math.exp(2.0) - math.exp(1.5) <= found.high
  assert held / trials == pytest.approx(0.95, abs=THREE_ERRORS)


def test_p_values_are_uniform_where_nothing_differs(rng):
  p_values = [
    paired_bootstrap(
      of_items('a', rng.normal(size=(1, 100))),
      of_items('b', rng.normal(size=(1, 100))),
      ratio,
      seed=trial % 5,
      resamples=400,
    ).p
    for trial in range(500)
  ]
  # 95 % point of the Kolmogorov-Smirnov distance of 500 values: .06.
  assert stats.kstest(p_values, 'uniform').statistic < 0.06


def test_smallest_p_is_2_of_one_more_than_the_resamples():
  a, b = of_items('a', [[1.0, 2.0, 3.0]]), of_items('b', [[0.0, 0.0, 0.0]])
  assert paired_bootstrap(a, b, ratio, seed=0, resamples=99).p == 2 / 100


@pytest.mark.parametrize('S', [2, 3, 5])
def test_p_never_falls_below_the_seed_floor(S):
  a, b = of_items('a', np.full((S, 9), 5.0)), of_items('b', np.zeros((S, 9)))
  for paired, floor in (
    (True, seed_floor(S)),
    (False, unpaired_seed_floor(S, S)),
  ):
    found = hierarchical_bootstrap(
      a, b, ratio, seed=0, paired_seeds=paired, stretch_seeds=True
    )
    assert found.p == floor
    assert interval(found) == pytest.approx((5, 5), rel=1e-12)


def test_swapping_systems_flips_the_sign(rng):
  a, b = counts('a', rng), counts('b', rng)
  found, flipped = both_ways(a, b, f1), both_ways(b, a, f1)
  for one, other in zip(found[:3], flipped[:3], strict=True):
    assert other.value == -one.value
    assert interval(other) == (-one.high, -one.low)
    assert other.p == one.p
  # Unpaired seeds are drawn for each system by itself.
  for one, other in zip(found[3:], flipped[3:], strict=True):
    width = one.high - one.low
    assert interval(other) == pytest.approx(
      (-one.high, -one.low), abs=0.15 * width
    )


def test_order_of_documents_and_seeds_changes_no_bit(rng):
  a, b = counts('a', rng), counts('b', rng)
  documents, seeds = rng.permutation(40), rng.permutation(3)
  shuffled = System(
    'a',
    [a.seeds[i] for i in seeds],
    [a.documents[i] for i in documents],
    a.sums_SxDxK[np.ix_(seeds, documents)],
  )
  assert both_ways(shuffled, b, f1) == both_ways(a, b, f1)


def test_same_seed_same_result_other_seed_other_result(rng):
  a, b = counts('a', rng), counts('b', rng)
  first, again, other = (
    paired_bootstrap(a, b, f1, seed=seed) for seed in (0, 0, 1)
  )
  assert first == again
  assert interval(first) != interval(other)


def test_nothing_differs_where_only_rounding_does():
  values = np.random.default_rng(0).normal(size=(3, 30)) + 10
  a = of_items('a', values)
  # Three times all sums: the same metric by other roundings.
  b = make('b', 3 * item_sums(values))
  # Seeds drawn for each system by itself do make a difference.
  for found in both_ways(a, b, ratio)[:3]:
    assert (found.value, *interval(found), found.p) == (0, 0, 0, 1)


def test_interval_that_touches_zero_holds_it():
  assert Difference(1.0, 0.0, 2.0).holds_zero
  assert Difference(-1.0, -2.0, 0.0).holds_zero
  assert not Difference(1.0, 0.5, 2.0).holds_zero
  assert not Difference(-1.0, -2.0, -0.5).holds_zero


def test_distance_to_a_target():
  # 1 above the target and 3 below it: 2 closer, though 4 higher.
  a, b = (
    of_items('a', np.full((3, 9), 6.0)),
    of_items('b', np.full((3, 9), 2.0)),
  )
  for found in both_ways(a, b, ratio, target=5.0):
    assert (found.value, *interval(found)) == pytest.approx((-2, -2, -2))


def test_target_compares_the_distance_of_the_mean_not_mean_distances():
  a = of_items('a', [[4.0, 4.0], [6.0, 6.0]])
  b = of_items('b', [[4.0, 4.0], [4.0, 4.0]])
  assert paired_bootstrap(a, b, ratio, seed=0, target=5.0).value == -1


def test_one_seed_says_nothing_of_other_seeds(rng):
  one, three = counts('one', rng, S=1), counts('three', rng)
  for a, b, paired in ((one, one, True), (one, three, False)):
    found = hierarchical_bootstrap(
      a, b, f1, seed=0, paired_seeds=paired, stretch_seeds=True
    )
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.value is not None and found.holds_zero
  assert paired_bootstrap(one, three, f1, seed=0).low is not None


def test_one_document_says_nothing_of_other_documents(rng):
  a, b = counts('a', rng, D=1), counts('b', rng, D=1)
  for found in both_ways(a, b, f1):
    assert found.value is not None
    assert (found.low, found.high, found.p) == (None, None, None)


def test_undefined_metric_is_none_not_zero():
  nothing = make('a', np.zeros((2, 9, 3)))
  for found in both_ways(nothing, nothing, f1):
    assert found == Difference(None)
  # exp overflows in both: inf - inf.
  huge = make('a', np.full((2, 9, 2), [1e6, 1.0]))
  assert both_ways(huge, huge, perplexity) == [Difference(None)] * 5


def test_resamples_without_a_value_could_lie_anywhere():
  # One document of 20 has all the tokens: 36 % of the resamples have none.
  sums = np.zeros((1, 20, 3))
  sums[0, 3] = [3, 4, 4]
  less = sums * [0, 1, 1]
  found = paired_bootstrap(make('a', sums), make('b', less), f1, seed=0)
  assert (found.value, *interval(found)) == (0.75, -math.inf, math.inf)
  assert found.holds_zero
  # The share of (1 - 1/20)^20, twice; standard error .02.
  assert found.p == pytest.approx(2 * 0.95**20, abs=0.06)


def test_few_resamples_without_a_value_leave_an_interval():
  # Four documents of 50 have all the tokens: none is drawn in 1.5 % of the
  # resamples, fewer than are left out at either end.
  sums = np.zeros((1, 50, 3))
  sums[0, :4] = [3, 4, 4]
  a, b = make('a', sums), make('b', sums * [0, 1, 1])
  found = paired_bootstrap(a, b, f1, seed=0)
  assert interval(found) == (0.75, 0.75)
  assert found.p == pytest.approx(2 * 0.92**50, abs=0.02)


def test_a_seed_that_was_not_drawn_spoils_no_resample():
  sums = np.tile([3.0, 4.0, 4.0], (4, 20, 1))
  # The last seed has its tokens in one document only.
  sums[3, 1:] = 0
  found = hierarchical_bootstrap(
    make('a', sums),
    make('b', sums * [0, 1, 1]),
    f1,
    seed=0,
    paired_seeds=True,
    stretch_seeds=False,
  )
  without_value = 0.95**20 * (1 - 0.75**4)
  assert found.p == pytest.approx(2 * without_value, abs=0.06)


def test_seeds_that_do_not_pair_are_refused(rng):
  a, b = counts('pdl', rng), counts('ce', rng, S=2)
  with pytest.raises(
    DataError, match=r"'pdl' and 'ce' have the seeds \[0, 1, 2\] and \[0, 1\]"
  ):
    hierarchical_bootstrap(
      a, b, f1, seed=0, paired_seeds=True, stretch_seeds=True
    )
  found = hierarchical_bootstrap(
    a, b, f1, seed=0, paired_seeds=False, stretch_seeds=True
  )
  assert found.low < found.value < found.high


@pytest.mark.parametrize('resamples', [0, 39])
def test_too_few_resamples_are_refused(rng, resamples):
  a = counts('a', rng)
  with pytest.raises(ConfigError, match=f'{resamples} resamples: .* least 40'):
    paired_bootstrap(a, a, f1, seed=0, resamples=resamples)
