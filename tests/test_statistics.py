import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.report.statistics import (
  MOST_SEEDS,
  best_of,
  difference_of,
  distance,
  half_interval,
  holm,
  over_seeds,
  seed_floor,
  sign_flip_p,
  unpaired_seed_floor,
)

NAMES = ('pdl', 'ce')
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def p_of(differences):
  return sign_flip_p(NAMES, differences, [0.0] * len(differences))


def by_name(p_values):
  return dict(enumerate(p_values))


def never(best, other):
  return False


def test_spread_divides_by_n_minus_1():
  found = over_seeds('ce', [1.0, 2.0, 4.0])
  assert found.mean == pytest.approx(7 / 3)
  assert found.std == pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2))
  assert found.n == 3


def test_the_half_interval_is_that_of_students_t():
  # With two degrees of freedom its quantiles have a closed form.
  quantile = (2 * 0.975 - 1) / math.sqrt(2 * 0.975 * 0.025)
  expected = quantile * math.sqrt(7 / 3) / math.sqrt(3)
  assert half_interval([1.0, 2.0, 4.0]) == pytest.approx(expected, rel=1e-12)


def test_a_single_seed_has_no_spread():
  found = over_seeds('ce', [0.25])
  assert (found.mean, found.std, found.n) == (0.25, None, 1)


def test_equal_seeds_have_a_spread_of_0():
  assert over_seeds('ce', [0.1] * 3).std == 0


def test_order_of_seeds_changes_no_bit():
  values = [0.1, 1e9, 0.3, -1e9, 0.7]
  found = {
    (spread.mean, spread.std)
    for order in itertools.permutations(values)
    for spread in [over_seeds('ce', order)]
  }
  assert len(found) == 1


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_spread_names_the_system_and_seed_without_a_number(bad):
  with pytest.raises(DataError, match=rf"'ce'.* seed 2 of 3 is {bad}"):
    over_seeds('ce', [1.0, bad, 2.0])


def test_spread_of_nothing_is_refused():
  with pytest.raises(DataError, match="'ce' has no seed"):
    over_seeds('ce', [])


def test_seed_floor():
  floors = [seed_floor(n) for n in range(1, 7)]
  assert floors == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]


def test_unpaired_seed_floor():
  assert unpaired_seed_floor(1, 1) == 1
  assert unpaired_seed_floor(3, 3) == 2 / 20
  assert unpaired_seed_floor(2, 5) == unpaired_seed_floor(5, 2) == 2 / 21


@pytest.mark.parametrize('n', range(1, 7))
def test_seeds_that_all_agree_reach_the_floor(n):
  assert p_of([1.0 + i for i in range(n)]) == seed_floor(n)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=7))
def test_sign_flips_by_brute_force(differences):
  n, seen = len(differences), abs(sum(differences))
  flips = itertools.product([-1, 1], repeat=n)
  sums = [
    sum(s * d for s, d in zip(f, differences, strict=True)) for f in flips
  ]
  # All patterns come with their mirror image, so that both tails are equal.
  expected = sum(abs(s) >= seen for s in sums) / 2**n
  assert p_of(differences) == pytest.approx(expected, abs=1e-12)
  assert p_of(differences) >= seed_floor(n)
  assert p_of([-d for d in differences]) == p_of(differences)
  assert p_of(differences[::-1]) == p_of(differences)


def test_sign_flips_of_the_pairs_not_of_the_systems():
  # Both vary far more over seeds than they differ, in every pair by the same.
  a = [1.0, 20.0, -7.0, 400.0, 3.0, 90.0]
  b = [value - 0.5 for value in a]
  assert sign_flip_p(NAMES, a, b) == seed_floor(6)


def test_no_difference_has_p_1():
  assert p_of([0.0, 0.0, 0.0]) == 1
  # 0.1 + 0.2 and 0.3 differ in the last bit.
  assert sign_flip_p(NAMES, [0.1 + 0.2] * 8, [0.3] * 8) == 1


def test_difference_beyond_rounding_is_kept():
  a, b = np.array([1.0, 1.0, 1e-20]), np.array([1.0 - 1e-15, 1.0 - 1e-9, 0.0])
  assert difference_of(a, b).tolist() == [0, 1.0 - (1.0 - 1e-9), 1e-20]


def test_sign_flips_refuse_seeds_that_do_not_pair():
  with pytest.raises(DataError, match="'pdl' and 'ce' have 2 and 3 seeds"):
    sign_flip_p(NAMES, [1.0, 2.0], [1.0, 2.0, 3.0])
  with pytest.raises(DataError, match='0 and 0 seeds'):
    sign_flip_p(NAMES, [], [])
  with pytest.raises(DataError, match="'ce': the value of seed 1 of 2 is nan"):
    sign_flip_p(NAMES, [1.0, 2.0], [math.nan, 2.0])
  with pytest.raises(ConfigError, match='17 paired seeds.* at most 16'):
    p_of([1.0] * (MOST_SEEDS + 1))


def test_holm_by_hand():
  raw = {'a': 0.01, 'b': 0.04, 'c': 0.03, 'd': 0.005}
  adjusted = holm(raw)
  assert list(adjusted) == list(raw)
  # d: 4 x .005; a: 3 x .01; c: 2 x .03; b: 1 x .04, below c and so raised.
  assert adjusted == pytest.approx({'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': 0.02})


def test_holm_of_one_and_of_none():
  assert holm({'a': 0.04}) == {'a': 0.04}
  assert holm({}) == {}


@given(P_VALUES)
def test_holm_is_monotone_never_smaller_and_never_above_1(raw):
  adjusted = holm(by_name(raw))
  order = sorted(range(len(raw)), key=raw.__getitem__)
  ordered = [adjusted[i] for i in order]
  assert ordered == sorted(ordered)
  assert all(raw[i] <= adjusted[i] <= 1 for i in order)


@given(P_VALUES)
def test_holm_is_bonferroni_for_the_smallest_and_never_above_it(raw):
  adjusted, m = holm(by_name(raw)), len(raw)
  assert min(adjusted.values()) == min(1.0, m * min(raw))
  assert all(adjusted[i] <= min(1.0, m * p) for i, p in enumerate(raw))


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_the_order_of_cells(raw, random):
  items = list(by_name(raw).items())
  expected = holm(dict(items))
  random.shuffle(items)
  assert holm(dict(items)) == expected


@settings(deadline=None)
@given(P_VALUES, st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(raw, level):
  rejected = set()
  order = sorted(range(len(raw)), key=raw.__getitem__)
  for i, cell in enumerate(order):
    if raw[cell] * (len(raw) - i) > level:
      break
    rejected.add(cell)
  adjusted = holm(by_name(raw))
  assert {cell for cell, p in adjusted.items() if p <= level} == rejected


@pytest.mark.parametrize('bad', [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(bad):
  with pytest.raises(DataError, match=f"'pdl': p value {bad} is not in"):
    holm({'ce': 0.5, 'pdl': bad})


def test_distance_has_no_side():
  assert distance(0.75, 0.5) == distance(0.25, 0.5) == 0.25


@pytest.mark.parametrize(
  ('direction', 'best'),
  [('higher', 'c'), ('lower', 'a'), (0.42, 'b'), (9.0, 'c'), (-9.0, 'a')],
)
def test_best_by_direction(direction, best):
  values = {'a': 0.1, 'b': 0.4, 'c': 0.8, 'missing': None}
  assert best_of(values, direction, 2, never) == (best,)


def test_best_ties_by_the_digits_shown():
  values = {'a': 0.8349, 'b': 0.84, 'c': 0.8351}
  assert best_of(values, 'higher', 4, never) == ('b',)
  assert best_of(values, 'higher', 2, never) == ('b', 'c')
  assert best_of(values, 'higher', 1, never) == ('b', 'a', 'c')


def test_best_ties_by_the_distance_shown():
  # As far above the target as below it.
  values = {'a': 0.401, 'b': 0.6, 'c': 0.7}
  assert best_of(values, 0.5, 2, never) == ('a', 'b')
  assert best_of(values, 0.5, 3, never) == ('a',)


def test_best_ties_by_the_value_shown_near_a_target():
  # Both print as 0.40, at distances that print as 0.00 and 0.01.
  values = {'a': 0.4049, 'b': 0.3951}
  assert best_of(values, 0.405, 2, never) == ('a', 'b')


def test_zero_is_not_missing():
  assert best_of({'a': 0.0, 'b': 0.5}, 'lower', 2, never) == ('a',)


def test_best_asks_for_ties_with_the_best_only():
  asked = []

  def tied(best, other):
    asked.append((best, other))
    return other == 'a'

  values = {'a': 1.0, 'b': 3.0, 'c': 2.0, 'd': 3.0}
  assert best_of(values, 'higher', 1, tied) == ('b', 'a', 'd')
  assert asked == [('b', 'a'), ('b', 'c')]


def test_best_of_nothing_measured():
  assert best_of({'a': None}, 'higher', 2, never) == ()


def test_best_refuses_other_directions_and_numbers():
  with pytest.raises(ConfigError, match="direction 'up': 'higher', 'lower'"):
    best_of({'a': 1.0}, 'up', 2, never)
  with pytest.raises(ConfigError, match='direction nan'):
    best_of({'a': 1.0}, math.nan, 2, never)
  with pytest.raises(DataError, match="'a': its mean is nan"):
    best_of({'a': math.nan}, 'higher', 2, never)
