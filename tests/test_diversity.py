import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.diversity import (
  distinct_n,
  empty_rate,
  finish_rate,
  length_ratio,
  output_distinct_n,
  reference_distinct_n,
)
from tests.prediction_records import WORDS, make_record, record_lists

TEXTS = [
  'token number one token number two token number three',
  'the cat sat on the mat',
  'the cat sat on the mat',
  'a rare quokka smiled',
]


@pytest.mark.parametrize(
  ('n', 'value', 'total'),
  [(1, 0.56, 25), (2, 0.666667, 21), (3, 0.764706, 17), (4, 0.769231, 13)],
)
def test_distinct_golden_beside_its_length(n, value, total):
  found = distinct_n(TEXTS, n)
  assert found.value == pytest.approx(value, abs=1e-6)
  assert (found.n, found.unit) == (total, f'word {n}-grams')


def test_ngrams_never_cross_texts():
  assert distinct_n(['a b', 'c d'], 2).n == 2
  assert distinct_n(['a', 'b', 'c'], 2).value is None


@pytest.mark.parametrize('texts', [[], [''], ['   ']])
def test_distinct_of_nothing_is_none_not_zero(texts):
  found = distinct_n(texts, 1)
  assert (found.value, found.n) == (None, 0)


def test_distinct_0_is_refused():
  with pytest.raises(ConfigError, match='got 0'):
    distinct_n(TEXTS, 0)


@given(
  st.lists(st.lists(st.sampled_from(WORDS)).map(' '.join)), st.integers(1, 4)
)
def test_distinct_is_in_its_range_and_falls_on_doubling(texts, n):
  once, twice = distinct_n(texts, n), distinct_n(texts * 2, n)
  if once.value is None:
    assert twice.value is None
  else:
    assert 0 < once.value <= 1
    assert twice.value == pytest.approx(once.value / 2)


@given(record_lists(), st.randoms())
def test_order_of_records_changes_nothing(records, random):
  shuffled = records.copy()
  random.shuffle(shuffled)
  for measure in (length_ratio, finish_rate, empty_rate):
    assert measure(records) == measure(shuffled)
  for n in (1, 2):
    assert output_distinct_n(records, n) == output_distinct_n(shuffled, n)
    assert reference_distinct_n(records, n) == reference_distinct_n(shuffled, n)


def test_references_are_measured_by_the_first_one():
  record = make_record(text='a a a b', references=['a b', 'c c c c'])
  assert output_distinct_n([record], 1).value == 0.5
  assert reference_distinct_n([record], 1).value == 1.0


def test_length_ratio_is_one_for_copies_and_a_corpus_ratio():
  copy = make_record(text='one two', references=['one two'])
  assert length_ratio([copy]).value == 1.0
  longer = make_record('b', text='a b c d e f g h', references=['a b c d'])
  # (2 + 8) / (2 + 4); the mean of the two ratios is 1.5.
  found = length_ratio([copy, longer])
  assert (found.value, found.n) == (pytest.approx(10 / 6), 6)
  assert length_ratio([make_record(references=[''])]).value is None


def test_finish_and_empty_rates():
  records = [
    make_record('a'),
    make_record('b', finish_reason='length'),
    make_record('c', text=' \n'),
    make_record('d', text=''),
  ]
  assert finish_rate(records).value == 0.75
  assert empty_rate(records).value == 0.5
  assert finish_rate([]).value is None
  assert empty_rate([]).value is None
