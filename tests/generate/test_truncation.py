"""Truncations against slow references written from their definitions."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pdl_jax.generate import DecodeSettings, truncation

top_k = jax.jit(truncation.top_k, static_argnums=1)
top_p, min_p, typical = map(
  jax.jit, (truncation.top_p, truncation.min_p, truncation.typical)
)

V = 12
# Subnormal numbers are 0 on the devices, and so ties that NumPy does not see.
ANY = st.floats(-20, 20, width=32, allow_subnormal=False)
# Few distinct values, so that there are ties, or any.
LOGITS = st.one_of(
  arrays.arrays(np.float32, (3, V), elements=st.sampled_from([-3, 0, 1, 2.5])),
  arrays.arrays(np.float32, (3, V), elements=ANY),
)
MASSES = st.floats(0.01, 1.0)
MARGIN = 1e-5
FAST = settings(max_examples=60, deadline=None)


def distribution(row):
  p = np.exp(row.astype(np.float64) - row.max())
  return p / p.sum()


def kept_top_k(row, k):
  kth = sorted(row.tolist(), reverse=True)[min(k, V) - 1]
  return {v for v in range(V) if row[v] >= kth}


def least_mass(rank, p, mass):
  kept = set()
  for v in range(V):
    if sum(p[u] for u in range(V) if rank[u] > rank[v]) < mass:
      kept.add(v)
  return kept


def kept_top_p(row, mass):
  return least_mass(row, distribution(row), mass)


def kept_min_p(row, share):
  p = distribution(row)
  return {v for v in range(V) if p[v] >= share * p.max()}


def kept_typical(row, mass):
  p = distribution(row)
  entropy = -sum(q * np.log(q) for q in p if q > 0)
  # Equal logits must tie here too.
  return least_mass(-np.abs(-np.log(p) - entropy).round(9), p, mass)


def kept(mask):
  return [set(np.flatnonzero(row).tolist()) for row in np.asarray(mask)]


def check_between(found, rows, reference, value):
  """Where rounding may decide, either answer is right, but no other."""
  for kept_here, row in zip(kept(found), rows, strict=True):
    less = reference(row, max(value - MARGIN, 0))
    more = reference(row, value + MARGIN)
    low, high = sorted((less, more), key=len)
    assert low <= kept_here <= high
    assert kept_here


@given(LOGITS, st.integers(1, V + 3))
@FAST
def test_top_k(logits, k):
  expected = [kept_top_k(row, k) for row in logits]
  assert kept(top_k(logits, k)) == expected


@given(LOGITS, MASSES)
@FAST
def test_top_p_and_min_p(logits, value):
  check_between(top_p(logits, value), logits, kept_top_p, value)
  check_between(min_p(logits, value), logits, kept_min_p, value)


@pytest.mark.parametrize(('share', 'count'), [(0.29, 3), (0.31, 2), (0.6, 1)])
def test_min_p_is_a_share_of_the_likeliest(share, count):
  logits = np.log(np.array([[0.5, 0.25, 0.15, 0.1]], np.float32)) + 4
  assert kept(min_p(logits, share)) == [set(range(count))]


@given(LOGITS, MASSES)
@FAST
def test_typical(logits, mass):
  found = kept(typical(logits, mass))
  for kept_here, row in zip(found, logits, strict=True):
    assert kept_here
    p = distribution(row)
    entropy = -(p * np.log(p)).sum()
    distance = np.abs(-np.log(p) - entropy)
    # Two tokens at nearly one distance, one likelier than typical and one
    # less likely, may change places by rounding.
    blurred = distance + 1e-4
    for v in range(V):
      surely = p[distance < blurred[v]].sum() < mass - MARGIN
      never = p[blurred < distance[v]].sum() >= mass + MARGIN
      assert not (surely and v not in kept_here)
      assert not (never and v in kept_here)


def test_typical_can_drop_the_likeliest_token():
  """Locally typical is not a top set: 0.1 bits are far below the entropy."""
  logits = np.log(np.array([[0.4] + [0.6 / 11] * 11], np.float32))
  assert kept(typical(logits, 0.3)) == [set(range(1, 12))]
  assert kept(typical(logits, 0.3)) == [kept_typical(logits[0], 0.3)]


def test_ties_stay_or_go_together():
  logits = np.log(np.array([[0.4, 0.2, 0.2, 0.2]], np.float32))
  assert kept(top_k(logits, 2)) == [{0, 1, 2, 3}]
  assert kept(top_p(logits, 0.5)) == [{0, 1, 2, 3}]
  assert kept(top_p(logits, 0.3)) == [{0}]


@pytest.mark.parametrize(
  'mask', [top_k, top_p, min_p, typical],
  ids=['top_k', 'top_p', 'min_p', 'typical'],
)
def test_the_rest_of_a_truncated_row_is_a_distribution_too(mask):
  logits = np.array([[2, 1, -np.inf, 0.5, -np.inf]], np.float32)
  value = 2 if mask is top_k else 0.6
  some = np.isfinite(logits[0])
  np.testing.assert_array_equal(
    np.asarray(mask(logits, value))[:, some], mask(logits[:, some], value)
  )
  assert not np.asarray(mask(logits, value))[:, ~some].any()


def test_a_certain_row_keeps_its_token():
  logits = np.full((1, 5), -np.inf, np.float32)
  logits[0, 3] = 4.0
  settings = DecodeSettings(
    'sample', temperature=0.1, top_k=3, top_p=0.01, min_p=1.0, typical_p=0.01
  )
  found = np.asarray(truncation.truncate(logits, settings))
  assert np.flatnonzero(np.isfinite(found[0])).tolist() == [3]


def test_order_of_application():
  """Temperature, then each on what the one before has left, renormalised."""
  logits = np.random.default_rng(0).normal(size=(1, V)).astype(np.float32) * 3
  settings = DecodeSettings(
    'sample', temperature=2.0, top_k=8, top_p=0.9, min_p=0.1, typical_p=0.8
  )
  found = truncation.truncate(logits, settings)
  row = logits[0] / 2
  for reference, value in (
    (kept_top_k, 8), (kept_top_p, 0.9), (kept_min_p, 0.1),
  ):
    left = sorted(reference(row, value))
    mask = np.isin(np.arange(V), left)
    row = np.where(mask, row, -1e9).astype(np.float32)
  real = np.flatnonzero(row > -1e9)
  p = distribution(row)[real]
  entropy = -(p * np.log(p)).sum()
  order = real[np.argsort(np.abs(-np.log(p) - entropy))]
  mass, expected = 0.0, set()
  for v in order:
    if mass < 0.8:
      expected.add(int(v))
    mass += distribution(row)[v]
  assert kept(np.isfinite(found)) == [expected]
  assert 1 < len(expected) < len(real)
  np.testing.assert_allclose(
    np.asarray(found)[0, sorted(expected)], logits[0, sorted(expected)] / 2
  )


@pytest.mark.parametrize('mass', [0.3, 0.6])
def test_both_zeros_are_one_logit(mass):
  """As compiled: the compiler may take x + 0 for x, and -0 is not 0 in bits."""
  kept = np.asarray(top_p(np.float32([[-0.0, 0.0, -5, -5]]), mass))
  assert kept.tolist() == [[True, True, False, False]]
