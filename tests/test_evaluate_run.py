import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate.perplexity import BUCKETS
from pdl_jax.evaluate.run import (
  evaluate,
  format_frequency_table,
  format_table,
)
from tests.prediction_records import STOP, make_record, record_lists

COUNTS = np.array([50, 0, 1, 2, 3, 4, 5, 10, 100, 1000, 20, 30])


def results(**fields):
  return evaluate(
    [make_record('a', **fields), make_record('b')], COUNTS, [STOP]
  )


def cells(table):
  lines = table.splitlines()
  rows = [line.strip('| ').split(' | ') for line in (lines[0], *lines[2:])]
  return [[cell.strip() for cell in row] for row in rows]


def row(table, label):
  (found,) = [r for r in cells(table) if r[0].startswith(label)]
  return found


def test_every_metric_carries_its_definition_and_is_json():
  found = results()
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert found.pop('examples') == 2
  assert found.pop('perplexity_by_frequency')['n'] == 8
  for name, metric in found.items():
    signed = {'signature'} if name.startswith('rouge') else set()
    assert metric.keys() == {'value', 'n', 'unit', 'definition'} | signed


def test_keys_are_the_contract():
  rare = [
    f'{name}_{percent}'
    for name in (
      'rare_precision',
      'rare_recall',
      'rare_f1',
      'rare_mass',
      'reference_rare_mass',
      'rare_training_share',
    )
    for percent in (1, 5, 10)
  ]
  assert results().keys() == {
    'examples',
    'perplexity',
    'nats_per_token',
    'bits_per_byte',
    'rouge1',
    'rouge2',
    'rougeL',
    'distinct_1',
    'distinct_2',
    'reference_distinct_1',
    'reference_distinct_2',
    'length_ratio',
    'finish_rate',
    'empty_rate',
    'perplexity_by_frequency',
    *rare,
  }


def test_rare_percents_are_not_mixed_up():
  record = make_record(
    token_ids=[1, 2, 3], reference_ids=[1, 2, 3], reference_nll=[1.0] * 3
  )
  # Of 100 tokens: type 1 unseen, type 2 once, type 3 four times, type 4 five.
  counts = np.array([7, 0, 1, 4, 5, 90])
  found = evaluate([record], counts, [STOP])
  assert [found[f'rare_mass_{p}']['n'] for p in (1, 5, 10)] == [3, 3, 3]
  assert [found[f'rare_recall_{p}']['n'] for p in (1, 5, 10)] == [2, 3, 3]
  share = [found[f'rare_training_share_{p}']['value'] for p in (1, 5, 10)]
  assert share == [0.01, 0.05, 0.10]


@settings(max_examples=20)
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


@pytest.mark.parametrize(
  'names', [('PDL',), ('Pretrained', 'PDL'), ('Pretrained', 'CE', 'PDL')]
)
@pytest.mark.parametrize(
  ('format_any', 'before', 'after', 'n_rows'),
  [
    (format_table, 2, 1, 14),
    (format_frequency_table, 2, 0, 1 + len(BUCKETS)),
  ],
)
def test_tables_are_aligned_markdown_with_a_column_a_system(
  names, format_any, before, after, n_rows
):
  table = format_any(dict.fromkeys(names, results()))
  lines = table.splitlines()
  assert table.endswith('|\n')
  assert len({len(line) for line in lines}) == 1
  assert len({line.count('|') for line in lines}) == 1
  assert set(lines[1]) <= set('|-: ')
  header = cells(table)[0]
  assert len(cells(table)) == n_rows
  systems = header[before : len(header) - after]
  assert systems == [f'{name} (n=2)' for name in names]


def test_table_cells():
  table = format_table({'PDL': results(finish_reason='length')})
  assert cells(table)[0] == [
    'Metric (rare: rarest 10 %)',
    'Better',
    'PDL (n=2)',
    'References',
  ]
  # 13 nats over 8 tokens; 13 / ln 2 bits over 22 bytes.
  assert row(table, 'Target perplexity')[1:] == ['lower', '5.08', '-']
  assert row(table, 'Bits per byte')[1:] == ['lower', '0.853', '-']
  assert row(table, 'ROUGE-1')[1:] == ['higher', '66.67', '-']
  human = 'closest to references'
  assert row(table, 'Distinct-1')[1:] == [human, '0.500 (6)', '0.500 (6)']
  assert row(table, 'Distinct-2')[1:] == [human, '0.500 (4)', '0.500 (4)']
  assert row(table, 'Rare mass')[1:] == [human, '100.0', '100.0']
  assert row(table, 'Rare-token F1')[1:] == ['higher', '66.7', '-']
  assert row(table, 'Length ratio')[1:] == ['closest to 1', '1.00', '-']
  assert row(table, 'Finish rate')[1:] == ['higher', '50.0', '-']


def test_columns_keep_their_order_and_their_numbers():
  worse = results(text='nothing')
  table = format_table({'B': worse, 'A': results()})
  assert row(table, 'ROUGE-1')[2:] == ['33.33', '66.67', '-']
  swapped = format_table({'A': results(), 'B': worse})
  assert row(swapped, 'ROUGE-1')[2:] == ['66.67', '33.33', '-']


def test_undefined_and_absent_values_print_as_missing():
  partial = results()
  partial['perplexity']['value'] = None
  del partial['rouge1'], partial['reference_distinct_1']
  table = format_table({'PDL': partial})
  assert row(table, 'Target perplexity')[2] == 'missing'
  assert row(table, 'ROUGE-1')[2] == 'missing'
  assert row(table, 'Distinct-1')[3] == 'missing'
  del partial['perplexity_by_frequency']
  assert row(format_frequency_table({'PDL': partial}), '5-9')[1:] == [
    'missing',
    'missing',
  ]


def test_a_reference_value_comes_from_any_system_that_has_it():
  partial = results()
  del partial['reference_distinct_1']
  table = format_table({'CE': partial, 'PDL': results()})
  assert row(table, 'Distinct-1')[4] == '0.500 (6)'


def test_zero_is_printed_as_zero():
  nothing = [make_record(text='dog', finish_reason='length')]
  table = format_table({'PDL': evaluate(nothing, COUNTS, [STOP])})
  assert 'PDL (n=1)' in cells(table)[0]
  assert row(table, 'Finish rate')[2] == '0.0'
  assert row(table, 'ROUGE-L')[2] == '0.00'


def test_frequency_table_cells():
  table = format_frequency_table({'CE': results(), 'PDL': results()})
  assert cells(table)[0] == [
    'Count in training',
    'Target tokens',
    'CE (n=2)',
    'PDL (n=2)',
  ]
  assert row(table, '2')[1:] == ['2', '2.72', '2.72']
  assert row(table, '5-9')[1:] == ['2', '20.09', '20.09']
  assert row(table, '10-99')[1:] == ['2', '1.65', '1.65']
  assert row(table, '1000+')[1:] == ['0', '-', '-']


def test_systems_on_other_examples_are_refused():
  other = evaluate([make_record()], COUNTS, [STOP])
  for format_any in (format_table, format_frequency_table):
    with pytest.raises(DataError, match='differ in examples: CE 1, PDL 2'):
      format_any({'CE': other, 'PDL': results()})
  other = results(references=['the cat the cat'])
  with pytest.raises(DataError, match='differ in the references of Distinct-1'):
    format_table({'CE': other, 'PDL': results()})
  counts = np.roll(COUNTS, 1)
  other = evaluate([make_record('a'), make_record('b')], counts, [STOP])
  with pytest.raises(DataError, match='differ in target tokens of count 1'):
    format_frequency_table({'CE': other, 'PDL': results()})


def test_no_columns_are_refused():
  for format_any in (format_table, format_frequency_table):
    with pytest.raises(ConfigError, match='at least one system'):
      format_any({})


def test_a_bar_in_a_name_does_not_open_a_column():
  table = format_table({'a|b': results()})
  assert 'a\\|b (n=2)' in table
