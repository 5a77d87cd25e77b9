"""Text of strangers that would act, in everything that shows it."""

import csv
import html.parser
import io
import re
import unicodedata

import numpy as np
import pytest
from rich.console import Console

from pdl_jax.errors import ConfigError, printable
from pdl_jax.evaluate import side_by_side, table
from pdl_jax.preview import show
from pdl_jax.preview.collect import Preview, PreviewExample, Token
from pdl_jax.preview.show import visible
from pdl_jax.report import tables, wording
from pdl_jax.run import summary
from tests import stand_in_report as stand_in
from tests.report.test_tables import latex_rows, rendered_cells, same

HOSTILE = [
  # HTML.
  '<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '</td></tr>',
  '</title><h1>x', '<!-- open', '&lt;b&gt; &amp;', '"><svg onload=x>',
  "' onmouseover='x", '<a href="javascript:x">y</a>', ']]></svg>', '<b',
  # Markdown.
  '**bold** __too__', '_one_ *two*', '# heading', '> quote', '- item', '+ item',
  '1. item', '1) item', '---', '--- x', '***', '~~gone~~', '`code` ``more``',
  '```', '[text](http://x.y)', '![image](x)', '| bar | cell |', 'a \\| b',
  '\\', '[^1]: foot', '$x^2$', '~~~',
  # TeX.
  r'\input{/etc/passwd}', r'\end{tabular}', r'\write18{x}', '100% & {a} #1',
  'x_y^z ~ w', '}{', r'\\[3ex]', '^^5cend', '``quoted" --- dashes',
  # Formulas of spreadsheets.
  "=cmd|'/C calc'!A0", '@SUM(1+1)', '+1+1', '-2+3', '=HYPERLINK("x","y")',
  '\t=1+1', '\r=2', ' =3',
  # Terminals, and the order of characters.
  '[red]x[/red]', '[/]', ':cat:',
  '\x1b[2J\x1b[31mred', '\x1b]0;title\x07', '\x9b31m', 'a\x08\x08b', 'a\rb',
  '\x00end', 'x\x7f\x85y', '\u202eltr\u202c', '\u2066iso\u2069 \u200f\u061c',
  'one\u2028two\u2029three', '\ufeffmark\u2060', '\udc80half',
]  # fmt: skip


def acts(text):
  """Characters of a text that a terminal or a reader would obey."""
  return [
    sign for sign in text
    if sign not in '\n\u200c\u200d'
    and unicodedata.category(sign) in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')
  ]  # fmt: skip


class Tags(html.parser.HTMLParser):
  """Tags with their attributes, and the text of a page."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.tags, self.texts = set(), []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.add((tag, *(name for name, _ in attrs)))

  def handle_data(self, data):
    self.texts.append(data)

  def handle_comment(self, data):
    raise AssertionError(data)


@pytest.fixture(scope='module')
def report():
  rows = [stand_in.baseline()]
  rows += [stand_in.row(text, (1.0, 2.0, 3.0), note=text) for text in HOSTILE]
  part = stand_in.part(
    rows, title=HOSTILE[0], notes=tuple(HOSTILE), split=HOSTILE[0]
  )
  return stand_in.report(part)


def shown(text):
  return wording.one_line(text)


def test_there_are_many_of_them():
  assert len(set(HOSTILE)) >= 60
  assert not any(acts(printable(text)) for text in HOSTILE)
  assert printable('é 猫\u3000\xa0👩\u200d👧 ½') == 'é 猫\u3000\xa0👩\u200d👧 ½'
  assert printable('a\nb\x1b', keep='\n') == 'a\nb\\x1b'


def test_markdown(report):
  text = tables.markdown(report)
  assert not acts(text)
  rendered, cells = rendered_cells(text)
  labels = [row[0] for row in cells[2 : 2 + len(HOSTILE)]]
  assert labels == [shown(text) for text in HOSTILE]
  assert {len(row) for row in cells[: 2 + len(HOSTILE)]} == {4}
  known = {'table', 'thead', 'tbody', 'tr', 'th', 'td', 'h1', 'h2', 'h3', 'p'}
  known |= {'pre', 'code', 'ul', 'li', 'strong'}
  assert {tag for tag, *_ in Tags(rendered).tags} <= known
  for each in HOSTILE:
    alone = table.markdown_line(each)
    found = Tags(rendered_cells(alone)[0])
    assert {tag for tag, *_ in found.tags} <= {'p'}, each
    assert ''.join(found.texts).strip() == shown(each)


def test_a_command_cannot_end_its_block():
  report = stand_in.report(stand_in.part([stand_in.baseline()]))
  told = 'run\n```\n# heading <b>\x1b'
  text = tables.markdown(report.__class__(
    report.name, report.question, told, report.parts, report.figures
  ))  # fmt: skip
  rendered = rendered_cells(text)[0]
  assert '<code>run\n```\n# heading &lt;b&gt;\\x1b\n</code>' in rendered


def test_latex(report):
  text = tables.latex(report)
  assert not acts(text)
  results = [
    part for part in text.split(r'\begin{table}')[1:]
    if 'difference to the' not in part
  ]  # fmt: skip
  rows = [row for part in results for row in latex_rows(part)[1:]]
  assert {len(row) for row in rows} == {4}
  for (label, *_), wanted in zip(rows[1:-1], HOSTILE, strict=True):
    assert same(label, shown(wanted))
  for line in text.splitlines():
    bare = re.sub(r'\\[{}]', '', line)
    assert bare.count('{') == bare.count('}')
  commands = set(re.findall(r'\\([a-zA-Z]+)', text))
  assert not commands & {'input', 'write', 'href'}
  assert '`' not in text  # two are a quotation mark


def test_csv(report):
  rows = list(csv.reader(io.StringIO(tables.csv(report))))
  assert {len(row) for row in rows} == {5}
  names = [field for row in rows for field in row[:2]]
  assert not any(name.lstrip().startswith(tuple('=+-@')) for name in names)
  assert not any(acts(name) for name in names)
  found = {name.removeprefix("'") for name in names}
  wanted = {printable(text).removeprefix("'") for text in HOSTILE}
  assert wanted <= found


def test_html(report):
  usual = Tags(
    tables.html(stand_in.report(stand_in.part([stand_in.baseline()])), {})
  )
  text = tables.html(report, {})
  assert not acts(text)
  found = Tags(text)
  assert found.tags <= usual.tags | {('h3',)}
  assert {shown(text) for text in HOSTILE} <= {t.strip() for t in found.texts}


def test_the_table_of_a_run():
  names = {text: {} for text in HOSTILE}
  text = side_by_side.format_table(names)
  assert not acts(text)
  _, cells = rendered_cells(text)
  assert cells[0][2:-1] == [
    f'{table.one_line(name)} (n=missing)' for name in HOSTILE
  ]
  assert {len(row) for row in cells} == {len(HOSTILE) + 3}
  assert {tag for tag, *_ in Tags(rendered_cells(text)[0]).tags} <= {
    'table', 'thead', 'tbody', 'tr', 'th', 'td',
  }  # fmt: skip


def test_the_end_of_a_run(capsys):
  for each in HOSTILE:
    summary.print_results({
      'task': 'summarize', 'split': f'jsonl:{each}/test', 'steps': 1,
      'padding_share': 0.0, 'columns': {each: {}},
      'examples': [
        dict.fromkeys(('prompt', 'reference', 'before', 'after'), each)
      ],
    })  # fmt: skip
    assert not acts(capsys.readouterr().out)


def test_reasons_stand_below_the_table():
  why = 'undefined: no reference has a word'
  columns = {'a': {'bleu': {'value': None, 'n': 0, 'definition': why}}}
  results = {'columns': columns}
  text = summary.tables(results)
  assert text.endswith(f'\nBLEU: {why}\n')
  assert 'BLEU' in side_by_side.format_table(columns)
  assert side_by_side.format_reasons({'a': {}}) == ''


@pytest.mark.parametrize('colours', [None, 'truecolor'])
def test_a_preview(colours):
  tokens = [
    Token(i, text.encode(errors='replace'), False, 1.0, 1.0, 0)
    for i, text in enumerate(HOSTILE)
  ]

  def of(texts):
    joined = ''.join(texts)
    return Preview(
      'weight', joined, [joined], [['a', 'b']], {'heaviest': tokens},
      np.ones(1), np.ones(1),
      [(PreviewExample(text, text, []), tokens) for text in texts],
    )  # fmt: skip

  file = io.StringIO()
  console = Console(
    file=file, width=80, color_system=colours, force_terminal=bool(colours)
  )
  show.print_terminal(of(HOSTILE), console)
  text = re.sub('\x1b\\[[0-9;]*m', '', file.getvalue())
  assert not acts(text)
  web = show.to_html(of(HOSTILE))
  assert not acts(web)
  found = Tags(web)
  assert all(visible(token.raw) in found.texts for token in tokens)
  assert found.tags == Tags(show.to_html(of(['usual']))).tags


def test_an_error_is_one_line(capsys, monkeypatch):
  from pdl_jax.cli import main

  for text in HOSTILE:

    def fail(_, text=text):
      raise ConfigError(f'no {text} here')

    monkeypatch.setattr(main, '_dispatch', fail)
    assert main.main(['launch.py']) == 2
    told = capsys.readouterr().err
    assert told.count('\n') == 1
    assert not acts(told)
