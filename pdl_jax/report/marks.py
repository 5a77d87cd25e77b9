"""Defines the colours, markers, legends and ticks that figures share."""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from pdl_jax.evaluate.table import one_line
from pdl_jax.report.layout import Column, Part, Row

# Inches; an inch is 96 pixels on a screen.
WIDTH = 7.3
BASELINE, HUMAN, ONLY = '#000000', '#d55e00', '#0072b2'
# Distinct from the blues and greens of the scale.
_CATEGORIES = ('#cc79a7', '#56b4e9', '#7f7f7f', '#e69f00', '#8b4513')
_SCALE, _PALEST = 'viridis', 0.84
_MARKERS = 'o^DvPX<>'
_DASHES = ('-', '--', '-.', ':')
BETTER = {
  'higher': 'higher is better',
  'lower': 'lower is better',
  'reference': 'closer to human is better',
  'none': '',
}
_LABEL_WIDTH, _LEGEND_WIDTH, _LINE_HEIGHT = 46, 100, 0.19
# Shares of the length of an axis.
_MARGIN = 0.05
_LEAST_TICK_DISTANCE = 0.08

Setting = float | str
Rest = tuple[tuple[str, Setting], ...]


@dataclasses.dataclass(frozen=True)
class Mark:
  """How a system looks."""

  colour: str
  marker: str
  dash: str


def number_at(row: Row, key: str | None) -> float | None:
  """Returns a numeric setting of a system; None if absent or a word."""
  value = row.settings.get(key) if key is not None else None
  return None if value is None or isinstance(value, str) else float(value)


def rest_of(row: Row, key: str | None) -> Rest:
  """Returns all settings but one."""
  return tuple(sorted(kv for kv in row.settings.items() if kv[0] != key))


def scale_key(part: Part) -> str | None:
  """Returns the setting with most different numbers; None if all have one."""
  numbers: dict[str, set[float]] = {}
  for row in part.rows:
    for key in row.settings:
      value = number_at(row, key)
      if value is not None and not row.is_baseline:
        numbers.setdefault(key, set()).add(value)
  key = max(numbers, key=lambda key: len(numbers[key]), default=None)
  return key if key is not None and len(numbers[key]) > 1 else None


def paths(
  rows: Iterable[Row], key: str | None
) -> dict[Rest, list[tuple[float, Row]]]:
  """Returns other settings -> rows that differ only in a number, with it."""
  found: dict[Rest, list[tuple[float, Row]]] = {}
  for row in rows:
    at = number_at(row, key)
    if at is not None:
      found.setdefault(rest_of(row, key), []).append((at, row))
  return found


def marked(part: Part) -> tuple[tuple[Row, Mark], ...]:
  """Returns each row with its mark, coloured by the setting with most numbers.

  Systems with the same number differ in marker and dash; systems without one
  get colours of their own. The baseline is black.
  """
  key = scale_key(part)
  numbers = [
    None if row.is_baseline else number_at(row, key) for row in part.rows
  ]
  values = sorted({number for number in numbers if number is not None})
  colours = dict(zip(values, sequential(len(values)), strict=True))
  rests: dict[Rest, int] = {}
  found, categories = [], itertools.count()
  for row, number in zip(part.rows, numbers, strict=True):
    if row.is_baseline:
      mark = Mark(BASELINE, 's', '-')
    elif number is None:
      mark = category(next(categories))
    else:
      i = rests.setdefault(rest_of(row, key), len(rests))
      mark = dataclasses.replace(category(i), colour=colours[number])
    found.append((row, mark))
  return tuple(found)


def line_styles(rests: Sequence[Rest]) -> dict[Rest, tuple[str, Mark]]:
  """Returns label and look of each line, ordered; a single line has no label.

  Colours are sequential if the lines differ in one number.
  """
  common = set.intersection(*map(set, rests))
  ordered = sorted(rests, key=lambda rest: [(k, order(v)) for k, v in rest])
  told = [[kv for kv in rest if kv not in common] for rest in ordered]
  if len(rests) == 1:
    return {ordered[0]: ('', Mark(ONLY, 'o', '-'))}
  by_number = all(len(t) == 1 and not isinstance(t[0][1], str) for t in told)
  colours = sequential(len(rests))
  styles = {}
  for i, (rest, settings) in enumerate(zip(ordered, told, strict=True)):
    mark = category(i)
    if by_number:
      mark = dataclasses.replace(mark, colour=colours[i])
    label = ', '.join(f'{key} {word(value)}' for key, value in settings)
    styles[rest] = (label or 'others', mark)
  return styles


def order(value: Setting) -> tuple[bool, float, str]:
  """A sort key: numbers by size, then words."""
  return (True, 0.0, value) if isinstance(value, str) else (False, value, '')


def word(value: Setting) -> str:
  """Formats a setting for an axis."""
  return one_line(value) if isinstance(value, str) else f'{value:g}'


def category(i: int) -> Mark:
  """Returns the i-th look for systems without an order; repeats after eight."""
  return Mark(
    _CATEGORIES[i % len(_CATEGORIES)],
    _MARKERS[i % len(_MARKERS)],
    _DASHES[i % len(_DASHES)],
  )


def sequential(n: int) -> list[str]:
  """Returns n colours from dark to light, all visible on white."""
  return [shade(_PALEST * i / max(n - 1, 1)) for i in range(n)]


def shade(share: float) -> str:
  """Returns the colour at a share in [0, 1] of the scale, dark to light."""
  return to_hex(matplotlib.colormaps[_SCALE](share))


def label_of(row: Row) -> str:
  """Names a system in a legend."""
  return one_line(row.label) + (' (baseline)' if row.is_baseline else '')


def wrapped(text: str, width: int) -> str:
  """Breaks text into lines of at most `width` characters."""
  return '\n'.join(textwrap.wrap(one_line(text), width))


def axis_title(column: Column, width: int) -> str:
  """Names a metric and its good direction, in lines of at most `width`."""
  better = BETTER[column.better]
  title = one_line(column.label) + (f', {better}' if better else '')
  return wrapped(title, width)


def panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
  """Makes n axes, two per row; `height` of a row in inches."""
  columns = min(n, 2)
  rows = math.ceil(n / columns)
  picture = Figure(figsize=(WIDTH, height * rows), layout='constrained')
  axes = [picture.add_subplot(rows, columns, i + 1) for i in range(n)]
  return picture, axes


def add_legend(figure: Figure, axes: Sequence[Axes]) -> None:
  """Adds each label once below everything; the figure grows by that height."""
  handles = {
    wrapped(label, _LABEL_WIDTH): handle
    for ax in axes
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
  }
  lines = [label.split('\n') for label in handles]
  longest = max(len(line) for label in lines for line in label)
  columns = max(1, min(5, _LEGEND_WIDTH // (longest + 7), len(handles)))
  rows = math.ceil(len(handles) / columns)
  height = _LINE_HEIGHT * rows * max(map(len, lines))
  figure.set_figheight(figure.get_figheight() + height)
  figure.legend(
    list(handles.values()), list(handles), loc='outside lower center',
    ncols=columns,
  )  # fmt: skip


def set_x_axis(ax: Axes, values: Sequence[float]) -> None:
  """Puts ticks at the increasing values themselves, as many as are legible."""
  length = values[-1] - values[0] or 1.0
  ax.set_xlim(values[0] - _MARGIN * length, values[-1] + _MARGIN * length)
  ticks = [values[0]]
  for value in values:
    if value - ticks[-1] >= _LEAST_TICK_DISTANCE * length:
      ticks.append(value)
  ax.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
  ax.minorticks_off()


def set_logarithmic(ax: Axes) -> None:
  """Makes both axes logarithmic, with plain numbers at 1, 2, 5 times 10^n."""
  ax.set_xscale('log')
  ax.set_yscale('log')
  for axis in (ax.xaxis, ax.yaxis):
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    # Dollar signs are literal (text.parse_math), so ticks avoid mathtext.
    axis.set_major_formatter('{x:g}')
    axis.set_minor_locator(NullLocator())
