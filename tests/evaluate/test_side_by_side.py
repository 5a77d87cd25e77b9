import numpy as np
import pytest

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate import run
from pdl_jax.evaluate.likelihood import BUCKETS
from pdl_jax.evaluate.side_by_side import (
  format_frequency_table,
  format_table,
  format_tables,
)
from pdl_jax.evaluate.style import StyleClassifier
from tests.prediction_records import STOP, make_record

COUNTS = np.array([50, 0, 1, 2, 3, 4, 5, 10, 100, 1000, 20, 30])
HUMAN = 'closest to references'


def evaluate(*records, counts=COUNTS, **options):
  return run.evaluate(records, counts, [STOP], **options).results


def results(**fields):
  return evaluate(make_record('a', **fields), make_record('b'))


def cells(table):
  lines = table.splitlines()
  rows = [line.strip('| ').split(' | ') for line in (lines[0], *lines[2:])]
  return [[cell.strip() for cell in row] for row in rows]


def row(table, label):
  (found,) = [r for r in cells(table) if r[0].startswith(label)]
  return found[1:]


def labels(table):
  return {r[0] for r in cells(table)}


@pytest.mark.parametrize('names', [('PDL',), ('Pretrained', 'CE', 'a|b')])
@pytest.mark.parametrize(
  ('format_any', 'head', 'end', 'n_rows'),
  [
    (format_table, ['Metric (rare: rarest 10 %)', 'Better'], ['References'],
     19),
    (format_frequency_table, ['Count in training', 'Target tokens'], [],
     1 + len(BUCKETS)),
  ],
)  # fmt: skip
def test_tables_are_aligned_markdown_with_a_column_a_system(
  names, format_any, head, end, n_rows
):
  table = format_any(dict.fromkeys(names, results()))
  lines = table.splitlines()
  assert table.endswith('|\n')
  assert len({len(line) for line in lines}) == 1
  # A bar in a name does not open a column.
  assert len({line.count('|') - line.count('\\|') for line in lines}) == 1
  assert set(lines[1]) <= set('|-: ')
  assert len(cells(table)) == n_rows
  systems = [f'{name} (n=2)'.replace('|', r'\|') for name in names]
  assert cells(table)[0] == [*head, *systems, *end]


def test_cells():
  table = format_table({'PDL': results(finish_reason='length')})
  for label, expected in {
    # 13 nats over 8 tokens; 13 / ln 2 bits over 22 bytes.
    'Perplexity': ['lower', '5.08', '-'],
    'Bits per byte': ['lower', '0.853', '-'],
    'ROUGE-1': ['higher', '66.67', '-'],
    'Distinct-1': [HUMAN, '0.500 (6)', '0.500 (6)'],
    'Distinct-2': [HUMAN, '0.500 (4)', '0.500 (4)'],
    'Rare mass': [HUMAN, '100.0', '100.0'],
    'Rare-token F1': ['higher', '66.7', '-'],
    'Length ratio': ['-', '1.00', '-'],
    'Finish rate': ['higher', '50.0', '-'],
  }.items():
    assert row(table, label) == expected
  table = format_table({'PDL': results(text='the cat sat on the mat')})
  assert row(table, 'Novel bigrams') == [HUMAN, '57.1', '50.0']
  assert row(table, 'Repeated 4-grams') == [HUMAN, '0.0', 'missing']
  assert row(table, 'Self-BLEU-4')[2] == '1.000'
  assert row(table, 'BLEU')[::2] == row(table, 'chrF')[::2] == ['higher', '-']
  table = format_frequency_table({'CE': results(), 'PDL': results()})
  for bucket, expected in {
    '2': ['2', '2.72', '2.72'], '5-9': ['2', '20.09', '20.09'],
    '10-99': ['2', '1.65', '1.65'], '1000+': ['0', '-', '-'],
  }.items():  # fmt: skip
    assert row(table, bucket) == expected


def test_columns_keep_their_order_and_their_numbers():
  worse = results(text='nothing')
  table = format_table({'B': worse, 'A': results()})
  assert row(table, 'ROUGE-1')[1:] == ['33.33', '66.67', '-']
  swapped = format_table({'A': results(), 'B': worse})
  assert row(swapped, 'ROUGE-1')[1:] == ['66.67', '33.33', '-']


def test_undefined_and_absent_values_print_as_missing_and_zero_as_zero():
  partial = results()
  partial['perplexity']['value'] = None
  del partial['rouge1'], partial['reference_distinct_1']
  table = format_table({'PDL': partial})
  assert row(table, 'Perplexity')[1] == row(table, 'ROUGE-1')[1] == 'missing'
  assert row(table, 'Distinct-1')[2] == 'missing'
  # A reference value comes from any system that has it.
  both = format_table({'CE': partial, 'PDL': results()})
  assert row(both, 'Distinct-1')[3] == '0.500 (6)'
  del partial['perplexity_by_frequency']
  table = format_frequency_table({'PDL': partial})
  assert row(table, '5-9') == ['missing', 'missing']
  nothing = evaluate(make_record(text='dog', finish_reason='length'))
  table = format_table({'PDL': nothing})
  assert 'PDL (n=1)' in cells(table)[0]
  assert row(table, 'Finish rate')[1] == '0.0'
  assert row(table, 'ROUGE-L')[1] == '0.00'


def test_systems_that_cannot_be_compared_are_refused():
  tables = format_table, format_tables, format_frequency_table
  few, moved = evaluate(make_record()), np.roll(COUNTS, 1)
  counted = evaluate(make_record('a'), make_record('b'), counts=moved)
  asked = results(references=['the cat the cat'])
  for format_any, other, words in (
    *((each, few, 'differ in examples: CE 1, PDL 2') for each in tables),
    (format_table, asked, 'differ in the references of Distinct-1'),
    # Even if each part holds one.
    (lambda x: format_tables(x, 1), asked, 'differ in the references of'),
    (format_frequency_table, counted, 'differ in target tokens of count 1'),
  ):
    with pytest.raises(DataError, match=words):
      format_any({'CE': other, 'PDL': results()})
  for format_any in tables:
    with pytest.raises(ConfigError, match='at least one system'):
      format_any({})


def test_samples_stand_beside_single_outputs():
  records = [make_record('a'), make_record('b')]
  samples = [
    r | {'id': f'{r["id"]}#{k}'} for r in records for k in range(3)
  ]  # fmt: skip
  columns = {'greedy': evaluate(*records), 'sampled': evaluate(*samples)}
  table = format_table(columns)
  assert cells(table)[0][2:4] == ['greedy (n=2)', 'sampled (n=2, 6 outputs)']
  assert row(table, 'Distinct-1')[1] == row(table, 'Distinct-1')[2]
  table = format_frequency_table(columns)
  assert row(table, '5-9') == ['2', '20.09', '20.09']


NEW_ROWS = {
  'BLEU', 'chrF', 'Self-BLEU-4', 'Repeated 4-grams (%)', 'Novel bigrams (%)',
}  # fmt: skip


def test_rows_of_newer_metrics_stand_where_some_system_has_them():
  new = results(text='the cat sat on')
  newer = ('bleu', 'chrf', 'self_bleu', 'seq_rep', 'novel')
  old = {
    key: value
    for key, value in new.items()
    if not key.removeprefix('reference_').startswith(newer)
  }
  all_rows = labels(format_table({'new': new}))
  assert all_rows - labels(format_table({'old': old})) == NEW_ROWS
  both = format_table({'old': old, 'new': new})
  assert labels(both) == all_rows
  assert row(both, 'BLEU')[1] == row(both, 'Self-BLEU-4')[1] == 'missing'
  assert row(both, 'Self-BLEU-4')[3] == '1.000'


def test_no_row_for_what_a_task_does_not_have():
  table = format_table({'LM': results(source='')})
  assert 'Novel bigrams (%)' in labels(table)  # the other record has a source
  record = make_record(source='', text='dog', references=['dog'])
  table = format_table({'LM': evaluate(record)})
  assert not labels(table) & {'Novel bigrams (%)', 'Repeated 4-grams (%)'}
  # ... but a metric of every task that is undefined here says so.
  assert row(table, 'Distinct-2')[1:] == ['missing', 'missing']


def test_rows_between_samples():
  records = [make_record('a#0'), make_record('a#1', text='the dog smiled')]
  single = evaluate(records[0])
  table = format_table({'one': single, 'two': evaluate(*records)})
  # Of three words two are shared, of two bigrams and a trigram none: 0.1.
  # (2 / 3 x 0.1 / 2 x 0.1) ** (1 / 3)
  for label, value in (
    ('distinct-1', '0.667'), ('distinct-2', '1.000'), ('self-BLEU-4', '0.149')
  ):  # fmt: skip
    found = row(table, f'Per prompt: {label}')
    assert found == ['-', 'missing', value, '-']
  table = format_table({'one': single})
  assert not any('prompt' in name for name in labels(table))


@pytest.mark.parametrize(
  ('room', 'parts'),
  [
    (1000, ['a b c d e']),
    (0, ['a b c', 'd e']),
    (-1, ['a b', 'c d', 'e']),
    (-1000, ['a', 'b', 'c', 'd', 'e']),
  ],
)
def test_tables_in_parts_of_a_width(room, parts):
  columns = {f'system {name}': results() for name in 'abcde'}
  three = format_table({name: columns[name] for name in list(columns)[:3]})
  width = three.index('\n') + room
  whole = format_tables(columns, width)
  tables = whole.split('\n\n')
  for table, part in zip(tables, parts, strict=True):
    some = {name: columns[name] for name in columns if name[-1] in part}
    assert table.rstrip('\n') == format_table(some).rstrip('\n')
    if len(some) > 1:
      assert max(map(len, table.splitlines())) <= width
  assert whole.endswith('|\n') and not whole.endswith('\n\n')


def test_rows_of_dialogue_and_of_style():
  classifier = StyleClassifier.fit(
    ['the cat smiled', 'thou hast'], ['new', 'old'], name='two'
  )
  found = evaluate(
    make_record('a', style='new'),
    make_record('b', style='old', references=['thou hast']),
    classifier=classifier, dialogue=True,
  )  # fmt: skip
  table = format_table({'PDL': found})
  rows = {
    'Distinct responses (%)': [HUMAN, '50.0', '100.0'],
    'Commonest response (%)': [HUMAN, '100.0', '50.0'],
    'Right style (%)': ['higher', '50.0', '100.0'],
    'Right style x chrF (%)':
      ['higher', f'{found["style_joint"]["value"] * 100:.2f}', '-'],
  }  # fmt: skip
  for label, expected in rows.items():
    assert row(table, label) == expected
  assert not labels(format_table({'PDL': results()})) & rows.keys()
