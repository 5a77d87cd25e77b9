"""What a run keeps of each example gives back what the run reports."""

import json

import numpy as np
import pytest
from hypothesis import given, settings

from pdl_jax.evaluate import items
from pdl_jax.evaluate.run import evaluate
from pdl_jax.evaluate.style import StyleClassifier
from pdl_jax.report import systems
from tests.prediction_records import STOP, VOCAB, make_record, record_lists

COUNTS = np.arange(VOCAB) ** 2


def of_sums(found, key):
  names = items.SUMS[key]
  if not set(names) <= set(found):
    return None
  sums = np.array([sum(found[name]) for name in names], float)
  statistic = systems.ratio
  if key in items.PERPLEXITY:
    statistic = systems.perplexity
  if key in items.F1:
    statistic = systems.f1
  with np.errstate(invalid='ignore', divide='ignore'):
    return float(statistic(sums))


def check(records, classifier=None):
  found = items.items(records, COUNTS, [STOP], classifier)
  reported = evaluate(records, COUNTS, [STOP], classifier)
  compared = []
  for key in items.SUMS:
    value = of_sums(found, key)
    if value is None:
      assert key not in reported
      continue
    compared.append(key)
    if reported[key]['value'] is None:
      assert not np.isfinite(value)
    else:
      assert value == pytest.approx(reported[key]['value'], rel=1e-4, abs=1e-5)
  return compared


@settings(max_examples=40, deadline=None)
@given(record_lists())
def test_sums_give_the_reported_metrics(records):
  compared = check(records)
  assert set(items.SUMS) - set(compared) == {'style_accuracy', 'style_joint'}


def test_samples_of_one_example_are_added_up():
  records = [
    make_record('a#0'), make_record('b', text='another'),
    make_record('a#1', text='the cat sat', token_ids=[3, 4, 6, STOP]),
  ]  # fmt: skip
  found = items.items(records, COUNTS, [STOP])
  assert found['outputs'] == [2, 1]
  assert found['nats'] == [6.5, 6.5]
  check(records)


def test_references_without_a_word_count_for_nothing_in_rouge():
  records = [make_record('a'), make_record('b', references=[':-)'])]
  assert items.items(records, COUNTS, [STOP])['rouge_outputs'] == [1, 0]
  check(records)


def test_style():
  texts = ['thou art', 'thou hast', 'you are', 'you have'] * 3
  styles = ['old', 'old', 'new', 'new'] * 3
  classifier = StyleClassifier.fit(texts, styles, name='verses')
  records = [
    make_record('a', style='old', text='thou art'),
    make_record('b', style='old', text='you are'),
  ]
  found = items.items(records, COUNTS, [STOP], classifier)
  assert found['right_style'] == [1, 0]
  assert 'style_accuracy' in check(records, classifier)


def test_fingerprint_is_of_what_was_asked_and_not_of_the_answers():
  one = [make_record('a'), make_record('b', source='x')]
  assert items.fingerprint(one) == items.fingerprint(
    [record | {'text': 'other', 'reference_nll': [0.0]} for record in one]
  )
  for change in ({'source': 'y'}, {'references': ['z']}):
    assert items.fingerprint(one) != items.fingerprint(
      [one[0], one[1] | change]
    )
  assert items.fingerprint(one) != items.fingerprint(one[::-1])


def test_groups_of_examples():
  records = [
    make_record('a#0', group='x'), make_record('b', group='y', source='1'),
    make_record('c', group='x', source='2'), make_record('a#1', group='x'),
    make_record('d', source='3'),
  ]  # fmt: skip
  assert items.groups(records) == [0, 1, 0, 2]


def test_they_are_json():
  found = items.items([make_record()], COUNTS, [STOP])
  assert json.loads(json.dumps(found)) == found
