"""Writes a report as Markdown, LaTeX, one HTML page, and raw numbers.

Equal reports give equal text: no dates, no paths, rounded numbers.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from pdl_jax.errors import printable
from pdl_jax.evaluate.table import (
  HTML,
  Table,
  escape_latex,
  markdown_line,
  one_line,
)
from pdl_jax.report import wording
from pdl_jax.report.layout import Part, Report

_PAGE = Path(__file__).with_name('page.html')


def markdown(report: Report) -> str:
  """Writes the whole report for code hosts, with aligned tables.

  Each part has a table of means and one of differences to the baseline, with a
  row per system. Markdown signs in texts of the report are escaped.
  """
  measured = [part for part in report.parts if not wording.unmeasured(part)]
  legend = wording.results_legend(*measured) if measured else ''
  # Parts share most columns; a column with two definitions gets two lines.
  columns = dict.fromkeys(
    definition for part in measured for definition in wording.definitions(part)
  )
  lines = [
    f'# {markdown_line(report.name)}',
    markdown_line(report.question),
    _fenced(report.command),
    *(block for part in report.parts for block in _part(part)),
    '## How to read the tables',
    markdown_line(legend),
    '\n'.join(
      f'- **{markdown_line(heading)}**: {markdown_line(told)}'
      for heading, told in columns
    ),
  ]
  return '\n\n'.join(line for line in lines if line) + '\n'


def latex(report: Report) -> str:
  r"""Writes a guide to the tables, and booktabs tables that fit an A4 page.

  Tables are labelled `tab:REPORT-PART`, and `tab:REPORT-PART-difference` for
  differences to the baseline; see `Table.to_latex`. LaTeX signs are escaped.
  The text is '' if nothing was measured.
  """
  measured = [part for part in report.parts if not wording.unmeasured(part)]
  if not measured:
    return ''
  legends = {
    part.name: wording.differences_legend(part)
    for part in measured
    if wording.differences(part)
  }
  # What all legends say is said here once, the rest in captions.
  common = [
    sentence
    for sentence in next(iter(legends.values()), ())
    if all(sentence in legend for legend in legends.values())
  ]
  guide = ' '.join([wording.results_legend(*measured), *common])
  made = [rf'\paragraph{{How to read the tables.}} {escape_latex(guide)}', '']
  for part in measured:
    title = one_line(part.title).rstrip('.')
    name = re.sub(r'[^A-Za-z0-9]+', '-', f'{report.name}-{part.name}')
    documents = wording.remarks(part)[0]
    made.append(wording.results(part).to_latex(title, documents, name))
    differences = wording.differences(part)
    if differences is not None:
      own = [text for text in legends[part.name] if text not in common]
      made.append(differences.to_latex(
        f'{title}: difference to the baseline', ' '.join(own),
        f'{name}-difference',
      ))  # fmt: skip
  return '\n'.join(made)


def html(report: Report, figures: Mapping[str, Mapping[str, str]]) -> str:
  """Writes the whole report as a page without scripts or other files.

  Texts of the report are escaped; `figures` are those of `figures.draw`.
  """
  number = itertools.count(1)
  shown = {
    name: [_inline(svg, f'figure-{next(number)}-') for svg in of.values()]
    for name, of in figures.items()
  }
  template = HTML.from_string(_PAGE.read_text('utf-8'))
  return template.render(report=report, figures=shown, words=wording)


def _inline(svg: str, prefix: str) -> Markup:
  """Turns an SVG file into an element with unique ids."""
  element = re.sub(
    '<[^>]*>',
    lambda tag: re.sub(
      r'(\sid="|href="#|url\(#)', rf'\g<1>{prefix}', tag.group()
    ),
    svg[svg.index('<svg') :],
  )
  return Markup(element.replace('<svg', '<svg role="img"', 1).strip())


def csv(report: Report) -> str:
  """Writes the numbers behind the tables: part, system, seed, metric, value.

  There is a line per seed wanted or measured, in full precision; the value is
  empty if unmeasured. See `Table.to_csv`.
  """
  rows = []
  for part in report.parts:
    for row in part.rows:
      for column in part.columns:
        by_seed = row.entries[column.key].by_seed
        rows += [
          (
            part.name, row.label, str(seed), column.key,
            repr(float(by_seed[seed])) if seed in by_seed else '',
          )
          for seed in sorted({*row.seeds, *by_seed})
        ]  # fmt: skip
  headings = ('part', 'system', 'seed', 'metric', 'value')
  return Table.of(headings, rows, texts=4).to_csv()


def _part(part: Part) -> list[str]:
  heading = f'## {markdown_line(part.title)}'
  if nothing := wording.unmeasured(part):
    return [heading, markdown_line(nothing)]
  blocks = [heading, wording.results(part).to_markdown().rstrip()]
  differences = wording.differences(part)
  if differences is not None:
    blocks += [
      '### Difference to the baseline',
      differences.to_markdown().rstrip(),
      markdown_line(' '.join(wording.differences_legend(part))),
    ]
  remarks = [f'- {markdown_line(text)}' for text in wording.remarks(part)]
  return [*blocks, '### Notes', '\n'.join(remarks)]


def _fenced(text: str) -> str:
  """Fences a text with marks that are longer than any in it."""
  text = printable(text, keep='\n')
  marks = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
  return f'{marks}\n{text}\n{marks}'
