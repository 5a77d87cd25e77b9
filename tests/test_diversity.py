import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.diversity import (
  ZIPF_RANKS,
  distinct_n,
  distinct_responses,
  empty_rate,
  entropy_n,
  finish_rate,
  hapax_share_n,
  length_ratio,
  novel_share_n,
  sentence_distinct_n,
  top_response_share,
  zipf,
)
from tests.prediction_records import TEXTS, WORDS, make_record, record_lists

CORPORA = st.lists(st.lists(st.sampled_from(WORDS)).map(' '.join))


@pytest.mark.parametrize(
  ('n', 'value', 'total'),
  [(1, 0.56, 25), (2, 0.666667, 21), (3, 0.764706, 17), (4, 0.769231, 13)],
)
def test_distinct_golden_beside_its_length(n, value, total):
  found = distinct_n(TEXTS, n)
  assert found.value == pytest.approx(value, abs=1e-6)
  assert (found.n, found.unit) == (total, f'word {n}-grams')


def test_other_measures_golden():
  found = sentence_distinct_n(TEXTS, 2)
  assert found.value == pytest.approx(0.9375, abs=1e-6)
  assert (found.n, found.unit) == (4, 'texts')
  found = hapax_share_n(TEXTS, 2)
  assert found.value == pytest.approx(0.380952, abs=1e-6)
  assert (found.n, found.unit) == (21, 'word 2-grams')
  found = entropy_n(TEXTS, 2)
  assert found.value == pytest.approx(3.689704, abs=1e-6)
  assert found.n == 21


def test_ngrams_never_cross_texts():
  assert distinct_n(['a b', 'c d'], 2).n == 2
  assert distinct_n(['a', 'b', 'c'], 2).value is None


@pytest.mark.parametrize(
  'measure', [distinct_n, sentence_distinct_n, hapax_share_n, entropy_n]
)
@pytest.mark.parametrize('texts', [[], [''], ['   ']])
def test_of_nothing_is_none_not_zero(measure, texts):
  found = measure(texts, 1)
  assert (found.value, found.n) == (None, 0)
  assert zipf(texts).value is None


@pytest.mark.parametrize(
  'measure', [distinct_n, sentence_distinct_n, hapax_share_n, entropy_n]
)
def test_0_grams_are_refused(measure):
  with pytest.raises(ConfigError, match='got 0'):
    measure(TEXTS, 0)


def test_too_short_texts_leave_the_mean():
  found = sentence_distinct_n(['a a a a', 'b', ''], 2)
  assert (found.value, found.n) == (pytest.approx(1 / 3), 1)


@given(CORPORA, st.integers(1, 4))
def test_ranges_and_what_doubling_does(texts, n):
  hapax, entropy = hapax_share_n(texts, n), entropy_n(texts, n)
  if entropy.value is None:
    return
  assert 0 <= hapax.value <= distinct_n(texts, n).value
  assert hapax_share_n(texts * 2, n).value == 0
  assert 0 <= entropy.value <= math.log2(entropy.n) + 1e-12
  assert entropy_n(texts * 2, n).value == pytest.approx(entropy.value)
  once = sentence_distinct_n(texts, n)
  assert sentence_distinct_n(texts * 2, n).value == pytest.approx(once.value)


def test_entropy_of_even_types_is_their_logarithm():
  assert entropy_n(['a b c d e f g h'], 1).value == pytest.approx(3)
  assert math.copysign(1, entropy_n(['a a a'], 1).value) == 1


def test_zipf_of_an_exact_law_is_its_exponent():
  counts = {'a': 12, 'b': 6, 'c': 4, 'd': 3}  # 12 / rank
  text = ' '.join(f'{word} ' * count for word, count in counts.items())
  found = zipf([text])
  assert found.value == pytest.approx(1)
  assert (found.n, found.unit) == (25, 'words')
  squares = {'a': 36, 'b': 9, 'c': 4}  # 36 / rank ** 2
  text = ' '.join(f'{word} ' * count for word, count in squares.items())
  assert zipf([text]).value == pytest.approx(2)


def test_zipf_is_flat_for_even_counts_and_undefined_for_one_type():
  assert zipf(['a b c d']).value == pytest.approx(0)
  assert zipf(['a a a']).value is None


def test_zipf_stops_at_its_last_rank():
  even = ' '.join(map(str, range(ZIPF_RANKS))) * 2
  assert zipf([even, 'a b c d']).value == pytest.approx(zipf([even]).value)


def test_novel_share_golden():
  # Bigrams 'a b' known, 'b x' and 'x a' novel; the second text has 'c a'.
  found = novel_share_n(['a b x a', 'c a'], ['a b c', 'b c'], 2)
  assert (found.value, found.n) == (3 / 4, 4)
  assert found.unit == 'word 2-grams'
  assert novel_share_n(['a b', 'c'], ['a b', 'x c'], 1).value == 0


def test_novel_share_without_sources():
  assert novel_share_n(['a b', 'c'], ['', ' '], 1).value is None
  found = novel_share_n(['a b', 'c'], ['a', ''], 1)
  assert (found.value, found.n) == (1 / 2, 2)


def test_novelty_is_against_the_own_source():
  assert novel_share_n(['a', 'b'], ['b', 'a'], 1).value == 1.0


def test_responses():
  texts = ["i don't know", 'yes', "i don't  know\n", 'no']
  assert distinct_responses(texts).value == 3 / 4
  assert top_response_share(texts).value == 2 / 4
  assert (distinct_responses(texts).n, top_response_share(texts).n) == (4, 4)
  assert distinct_responses([]).value is None
  assert top_response_share([]).value is None


@given(CORPORA, st.integers(1, 4))
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
