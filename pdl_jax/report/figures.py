"""The figures of a report as SVG.

Letters are drawn as paths: the same everywhere, whatever fonts there are.
Equal reports give equal bytes with one version of Matplotlib.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Picture
from matplotlib.typing import RcKeyType

from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.table import one_line
from pdl_jax.report import heat_map, plots
from pdl_jax.report.layout import (
  ByCount,
  Curves,
  Figure,
  Frontier,
  HeatMap,
  Line,
  Part,
  Report,
)
from pdl_jax.report.wording import file_stem

_STYLE: dict[RcKeyType, Any] = {
  'axes.axisbelow': True,
  'axes.formatter.useoffset': False,
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 9.5,
  'errorbar.capsize': 2,
  'font.size': 9,
  'grid.color': '#e3e3e3',
  'legend.frameon': False,
  'lines.linewidth': 1.4,
  'lines.markersize': 5,
  # The ids within a file are random without it.
  'svg.hashsalt': 'pdl_jax',
  'svg.fonttype': 'path',
  # A dollar sign in a label is one.
  'text.parse_math': False,
}
_UNDATED = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
_KINDS = {
  Line: 'line',
  Frontier: 'frontier',
  ByCount: 'by_count',
  HeatMap: 'heat_map',
  Curves: 'curves',
}


def draw(report: Report) -> dict[str, str]:
  """Every figure for every part that has something to show in it.

  Args:
    report: whatever styles the user of Matplotlib has set are not heeded.

  Returns:
    File name -> SVG text: `dialogue_line.svg` of the part `dialogue`. Where a
    report has several figures of a kind, the name goes on with their settings
    and metrics; a line's with its first metric.

  Raises:
    ConfigError: two figures of one name, or two systems in one cell of a heat
      map.
  """
  names = _names(report.figures)
  drawn = {}
  for part in report.parts:
    for name, figure in zip(names, report.figures, strict=True):
      title = f'{one_line(part.title)}: {name.replace("_", " ")}'
      text = svg(partial(_plot, part, figure), title)
      if text is not None:
        drawn[_file_name(part, name)] = text
  return drawn


def svg(plot: Callable[[], Picture | None], title: str) -> str | None:
  """What `plot` draws, in the style of all figures; None if it is nothing."""
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_STYLE)
    picture = plot()
    if picture is None:
      return None
    file = io.StringIO()
    picture.savefig(file, format='svg', metadata={**_UNDATED, 'Title': title})
    return file.getvalue()


def _plot(part: Part, figure: Figure) -> Picture | None:
  match figure:
    case Line():
      return plots.line(part, figure)
    case Frontier():
      return plots.frontier(part, figure)
    case ByCount():
      return plots.by_count(part)
    case HeatMap():
      return heat_map.draw(part, figure)
    case Curves():
      return plots.curves(part)


def _names(figures: Sequence[Figure]) -> list[str]:
  kinds = [type(figure) for figure in figures]
  names = [
    _KINDS[kind] if kinds.count(kind) == 1 else _long_name(figure)
    for kind, figure in zip(kinds, figures, strict=True)
  ]
  for name in names:
    if names.count(name) > 1:
      raise ConfigError(
        f'{names.count(name)} figures of the report would be {name}.svg; '
        'leave one out, or give lines of one setting other first metrics'
      )
  return names


def _long_name(figure: Figure) -> str:
  """With what tells it from others of its kind."""
  match figure:
    case Line():
      told = (figure.x, *figure.metrics[:1])
    case Frontier():
      told = (figure.x, figure.y)
    case HeatMap():
      told = (figure.x, figure.y, figure.metric)
    case _:
      told = ()
  return '_'.join((_KINDS[type(figure)], *told))


def _file_name(part: Part, name: str) -> str:
  return f'{file_stem(part.name)}_{file_stem(name)}.svg'
