import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.diversity import (
  distinct_n,
  distinct_responses,
  entropy_n,
  hapax_share_n,
  novel_n,
  sentence_distinct_n,
  top_response_share,
)
from pdl_jax.evaluate.run import evaluate
from tests.prediction_records import TEXTS, VOCAB, WORDS, make_record

CORPORA = st.lists(st.lists(st.sampled_from(WORDS)).map(' '.join))


@pytest.mark.parametrize(
  ('n', 'value', 'total'),
  [(1, 0.56, 25), (2, 0.666667, 21), (3, 0.764706, 17), (4, 0.769231, 13)],
)
def test_distinct_golden_beside_its_length(n, value, total):
  found = distinct_n(TEXTS, n)
  assert found.value == pytest.approx(value, abs=1e-6)
  assert found.n == total


def test_other_measures_golden():
  found = [sentence_distinct_n(text, 2) for text in TEXTS]
  assert sum(found) / 4 == pytest.approx(0.9375, abs=1e-6)
  found = hapax_share_n(TEXTS, 2)
  assert found.value == pytest.approx(0.380952, abs=1e-6)
  assert found.n == 21
  found = entropy_n(TEXTS, 2)
  assert found.value == pytest.approx(3.689704, abs=1e-6)
  assert found.n == 21


def test_ngrams_never_cross_texts():
  assert distinct_n(['a b', 'c d'], 2).n == 2
  assert distinct_n(['a', 'b', 'c'], 2).value is None


@pytest.mark.parametrize(
  'measure', [distinct_n, hapax_share_n, entropy_n]
)
@pytest.mark.parametrize('texts', [[], [''], ['   ']])
def test_of_nothing_is_none_not_zero(measure, texts):
  found = measure(texts, 1)
  assert (found.value, found.n) == (None, 0)


@pytest.mark.parametrize(
  'measure', [distinct_n, hapax_share_n, entropy_n]
)
def test_0_grams_are_refused(measure):
  with pytest.raises(ConfigError, match='got 0'):
    measure(TEXTS, 0)


def test_distinct_of_a_text():
  assert sentence_distinct_n('a a a a', 2) == 1 / 3
  assert sentence_distinct_n('b', 2) is sentence_distinct_n('', 2) is None


@given(CORPORA, st.integers(1, 4))
def test_ranges_and_what_doubling_does(texts, n):
  hapax, entropy = hapax_share_n(texts, n), entropy_n(texts, n)
  if entropy.value is None:
    return
  assert 0 <= hapax.value <= distinct_n(texts, n).value
  assert hapax_share_n(texts * 2, n).value == 0
  assert 0 <= entropy.value <= math.log2(entropy.n) + 1e-12
  assert entropy_n(texts * 2, n).value == pytest.approx(entropy.value)


def test_entropy_of_even_types_is_their_logarithm():
  assert entropy_n(['a b c d e f g h'], 1).value == pytest.approx(3)
  assert math.copysign(1, entropy_n(['a a a'], 1).value) == 1


def test_novel_bigrams_golden():
  # 'a b' is known, 'b x' and 'x a' are novel.
  assert novel_n('a b x a', 'a b c', 2) == (2, 3)
  assert novel_n('c a', 'b c', 2) == (1, 1)
  assert novel_n('a b', 'a b', 1) == (0, 2)
  assert novel_n('a b', ' ', 1) == (0, 0)


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


def measured(key, records):
  return evaluate(records, np.ones(VOCAB, int), []).results[key]


def test_length_ratio_is_one_for_copies_and_a_corpus_ratio():
  copy = make_record(text='one two', references=['one two'])
  assert measured('length_ratio', [copy])['value'] == 1.0
  longer = make_record('b', text='a b c d e f g h', references=['a b c d'])
  # (2 + 8) / (2 + 4); the mean of the two ratios is 1.5.
  found = measured('length_ratio', [copy, longer])
  assert (found['value'], found['n']) == (pytest.approx(10 / 6), 6)
  empty = make_record(references=[''])
  assert measured('length_ratio', [empty])['value'] is None


def test_finish_and_empty_rates():
  records = [
    make_record('a'),
    make_record('b', finish_reason='length'),
    make_record('c', text=' \n'),
    make_record('d', text=''),
  ]
  assert measured('finish_rate', records)['value'] == 0.75
  assert measured('empty_rate', records)['value'] == 0.5


def test_repetition_is_a_mean_over_texts_and_within_a_text():
  records = [
    make_record('a', text='a a a a a a', references=['a b c']),
    make_record('b', text='a b c d e f g h', references=['']),
  ]
  # Of 3 and 5 4-grams, 2 and 0 are repeated.
  found = measured('seq_rep_4', records)
  assert (found['value'], found['n']) == (pytest.approx((2 / 3 + 0) / 2), 2)
  assert measured('reference_seq_rep_4', records)['value'] is None
  same = [make_record(name, text='a b c d') for name in 'ab']
  assert measured('seq_rep_4', same)['value'] == 0


def test_novelty_is_against_the_own_source_and_needs_one():
  records = [
    make_record('a', text='a b x', source='a b', references=['a b']),
    make_record('b', text='a b', source='', references=['c d']),
  ]
  found = measured('novel_share_2', records)
  assert (found['value'], found['n']) == (1 / 2, 2)
  assert measured('reference_novel_share_2', records)['value'] == 0
