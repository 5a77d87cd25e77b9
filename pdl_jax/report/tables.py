"""A report as Markdown, as LaTeX, and as raw numbers.

Equal reports give equal text: no dates, no paths, rounded numbers.
"""

import re

from pdl_jax.errors import printable
from pdl_jax.evaluate.table import Table, markdown_line, one_line
from pdl_jax.report import wording
from pdl_jax.report.layout import Part, Report


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
      markdown_line(wording.differences_legend(part)),
    ]
  remarks = [f'- {markdown_line(text)}' for text in wording.remarks(part)]
  return [*blocks, '### Notes', '\n'.join(remarks)]


def _fenced(text: str) -> str:
  """As it is, between marks that are longer than any in it."""
  text = printable(text, keep='\n')
  marks = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
  return f'{marks}\n{text}\n{marks}'


def _environments(report: Report, part: Part) -> list[str]:
  """The results, and the differences where there are any."""
  title = f'{one_line(part.title).rstrip(".")}.'
  label = re.sub(r'[^A-Za-z0-9]+', '-', f'{report.name}-{part.name}')
  documents = wording.remarks(part)[0]
  legend = wording.results_legend(part)
  made = [
    wording.results(part).to_latex(f'{title} {documents} {legend}', label)
  ]
  differences = wording.differences(part)
  if differences is not None:
    legend = wording.differences_legend(part)
    made.append(differences.to_latex(
      f'{title} Difference to the baseline. {documents} {legend}',
      f'{label}-difference',
    ))
  return made
