"""LaTeX tables fit an A4 page, by arithmetic and when they are compiled."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdl_jax.evaluate import table
from pdl_jax.evaluate.table import Cell, Table
from tests.report.test_tables import latex_rows
from tests.test_hostile import HOSTILE

PREAMBLE = r'\documentclass[a4paper]{article}\usepackage{booktabs}'


def made(columns, rows, ruled=0):
  """A table of long words and wide numbers."""
  numbers = Cell(('109.41 ± 12.97 =', '[-1000.12, +2345.67]'))
  return Table(
    ('System', *(f'Long name of metric {i} (%) ↑' for i in range(columns))),
    tuple(
      (Cell((f'system {i} of a rather long name',)), *[numbers] * columns)
      for i in range(rows)
    ),
    ruled=ruled,
  )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 14), st.integers(1, 60), st.integers(0, 1))
def test_a_table_is_split_into_some_that_fit(numbers, rows, ruled):
  whole = made(numbers, rows, ruled)
  text = whole.to_latex('Title', 'A note.', 'x')
  cells = Counter()
  parts = text.split(r'\begin{table}')[1:]
  for part in parts:
    head, *body = latex_rows(part)
    assert len(head) <= table.MOST_COLUMNS
    lines = [re.split(' & ', line) for line in re.findall('.* & .*', part)]
    assert max(len(label) for label, *_ in lines) <= 22
    # Digits of 8 points are 4.25 points wide.
    columns = zip(*lines, strict=True)
    signs = sum(max(map(len, of)) - len(r'$-$ {[} \\*') for of in columns)
    assert 4.25 * signs < table.MOST_POINTS
    assert len(lines) <= table.MOST_LINES + 6
    cells.update(
      (row[0], head[at], row[at]) for row in body for at in range(1, len(head))
    )
  assert cells == Counter(
    (row[0].text, heading, cell.text.replace('-', '−'))
    for row in whole.rows
    for heading, cell in zip(whole.headings[1:], row[1:], strict=True)
  )
  assert text.count('A note.') == 1
  assert text.count(r'\midrule') - len(parts) == ruled * sum(
    f'system {rows - 1} ' in part for part in parts
  )
  labels = re.findall(r'\\label\{(.*)\}', text)
  assert len(set(labels)) == len(parts) and labels[0] == 'tab:x'


def test_narrow_columns_are_at_most_eight():
  text = Table.of(('x', *'abcdefghijkl'), [['y', *['1'] * 12]]).to_latex(
    'Title', '', 'x'
  )
  parts = text.split(r'\begin{table}')[1:]
  assert [len(latex_rows(part)[0]) for part in parts] == [7, 7]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('pdflatex'), reason='needs pdflatex')
def test_compiled_nothing_is_too_wide_or_long(tmp_path):
  hostile = Table.of(('System', *HOSTILE[:9]), [['x', *['1'] * 9]])
  labels = Table.of(('System', 'n'), [[text, '1'] for text in HOSTILE])
  texts = [
    made(14, 60).to_latex('A wide and long one', '', 'wide'),
    made(1, 1).to_latex('A small one', 'A note.', 'small'),
    hostile.to_latex('Odd headings', ' '.join(HOSTILE[:9]), 'headings'),
    labels.to_latex('Odd labels', '', 'labels'),
    *(path.read_text('utf-8') for path in Path().glob('experiments/*/*.tex')),
  ]
  body = '\n\\clearpage\n'.join(texts)
  (tmp_path / 'all.tex').write_text(
    f'{PREAMBLE}\n\\begin{{document}}\n{body}\n\\end{{document}}\n', 'utf-8'
  )
  subprocess.run(
    ['pdflatex', '-interaction=nonstopmode', '-halt-on-error', 'all.tex'],
    cwd=tmp_path, capture_output=True, timeout=300,
  )  # fmt: skip
  log = (tmp_path / 'all.log').read_text('latin-1')
  assert 'Output written' in log, log[-2000:]
  assert not re.findall('^(?:Overfull|.*Float too large).*', log, re.MULTILINE)
