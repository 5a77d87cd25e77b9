"""A report as one HTML file that needs no other."""

import re
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from pdl_jax.errors import DataError
from pdl_jax.evaluate.table import HTML
from pdl_jax.report import wording
from pdl_jax.report.layout import Report
from pdl_jax.report.wording import file_stem

_TEMPLATE = Path(__file__).with_name('page.html')


def to_html(report: Report, figures: Mapping[str, str]) -> str:
  """The page: no script, no other file; equal reports give equal bytes.

  Args:
    report: its texts are plain: none of their signs acts as HTML.
    figures: file name -> SVG, as `figures.draw` gives them; each stands with
      the part whose name its own begins with.

  Raises:
    DataError: a figure of no part, or one that is no SVG.
  """
  shown: dict[str, list[Markup]] = {part.name: [] for part in report.parts}
  # Their order numbers the figures, so that no two of them share an id.
  for i, (name, svg) in enumerate(figures.items(), start=1):
    shown[_owner(name, report)].append(_inline(name, svg, f'figure-{i}-'))
  template = HTML.from_string(_TEMPLATE.read_text('utf-8'))
  return template.render(report=report, figures=shown, words=wording)


def _owner(name: str, report: Report) -> str:
  """The part of a figure; the longest name, where one begins with another."""
  found = [
    part.name
    for part in report.parts
    if name.startswith(f'{file_stem(part.name)}_')
  ]
  if not found:
    raise DataError(
      f'figure {name!r} begins with the name of no part of report '
      f'{report.name!r}: {", ".join(part.name for part in report.parts)}'
    )
  return max(found, key=len)


def _inline(name: str, svg: str, prefix: str) -> Markup:
  """An SVG file as an element, with ids of its own."""
  start = svg.find('<svg')
  if start < 0:
    raise DataError(f'figure {name!r} is no SVG; draw it again')
  element = re.sub(
    '<[^>]*>', lambda tag: _with_own_ids(tag.group(), prefix), svg[start:]
  )
  return Markup(element.replace('<svg', '<svg role="img"', 1).strip())


def _with_own_ids(tag: str, prefix: str) -> str:
  return re.sub(r'(\sid="|href="#|url\(#)', rf'\g<1>{prefix}', tag)
