import csv
import io
import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from pdl_jax.report import tables, wording
from tests import stand_in_report as stand_in

GOLDEN = """\
# choose

Which alpha?

```
run it
```

## Dialogue

| System                   |   Perplexity ↓ |      Distinct-1 ≈ |  Seeds |
| ------------------------ | -------------: | ----------------: | -----: |
| cross-entropy (baseline) |   16.00 ± 1.00 |     0.410 ± 0.010 |      3 |
| alpha 0.25 (chosen)      | 15.00 ± 1.00 = | **0.440 ± 0.010** |      3 |
| alpha 0.5                |   15.00 ± 0.71 |       0.400 (n=1) | 2 of 3 |
| twin                     |   16.00 ± 1.00 |         undefined |      3 |
| alpha 1                  |       diverged |          diverged | 0 of 3 |
| References               |              - |             0.448 |      - |
"""


def odd_part():
  rows = [
    stand_in.baseline(),
    stand_in.row(stand_in.ODD, (1.0, 2.0, 3.0)),
    stand_in.row('[0.5ex] first', (1.0, 2.0, 3.0)),
    stand_in.row('* second', (1.0, 2.0, 3.0)),
    stand_in.row('1. a list? \n second line', state='missing', note='no'),
    stand_in.row('- another', state='missing', note=stand_in.ODD),
  ]
  return stand_in.part(rows, title=f'# {stand_in.ODD}')


def rendered_cells(text):
  html = MarkdownIt('commonmark').enable('table').render(text)
  rows = re.findall(r'<tr>(.*?)</tr>', html, re.DOTALL)
  return html, [
    [unescape(c) for c in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row)]
    for row in rows
  ]


def test_golden_markdown():
  text = tables.markdown(stand_in.report(stand_in.table_part()))
  assert text.startswith(GOLDEN)
  assert text.endswith('- **Distinct-1 ≈**: types\n')
  assert '| alpha 0.25 (chosen)      | -1.00 [-1.50, +0.00] p=1.000 |' in text


def test_how_to_read_several_tables_is_said_once():
  plain = stand_in.part([stand_in.baseline()])
  text = tables.markdown(stand_in.report(plain, stand_in.table_part()))
  assert text.count('Mean ± sample standard deviation') == 1
  assert text.count('Chosen: picked on validation.') == 1


def test_no_sign_of_a_label_acts_as_markdown():
  part = odd_part()
  text = tables.markdown(stand_in.report(part))
  html, cells = rendered_cells(text)
  labels = [wording.one_line(row.label) for row in part.rows]
  assert [row[0] for row in cells[2:7]] == labels[1:]
  assert {len(row) for row in cells[:8]} == {4}
  items = [
    re.sub('</?(p|strong)>', '', unescape(item)).strip()
    for item in re.findall('<li>(.*?)</li>', html, re.DOTALL)
  ]
  assert f'- another: {stand_in.ODD}' in items
  assert '1. a list? second line: no' in items
  assert f'<h2># {stand_in.ODD}</h2>' in unescape(html)


def latex_rows(text):
  """The cells of each row of a tabular, as they are printed."""
  inside = re.search(r'\\toprule\n(.*?)\\bottomrule', text, re.DOTALL)
  assert inside is not None
  rows = []
  for row in re.split(r' \\\\(?:\[2pt\])?\n', inside[1])[:-1]:
    lines = row.replace('\\midrule\n', '').split(' \\\\*\n')
    for line in lines:
      # An asterisk or a bracket after the end of a row would be its argument.
      assert not re.match(r'\s*[\[*]', line)
      assert not re.search(r'(?<!\\)[%_#^~]|--', line)
    cells = [re.split(r'(?<!\\) & ', line) for line in lines]
    rows.append([
      ' '.join(map(plain, column)).strip()
      for column in zip(*cells, strict=True)
    ])
  return rows


def same(a, b):
  """Whether two texts are the same but for their lines."""
  return ''.join(a.split()) == ''.join(b.split())


def plain(latex):
  """What is printed for the text."""
  for sign, command in {
    '^': 'asciicircum', '~': 'asciitilde', '<': 'less', '>': 'greater',
    '|': 'bar', '`': 'asciigrave',
  }.items():  # fmt: skip
    latex = latex.replace(f'\\text{command}{{}}', sign)
  latex = re.sub(r'(?<!\\)-\{\}', '-', latex)
  latex = re.sub(r'\{([*\[])\}', r'\1', latex)
  latex = latex.replace(r'\textbackslash{}', '\\textbackslash')
  latex = latex.replace('$-$', '−').replace(r'$\pm$', '±')
  for sign, name in {'↑': 'uparrow', '↓': 'downarrow', '≈': 'approx'}.items():
    latex = latex.replace(f'$\\{name}$', sign)
  latex = re.sub(r'\\textbf\{(.*)\}$', r'\1', latex)
  latex = latex.replace(r'$\infty$', '∞')
  latex = re.sub(r'\\([%_&#{}$])', r'\1', latex)
  return latex.replace('\\textbackslash', '\\').strip()


def test_latex_columns_and_braces():
  text = tables.latex(stand_in.report(odd_part(), stand_in.table_part()))
  assert text.count(r'\begin{table}') == text.count(r'\end{table}') == 4
  assert text.count(r'\begin{tabular}{lrrr}') == 2
  assert text.count(r'\begin{tabular}{lrr}') == 2
  guide, *environments = text.split(r'\begin{table}')
  assert guide.count('Mean $\\pm$') == text.count('Mean $\\pm$') == 1
  for environment, columns in zip(environments, (4, 3, 4, 3), strict=True):
    assert {len(row) for row in latex_rows(environment)} == {columns}
    for line in environment.splitlines():
      bare = re.sub(r'\\[{}]', '', line)
      assert bare.count('{') == bare.count('}')
  assert r'\label{tab:choose-dialogue}' in text
  assert r'\textbf{0.440 $\pm$ 0.010}' in text
  assert r'\label{tab:choose-dialogue-difference}' in text
  found = latex_rows(environments[3])
  assert found[0] == ['System', 'Perplexity ↓', 'Distinct-1 ≈']
  assert found[2][1] == '−1.00 [−1.50, +0.00] p=1.000'
  assert '96 documents of chitchat/test' in text
  assert not set('±≈↑↓') & set(text)


def test_no_sign_of_a_label_acts_as_latex():
  part = odd_part()
  rows = latex_rows(tables.latex(stand_in.report(part)))
  labels = [row.label for row in part.rows]
  for (label, *_), wanted in zip(rows[2:7], labels[1:], strict=True):
    assert same(label, wanted)


@pytest.mark.parametrize('value', [-3.0, -0.004])
def test_latex_has_a_minus_and_no_negative_zero(value):
  row = stand_in.row('low', (value,))
  text = tables.latex(stand_in.report(stand_in.part([row])))
  assert ('& $-$3.00 &' in text) == (value == -3.0)
  assert ('& 0.00 &' in text) == (value == -0.004)


def test_csv_has_every_number_in_full():
  part = stand_in.part([
    stand_in.baseline(),
    stand_in.row('a,"b"\nc', (0.1 + 0.2, None, -0.0), state='partly'),
    stand_in.row('gone', seeds=(4, 7), state='failed'),
  ])
  text = tables.csv(stand_in.report(part))
  assert '\r' not in text and text.endswith('\n')
  header, *lines = csv.reader(io.StringIO(text))
  assert header == ['part', 'system', 'seed', 'metric', 'value']
  assert len(lines) == 2 * (3 + 3 + 2)
  found = {tuple(line[:4]): line[4] for line in lines}
  assert found['dialogue', 'a,"b"\nc', '0', 'ppl'] == '0.30000000000000004'
  assert found['dialogue', 'a,"b"\nc', '1', 'ppl'] == ''
  assert found['dialogue', 'gone', '7', 'distinct'] == ''
  for row in part.rows:
    for key, entry in row.entries.items():
      for seed, value in entry.by_seed.items():
        assert float(found['dialogue', row.label, str(seed), key]) == value


def test_csv_writes_numbers_of_numpy_as_numbers():
  numpy = pytest.importorskip('numpy')
  row = stand_in.row('x', (numpy.float64(0.5),), seeds=(0,))
  assert tables.csv(stand_in.report(stand_in.part([row]))).splitlines()[1] == (
    'dialogue,x,0,ppl,0.5'
  )


@pytest.mark.parametrize('write', [tables.markdown, tables.latex, tables.csv])
def test_written_twice_is_the_same(write):
  parts = [stand_in.table_part, stand_in.empty_part, stand_in.figure_part]
  first, second = (write(stand_in.report(*(p() for p in parts))) for _ in '12')
  assert first == second
  assert not re.search(r'-0\.0+\b(?!\d)', first)


def test_nothing_measured_is_said():
  text = tables.markdown(stand_in.report(stand_in.empty_part()))
  assert '| ' not in text
  assert r'cross-entropy (missing), alpha 0.25 (missing), alpha 0.5' in text
