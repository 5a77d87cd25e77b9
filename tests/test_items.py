"""What a run keeps of each example gives back what the run reports."""

import json

import numpy as np
import pytest
from hypothesis import given, settings

from pdl_jax.evaluate import run
from pdl_jax.evaluate.inputs import first_samples
from pdl_jax.evaluate.likelihood import BUCKETS, sums_of
from pdl_jax.evaluate.registry import METRICS, of_sums
from pdl_jax.evaluate.run import evaluate
from pdl_jax.evaluate.style import StyleClassifier
from tests.prediction_records import STOP, VOCAB, make_record, record_lists

COUNTS = np.arange(VOCAB) ** 2


def items(records, classifier=None):
  return evaluate(records, COUNTS, [STOP], classifier).items


def check(records, classifier=None):
  """What the rounded sums give is what was reported."""
  reported, found = evaluate(records, COUNTS, [STOP], classifier)
  compared = set()
  for key, metric in METRICS.items():
    for name, sums in (
      (key, metric.sums), (f'reference_{key}', metric.reference_sums)
    ):
      if not sums or not set(sums) <= set(found['sums']):
        assert not sums or name not in reported
        continue
      compared.add(name)
      again = of_sums(metric, sums, found['sums'])
      value = reported[name]['value']
      assert again.n == reported[name]['n']
      if value is None:
        assert again.value is None
      else:
        assert again.value == pytest.approx(value, rel=1e-4, abs=1e-5)
  return compared


@settings(max_examples=40, deadline=None)
@given(record_lists())
def test_sums_give_the_reported_metrics(records):
  compared = check(records)
  few = {'perplexity', 'rougeL', 'rare_f1_10', 'reference_seq_rep_4'}
  assert few <= compared
  assert not any('style' in name for name in compared)


def test_samples_of_one_example_are_added_up():
  records = [
    make_record('a#0'), make_record('b', text='another'),
    make_record('a#1', text='the cat sat', token_ids=[3, 4, 6, STOP]),
  ]  # fmt: skip
  found = items(records)['sums']
  assert found['outputs'] == [2, 1]
  assert found['nats'] == [6.5, 6.5]
  check(records)


def test_references_without_a_word_count_for_nothing_in_rouge():
  records = [make_record('a'), make_record('b', references=[':-)'])]
  assert items(records)['sums']['rouge_outputs'] == [1, 0]
  check(records)


def test_style():
  texts = ['thou art', 'thou hast', 'you are', 'you have'] * 3
  styles = ['old', 'old', 'new', 'new'] * 3
  classifier = StyleClassifier.fit(texts, styles, name='verses')
  records = [
    make_record('a', style='old', text='thou art'),
    make_record('b', style='old', text='you are'),
  ]
  found = items(records, classifier)['sums']
  assert found['right_style'] == [1, 0]
  assert 'style_accuracy' in check(records, classifier)


def test_sums_by_training_count_add_up_to_the_whole():
  records = [make_record('a'), make_record('b', reference_nll=[1, 2, 3, 4])]
  found = items(records)['sums']
  for at, whole in enumerate(('nats', 'tokens')):
    parts = [found[sums_of(bucket)[at]] for bucket in BUCKETS]
    assert [sum(x) for x in zip(*parts, strict=True)] == found[whole]
  # Of tokens 3, 4, 6 and the stop token, seen 9, 16, 36 and 0 times.
  assert found['tokens of 5-9'] == [1, 1]
  assert found['nats of 10-99'] == [5.0, 5.0]
  assert found['nats of 0'] == [0.5, 4.0]


def test_fingerprint_is_of_what_was_asked_and_not_of_the_answers():
  one = [make_record('a'), make_record('b', source='x')]
  assert run.fingerprint(one) == run.fingerprint(
    [record | {'text': 'other', 'reference_nll': [0.0]} for record in one]
  )
  for change in ({'source': 'y'}, {'references': ['z']}):
    assert run.fingerprint(one) != run.fingerprint(
      [one[0], one[1] | change]
    )
  assert run.fingerprint(one) != run.fingerprint(one[::-1])


def test_groups_of_examples():
  records = [
    make_record('a#0', group='x'), make_record('b', group='y', source='1'),
    make_record('c', group='x', source='2'), make_record('a#1', group='x'),
    make_record('d', source='3'),
  ]  # fmt: skip
  assert run.groups(first_samples(records)) == [0, 1, 0, 2]


def test_they_are_json():
  found = items([make_record()])['sums']
  assert json.loads(json.dumps(found)) == found
