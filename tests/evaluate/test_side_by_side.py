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


def evaluate(*inputs, **options):
  return run.evaluate(*inputs, **options).results


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


@pytest.mark.parametrize(
  'names', [('PDL',), ('Pretrained', 'PDL'), ('Pretrained', 'CE', 'PDL')]
)
@pytest.mark.parametrize(
  ('format_any', 'before', 'after', 'n_rows'),
  [
    (format_table, 2, 1, 19),
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
  assert row(table, 'Perplexity')[1:] == ['lower', '5.08', '-']
  assert row(table, 'Bits per byte')[1:] == ['lower', '0.853', '-']
  assert row(table, 'ROUGE-1')[1:] == ['higher', '66.67', '-']
  human = 'closest to references'
  assert row(table, 'Distinct-1')[1:] == [human, '0.500 (6)', '0.500 (6)']
  assert row(table, 'Distinct-2')[1:] == [human, '0.500 (4)', '0.500 (4)']
  assert row(table, 'Rare mass')[1:] == [human, '100.0', '100.0']
  assert row(table, 'Rare-token F1')[1:] == ['higher', '66.7', '-']
  assert row(table, 'Length ratio')[1:] == ['-', '1.00', '-']
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
  assert row(table, 'Perplexity')[2] == 'missing'
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


def test_samples_stand_beside_single_outputs():
  records = [make_record('a'), make_record('b')]
  samples = [
    r | {'id': f'{r["id"]}#{k}'} for r in records for k in range(3)
  ]  # fmt: skip
  columns = {
    name: evaluate(chosen, COUNTS, [STOP])
    for name, chosen in (('greedy', records), ('sampled', samples))
  }
  table = format_table(columns)
  assert cells(table)[0][2:4] == ['greedy (n=2)', 'sampled (n=2, 6 outputs)']
  assert row(table, 'Distinct-1')[2] == row(table, 'Distinct-1')[3]
  assert row(format_frequency_table(columns), '5-9')[1:] == [
    '2',
    '20.09',
    '20.09',
  ]


def test_no_columns_are_refused():
  for format_any in (format_table, format_frequency_table):
    with pytest.raises(ConfigError, match='at least one system'):
      format_any({})


def test_a_bar_in_a_name_does_not_open_a_column():
  table = format_table({'a|b': results()})
  assert 'a\\|b (n=2)' in table


NEW_ROWS = {
  'BLEU',
  'chrF',
  'Self-BLEU-4',
  'Repeated 4-grams (%)',
  'Novel bigrams (%)',
}


def labels(table):
  return {r[0] for r in cells(table)}


def test_rows_of_newer_metrics_stand_where_some_system_has_them():
  old = {
    key: value
    for key, value in results(text='the cat sat on').items()
    if not key.removeprefix('reference_').startswith(
      ('bleu', 'chrf', 'self_bleu', 'seq_rep', 'novel')
    )
  }
  new = results(text='the cat sat on')
  assert labels(format_table({'new': new})) - labels(
    format_table({'old': old})
  ) == NEW_ROWS
  both = format_table({'old': old, 'new': new})
  assert labels(both) == labels(format_table({'new': new}))
  assert row(both, 'BLEU')[2] == 'missing'
  assert row(both, 'Self-BLEU-4')[2] == 'missing'
  assert row(both, 'Self-BLEU-4')[4] == '1.000'


def test_no_row_for_what_a_task_does_not_have():
  table = format_table({'LM': results(source='')})
  assert 'Novel bigrams (%)' in labels(table)  # the other record has a source
  record = make_record(source='', text='dog', references=['dog'])
  table = format_table({'LM': evaluate([record], COUNTS, [STOP])})
  assert not labels(table) & {'Novel bigrams (%)', 'Repeated 4-grams (%)'}
  # ... but a metric of every task that is undefined here says so.
  assert row(table, 'Distinct-2')[2:] == ['missing', 'missing']


def test_cells_of_newer_rows():
  table = format_table({'PDL': results(text='the cat sat on the mat')})
  human = 'closest to references'
  assert row(table, 'Novel bigrams')[1:] == [human, '57.1', '50.0']
  assert row(table, 'Repeated 4-grams')[1:] == [human, '0.0', 'missing']
  assert row(table, 'Self-BLEU-4')[3] == '1.000'
  assert row(table, 'BLEU')[1] == row(table, 'chrF')[1] == 'higher'
  assert row(table, 'BLEU')[3] == '-'


def test_rows_between_samples():
  records = [make_record('a#0'), make_record('a#1', text='the dog smiled')]
  single = evaluate(records[:1], COUNTS, [STOP])
  found = evaluate(records, COUNTS, [STOP])
  table = format_table({'one': single, 'two': found})
  cells = ['missing', '0.667', '-']
  assert row(table, 'Per prompt: distinct-1')[1:] == ['-', *cells]
  assert row(table, 'Per prompt: distinct-2')[3] == '1.000'
  # Of three words two are shared, of two bigrams and a trigram none: 0.1.
  # (2 / 3 x 0.1 / 2 x 0.1) ** (1 / 3)
  assert row(table, 'Per prompt: self-BLEU-4')[3] == '0.149'
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
  assert [
    [cell.split()[1] for cell in cells(table)[0] if 'system' in cell]
    for table in tables
  ] == [part.split() for part in parts]
  for table, part in zip(tables, parts, strict=True):
    some = {name: columns[name] for name in columns if name[-1] in part}
    assert table.rstrip('\n') == format_table(some).rstrip('\n')
    if len(some) > 1:
      assert max(map(len, table.splitlines())) <= width
  assert whole.endswith('|\n') and not whole.endswith('\n\n')


def test_parts_are_of_the_same_examples():
  columns = {'a': results(), 'b': results(references=['the cat the cat'])}
  with pytest.raises(DataError, match='differ in the references of Distinct-1'):
    format_tables(columns, 1)
  with pytest.raises(ConfigError, match='at least one system'):
    format_tables({})


def test_rows_of_dialogue_and_of_style():
  classifier = StyleClassifier.fit(
    ['the cat smiled', 'thou hast'], ['new', 'old'], name='two'
  )
  records = [
    make_record('a', style='new'),
    make_record('b', style='old', references=['thou hast']),
  ]
  found = evaluate(records, COUNTS, [STOP], classifier, dialogue=True)
  table = format_table({'PDL': found})
  human = 'closest to references'
  assert row(table, 'Distinct responses')[1:] == [human, '50.0', '100.0']
  assert row(table, 'Commonest response')[1:] == [human, '100.0', '50.0']
  assert row(table, 'Right style (%)')[1:] == ['higher', '50.0', '100.0']
  joint = found['style_joint']['value'] * 100
  assert row(table, 'Right style x chrF')[1:] == ['higher', f'{joint:.2f}', '-']
  assert not labels(format_table({'PDL': results()})) & {
    'Distinct responses (%)',
    'Commonest response (%)',
    'Right style (%)',
    'Right style x chrF (%)',
  }
