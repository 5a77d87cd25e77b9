import dataclasses
import re

from hypothesis import given
from hypothesis import strategies as st

from pdl_jax.report import wording
from pdl_jax.report.bootstrap import Difference
from tests import stand_in_report as stand_in


def test_headings_say_what_is_better():
  table = wording.results(stand_in.table_part())
  assert table.headings == ('System', 'Perplexity ↓', 'Distinct-1 ≈', 'Seeds')
  plain = dataclasses.replace(
    stand_in.columns()[0], better='none', label='Odd\nname'
  )
  part = stand_in.part([stand_in.baseline()], columns=(plain,))
  assert wording.results(part).headings[1] == 'Odd name'


def test_results():
  table = wording.results(stand_in.table_part())
  rows = {label.text: cells for label, *cells in table.rows}
  text = {label: [' '.join(c.pieces) for c in cs] for label, cs in rows.items()}
  assert text == {
    'cross-entropy (baseline)': ['16.00 ± 1.00', '0.410 ± 0.010', '3'],
    'alpha 0.25 (chosen)': ['15.00 ± 1.00 =', '0.440 ± 0.010', '3'],
    'alpha 0.5': ['15.00 ± 0.71', '0.400 (n=1)', '2 of 3'],
    'twin': ['16.00 ± 1.00', 'undefined', '3'],
    'alpha 1': ['diverged', 'diverged', '0 of 3'],
    'References': ['-', '0.448', '-'],
  }
  assert sum(cell.bold for cells in rows.values() for cell in cells) == 1
  assert rows['alpha 0.25 (chosen)'][1].bold


def test_differences():
  table = wording.differences(stand_in.table_part())
  assert table is not None
  found = {name.text: [c.pieces for c in of] for name, *of in table.rows}
  assert found == {
    'cross-entropy (baseline)': [('-',), ('-',)],
    'alpha 0.25 (chosen)': [
      ('-1.00', '[-1.50, +0.00]', 'p=1.000'),
      ('-0.030', 'p<0.001'),
    ],
    'alpha 0.5': [('-1.00', '[-1.50, +0.00]'), ('undefined',)],
    'twin': [('identical',), ('undefined',)],
    'alpha 1': [('diverged',), ('diverged',)],
  }


def test_infinite_ends_have_a_sign():
  unknown = Difference(0.5, float('-inf'), float('inf'), 1.0)
  row = stand_in.row(
    'wild', stand_in.entry((1.0, 2.0, 3.0), difference=unknown, adjusted_p=1.0)
  )
  table = wording.differences(stand_in.part([stand_in.baseline(), row]))
  assert table is not None
  assert table.rows[1][1].pieces == ('+0.50', '[-∞, +∞]', 'p=1.000')


def test_a_row_that_nobody_compared_is_left_out():
  before = stand_in.row('before', (90.0,), seeds=(0,))
  part = stand_in.part([before, stand_in.baseline()], notes=())
  table = wording.differences(part)
  assert table is not None
  assert [row[0].text for row in table.rows] == ['cross-entropy (baseline)']
  assert '-: not compared.' in wording.differences_legend(part)
  assert not any('paired' in text for text in wording.remarks(part))


def test_without_a_baseline():
  alone = stand_in.part([stand_in.baseline()])
  assert wording.differences(alone) is None
  row = stand_in.row('x', (1.0, 2.0, 3.0))
  assert wording.differences(stand_in.part([row, row])) is None
  lost = stand_in.row('cross-entropy', is_baseline=True, state='failed')
  assert wording.differences(stand_in.part([lost, row])) is None
  assert not any('paired' in text for text in wording.remarks(stand_in.part(
    [lost, row], notes=()
  )))  # fmt: skip


def test_legends_explain_what_the_table_has():
  part = stand_in.table_part()
  legend = wording.results_legend(part)
  for said in ('deviation', 'Bold:', '=:', '↓', '≈', '(n=1)', 'Chosen'):
    assert said in legend
  plain = wording.results_legend(stand_in.part([stand_in.baseline()]))
  assert '↑' not in plain and '(n=1)' not in plain and 'Chosen' not in plain
  legend = ' '.join(wording.differences_legend(part))
  assert 'Holm over the 2 comparisons' in legend
  assert 'only seeds count: Distinct-1.' in legend
  assert 'distances to the references' in legend


def test_remarks_name_documents_seeds_and_reasons():
  assert wording.remarks(stand_in.table_part()) == (
    '96 documents of chitchat/test, evaluated with each seed.',
    '2 paired seeds cannot reach p below 0.5 (2/2^2), even before the '
    'adjustment; it is left out.',
    '3 paired seeds cannot reach p below 0.25 (2/2^3), even before the '
    'adjustment; it is left out.',
    'alpha 0.25: chosen on validation',
    'alpha 0.5: seed 2 missing',
    'alpha 1: loss above 100 at step 3',
    'Seeds are paired.',
  )


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_numbers_are_rounded_and_zero_has_no_minus(value, digits):
  text = wording.number(value, digits)
  assert abs(float(text) - value) <= 0.5 * 10.0**-digits + 1e-9
  assert re.fullmatch(r'-?\d+(\.\d+)?', text)
  assert not re.fullmatch(r'-0(\.0*)?', text)
