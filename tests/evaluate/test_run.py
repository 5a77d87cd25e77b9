"""All metrics together, and what a run keeps of each example."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdl_jax.errors import DataError
from pdl_jax.evaluate import run
from pdl_jax.evaluate.likelihood import BUCKETS, sums_of
from pdl_jax.evaluate.registry import METRICS, Inputs, of_sums
from pdl_jax.evaluate.side_by_side import format_table
from pdl_jax.evaluate.style import StyleClassifier
from tests.prediction_records import STOP, make_record, record_lists

COUNTS = np.array([50, 0, 1, 2, 3, 4, 5, 10, 100, 1000, 20, 30])
SIGNED = ('rouge', 'bleu', 'chrf', 'self_bleu', 'reference_self_bleu')
VARIETY = [
  *(f'distinct_{n}' for n in (1, 2, 3, 4)), 'hapax_share_2', 'entropy_2',
  'self_bleu_4', 'seq_rep_4', 'sentence_distinct_2', 'novel_share_2',
]  # fmt: skip
RARE = ('precision', 'recall', 'f1', 'mass')


def evaluate(records, **options):
  return run.evaluate(records, COUNTS, [STOP], **options).results


def test_every_metric_carries_its_definition_and_is_json():
  found = evaluate([make_record('a'), make_record('b')])
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert 'turn' not in json.dumps(found)  # true of windows too
  assert found.pop('examples') == found.pop('outputs') == 2
  assert found.pop('perplexity_by_frequency')['n'] == 8
  for name, metric in found.items():
    signed = {'signature'} if name.startswith(SIGNED) else set()
    assert metric.keys() == {'value', 'n', 'unit', 'definition'} | signed
  # The keys are the contract.
  assert found.keys() == {
    'perplexity', 'nats_per_token', 'bits_per_byte',
    'rouge1', 'rouge2', 'rougeL', 'rougeLsum', 'bleu', 'chrf',
    *VARIETY, *(f'reference_{key}' for key in VARIETY),
    'length_ratio', 'finish_rate', 'empty_rate',
    *(f'rare_{name}_{percent}' for name in RARE for percent in (1, 5, 10)),
    *(f'reference_rare_mass_{percent}' for percent in (1, 5, 10)),
  }  # fmt: skip


def test_variety_of_outputs_and_references_is_not_mixed_up():
  record = make_record(
    text='a a a a a a b', references=['a b c d e', 'x x x'], source='a b'
  )
  copy = record | {'text': record['references'][0]}
  other = record | {'references': [record['text']]}
  found, of_copy, of_other = (evaluate([r]) for r in (record, copy, other))
  for key in VARIETY:
    assert found[f'reference_{key}'] == of_copy[key]
    assert found[key] == of_other[f'reference_{key}']
  for key in ('distinct_1', 'entropy_2', 'seq_rep_4', 'novel_share_2'):
    assert found[key]['value'] != found[f'reference_{key}']['value']


def test_orders_and_percents_are_not_mixed_up():
  found = evaluate([make_record(text='a a b a a')])
  assert [found[f'distinct_{n}']['n'] for n in (1, 2, 3, 4)] == [5, 4, 3, 2]
  for name in ('hapax_share', 'entropy', 'novel_share'):
    assert found[f'{name}_2']['n'] == 4
  assert found['sentence_distinct_2']['value'] == 3 / 4
  # Of 100 tokens: type 1 unseen, type 2 once, type 3 four times, type 4 five.
  record = make_record(
    token_ids=[1, 2, 3], reference_ids=[1, 2, 3], reference_nll=[1.0] * 3
  )
  counts = np.array([7, 0, 1, 4, 5, 90])
  found = run.evaluate([record], counts, [STOP]).results
  assert [found[f'rare_mass_{p}']['n'] for p in (1, 5, 10)] == [3, 3, 3]
  assert [found[f'rare_recall_{p}']['n'] for p in (1, 5, 10)] == [2, 3, 3]


def test_samples_of_one_example():
  single = [make_record('a#0'), make_record('b#0', text='another')]
  again = [make_record('a#1', text='a cat sat'), make_record('b#1', text='x')]
  found, alone = evaluate([*again, *single]), evaluate(single)
  assert (found['examples'], found['outputs']) == (2, 4)
  assert found['rouge1']['n'] == 4
  first = ('perplexity', 'nats_per_token', 'bits_per_byte')
  for key in (
    *first, 'perplexity_by_frequency', *VARIETY,
    *(f'reference_{k}' for k in VARIETY),
  ):  # fmt: skip
    assert found[key] == alone[key]
  assert found.keys() - alone.keys() == {
    'prompt_distinct_1', 'prompt_distinct_2', 'prompt_self_bleu_4',
  }  # fmt: skip
  # 'a cat sat' and 'the cat smiled'; 'x' and 'another'.
  assert found['prompt_distinct_1']['value'] == pytest.approx((5 / 6 + 1) / 2)
  assert found['prompt_self_bleu_4']['n'] == 2


@settings(max_examples=20, deadline=None)
@given(record_lists(), st.randoms())
def test_order_of_records_changes_nothing(records, random):
  shuffled = records.copy()
  random.shuffle(shuffled)
  assert evaluate(records) == evaluate(shuffled)


def test_windows_have_no_finish_rate():
  whole = evaluate([make_record()])
  windows = evaluate([make_record()], windows=True)
  assert windows == {k: v for k, v in whole.items() if k != 'finish_rate'}
  assert 'Finish rate' in format_table({'a': whole})
  assert 'Finish rate' not in format_table({'a': windows})


def test_bad_inputs_are_refused():
  with pytest.raises(DataError, match='no prediction records'):
    evaluate([])
  with pytest.raises(DataError, match=r"'a'.*outside \[0, 4\)"):
    run.evaluate([make_record()], COUNTS[:4], [STOP])
  with pytest.raises(DataError, match='not integers'):
    run.evaluate([make_record()], np.array([0.5, 0.5]), [])


def check(records, classifier=None):
  """What the rounded sums give is what was reported."""
  reported, found = run.evaluate(records, COUNTS, [STOP], classifier)
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
  assert json.loads(json.dumps(found)) == found
  return compared, found['sums']


@settings(max_examples=40, deadline=None)
@given(record_lists())
def test_sums_give_the_reported_metrics(records):
  compared, _ = check(records)
  few = {'perplexity', 'rougeL', 'rare_f1_10', 'reference_seq_rep_4'}
  assert few <= compared
  assert not any('style' in name for name in compared)


def test_sums_are_of_examples():
  _, sums = check([
    make_record('a#0'), make_record('b', text='another'),
    make_record('a#1', text='the cat sat', token_ids=[3, 4, 6, STOP]),
  ])  # fmt: skip
  assert sums['outputs'] == [2, 1]
  assert sums['nats'] == [6.5, 6.5]
  _, sums = check([make_record('a'), make_record('b', references=[':-)'])])
  assert sums['rouge_outputs'] == [1, 0]
  classifier = StyleClassifier.fit(
    ['thou art', 'thou hast', 'you are', 'you have'] * 3,
    ['old', 'old', 'new', 'new'] * 3, name='verses',
  )  # fmt: skip
  compared, sums = check([
    make_record('a', style='old', text='thou art'),
    make_record('b', style='old', text='you are'),
  ], classifier)
  assert sums['right_style'] == [1, 0]
  assert 'style_accuracy' in compared


def test_sums_by_training_count_add_up_to_the_whole():
  records = [make_record('a'), make_record('b', reference_nll=[1, 2, 3, 4])]
  _, sums = check(records)
  for at, whole in enumerate(('nats', 'tokens')):
    parts = [sums[sums_of(bucket)[at]] for bucket in BUCKETS]
    assert [sum(x) for x in zip(*parts, strict=True)] == sums[whole]
  # Of tokens 3, 4, 6 and the stop token, seen 2, 3, 5 and 50 times.
  assert sums['tokens of 5-9'] == [1, 1]
  assert sums['nats of 2'] == [1.0, 1]
  assert sums['nats of 10-99'] == [0.5, 4]


def test_fingerprint_is_of_what_was_asked_and_not_of_the_answers():
  one = [make_record('a'), make_record('b', source='x')]
  asked = run.fingerprint(one)
  answered = [r | {'text': 'other', 'reference_nll': [0.0]} for r in one]
  assert run.fingerprint(answered) == asked
  others = [one[::-1]]
  for change in ({'source': 'y'}, {'references': ['z']}):
    others.append([one[0], one[1] | change])
  assert asked not in map(run.fingerprint, others)


def test_groups_of_examples():
  records = [
    make_record('a#0', group='x'), make_record('b', group='y', source='1'),
    make_record('c', group='x', source='2'), make_record('a#1', group='x'),
    make_record('d', source='3'),
  ]  # fmt: skip
  assert run.groups(Inputs(records, COUNTS).examples) == [0, 1, 0, 2]
