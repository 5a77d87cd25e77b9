"""A preview for the terminal: colours if there are any, numbers if not."""

from collections.abc import Iterable, Iterator

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pdl_jax.preview import facts, scale
from pdl_jax.preview.content import Preview, ShownExample, Token
from pdl_jax.preview.pieces import readable

# Longest prompt that is printed, in characters; the page has all of it.
PROMPT_SHOWN = 600


def print_terminal(preview: Preview, console: Console | None = None) -> None:
  """Prints a preview at the width of the terminal.

  Without 256 colours (a pipe, NO_COLOR, an old terminal) the number of each
  token stands below it.

  Args:
    preview: of `collect`.
    console: rich's; None: standard output.
  """
  console = console or Console()
  # Sixteen colours cannot tell the nine levels apart.
  many = console.color_system in ('256', 'truecolor')
  coloured = many and not console.no_color
  _print(console, Text(f'loss {facts.title(preview)}', 'bold'))
  for note in preview.notes:
    _print(console, Text(note, 'italic'))
  for name, value in facts.lines(preview):
    _print(console, Text(f'{name}: {value}'))
  tables = [_buckets(preview)]
  for name, tokens in facts.extremes(preview):
    tables.append(_types(preview, name, tokens, coloured))
  for table in tables:
    console.print()
    console.print(table)
  _print(console, _legend(preview, coloured))
  for example in preview.examples:
    _print_example(console, preview, example, coloured)


def _print(console: Console, text: Text) -> None:
  console.print(text, overflow='fold', highlight=False)


def _table(header: Iterable[str]) -> Table:
  table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
  for position, name in enumerate(header):
    table.add_column(name, justify='right' if position else 'left')
  return table


def _buckets(preview: Preview) -> Table:
  table = _table(facts.bucket_header(preview))
  for bucket in preview.buckets:
    table.add_row(*facts.bucket_row(preview, bucket))
  return table


def _types(
  preview: Preview, name: str, tokens: tuple[Token, ...], coloured: bool
) -> Table:
  table = _table([name, 'id', 'count', 'rank', preview.kind])
  for token in tokens:
    table.add_row(
      Text.assemble((token.text, _style(token) if coloured else '')),
      str(token.id),
      facts.count(token.count),
      f'{token.rank:,}',
      facts.number(token.value),
    )
  return table


def _style(token: Token) -> Style:
  ground = scale.LIGHT[1].get(token.level)
  if ground is None:
    return Style(italic=token.special)
  return Style(color=scale.LIGHT[0], bgcolor=ground, italic=token.special)


def _legend(preview: Preview, coloured: bool) -> Text:
  legend = Text(f'\nsigns: {facts.TOKEN_SIGNS}')
  if preview.kind == 'none':
    return legend.append('\nbelow each token: its count in training')
  if not coloured:
    return legend.append(f'\nbelow each token: its {preview.kind}')
  legend.append(f'\n{preview.kind} against the mean of a running token: ')
  for level, label in zip(
    scale.LEVELS, scale.LABELS[preview.kind], strict=True
  ):
    ground = scale.LIGHT[1].get(level)
    style = Style(color=scale.LIGHT[0], bgcolor=ground) if ground else ''
    legend.append(f' {label} ', style).append(' ')
  return legend


def _print_example(
  console: Console, preview: Preview, example: ShownExample, coloured: bool
) -> None:
  _print(console, Text(f'\n{facts.heading(preview, example)}', 'bold'))
  prompt = readable(example.prompt)
  cut = len(prompt) - PROMPT_SHOWN
  if cut > 0:
    prompt = f'{prompt[:PROMPT_SHOWN]}… ({cut} characters more)'
  _print(console, Text(f'prompt: {prompt}', 'dim'))
  _print(console, Text(f'target: {readable(example.target)}', 'dim'))
  numbered = not coloured or preview.kind == 'none'
  for row in _rows(example.tokens, console.width, numbered):
    for line in _row(row, numbered):
      _print(console, line)


def _below(token: Token) -> str:
  if token.value is None:
    return facts.count(token.count)
  return facts.number(token.value)


def _width(token: Token, numbered: bool) -> int:
  if not numbered:
    return cell_len(token.text)
  return max(cell_len(token.text), len(_below(token))) + 1


def _rows(
  tokens: tuple[Token, ...], width: int, numbered: bool
) -> Iterator[list[Token]]:
  """Tokens by line: as many as fit, and a new line after a line's end."""
  row, used = [], 0
  for token in tokens:
    needed = _width(token, numbered)
    if row and (used + needed > width or b'\n' in row[-1].raw):
      yield row
      row, used = [], 0
    row.append(token)
    used += needed
  if row:
    yield row


def _row(row: list[Token], numbered: bool) -> Iterator[Text]:
  if not numbered:
    yield Text.assemble(*((token.text, _style(token)) for token in row))
    return
  above, below = (
    ''.join(
      set_cell_size(content(token), _width(token, True)) for token in row
    )
    for content in (lambda token: token.text, _below)
  )
  yield Text(above.rstrip())
  yield Text(below.rstrip())
