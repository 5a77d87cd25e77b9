import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdl_jax.errors import DataError
from pdl_jax.evaluate import run
from pdl_jax.evaluate.side_by_side import format_table
from pdl_jax.evaluate.style import StyleClassifier
from tests.prediction_records import STOP, make_record, record_lists

COUNTS = np.array([50, 0, 1, 2, 3, 4, 5, 10, 100, 1000, 20, 30])


def evaluate(*inputs, **options):
  return run.evaluate(*inputs, **options).results


def results(**fields):
  return evaluate(
    [make_record('a', **fields), make_record('b')], COUNTS, [STOP]
  )


SIGNED = ('rouge', 'bleu', 'chrf', 'self_bleu', 'reference_self_bleu')


def test_every_metric_carries_its_definition_and_is_json():
  found = results()
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert found.pop('examples') == found.pop('outputs') == 2
  assert found.pop('perplexity_by_frequency')['n'] == 8
  for name, metric in found.items():
    signed = {'signature'} if name.startswith(SIGNED) else set()
    assert metric.keys() == {'value', 'n', 'unit', 'definition'} | signed


VARIETY = [
  *(f'distinct_{n}' for n in (1, 2, 3, 4)), 'hapax_share_2', 'entropy_2',
  'self_bleu_4', 'seq_rep_4', 'sentence_distinct_2', 'novel_share_2',
]  # fmt: skip


def test_keys_are_the_contract():
  rare = [
    f'{name}_{percent}'
    for name in (
      'rare_precision',
      'rare_recall',
      'rare_f1',
      'rare_mass',
      'reference_rare_mass',
    )
    for percent in (1, 5, 10)
  ]
  assert results().keys() == {
    'examples',
    'outputs',
    'perplexity',
    'nats_per_token',
    'bits_per_byte',
    'rouge1',
    'rouge2',
    'rougeL',
    'rougeLsum',
    'bleu',
    'chrf',
    *VARIETY,
    *(f'reference_{key}' for key in VARIETY),
    'length_ratio',
    'finish_rate',
    'empty_rate',
    'perplexity_by_frequency',
    *rare,
  }


def test_variety_of_outputs_and_references_is_not_mixed_up():
  record = make_record(
    text='a a a a a a b', references=['a b c d e', 'x x x'], source='a b'
  )
  copy = record | {'text': record['references'][0]}
  other = record | {'references': [record['text']]}
  found, of_copy, of_other = (
    evaluate([r], COUNTS, [STOP]) for r in (record, copy, other)
  )
  for key in VARIETY:
    assert found[f'reference_{key}'] == of_copy[key]
    assert found[key] == of_other[f'reference_{key}']
  different = ('distinct_1', 'entropy_2', 'seq_rep_4', 'novel_share_2')
  for key in different:
    assert found[key]['value'] != found[f'reference_{key}']['value']


def test_orders_of_ngrams_are_not_mixed_up():
  found = evaluate([make_record(text='a a b a a')], COUNTS, [STOP])
  totals = [found[f'distinct_{n}']['n'] for n in (1, 2, 3, 4)]
  assert totals == [5, 4, 3, 2]
  for name in ('hapax_share', 'entropy', 'novel_share'):
    assert found[f'{name}_2']['n'] == 4
  assert found['sentence_distinct_2']['value'] == 3 / 4


def test_self_bleu_is_of_all_examples_of_a_small_set():
  assert results()['self_bleu_4']['n'] == 2
  assert results()['reference_self_bleu_4']['value'] == pytest.approx(1)


def test_samples_of_one_example():
  single = [make_record('a#0'), make_record('b#0', text='another')]
  again = [make_record('a#1', text='a cat sat'), make_record('b#1', text='x')]
  found = evaluate([*again, *single], COUNTS, [STOP])
  alone = evaluate(single, COUNTS, [STOP])
  assert (found['examples'], found['outputs']) == (2, 4)
  assert found['rouge1']['n'] == 4
  likelihoods = (
    'perplexity',
    'nats_per_token',
    'bits_per_byte',
    'perplexity_by_frequency',
  )
  for key in likelihoods:
    assert found[key] == alone[key]
  for key in (*VARIETY, *(f'reference_{k}' for k in VARIETY)):
    assert found[key] == alone[key]
  between = {f'prompt_distinct_{n}' for n in (1, 2)}
  assert found.keys() - alone.keys() == {*between, 'prompt_self_bleu_4'}
  # 'a cat sat' and 'the cat smiled'; 'x' and 'another'.
  assert found['prompt_distinct_1']['value'] == pytest.approx((5 / 6 + 1) / 2)
  assert found['prompt_self_bleu_4']['n'] == 2


def test_responses_are_compared_in_dialogue_alone():
  records = [make_record('a'), make_record('b'), make_record('c', text='no')]
  found = evaluate(records, COUNTS, [STOP], dialogue=True)
  assert found['distinct_responses']['value'] == pytest.approx(2 / 3)
  assert found['top_response_share']['value'] == pytest.approx(2 / 3)
  assert found['reference_distinct_responses']['value'] == pytest.approx(1 / 3)
  assert found['reference_top_response_share']['value'] == 1.0
  plain = evaluate(records, COUNTS, [STOP])
  assert found.keys() - plain.keys() == {
    'distinct_responses',
    'top_response_share',
    'reference_distinct_responses',
    'reference_top_response_share',
  }


def test_style_is_measured_by_a_classifier():
  classifier = StyleClassifier.fit(
    ['the cat sat', 'thou hast'], ['new', 'old'], name='two'
  )
  records = [make_record(style='new')]
  found = evaluate(records, COUNTS, [STOP], classifier)
  assert found['style_accuracy']['value'] == 1.0
  assert found['style_joint']['n'] == 1
  plain = evaluate(records, COUNTS, [STOP])
  assert all('style' in key for key in found.keys() - plain.keys())


def test_a_chinese_corpus_is_measured_without_rouge():
  record = make_record(
    source='猫坐在垫子上', references=['猫坐在垫子上面'], text='猫坐在垫子上面'
  )
  found = evaluate([record], COUNTS, [STOP])
  assert found['bleu']['value'] == pytest.approx(100)
  assert found['chrf']['value'] == pytest.approx(100)
  assert found['rouge1']['value'] is None
  assert 'another script' in found['rouge1']['definition']


def test_a_corpus_without_sources_has_no_novelty():
  found = evaluate([make_record(source='')], COUNTS, [STOP])
  assert found['novel_share_2']['value'] is None
  assert found['reference_novel_share_2']['value'] is None


def test_rare_percents_are_not_mixed_up():
  record = make_record(
    token_ids=[1, 2, 3], reference_ids=[1, 2, 3], reference_nll=[1.0] * 3
  )
  # Of 100 tokens: type 1 unseen, type 2 once, type 3 four times, type 4 five.
  counts = np.array([7, 0, 1, 4, 5, 90])
  found = evaluate([record], counts, [STOP])
  assert [found[f'rare_mass_{p}']['n'] for p in (1, 5, 10)] == [3, 3, 3]
  assert [found[f'rare_recall_{p}']['n'] for p in (1, 5, 10)] == [2, 3, 3]


@settings(max_examples=20, deadline=None)
@given(record_lists(), st.randoms())
def test_order_of_records_changes_nothing(records, random):
  shuffled = records.copy()
  random.shuffle(shuffled)
  assert evaluate(records, COUNTS, [STOP]) == evaluate(shuffled, COUNTS, [STOP])


def test_a_copy_of_the_reference_is_perfect():
  copy = make_record(text='the cat sat', token_ids=[3, 4, 6, STOP])
  found = evaluate([copy], COUNTS, [STOP])
  perfect = ('rouge1', 'rouge2', 'rougeL', 'rare_f1_10', 'length_ratio')
  assert [found[key]['value'] for key in perfect] == [1.0] * 5
  for key in ('distinct_1', 'rare_mass_10'):
    assert found[key]['value'] == found[f'reference_{key}']['value']


def without(field):
  return {k: v for k, v in make_record('x').items() if k != field}


@pytest.mark.parametrize('field', make_record())
def test_missing_field_is_named(field):
  name = 'position 1' if field == 'id' else "'x'"
  with pytest.raises(DataError, match=rf"{name}.*'{field}' is missing"):
    evaluate([make_record(), without(field)], COUNTS, [STOP])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'references': []}, "'x': field 'references' is empty"),
    (
      {'reference_ids': [], 'reference_nll': []},
      "'x': field 'reference_ids' is empty",
    ),
    ({'reference_nll': [1.0]}, "'x': field 'reference_nll' has 1 values for 4"),
    ({'finish_reason': 'eos'}, "'x': field 'finish_reason' is 'eos'"),
    ({'references': 'the cat'}, "'x': field 'references' is a str, not a list"),
    ({'text': None}, "'x': field 'text' is a NoneType"),
    ({'token_ids': [1.5]}, "'x': field 'token_ids' holds 1.5 of type float"),
    (
      {'reference_nll': [1.0, None, 1.0, 1.0]},
      "'x': field 'reference_nll' holds None",
    ),
    ({'id': 'a'}, "'a': field 'id' comes twice .*position 1"),
  ],
)
def test_bad_record_is_refused(fields, message):
  with pytest.raises(DataError, match=message):
    evaluate([make_record(), make_record('x') | fields], COUNTS, [STOP])


def test_no_records_are_refused():
  with pytest.raises(DataError, match='no prediction records'):
    evaluate([], COUNTS, [STOP])


def test_counts_of_another_vocabulary_are_refused():
  with pytest.raises(DataError, match=r"'a'.*outside \[0, 4\)"):
    evaluate([make_record()], COUNTS[:4], [STOP])


def test_definitions_hold_for_conversations_and_for_windows():
  assert 'turn' not in json.dumps(results())


def test_windows_have_no_finish_rate():
  whole = evaluate([make_record()], COUNTS, [STOP])
  windows = evaluate([make_record()], COUNTS, [STOP], windows=True)
  assert windows == {k: v for k, v in whole.items() if k != 'finish_rate'}
  assert 'Finish rate' in format_table({'a': whole})
  assert 'Finish rate' not in format_table({'a': windows})
