"""A report as Markdown, as LaTeX, and as raw numbers.

Equal reports give equal text: no dates, no paths, rounded numbers.
"""

import csv as csv_format
import io
import re

from pdl_jax.errors import printable
from pdl_jax.report import wording
from pdl_jax.report.layout import Part, Report
from pdl_jax.report.wording import Cell, Table, one_line

_MARKDOWN = str.maketrans({sign: f'\\{sign}' for sign in '\\`*_[]<>|~$&#'})
# At the start of a line: '- ', '+ ', '1. ' and the like.
_LIST_SIGN = re.compile(r'^(\d*)([-+.)])(?=[ -]|$)')
_LATEX = str.maketrans({
  **{sign: f'\\{sign}' for sign in '%_&#{}$'},
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '`': r'\textasciigrave{}',
  '^': r'\textasciicircum{}',
  # At the start of a row they would be arguments of the end of the one before.
  '[': '{[}',
  '*': '{*}',
  # The oldest font encoding has other signs in these places.
  '<': r'\textless{}',
  '>': r'\textgreater{}',
  '|': r'\textbar{}',
  # Those of the report itself.
  '±': r'$\pm$',
  '↑': r'$\uparrow$',
  '↓': r'$\downarrow$',
  '≈': r'$\approx$',
  '∞': r'$\infty$',
})


def markdown(report: Report) -> str:
  """The whole report, for people on a code host.

  For each part two tables, a row a system: mean ± sample standard deviation of
  each metric, then the differences to the baseline with interval and p. Below
  them: conventions, notes, and the definition of every column.

  Args:
    report: its texts are plain: none of their signs acts as Markdown.

  Returns:
    Text that ends in a newline; tables are aligned.
  """
  measured = [part for part in report.parts if not wording.unmeasured(part)]
  legend = wording.results_legend(*measured) if measured else ''
  # Most parts share most columns; one of another definition has a line too.
  columns = dict.fromkeys(
    definition for part in measured for definition in wording.definitions(part)
  )
  lines = [
    f'# {_escaped(report.name)}',
    _escaped(report.question),
    _fenced(report.command),
    *(block for part in report.parts for block in _part(part)),
    '## How to read the tables',
    _escaped(legend),
    '\n'.join(
      f'- **{_escaped(heading)}**: {_escaped(told)}'
      for heading, told in columns
    ),
  ]
  return '\n\n'.join(line for line in lines if line) + '\n'


def latex(report: Report) -> str:
  r"""Booktabs tables of each part, with captions.

  Labels: `tab:REPORT-PART`, and of the differences to the baseline
  `tab:REPORT-PART-difference`.

  Needs \usepackage{booktabs} and UTF-8, nothing else.

  Args:
    report: its texts are plain: none of their signs acts as LaTeX.

  Returns:
    Table environments, ending in a newline.
  """
  return '\n'.join(
    made
    for part in report.parts
    if not wording.unmeasured(part)
    for made in _environments(report, part)
  )


def csv(report: Report) -> str:
  """The numbers behind the tables: part, system, seed, metric, value.

  A line for each seed that was wanted or measured, in full precision; without
  a value where nothing was measured. Fields as in RFC 4180, lines end in '\\n'.
  """
  file = io.StringIO()
  writer = csv_format.writer(file, lineterminator='\n')
  writer.writerow(('part', 'system', 'seed', 'metric', 'value'))
  for part in report.parts:
    for row in part.rows:
      for column in part.columns:
        by_seed = row.entries[column.key].by_seed
        for seed in sorted({*row.seeds, *by_seed}):
          value = repr(float(by_seed[seed])) if seed in by_seed else ''
          names = (part.name, row.label, column.key)
          name, label, key = map(_spreadsheet, names)
          writer.writerow((name, label, seed, key, value))
  return file.getvalue()


def _part(part: Part) -> list[str]:
  heading = f'## {_escaped(part.title)}'
  if nothing := wording.unmeasured(part):
    return [heading, _escaped(nothing)]
  blocks = [heading, _markdown_table(wording.results(part))]
  differences = wording.differences(part)
  if differences is not None:
    blocks += [
      '### Difference to the baseline',
      _markdown_table(differences),
      _escaped(wording.differences_legend(part)),
    ]
  remarks = [f'- {_escaped(text)}' for text in wording.remarks(part)]
  return [*blocks, '### Notes', '\n'.join(remarks)]


def _fenced(text: str) -> str:
  """As it is, between marks that are longer than any in it."""
  text = printable(text, keep='\n')
  marks = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
  return f'{marks}\n{text}\n{marks}'


def _spreadsheet(text: str) -> str:
  """A name that no spreadsheet takes for a formula."""
  text = printable(text, keep='\n')
  return f"'{text}" if text.lstrip().startswith(('=', '+', '-', '@')) else text


def _escaped(text: str) -> str:
  escaped = one_line(text).translate(_MARKDOWN)
  return _LIST_SIGN.sub(r'\1\\\2', escaped)


def _markdown_table(table: Table) -> str:
  """Aligned, all columns after the first to the right."""
  rows = [[_escaped(heading) for heading in table.headings]]
  rows += [
    [_escaped(label), *map(_markdown_cell, cells)]
    for label, cells in table.rows
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    [row[0].ljust(widths[0])]
    + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
    for row in rows
  ]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  return '\n'.join(
    f'| {" | ".join(line)} |' for line in (lines[0], rule, *lines[1:])
  )


def _markdown_cell(cell: Cell) -> str:
  """Numbers and words of the report's own: nothing to escape."""
  text = ' '.join(cell.pieces)
  return f'**{text}**' if cell.bold else text


def _environments(report: Report, part: Part) -> list[str]:
  """The results, and the differences where there are any."""
  title = f'{one_line(part.title).rstrip(".")}.'
  label = re.sub(r'[^A-Za-z0-9]+', '-', f'{report.name}-{part.name}')
  documents = wording.remarks(part)[0]
  made = [
    _environment(
      wording.results(part), label,
      f'{title} {documents} {wording.results_legend(part)}', ruled=1,
    )
  ]  # fmt: skip
  differences = wording.differences(part)
  if differences is not None:
    made.append(_environment(
      differences, f'{label}-difference',
      f'{title} Difference to the baseline. {documents} '
      f'{wording.differences_legend(part)}', ruled=0,
    ))  # fmt: skip
  return made


def _environment(table: Table, label: str, caption: str, ruled: int) -> str:
  """A table; the last `ruled` rows below a rule of their own."""
  rows = [
    ' & '.join([_latex_text(name), *map(_latex_cell, cells)]) + r' \\'
    for name, cells in table.rows
  ]
  if ruled:
    rows.insert(len(rows) - ruled, r'\midrule')
  return '\n'.join([
    r'\begin{table}',
    r'\centering',
    r'\small',
    rf'\caption{{{_latex_text(caption)}}}',
    rf'\label{{tab:{label}}}',
    rf'\begin{{tabular}}{{l{"r" * (len(table.headings) - 1)}}}',
    r'\toprule',
    ' & '.join(map(_latex_text, table.headings)) + r' \\',
    r'\midrule',
    *rows,
    r'\bottomrule',
    r'\end{tabular}',
    r'\end{table}',
    '',
  ])


def _latex_text(text: str) -> str:
  # Two hyphens would become a dash.
  return re.sub('-(?=-)', '-{}', one_line(text).translate(_LATEX))


def _latex_cell(cell: Cell) -> str:
  # A hyphen is shorter than a minus.
  text = re.sub(r'-(?=\d)', '$-$', _latex_text(' '.join(cell.pieces)))
  return rf'\textbf{{{text}}}' if cell.bold else text
