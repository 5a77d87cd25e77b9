"""A preview as one HTML file that needs no other."""

from collections.abc import Iterable
from html import escape

from pdl_jax.preview import facts, plot, scale
from pdl_jax.preview.content import Bucket, Preview, ShownExample, Token
from pdl_jax.preview.pieces import readable

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin-top: 2rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .1rem .7rem .1rem 0; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; border-bottom: 1px solid var(--line); }
dt { font-weight: 600; }
dd { margin: 0 0 .3rem; }
.bar { height: .45rem; }
.side { display: flex; flex-wrap: wrap; gap: 2rem; }
.note { border-left: 3px solid var(--line); padding-left: .7rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 15rem;
  overflow: auto; border-left: 3px solid var(--line); padding-left: .7rem;
  margin: .2rem 0 .8rem; unicode-bidi: isolate; }
.tokens { font-family: ui-monospace, monospace; line-height: 1.9;
  direction: ltr; }
.t { display: inline-block; max-width: 100%; overflow-wrap: anywhere;
  line-height: 1.4; border-radius: 3px; padding: 0 .15rem; margin-right: 2px;
  border: 1px solid var(--line); }
.s { border-style: dashed; font-style: italic; }
svg { width: 100%; height: auto; }
"""
_PAGES = {'light': ('#ffffff', '#c9c9c9'), 'dark': ('#161616', '#4d4d4d')}


def to_html(preview: Preview) -> str:
  """The page: no script, no other file; equal previews give equal bytes."""
  title = escape(f'Preview of {preview.loss}')
  plotted = '' if preview.kind == 'none' else _figure(preview)
  return '\n'.join([
    '<!DOCTYPE html>',
    '<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{title}</title><style>{_css()}</style></head><body>',
    f'<h1>{title}</h1>',
    f'<p>{escape(facts.title(preview))}</p>',
    *(f'<p class="note">{escape(note)}</p>' for note in preview.notes),
    '<dl>',
    *(
      f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
      for name, value in facts.lines(preview)
    ),
    '</dl>',
    plotted,
    '<h2>By frequency</h2>',
    _buckets(preview),
    '<div class="side">',
    *(_types(preview, *named) for named in facts.extremes(preview)),
    '</div>',
    '<h2>Examples</h2>',
    _legend(preview),
    *(_example(preview, example) for example in preview.examples),
    '</body></html>',
    '',
  ])


def _css() -> str:
  """Both palettes as variables, and a class for each level."""
  light = f':root {{ {_variables("light", scale.LIGHT)} }}'
  dark = (
    '@media (prefers-color-scheme: dark) { :root { '
    f'{_variables("dark", scale.DARK)} }} }}'
  )
  grounds = '\n'.join(
    f'.{_level_class(level)} {{ background: var(--{_level_class(level)}); }}'
    for level in scale.LEVELS
    if level
  )
  return f'{light}\n{dark}{_STYLE}{grounds}'


def _variables(mode: str, palette: tuple[str, dict[int, str]]) -> str:
  ink, grounds = palette
  page, line = _PAGES[mode]
  named = {'ink': ink, 'page': page, 'line': line}
  named |= {_level_class(level): ground for level, ground in grounds.items()}
  return ' '.join(f'--{name}: {colour};' for name, colour in named.items())


def _level_class(level: int) -> str:
  """u1 to u4 above the mean, d1 to d4 below, n near it."""
  if not level:
    return 'n'
  return f'{"u" if level > 0 else "d"}{abs(level)}'


def _figure(preview: Preview) -> str:
  return (
    f'<h2>{preview.kind.capitalize()} against frequency rank</h2>\n'
    f'{plot.svg(preview)}\n<p>Dots: the counted types of the corpus. Rings: '
    'those of the examples below.</p>'
  )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """Cells are HTML already."""
  head = ''.join(f'<th>{name}</th>' for name in header)
  body = '\n'.join(
    f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for row in rows
  )
  return f'<table><tr>{head}</tr>\n{body}</table>'


def _buckets(preview: Preview) -> str:
  header = facts.bucket_header(preview)
  rows = [facts.bucket_row(preview, bucket) for bucket in preview.buckets]
  if preview.kind == 'weight':
    header.append('tokens (above), weight')
    for row, bucket in zip(rows, preview.buckets, strict=True):
      row.append(_bars(bucket))
  return _table(header, rows)


def _bars(bucket: Bucket) -> str:
  """Both shares as lengths."""
  shares = (bucket.token_share, bucket.weight_share or 0.0)
  return ''.join(
    f'<div class="bar {name}" style="width:{15 * share:.2f}rem"></div>'
    for name, share in zip(('d4', 'u4'), shares, strict=True)
  )


def _types(preview: Preview, name: str, tokens: tuple[Token, ...]) -> str:
  rows = (
    (
      _token(preview, token), str(token.id), facts.count(token.count),
      f'{token.rank:,}', facts.number(token.value),
    )
    for token in tokens
  )  # fmt: skip
  return _table((name, 'id', 'count', 'rank', preview.kind), rows)


def _token(preview: Preview, token: Token) -> str:
  classes = f't {_level_class(token.level)}{" s" if token.special else ""}'
  title = escape(facts.hover(preview, token))
  return f'<span class="{classes}" title="{title}">{escape(token.text)}</span>'


def _legend(preview: Preview) -> str:
  signs = f'<p>Signs: {escape(facts.TOKEN_SIGNS)}. Dashed: control tokens.</p>'
  if preview.kind == 'none':
    return signs
  steps = ' '.join(
    f'<span class="t {_level_class(level)}">{escape(label)}</span>'
    for level, label in zip(
      scale.LEVELS, scale.LABELS[preview.kind], strict=True
    )
  )
  return (
    f'{signs}\n<p>{preview.kind.capitalize()} against the mean of a running '
    f'token: {steps}</p>'
  )


def _example(preview: Preview, example: ShownExample) -> str:
  tokens = []
  for token in example.tokens:
    tokens.append(_token(preview, token))
    if b'\n' in token.raw:
      tokens.append('<br>')
  return '\n'.join([
    f'<h2>{escape(facts.heading(preview, example))}</h2>',
    'Prompt',
    f'<div class="text" dir="auto">{escape(readable(example.prompt))}</div>',
    'Target',
    f'<div class="text" dir="auto">{escape(readable(example.target))}</div>',
    f'<div class="tokens">{"".join(tokens)}</div>',
  ])
