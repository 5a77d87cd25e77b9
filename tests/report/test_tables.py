"""What the tables of a report say, and no text that acts in any markup."""

import csv
import dataclasses
import io
import re
from collections import Counter
from html import unescape
from html.parser import HTMLParser

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pdl_jax.report import figures, tables, wording
from pdl_jax.report.layout import Frontier, HeatMap
from pdl_jax.report.statistics import Difference
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


def rendered_cells(text):
  html = MarkdownIt('commonmark').enable('table').render(text)
  rows = re.findall(r'<tr>(.*?)</tr>', html, re.DOTALL)
  return html, [
    [unescape(c) for c in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row)]
    for row in rows
  ]


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


# Words.


def test_cells():
  part = stand_in.table_part()
  results, differences = wording.results(part), wording.differences(part)
  assert results.headings == ('System', 'Perplexity ↓', 'Distinct-1 ≈', 'Seeds')
  rows = {label.text: cells for label, *cells in results.rows}
  assert {label: [c.text for c in cells] for label, cells in rows.items()} == {
    'cross-entropy (baseline)': ['16.00 ± 1.00', '0.410 ± 0.010', '3'],
    'alpha 0.25 (chosen)': ['15.00 ± 1.00 =', '0.440 ± 0.010', '3'],
    'alpha 0.5': ['15.00 ± 0.71', '0.400 (n=1)', '2 of 3'],
    'twin': ['16.00 ± 1.00', 'undefined', '3'],
    'alpha 1': ['diverged', 'diverged', '0 of 3'],
    'References': ['-', '0.448', '-'],
  }
  assert sum(cell.bold for cells in rows.values() for cell in cells) == 1
  assert rows['alpha 0.25 (chosen)'][1].bold
  assert {name.text: [c.pieces for c in of]
          for name, *of in differences.rows} == {
    'cross-entropy (baseline)': [('-',), ('-',)],
    'alpha 0.25 (chosen)': [
      ('-1.00', '[-1.50, +0.00]', 'p=1.000'),
      ('-0.030', 'p<0.001'),
    ],
    'alpha 0.5': [('-1.00', '[-1.50, +0.00]'), ('undefined',)],
    'twin': [('identical',), ('undefined',)],
    'alpha 1': [('diverged',), ('diverged',)],
  }  # fmt: skip


def test_odd_cells():
  """Infinite ends, and a metric without a direction or with two lines."""
  unknown = Difference(0.5, float('-inf'), float('inf'), 1.0)
  row = stand_in.row(
    'wild', stand_in.entry((1.0, 2.0, 3.0), difference=unknown)
  )
  plain = dataclasses.replace(
    stand_in.columns()[0], better='none', label='Odd\nname'
  )
  part = stand_in.part([stand_in.baseline(), row], columns=(plain,))
  table = wording.differences(part)
  assert table.headings == ('System', 'Odd name')
  assert table.rows[1][1].pieces == ('+0.50', '[-∞, +∞]', 'p=1.000')


def test_without_a_baseline_or_anything_to_compare():
  row = stand_in.row('x', (1.0, 2.0, 3.0))
  lost = stand_in.row('cross-entropy', is_baseline=True, state='failed')
  before = stand_in.row('before', (90.0,), seeds=(0,))
  for rows, shown in (
    ([stand_in.baseline()], None), ([row, row], None), ([lost, row], None),
    # A row that nobody compared is left out.
    ([before, stand_in.baseline()], ['cross-entropy (baseline)']),
  ):  # fmt: skip
    part = stand_in.part(rows, notes=())
    table = wording.differences(part)
    assert (table and [row[0].text for row in table.rows]) == shown
    assert not any('paired' in text for text in wording.remarks(part))
  assert '-: not compared.' in wording.differences_legend(part)


def test_legends_and_remarks_explain_what_the_table_has():
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
  assert wording.remarks(part) == (
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


# Formats; what no text can do in them is in test_hostile.py.


def test_markdown():
  """How to read several tables is said once."""
  part, plain = stand_in.table_part(), stand_in.part([stand_in.baseline()])
  text = tables.markdown(stand_in.report(part, plain))
  assert text.startswith(GOLDEN)
  assert text.endswith('- **Distinct-1 ≈**: types\n')
  assert '| alpha 0.25 (chosen)      | -1.00 [-1.50, +0.00] p=1.000 |' in text
  for said in (
    'Mean ± sample standard deviation', 'Chosen: picked on validation.'
  ):  # fmt: skip
    assert text.count(said) == 1
  text = tables.markdown(stand_in.report(stand_in.empty_part()))
  assert '| ' not in text
  assert r'cross-entropy (missing), alpha 0.25 (missing), alpha 0.5' in text


def test_latex():
  """The layout is in test_latex.py."""
  low = stand_in.row('low', (-0.004,))
  parts = stand_in.part([stand_in.baseline(), low]), stand_in.table_part()
  text = tables.latex(stand_in.report(*parts))
  guide, *environments = text.split(r'\begin{table}')
  assert guide.count('Mean $\\pm$') == text.count('Mean $\\pm$') == 1
  for environment, columns in zip(environments, (4, 3, 4, 3), strict=True):
    assert {len(row) for row in latex_rows(environment)} == {columns}
    assert f'{{l{"r" * (columns - 1)}}}' in environment
    assert r'\end{table}' in environment
  assert '& 0.00 &' in environments[0]  # no negative zero
  assert r'\label{tab:choose-dialogue}' in text
  assert r'\textbf{0.440 $\pm$ 0.010}' in text
  assert r'\label{tab:choose-dialogue-difference}' in text
  found = latex_rows(environments[3])
  assert found[0] == ['System', 'Perplexity ↓', 'Distinct-1 ≈']
  assert found[2][1] == '−1.00 [−1.50, +0.00] p=1.000'
  assert '96 documents of chitchat/test' in text
  assert not set('±≈↑↓') & set(text)


def test_csv_has_every_number_in_full():
  part = stand_in.part([
    stand_in.baseline(),
    stand_in.row(
      'a,"b"\nc', (0.1 + 0.2, None, np.float64(0.5)), state='partly'
    ),
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


def test_written_twice_is_the_same():
  parts = [stand_in.table_part, stand_in.empty_part, stand_in.figure_part]
  made = [stand_in.report(*(part() for part in parts)) for _ in range(2)]
  for write in (
    tables.markdown, tables.latex, tables.csv, lambda x: tables.html(x, {})
  ):  # fmt: skip
    first, second = map(write, made)
    assert first == second and not re.search(r'-0\.0+\b(?!\d)', first)


# The page.

VOID = {'meta', 'br'}
SVG = """<?xml version="1.0"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/x.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">
 <title>words: id="x" href="#x" url(#x)</title>
 <path id="x" d="M0 0"/>
 <clipPath id="y"><path d="M0 0"/></clipPath>
 <g clip-path="url(#y)" style="fill: url(#y)"><use xlink:href="#x"/></g>
</svg>
"""


class Reader(HTMLParser):
  """Checks the nesting; keeps tags, attributes and the text of each tag."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if data.strip():
      self.texts.append((self.open[-1] if self.open else '', data))

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def the_page(*parts, **figures):
  return tables.html(stand_in.report(*parts), {
    part: {str(i): svg for i, svg in enumerate(of)}
    for part, of in figures.items()
  })


def test_cells_are_those_of_the_other_formats():
  part = stand_in.table_part()
  text = the_page(part)
  reader = Reader(text)
  both = [wording.results(part), wording.differences(part)]
  pieces = [
    piece
    for table in both
    for _, *cells in table.rows
    for cell in cells
    for piece in cell.pieces
  ]
  assert [words for tag, words in reader.texts if tag == 'span'] == pieces
  [best] = re.findall('<td class="best">(.*?)</td>', text, re.DOTALL)
  assert best.strip() == '<span>0.440 ± 0.010</span>'
  labels = [row[0].text for table in both for row in table.rows]
  headings = [h for table in both for h in table.headings]
  found = [words for tag, words in reader.texts if tag == 'th']
  assert sorted(found) == sorted(labels + headings)
  for said in (*wording.remarks(part), wording.results_legend(part)):
    assert said in [words for _, words in reader.texts]


def test_the_page_needs_no_other():
  text = the_page(stand_in.table_part(), dialogue=[SVG])
  reader = Reader(text)
  for _, attributes in reader.tags:
    assert not {'src', 'data', 'action', 'onload'} & attributes.keys()
    for name in ('href', 'xlink:href'):
      assert attributes.get(name, '#').startswith('#')
  assert '@import' not in text and 'url(http' not in text
  assert not reader.all('script') and not reader.all('link')
  assert text.count('<!DOCTYPE') == 1 and '<?xml' not in text
  assert 'prefers-color-scheme: dark' in text
  [_, viewport] = reader.all('meta')
  assert viewport['content'] == 'width=device-width, initial-scale=1'


def references(text):
  """The ids of a page, none of them twice, and how often each is used."""
  reader = Reader(text)
  ids = [found['id'] for _, found in reader.tags if 'id' in found]
  used = Counter(
    name
    for _, attributes in reader.tags
    for key, value in attributes.items()
    for name in re.findall(
      r'^#(\S+)$' if key.endswith('href') else r'url\(#(\S+)\)', value
    )
  )
  assert len(ids) == len(set(ids))
  assert set(used) <= set(ids)
  return reader, ids, used


def test_figures_share_no_id():
  text = the_page(stand_in.table_part(), dialogue=[SVG, SVG])
  reader, ids, used = references(text)
  assert len(ids) == 4 and sorted(used.values()) == [1, 1, 2, 2]
  # What is to be read stays as it was.
  assert text.count('words: id="x" href="#x" url(#x)') == 2
  assert [svg['role'] for svg in reader.all('svg')] == ['img', 'img']
  report = stand_in.report(
    stand_in.figure_part(name='other'), stand_in.table_part(),
    figures=(
      HeatMap(stand_in.ALPHA, stand_in.EPSILON, 'ppl'),
      Frontier('ppl', 'distinct'),
    ),
  )  # fmt: skip
  reader, _, used = references(tables.html(report, figures.draw(report)))
  assert len(reader.all('svg')) == 3 and used


def test_a_figure_stands_with_its_part():
  text = the_page(
    *(stand_in.part([stand_in.baseline()], name=name) for name in 'abc'),
    b=[SVG.replace('words', 'of b')], a=[SVG.replace('words', 'of a')],
  )  # fmt: skip
  a, b, empty = text.split('<section>')[1:]
  assert 'of a' in a and 'of b' in b and 'of b' not in a and '<svg' not in empty
