"""A report as one HTML file that needs no other."""

import re
from collections.abc import Mapping

from pdl_jax.errors import DataError
from pdl_jax.evaluate.table import escape_html, one_line
from pdl_jax.report import wording
from pdl_jax.report.layout import Part, Report
from pdl_jax.report.wording import file_stem

# Figures keep their white ground in the dark: their ink is dark.
_STYLE = """
:root { color-scheme: light dark; --ink: #111111; --page: #ffffff;
  --line: #c9c9c9; }
@media (prefers-color-scheme: dark) { :root { --ink: #f5f5f5; --page: #161616;
  --line: #4d4d4d; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin-top: 1.5rem; }
pre, .wide { overflow-x: auto; }
p, li, dd { max-width: 48rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: .15rem .8rem .15rem 0;
  font-weight: 400; }
td span { white-space: nowrap; }
th:first-child { text-align: left; min-width: 9rem; }
thead th { font-weight: 600; vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
.results tbody tr:last-child > * { border-top: 1px solid var(--line); }
dt { font-weight: 600; }
dd { margin: 0 0 .3rem; }
figure { margin: 1rem 0; max-width: 48rem; background: #ffffff;
  border-radius: 4px; padding: .4rem; }
svg { display: block; width: 100%; height: auto; }
"""


def to_html(report: Report, figures: Mapping[str, str]) -> str:
  """The page: no script, no other file; equal reports give equal bytes.

  Args:
    report: its texts are plain: none of their signs acts as HTML.
    figures: file name -> SVG, as `figures.draw` gives them; each stands with
      the part whose name its own begins with.

  Raises:
    DataError: a figure of no part, or one that is no SVG.
  """
  shown = [(part, []) for part in report.parts]
  # Their order numbers the figures, so that no two of them share an id.
  for i, (name, svg) in enumerate(figures.items(), start=1):
    shown[_owner(name, report)][1].append(_inline(name, svg, f'figure-{i}-'))
  title = escape_html(one_line(report.name))
  return '\n'.join([
    '<!DOCTYPE html>',
    '<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{title}</title><style>{_STYLE}</style></head><body>',
    f'<h1>{title}</h1>',
    f'<p>{escape_html(report.question)}</p>',
    f'<pre>{escape_html(report.command)}</pre>',
    *(_section(part, inline) for part, inline in shown),
    '</body></html>',
    '',
  ])


def _owner(name: str, report: Report) -> int:
  """The part of a figure; the longest name, where one begins with another."""
  starts = [f'{file_stem(part.name)}_' for part in report.parts]
  found = [i for i, start in enumerate(starts) if name.startswith(start)]
  if not found:
    raise DataError(
      f'figure {name!r} begins with the name of no part of report '
      f'{report.name!r}: {", ".join(part.name for part in report.parts)}'
    )
  return max(found, key=lambda i: len(starts[i]))


def _inline(name: str, svg: str, prefix: str) -> str:
  """An SVG file as an element, with ids of its own."""
  start = svg.find('<svg')
  if start < 0:
    raise DataError(f'figure {name!r} is no SVG; draw it again')
  element = re.sub(
    '<[^>]*>', lambda tag: _with_own_ids(tag.group(), prefix), svg[start:]
  )
  return element.replace('<svg', '<svg role="img"', 1).strip()


def _with_own_ids(tag: str, prefix: str) -> str:
  return re.sub(r'(\sid="|href="#|url\(#)', rf'\g<1>{prefix}', tag)


def _section(part: Part, figures: list[str]) -> str:
  heading = f'<section><h2>{escape_html(part.title)}</h2>'
  if nothing := wording.unmeasured(part):
    return f'{heading}<p>{escape_html(nothing)}</p></section>'
  blocks = [
    heading,
    wording.results(part).to_html('results'),
    f'<p>{escape_html(wording.results_legend(part))}</p>',
  ]
  differences = wording.differences(part)
  if differences is not None:
    blocks += [
      '<h3>Difference to the baseline</h3>',
      differences.to_html('differences'),
      f'<p>{escape_html(wording.differences_legend(part))}</p>',
    ]
  blocks += [
    *(f'<figure>{figure}</figure>' for figure in figures),
    '<h3>Notes</h3>',
    '<ul>',
    *(f'<li>{escape_html(text)}</li>' for text in wording.remarks(part)),
    '</ul>',
    '<h3>Columns</h3>',
    '<dl>',
    *(
      f'<dt>{escape_html(heading)}</dt><dd>{escape_html(text)}</dd>'
      for heading, text in wording.definitions(part)
    ),
    '</dl></section>',
  ]
  return '\n'.join(blocks)
