"""Shows what a loss will do to some training examples, before a step is spent.

`collect` computes everything; `print_terminal` and `to_html` show it.
"""

import dataclasses
import html
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pdl_jax.data.tokenizer import Tokenizer, spelled
from pdl_jax.errors import ConfigError, printable
from pdl_jax.evaluate.likelihood import BUCKETS
from pdl_jax.losses import LOSSES, LossTables
from pdl_jax.losses.frequency import FrequencyTable, effective_sample_size
from pdl_jax.losses.settings import LossSettings

# A loss weighs types, adds a bias (nats) to their logits, or does neither.
Kind = Literal['weight', 'bias', 'none']

# Heaviest and lightest types that are named.
EXTREMES = 10
# Longest prompt on the terminal, in characters; the page has all of it.
PROMPT_SHOWN = 600

# Colour tells how far a token is from the mean of a running token, by levels
# from -4 to 4: orange is heavier, blue lighter, which colour-blind readers can
# tell apart. Strengths begin at these factors, or at these nats of a bias.
EDGES = {'weight': (1.1, 2, 4, 8), 'bias': (0.1, 1, 2, 4)}
# By level: on a light page and in the terminal, and on a dark page.
INK = ('#111111', '#f5f5f5')
GROUNDS = {
  -4: ('#4b93d6', '#2267ae'), -3: ('#85b8e6', '#1f4f82'),
  -2: ('#b5d4f0', '#1b3a5c'), -1: ('#dce9f7', '#182a3e'),
  1: ('#fcead6', '#3a2813'), 2: ('#fbcd97', '#5a3710'),
  3: ('#f6a455', '#7d460a'), 4: ('#e07b1c', '#a35404'),
}  # fmt: skip
_SIGNS = {' ': '·', '\n': '↵', '\t': '⇥', '\r': '␍'}


class PreviewExample(NamedTuple):
  """A training example; the target ends with the end of turn."""

  id: str
  prompt: str
  target_ids: list[int]


class Token(NamedTuple):
  """A token of a target, or a type."""

  id: int
  raw: bytes
  special: bool  # A control token, not text.
  count: float  # In the training targets.
  value: float  # Weight, or bias in nats; 1 where the loss has neither.
  level: int  # Of its colour, -4 to 4.


@dataclasses.dataclass(frozen=True, eq=False)
class Preview:
  """A loss on a corpus and on some of its examples."""

  kind: Kind
  title: str  # The loss and what it reads.
  lines: list[str]  # On the loss and on the corpus.
  buckets: list[list[str]]  # The table by count, its header first.
  extremes: dict[str, list[Token]]  # The first counted types of an order.
  counts_T: np.ndarray  # Of the T counted types.
  values_T: np.ndarray
  examples: list[tuple[PreviewExample, list[Token]]]


def collect(
  loss: LossSettings,
  tables: LossTables,
  table: FrequencyTable,
  tokenizer: Tokenizer,
  examples: Sequence[PreviewExample],
) -> Preview:
  """Looks up and sums whatever is to be shown.

  Args:
    tables: weights or bias of the loss.
    table: counts of the training targets, by the same tokenizer.

  Raises:
    ConfigError: if every counted token weighs 0.
  """
  kind, counts_V = _kind(loss.name), table.counts_V
  values_V = tables.weights_V if tables.bias_V is None else tables.bias_V
  values_V = np.asarray(values_V, np.float64)
  mean = float(np.average(values_V, weights=counts_V))
  if kind == 'weight' and not mean:
    raise ConfigError(
      f'loss {loss.name} gives all {table.total} counted tokens weight 0: '
      'there is nothing to learn from'
    )
  heavier_V = _heavier(values_V, mean, kind)
  levels_V = _levels(heavier_V, kind)

  def look_up(ids: Iterable[int]) -> list[Token]:
    return [
      Token(
        i, tokenizer.raw(i), i in tokenizer.special_ids, counts_V[i].item(),
        values_V[i].item(), levels_V[i].item(),
      )
      for i in ids
    ]  # fmt: skip

  seen_T = np.flatnonzero(counts_V)
  lines = [
    *_notes(loss, kind),
    f'corpus: {table.data_name}/{table.split}: {table.total:,} target tokens '
    f'of {seen_T.size:,} types, tokenizer {tokenizer.name}',
  ]
  extremes = {}
  if kind != 'none':
    lines += _spread(counts_V, values_V, mean, kind)
    names = ('heaviest', 'lightest')
    if kind == 'bias':
      names = ('lowest bias', 'highest bias')
    for name, sign in zip(names, (-1, 1), strict=True):
      # Equals stand in the order of their ids.
      order_T = np.argsort(sign * heavier_V[seen_T], kind='stable')
      extremes[name] = look_up(seen_T[order_T[:EXTREMES]].tolist())
  return Preview(
    kind, _title(loss), lines, _buckets(counts_V, values_V, kind), extremes,
    counts_V[seen_T], values_V[seen_T],
    [(example, look_up(example.target_ids)) for example in examples],
  )  # fmt: skip


def _kind(name: str) -> Kind:
  spec = LOSSES[name]
  if spec.bias is not None:
    return 'bias'
  by_token = spec.terms is not None or spec.on_logits is not None
  return 'none' if by_token and spec.weights is None else 'weight'


def _heavier(values_V: np.ndarray, mean: float, kind: Kind) -> np.ndarray:
  """Measures types against the mean, in nats; a low bias is heavy."""
  if kind == 'bias':
    return mean - values_V
  with np.errstate(divide='ignore'):  # A weight of 0 is the lightest.
    return np.log(values_V / mean)


def _levels(heavier_V: np.ndarray, kind: Kind) -> np.ndarray:
  edges = EDGES['bias'] if kind == 'bias' else np.log(EDGES['weight'])
  strength_V = np.searchsorted(edges, np.abs(heavier_V), 'right')
  return np.sign(heavier_V).astype(int) * strength_V


def _title(loss: LossSettings) -> str:
  """Names the loss and the settings that it reads."""
  settings = {key: getattr(loss, key) for key in loss.spec.read}
  del settings['name']
  for key, value in loss.own.items():
    settings[f'{loss.name}.{key}'] = value
  # A table that is not given is an empty name.
  told = [f'{key}={value}' for key, value in settings.items() if value != '']
  return ' '.join([loss.name, *told])


def _notes(loss: LossSettings, kind: Kind) -> Iterator[str]:
  if kind == 'none':
    yield (
      f'{loss.name} has no weight per type: how much a token counts depends '
      'on the probabilities that the model gives, and cannot be shown before '
      'the model has run. Only frequencies are shown.'
    )
  if kind == 'bias':
    yield (
      f'{loss.name} has no weights: it adds a bias to the logits in training. '
      'A token whose bias is below the mean must be given a higher logit of '
      'its own, as a heavier one would.'
    )
  if loss.schedule != 'constant':
    yield f'loss.schedule {loss.schedule}: weights are shown at full strength.'


def _spread(
  counts_V: np.ndarray, values_V: np.ndarray, mean: float, kind: Kind
) -> Iterator[str]:
  """Describes the values of all types."""
  unit = ' nats' if kind == 'bias' else ''
  seen, unseen = values_V[counts_V > 0], values_V[counts_V == 0]
  low, middle, high = np.quantile(seen, [0, 0.5, 1])
  yield (
    f'{kind} of counted types: min {low:.3g}, median {middle:.3g}, '
    f'max {high:.3g}{unit}; mean of a running token {mean:.3g}'
  )
  if kind == 'weight':
    share = effective_sample_size(counts_V, values_V)
    yield f'effective sample size: {share:.1%} of the tokens'
  if unseen.size:
    yield (
      f'never counted: {unseen.size:,} types, median {kind} '
      f'{np.median(unseen):.3g}{unit}'
    )


def _buckets(
  counts_V: np.ndarray, values_V: np.ndarray, kind: Kind
) -> list[list[str]]:
  """Sums types, tokens and weight by count in training."""
  starts = [int(re.split(r'\D', name)[0]) for name in BUCKETS]
  bucket_V = np.searchsorted(starts, counts_V, 'right') - 1
  types, tokens, mass = (
    np.bincount(bucket_V, amounts_V, len(BUCKETS))
    for amounts_V in (np.ones_like(values_V), counts_V, counts_V * values_V)
  )
  columns = [
    ('count in training', *BUCKETS),
    ('types', *(f'{n:,.0f}' for n in types)),
    ('share of tokens', *(f'{share:.1%}' for share in tokens / tokens.sum())),
  ]
  if kind == 'weight':
    shares = (f'{share:.1%}' for share in mass / mass.sum())
    columns.append(('share of weight', *shares))
  if kind != 'none':
    pairs = zip(mass, tokens, strict=True)
    means = (f'{total / n:.3g}' if n else '-' for total, n in pairs)
    columns.append((f'mean {kind}', *means))
  return [list(row) for row in zip(*columns, strict=True)]


def print_terminal(preview: Preview, console: Console | None = None) -> None:
  """Prints a preview at the width of the terminal.

  Without 256 colours (a pipe, NO_COLOR, an old terminal) the number of each
  token stands below it.
  """
  console = console or Console()
  # Sixteen colours cannot tell the nine levels apart.
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
  # Rich has links where we want titles. Quotes of the text itself are escaped.
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
    legend.append(f'\n{kind} against the mean of a running token, from:')
    for level, label in enumerate(labels, -4):
      legend.append(' ').append(f' {label} ', _ground(level))
  return legend


def _numbered(tokens: Sequence[Token], kind: Kind, width: int) -> str:
  """Writes numbers below tokens, of which as many as fit share a line."""
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
  """Spells a token on one line: white space as signs, the unseen escaped."""
  text = ''.join(
    _SIGNS.get(sign) or (sign if sign.isprintable() else ascii(sign)[1:-1])
    for sign in spelled(raw)
  )
  # A mark that would sit on the character before stands on a circle.
  return f'◌{text}' if unicodedata.category(text[:1] or ' ')[0] == 'M' else text


def _known(token: Token, kind: Kind) -> str:
  told = f'id {token.id}, count {_count(token.count)}'
  return told if kind == 'none' else f'{told}, {kind} {token.value:.3g}'


def _count(amount: float) -> str:
  """Writes whole counts whole; those of a mix of tables with three digits."""
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
  """Returns the way from values to pixels, wide enough for equal values."""
  ends = values_T.min() - 0.1, values_T.max() + 0.1
  return lambda values: np.interp(values, ends, (first, last)).round(1)


# Blue and orange are seen on white and on black.
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
