"""The one table of the project, in Markdown, LaTeX, HTML and CSV."""

import csv
import dataclasses
import io
import itertools
import math
import re
import string
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from pdl_jax.errors import printable

# Signs with a meaning in Markdown; an underscore has one at a word's edge.
_SIGNS = re.compile(r'[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])')
# Signs with a meaning at the start of a line: '# ', '- ', '+ ', '1. '.
_STARTS = re.compile(r'^(\d*)([-+.)#])(?=[ #-]|$)')
_LATEX = str.maketrans({
  **{sign: f'\\{sign}' for sign in '%_&#{}$'},
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '`': r'\textasciigrave{}',
  '^': r'\textasciicircum{}',
  # At the start of a row, the row end before would read them as arguments.
  '[': '{[}',
  '*': '{*}',
  # OT1, the oldest font encoding, has other signs in these places.
  '<': r'\textless{}',
  '>': r'\textgreater{}',
  '|': r'\textbar{}',
  # Signs of the project's own tables.
  '±': r'$\pm$',
  '−': r'$-$',
  '↑': r'$\uparrow$',
  '↓': r'$\downarrow$',
  '≈': r'$\approx$',
  '∞': r'$\infty$',
})
# Limits of one LaTeX table, so that it fits an A4 page of class article.
MOST_COLUMNS, MOST_LINES, MOST_POINTS = 8, 44, 345
_HEADING_LENGTH, _LABEL_LENGTH = 10, 22
_SEPARATION = 3
# Largest width in points of signs in Computer Modern; any other takes 7.5.
_POINTS = {
  **dict.fromkeys(string.ascii_lowercase, 4.8),
  **dict.fromkeys(string.digits, 4.3),
  **dict.fromkeys('fijlrt()', 3.4),
  **dict.fromkeys(" .,:;[]'", 2.9),
  **dict.fromkeys('+-±=<>≈', 6.7),
  **dict.fromkeys('mw', 7.5),
}


def one_line(text: str) -> str:
  """Joins the lines of a plain text, since no table cell can hold a break."""
  return ' '.join(printable(text, keep='\n\r\t\v\f').split())


def escape_markdown(text: str) -> str:
  """Escapes plain text as one line of Markdown."""
  return _SIGNS.sub(r'\\\g<0>', one_line(text))


def markdown_line(text: str) -> str:
  """Escapes plain text as a line of Markdown that begins no list or heading."""
  return _STARTS.sub(r'\1\\\2', escape_markdown(text))


def escape_latex(text: str) -> str:
  """Escapes plain text as one line of LaTeX."""
  # Two hyphens would become a dash.
  return re.sub('-(?=-)', '-{}', one_line(text).translate(_LATEX))


def _printable(value: Any) -> Any:
  if isinstance(value, str) and not isinstance(value, Markup):
    return printable(value, keep='\n')
  return value


# HTML templates, which escape all text.
HTML = jinja2.Environment(
  autoescape=True, finalize=_printable, undefined=jinja2.StrictUndefined,
  trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_HTML_TABLE = HTML.from_string('''\
<div class="wide"><table class="{{ name }}">
<thead><tr>
{% for heading in table.headings %}
<th scope="col">{{ heading }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr><th scope="row">{{ row[0].text }}</th>
{% for cell in row[1:] %}
<td{{ ' class="best"' | safe if cell.bold }}>
{% for piece in cell.pieces %}
<span>{{ piece }}</span>
{% endfor %}
</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
''')


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell without markup.

  Attributes:
    pieces: parts of its text; a line may break between them, never inside.
    bold: whether it is an undisputed best value.
  """

  pieces: tuple[str, ...]
  bold: bool = False

  @property
  def text(self) -> str:
    """The pieces as one text."""
    return ' '.join(self.pieces)


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells below headings; all texts are plain.

  Attributes:
    texts: number of columns, from the left, with words; others have numbers.
    ruled: number of rows, from the end, that stand below a rule of their own.
  """

  headings: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  texts: int = 1
  ruled: int = 0

  @classmethod
  def of(
    cls, headings: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1
  ) -> 'Table':
    """Makes a table of plain words, none of them bold."""
    cells = tuple(tuple(Cell((text,)) for text in row) for row in rows)
    return cls(tuple(headings), cells, texts)

  def to_markdown(self) -> str:
    """Formats aligned Markdown, numbers to the right; ends in a newline."""
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

  def to_latex(self, title: str, note: str, label: str) -> str:
    r"""Formats table environments; they need \usepackage{booktabs} and UTF-8.

    Each fits an A4 page of the class article. A table with too many columns, or
    too wide or long, becomes several.

    Args:
      title: begins the caption of each.
      note: further sentences for the caption of the first.
      label: the first is `tab:LABEL`, the others `tab:LABEL-2` and so on.
    """
    head = [Cell(_wrapped(text, _HEADING_LENGTH)) for text in self.headings]
    rows = [
      [Cell(_wrapped(cell.text, _LABEL_LENGTH)) for cell in row[: self.texts]]
      + list(row[self.texts :])
      for row in self.rows
    ]
    heights = [max(len(cell.pieces) for cell in row) for row in rows]
    widths = [max(map(_points, of)) for of in zip(head, *rows, strict=True)]
    words = range(self.texts)

    def wide(numbers: range) -> bool:
      points = sum(widths[at] for at in (*words, *numbers))
      return len(words) + len(numbers) > MOST_COLUMNS or points > MOST_POINTS

    def high(block: range) -> bool:
      return sum(heights[at] for at in block) > MOST_LINES

    blocks = _parts(range(len(rows)), high)
    # Every part has all words; without numbers there is one.
    shares = _parts(range(self.texts, len(head)), wide) or [range(0)]
    parts = [
      (some, [*words, *share]) for some in blocks for share in shares
    ]  # fmt: skip
    made = []
    for i, (some, columns) in enumerate(parts, start=1):
      of = f' ({i} of {len(parts)})' if len(parts) > 1 else ''
      lines = [
        _latex_row([rows[at][j] for j in columns], self.texts) for at in some
      ]
      if self.ruled and some.stop == len(rows):
        lines.insert(len(lines) - self.ruled, r'\midrule')
      numbers = len(columns) - self.texts
      made.append('\n'.join([
        r'\begin{table}[htbp]',
        r'\centering',
        r'\footnotesize',
        rf'\setlength{{\tabcolsep}}{{{_SEPARATION}pt}}',
        r'\setlength{\belowcaptionskip}{4pt}',
        rf'\caption{{{escape_latex(f"{title}{of}. {note * (i == 1)}")}}}',
        rf'\label{{tab:{label}{f"-{i}" * (i > 1)}}}',
        rf'\begin{{tabular}}{{{"l" * self.texts}{"r" * numbers}}}',
        r'\toprule',
        _latex_head([head[j] for j in columns]),
        r'\midrule',
        *lines,
        r'\bottomrule',
        r'\end{tabular}',
        r'\end{table}',
        '',
      ]))
    return '\n'.join(made)

  def to_html(self, name: str) -> Markup:
    """Formats a table element of the class `name`."""
    return Markup(_HTML_TABLE.render(table=self, name=name))

  def to_csv(self) -> str:
    """Formats fields as RFC 4180 with '\\n' line ends; no name is a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(self.headings)
    for row in self.rows:
      words = [_spreadsheet(cell.text) for cell in row[: self.texts]]
      writer.writerow(words + [cell.text for cell in row[self.texts :]])
    return file.getvalue()


def _markdown_number(cell: Cell) -> str:
  # Numbers and words of the project's own need no escapes.
  return f'**{cell.text}**' if cell.bold else cell.text


def _wrapped(text: str, length: int) -> tuple[str, ...]:
  lines = textwrap.wrap(one_line(text), length)
  return tuple(lines) or ('',)


def _points(cell: Cell) -> float:
  """Returns the largest width of a column with this cell, in 8-point print."""
  wide = 1.16 if cell.bold else 1.0
  return 2 * _SEPARATION + wide * max(
    sum(_POINTS.get(sign, 7.5) for sign in piece) for piece in cell.pieces
  )


def _parts(
  whole: range, is_too_large: Callable[[range], bool]
) -> list[range]:
  """Splits, as evenly as possible, into the fewest parts that fit a page."""
  parts: list[range] = []
  for n in range(1, len(whole) + 1):
    ends = [math.ceil(len(whole) * i / n) for i in range(n + 1)]
    parts = [whole[slice(*pair)] for pair in itertools.pairwise(ends)]
    if not any(map(is_too_large, parts)):
      break
  return parts


def _latex_head(cells: Sequence[Cell]) -> str:
  """Formats headings of several lines, aligned at the last line."""
  depth = max(len(cell.pieces) for cell in cells)
  return _latex_row(
    [Cell(('',) * (depth - len(c.pieces)) + c.pieces) for c in cells],
    texts=len(cells),
  )


def _latex_row(cells: Sequence[Cell], texts: int) -> str:
  """Formats the first pieces of all cells, the second below them, and so on."""
  columns = [
    [_latex_piece(piece, cell.bold, number=at >= texts)
     for piece in cell.pieces]
    for at, cell in enumerate(cells)
  ]  # fmt: skip
  lines = [
    ' & '.join(line)
    for line in itertools.zip_longest(*columns, fillvalue='')
  ]
  return ' \\\\*\n'.join(lines) + r' \\' + '[2pt]' * (len(lines) > 1)


def _latex_piece(text: str, bold: bool, *, number: bool) -> str:
  if number:
    # A hyphen is shorter than a minus.
    text = re.sub(r'-(?=[\d∞])', '−', text)
  text = escape_latex(text)
  return rf'\textbf{{{text}}}' if bold else text


def _spreadsheet(text: str) -> str:
  """Quotes a name that a spreadsheet would take for a formula."""
  text = printable(text, keep='\n')
  return f"'{text}" if text.lstrip().startswith(('=', '+', '-', '@')) else text
