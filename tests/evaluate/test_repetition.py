"""Repetition, novelty and responses; lengths, which are as plain."""

import numpy as np
import pytest

from pdl_jax.evaluate.repetition import (
  distinct_responses,
  novel_n,
  sentence_distinct_n,
  top_response_share,
)
from pdl_jax.evaluate.run import evaluate
from tests.prediction_records import TEXTS, VOCAB, make_record


def test_distinct_of_a_text():
  found = [sentence_distinct_n(text, 2) for text in TEXTS]
  assert sum(found) / 4 == pytest.approx(0.9375, abs=1e-6)
  assert sentence_distinct_n('a a a a', 2) == 1 / 3
  assert sentence_distinct_n('b', 2) is sentence_distinct_n('', 2) is None


def test_novel_bigrams_golden():
  # 'a b' is known, 'b x' and 'x a' are novel.
  assert novel_n('a b x a', 'a b c', 2) == (2, 3)
  assert novel_n('c a', 'b c', 2) == (1, 1)
  assert novel_n('a b', 'a b', 1) == (0, 2)
  assert novel_n('a b', ' ', 1) == (0, 0)


def test_responses():
  texts = ["i don't know", 'yes', "i don't  know\n", 'no']
  for measure, share in ((distinct_responses, 0.75), (top_response_share, 0.5)):
    assert (measure(texts).value, measure(texts).n) == (share, 4)
    assert measure([]).value is None


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
  assert measured('novel_share_2', records[1:])['value'] is None
