import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate.rare import clipped_matches, rare_types
from pdl_jax.evaluate.run import evaluate
from tests.prediction_records import (
  STOP,
  VOCAB,
  count_arrays,
  make_record,
  record_lists,
)

PERCENTS = st.sampled_from([0.1, 1, 5, 10, 50, 100])
# Type 0 is the stop token; type 1 is never seen, 2 is rare, the rest common.
COUNTS = np.array([100, 0, 2, 49, 49])


def ids(generated, reference, name='a'):
  return make_record(
    name,
    token_ids=generated,
    reference_ids=reference,
    reference_nll=[1.0] * len(reference),
  )


def values(records, special_ids=(STOP,), counts=COUNTS):
  """Of the rarest 10 %: name without the end -> value."""
  found = evaluate(records, counts, special_ids).results
  return {
    key.removesuffix('_10'): metric['value']
    for key, metric in found.items()
    if 'rare' in key and key.endswith('_10')
  }


@pytest.mark.parametrize(
  ('counts', 'special_ids', 'rare'),
  [
    ([0, 1, 1, 2, 6, 40, 50], [], {
      1: [0], 2: [0, 1, 2], 4: [0, 1, 2, 3], 9.99: [0, 1, 2, 3],
      10: [0, 1, 2, 3, 4],
    }),
    # Ten types seen once hold 10 % together: none of them fits into 5 %.
    ([1] * 10 + [90, 0], [], {5: [11], 10: [*range(10), 11]}),
    # Special types are neither rare nor running tokens: without the 900, type
    # 2 is 1 of 100 tokens; below 1 % it stays out.
    ([900, 0, 1, 99], [], {1: [1, 2]}),
    ([900, 0, 1, 99], [0], {0.5: [1]}),
    ([900, 0, 1, 99], [0, 1], {1: [2]}),
    # A special token may be as rare as an ordinary one, and stays out.
    ([0, 0, 1, 99], [0], {1: [1, 2]}),
  ],
)  # fmt: skip
def test_rare_types_golden(counts, special_ids, rare):
  for percent, expected in rare.items():
    found = rare_types(np.array(counts), percent, special_ids)
    assert found.nonzero()[0].tolist() == expected


@given(count_arrays(), PERCENTS)
def test_rare_types_hold_at_most_their_share(counts, percent):
  counts = np.array(counts)
  assume(counts.sum() > 0)
  rare = rare_types(counts, percent)
  assert counts[rare].sum() * 100 <= percent * counts.sum()
  assert rare[counts == 0].all()
  if percent == 100:
    assert rare.all()
  elif rare.any() and not rare.all():
    assert counts[rare].max() < counts[~rare].min()


@given(count_arrays(), PERCENTS, st.permutations(range(VOCAB)))
def test_rare_types_do_not_depend_on_the_order_of_ids(counts, percent, order):
  counts = np.array(counts)
  assume(counts.sum() > 0)
  expected = rare_types(counts, percent)[order]
  assert rare_types(counts[order], percent).tolist() == expected.tolist()


def test_undefined_sets_are_refused():
  for token in (-1, 5):
    with pytest.raises(ConfigError, match=rf'{token} is outside \[0, 5\)'):
      rare_types(COUNTS, 10, [token])
  for counts, special_ids in (([0, 0], []), ([5, 0], [0]), ([5, 0], [0, 1])):
    with pytest.raises(DataError, match='rare is undefined'):
      rare_types(np.array(counts), 10, special_ids)


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_clipped_matches_are_symmetric_and_bounded(a, b):
  matches = clipped_matches(a, b)
  assert matches == clipped_matches(b, a) <= min(len(a), len(b))
  assert clipped_matches(a, a) == len(a)
  assert clipped_matches([7, 7, 7, 8], [7, 7, 9]) == 2


def test_golden_by_hand():
  # Rare: types 1 and 2 (2 of 100 token occurrences). Generated 1 1 2, target
  # 1 2 2: two matches; in the second record nothing rare matches.
  records = [
    ids([1, 1, 2, 3, STOP], [1, 2, 2, 3, STOP]),
    ids([3, 4], [1, STOP], 'b'),
  ]
  assert values(records) == {
    'rare_precision': pytest.approx(2 / 3),
    'rare_recall': pytest.approx(2 / 4),
    'rare_f1': pytest.approx(4 / 7),
    'rare_mass': pytest.approx(3 / 6),
    'reference_rare_mass': pytest.approx(4 / 5),
  }


def test_matches_never_cross_records():
  records = [ids([1], [3]), ids([3], [1], 'b')]
  assert values(records)['rare_f1'] == 0.0


def test_overshoot_costs_precision_and_shows_in_the_mass():
  found = values([ids([1] * 9 + [3], [1, 3])])
  assert found['rare_recall'] == 1.0
  assert found['rare_precision'] == pytest.approx(1 / 9)
  assert (found['rare_mass'], found['reference_rare_mass']) == (0.9, 0.5)


def test_undefined_is_none_not_zero():
  no_rare_generated = values([ids([3], [1])])
  assert no_rare_generated['rare_precision'] is None
  assert no_rare_generated['rare_recall'] == no_rare_generated['rare_f1'] == 0.0
  no_rare_reference = values([ids([1], [3])])
  assert no_rare_reference['rare_recall'] is None
  assert no_rare_reference['rare_precision'] == 0.0
  nothing = values([ids([], [STOP])])
  assert [nothing[key] for key in ('rare_f1', 'rare_mass')] == [None, None]


def test_stop_token_counts_only_unless_special():
  record = ids([1, STOP], [1, STOP])
  assert values([record])['rare_mass'] == 1.0
  assert values([record], special_ids=())['rare_mass'] == 0.5


@pytest.mark.parametrize('field', ['token_ids', 'reference_ids'])
@pytest.mark.parametrize('token', [-1, 5])
def test_token_outside_the_counts_is_refused(field, token):
  record = ids([1], [1], 'x') | {field: [token]}
  with pytest.raises(DataError, match=rf"'x'.*'{field}'.*id {token}, outside"):
    values([record])


@settings(max_examples=25, deadline=None)
@given(record_lists(), count_arrays())
def test_a_copy_is_perfect(records, counts):
  counts = np.array(counts)
  assume(counts[STOP + 1 :].sum() > 0)
  copies = [r | {'token_ids': r['reference_ids']} for r in records]
  found = values(copies, counts=counts)
  assert found['rare_f1'] in (1.0, None)
  assert found['rare_f1'] == found['rare_recall'] == found['rare_precision']
  assert found['rare_mass'] == found['reference_rare_mass']
