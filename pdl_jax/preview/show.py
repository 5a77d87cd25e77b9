"""Prints a preview on the terminal, or as a page that needs no other file."""

import html
import io
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pdl_jax.data.tokenizer import spelled
from pdl_jax.errors import printable
from pdl_jax.preview.collect import EDGES, Kind, Preview, Token

# Longest prompt on the terminal, in characters; the page has all of it.
PROMPT_SHOWN = 600
# Colours on a light page and in the terminal, and on a dark page; by level.
INK = ('#111111', '#f5f5f5')
GROUNDS = {
  -4: ('#4b93d6', '#2267ae'), -3: ('#85b8e6', '#1f4f82'),
  -2: ('#b5d4f0', '#1b3a5c'), -1: ('#dce9f7', '#182a3e'),
  1: ('#fcead6', '#3a2813'), 2: ('#fbcd97', '#5a3710'),
  3: ('#f6a455', '#7d460a'), 4: ('#e07b1c', '#a35404'),
}  # fmt: skip
_SIGNS = {' ': '·', '\n': '↵', '\t': '⇥', '\r': '␍'}


def print_terminal(preview: Preview, console: Console | None = None) -> None:
  """Prints a preview at the width of the terminal.

  Without 256 colours (a pipe, NO_COLOR, an old terminal) each token has its
  number below it.
  """
  console = console or Console()
  # Sixteen colours cannot show nine levels.
  many = console.color_system in ('256', 'truecolor')
  coloured = many and not console.no_color and preview.kind != 'none'
  _print(console, preview, coloured, page=False)


def to_html(preview: Preview) -> str:
  """Makes a page that needs no other file; equal previews give equal bytes."""
  console = Console(
    record=True, file=io.StringIO(), color_system='truecolor',
    width=10_000,  # The browser breaks the lines.
  )  # fmt: skip
  _print(console, preview, coloured=True, page=True)
  style = console.export_html(code_format='{stylesheet}', clear=False)
  for light, dark in (INK, *GROUNDS.values()):
    style = style.replace(light, f'light-dark({light}, {dark})')
  # Turns rich's links into titles; quotes in the text itself are escaped.
  text = console.export_html(code_format='{code}')
  text = text.replace(' href="', ' title="')
  plot = '' if preview.kind == 'none' else _plot(preview)
  title = html.escape(printable(preview.title))
  return _PAGE.format(title=title, style=style, plot=plot, text=text)


def _print(
  console: Console, preview: Preview, coloured: bool, page: bool
) -> None:
  """Prints what terminal and page share; text of others only by `say`."""
  kind = preview.kind

  def say(text: str, style: str = '') -> None:
    put(Text(printable(text, keep='\n'), style))

  def put(text: Text) -> None:
    console.print(text, overflow='fold', highlight=False)

  def shown(token: Token) -> Text:
    style = Style()
    if coloured:
      link = _known(token, kind) if page else None
      style = _ground(token.level) + Style(italic=token.special, link=link)
    return Text.assemble((visible(token.raw), style))

  say(f'loss {preview.title}', 'bold')
  for line in preview.lines:
    say(line)
  console.print('', _table(*preview.buckets))
  for name, tokens in preview.extremes.items():
    rows = (
      (shown(t), str(t.id), _count(t.count), f'{t.value:.3g}') for t in tokens
    )
    console.print('', _table((name, 'id', 'count', kind), *rows))
  put(_legend(kind, coloured, page))
  for example, tokens in preview.examples:
    heading = f'\n{example.id}, {len(tokens)} target tokens'
    if tokens and kind != 'none':
      heading += f', mean {kind} {np.mean([t.value for t in tokens]):.3g}'
    say(heading, 'bold')
    prompt, cut = example.prompt, len(example.prompt) - PROMPT_SHOWN
    if cut > 0 and not page:
      prompt = f'{prompt[:PROMPT_SHOWN]}… ({cut} characters more)'
    # A window of a document may end inside a character.
    target = spelled(b''.join(t.raw for t in tokens if not t.special))
    say(f'prompt: {prompt}\ntarget: {target}')
    if not coloured:
      say(_numbered(tokens, kind, console.width))
      continue
    text = Text()
    for token in tokens:
      text.append_text(shown(token))
      text.append('\n' if b'\n' in token.raw else ' ')
    put(text)


def _table(header: Iterable[str], *rows: Iterable[str | Text]) -> Table:
  table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
  for position, name in enumerate(header):
    table.add_column(name, justify='right' if position else 'left')
  for row in rows:
    table.add_row(*row)
  return table


def _ground(level: int) -> Style:
  return Style(color=INK[0], bgcolor=GROUNDS[level][0]) if level else Style()


def _legend(kind: Kind, coloured: bool, page: bool) -> Text:
  legend = Text(
    '\nsigns: · space, ↵ new line, ⇥ tab, <0xE6> a byte that is no character '
    'by itself'
  )
  if page:
    legend.append('; italic: control tokens; numbers under the pointer')
  if not coloured:
    number = 'count in training' if kind == 'none' else kind
    legend.append(f'\nbelow each token: its {number}')
  elif kind != 'none':
    lighter, heavier = '÷×' if kind == 'weight' else '+-'
    edges = [f'{edge:g}' for edge in EDGES[kind]]
    labels = [lighter + edge for edge in reversed(edges)]
    labels += ['near it', *(heavier + edge for edge in edges)]
    legend.append(f'\n{kind} against the mean per token occurrence, from:')
    for level, label in enumerate(labels, -4):
      legend.append(' ').append(f' {label} ', _ground(level))
  return legend


def _numbered(tokens: Sequence[Token], kind: Kind, width: int) -> str:
  """Writes numbers below tokens, as many per line as fit."""
  rows, ended = [], True
  for token in tokens:
    text = visible(token.raw)
    number = _count(token.count) if kind == 'none' else f'{token.value:.3g}'
    cells = max(cell_len(text), len(number)) + 1
    if ended or cell_len(rows[-1][0]) + cells > width:
      rows.append(['', ''])
    rows[-1][0] += set_cell_size(text, cells)
    rows[-1][1] += number.ljust(cells)
    ended = b'\n' in token.raw
  return '\n'.join(line.rstrip() for row in rows for line in row)


def visible(raw: bytes) -> str:
  """Spells a token on one line: white space as signs, unprintables escaped."""
  text = ''.join(
    _SIGNS.get(sign) or (sign if sign.isprintable() else ascii(sign)[1:-1])
    for sign in spelled(raw)
  )
  # A combining mark gets a circle, or it would join the character before.
  return f'◌{text}' if unicodedata.category(text[:1] or ' ')[0] == 'M' else text


def _known(token: Token, kind: Kind) -> str:
  told = f'id {token.id}, count {_count(token.count)}'
  return told if kind == 'none' else f'{told}, {kind} {token.value:.3g}'


def _count(amount: float) -> str:
  return f'{amount:,.0f}' if amount == int(amount) else f'{amount:.3g}'


def _plot(preview: Preview) -> str:
  """Draws value against count as SVG in the colours of the page."""
  log = preview.kind == 'weight'
  # A weight of 0 has no place on a logarithmic axis.
  drawn_T = preview.values_T > 0 if log else np.isfinite(preview.values_T)
  x_T, y_T = np.log10(preview.counts_T[drawn_T]), preview.values_T[drawn_T]
  y_T = np.log10(y_T) if log else y_T
  across, up = _axis(x_T, 70, 708), _axis(y_T, 290, 12)
  lines, labels, rings = '', '', ''
  for x in np.unique(np.linspace(x_T.min(), x_T.max(), 5)):
    count = 10.0**x
    told = _count(round(count) if count > 10 else count)
    lines += f'M{across(x)} 12V290'
    labels += f'<text x="{across(x)}" y="308">{told}</text>'
  for y in np.unique(np.linspace(y_T.min(), y_T.max(), 5)):
    lines += f'M70 {up(y)}H708'
    labels += f'<text x="40" y="{up(y) + 4}">{10.0**y if log else y:.3g}</text>'
  # Types at one place are one dot.
  places = dict.fromkeys(zip(across(x_T), up(y_T), strict=True))
  dots = ''.join(f'M{x} {y}h0' for x, y in places)
  shown = {t.id: t for _, tokens in preview.examples for t in tokens if t.count}
  for token in shown.values():
    if token.value or not log:
      x = across(np.log10(token.count))
      y = up(np.log10(token.value) if log else token.value)
      told = f'{visible(token.raw)}: {_known(token, preview.kind)}'
      rings += f'<circle cx="{x}" cy="{y}" r="4"><title>{html.escape(told)}'
      rings += '</title></circle>\n'
  return _SVG.format(
    lines=lines, labels=labels, dots=dots, rings=rings,
    unit='weight' if log else 'bias in nats',
  )  # fmt: skip


def _axis(values_T: np.ndarray, first: int, last: int) -> Callable:
  """Returns a function from values to pixels; all values may be equal."""
  ends = values_T.min() - 0.1, values_T.max() + 0.1
  return lambda values: np.interp(values, ends, (first, last)).round(1)


# Blue and orange can be seen on white and on black.
_SVG = """\
<svg viewBox="0 0 720 340" role="img" aria-label="{unit} against count"
 fill="currentColor" text-anchor="middle">
<path d="{lines}" stroke="currentColor" stroke-opacity="0.2"/>
{labels}
<text x="389" y="332">count in training</text>
<text transform="translate(12 151) rotate(-90)">{unit}</text>
<path d="{dots}" stroke="#4b93d6" stroke-width="3" stroke-linecap="round"/>
<g fill="#e07b1c" fill-opacity="0.2" stroke="#e07b1c">
{rings}</g></svg>
<p>Dots: the counted types of the corpus. Rings: those of the examples.</p>
"""
_PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Preview of {title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  font: 14px/1.6 system-ui, sans-serif; }}
svg {{ width: 100%; height: auto; font-size: 12px; }}
pre {{ font-family: ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
pre * {{ unicode-bidi: isolate; }}
a {{ border: 1px solid #8888; border-radius: 3px; }}
{style}
</style></head><body>
{plot}<pre>{text}</pre>
</body></html>
"""
