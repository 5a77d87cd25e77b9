"""The one table of the project, and what it looks like in each markup."""

import csv
import dataclasses
import html
import io
import re
from collections.abc import Sequence

from pdl_jax.errors import printable

# What acts in Markdown; an underscore does at the edge of a word.
_SIGNS = re.compile(r'[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])')
# At the start of a line: '# ', '- ', '+ ', '1. ' and the like.
_STARTS = re.compile(r'^(\d*)([-+.)#])(?=[ #-]|$)')
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
  # Those of the project's own tables.
  '±': r'$\pm$',
  '↑': r'$\uparrow$',
  '↓': r'$\downarrow$',
  '≈': r'$\approx$',
  '∞': r'$\infty$',
})


def one_line(text: str) -> str:
  """Plain text without line breaks, which no table cell can hold."""
  return ' '.join(printable(text, keep='\n\r\t\v\f').split())


def escape_markdown(text: str) -> str:
  """Plain text within one line of Markdown in which no sign acts."""
  return _SIGNS.sub(r'\\\g<0>', one_line(text))


def markdown_line(text: str) -> str:
  """Plain text as a line of Markdown that begins no list or heading."""
  return _STARTS.sub(r'\1\\\2', escape_markdown(text))


def escape_latex(text: str) -> str:
  """Plain text as one line of LaTeX in which no sign acts."""
  # Two hyphens would become a dash.
  return re.sub('-(?=-)', '-{}', one_line(text).translate(_LATEX))


def escape_html(text: str) -> str:
  """Plain text as HTML; lines stay lines."""
  return html.escape(printable(text, keep='\n'))


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell without markup.

  Attributes:
    pieces: of its text; a line may break between them, never inside.
    bold: an undisputed best value.
  """

  pieces: tuple[str, ...]
  bold: bool = False

  @property
  def text(self) -> str:
    """The pieces as one."""
    return ' '.join(self.pieces)


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells below headings; all texts are plain.

  Attributes:
    headings: of all columns.
    rows: as many cells each.
    texts: how many columns, from the left, are words; the others are numbers.
    ruled: how many rows, from the end, stand below a rule of their own.
  """

  headings: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  texts: int = 1
  ruled: int = 0

  @classmethod
  def of(
    cls, headings: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1
  ) -> 'Table':
    """A table of plain words, none of them bold."""
    cells = tuple(tuple(Cell((text,)) for text in row) for row in rows)
    return cls(tuple(headings), cells, texts)

  def to_markdown(self) -> str:
    """Aligned, numbers to the right; ends in a newline."""
    lines = [list(map(escape_markdown, self.headings))]
    lines += [
      [escape_markdown(cell.text) for cell in row[: self.texts]]
      + [_markdown_number(cell) for cell in row[self.texts :]]
      for row in self.rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, [
      '-' * width if at < self.texts else '-' * (width - 1) + ':'
      for at, width in enumerate(widths)
    ])
    return ''.join(
      '| ' + ' | '.join(
        cell.ljust(width) if at < self.texts else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(line, widths, strict=True))
      ) + ' |\n'
      for line in lines
    )  # fmt: skip

  def to_latex(self, caption: str, label: str) -> str:
    r"""A table environment; needs \usepackage{booktabs} and UTF-8."""
    rows = [
      ' & '.join([
        *(escape_latex(cell.text) for cell in row[: self.texts]),
        *map(_latex_number, row[self.texts :]),
      ]) + r' \\'
      for row in self.rows
    ]  # fmt: skip
    if self.ruled:
      rows.insert(len(rows) - self.ruled, r'\midrule')
    numbers = len(self.headings) - self.texts
    return '\n'.join([
      r'\begin{table}',
      r'\centering',
      r'\small',
      rf'\caption{{{escape_latex(caption)}}}',
      rf'\label{{tab:{label}}}',
      rf'\begin{{tabular}}{{{"l" * self.texts}{"r" * numbers}}}',
      r'\toprule',
      ' & '.join(map(escape_latex, self.headings)) + r' \\',
      r'\midrule',
      *rows,
      r'\bottomrule',
      r'\end{tabular}',
      r'\end{table}',
      '',
    ])

  def to_html(self, name: str) -> str:
    """A table element of the class `name`."""
    head = ''.join(
      f'<th scope="col">{escape_html(text)}</th>' for text in self.headings
    )
    body = '\n'.join(
      f'<tr><th scope="row">{escape_html(row[0].text)}</th>'
      f'{"".join(map(_html_cell, row[1:]))}</tr>'
      for row in self.rows
    )
    return (
      f'<div class="wide"><table class="{name}"><thead><tr>{head}</tr></thead>'
      f'\n<tbody>{body}</tbody></table></div>'
    )

  def to_csv(self) -> str:
    """Fields as in RFC 4180, lines end in '\\n'; no name is a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(self.headings)
    for row in self.rows:
      words = [_spreadsheet(cell.text) for cell in row[: self.texts]]
      writer.writerow(words + [cell.text for cell in row[self.texts :]])
    return file.getvalue()


def _markdown_number(cell: Cell) -> str:
  """Numbers and words of the project's own: nothing to escape."""
  return f'**{cell.text}**' if cell.bold else cell.text


def _latex_number(cell: Cell) -> str:
  # A hyphen is shorter than a minus.
  text = re.sub(r'-(?=\d)', '$-$', escape_latex(cell.text))
  return rf'\textbf{{{text}}}' if cell.bold else text


def _html_cell(cell: Cell) -> str:
  text = ' '.join(f'<span>{escape_html(piece)}</span>' for piece in cell.pieces)
  return f'<td>{f"<b>{text}</b>" if cell.bold else text}</td>'


def _spreadsheet(text: str) -> str:
  """A name that no spreadsheet takes for a formula."""
  text = printable(text, keep='\n')
  return f"'{text}" if text.lstrip().startswith(('=', '+', '-', '@')) else text
