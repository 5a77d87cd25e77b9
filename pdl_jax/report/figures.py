"""Draws the figures of a report as SVG.

Text is drawn as paths, so it looks the same with any installed fonts.
Equal reports give equal bytes with one version of Matplotlib.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Rectangle
from matplotlib.typing import RcKeyType

from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.table import one_line
from pdl_jax.report import layout
from pdl_jax.report import marks as looks
from pdl_jax.report.layout import Column, Part, Row
from pdl_jax.report.marks import Mark, Setting
from pdl_jax.report.statistics import over_seeds
from pdl_jax.report.wording import absent, file_stem, mean_and_std, number

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
  # Without a salt, ids within a file would be random.
  'svg.hashsalt': 'pdl_jax',
  'svg.fonttype': 'path',
  # Labels may contain dollar signs.
  'text.parse_math': False,
}
_UNDATED = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
_HUMAN_LINE = {
  'color': looks.HUMAN, 'ls': '--', 'lw': 1.2, 'label': 'human texts'
}  # fmt: skip
# Inches.
_PANEL_HEIGHT, _HEIGHT, _CELL_HEIGHT = 2.3, 3.6, 0.55
# Characters.
_PANEL_TITLE, _X_TITLE, _Y_TITLE = 44, 80, 42
_GREY, _PALE_GREY = '#9a9a9a', '#ececec'
# An axis of differences that reaches further, in nats, is logarithmic.
_FAR = 3.0


def draw(report: layout.Report) -> dict[str, dict[str, str]]:
  """Draws every figure for every part that has something to show in it.

  The user's Matplotlib styles are ignored. Returns part name -> file name, such
  as `dialogue_line.svg` -> SVG text. Several figures of a kind also get their
  settings and metrics in the name; a line gets its first metric.
  """
  names, drawn = _names(report.figures), {}
  for part in report.parts:
    drawn[part.name] = {}
    for name, figure in zip(names, report.figures, strict=True):
      title = f'{one_line(part.title)}: {name.replace("_", " ")}'
      text = svg(partial(plot, part, figure), title)
      if text is not None:
        file = f'{file_stem(part.name)}_{file_stem(name)}.svg'
        drawn[part.name][file] = text
  return drawn


def svg(plot: Callable[[], Picture | None], title: str) -> str | None:
  """Renders what `plot` draws in the common style; None if it draws nothing."""
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_STYLE)
    picture = plot()
    if picture is None:
      return None
    file = io.StringIO()
    picture.savefig(file, format='svg', metadata={**_UNDATED, 'Title': title})
    return file.getvalue()


def plot(part: Part, figure: layout.Figure) -> Picture | None:
  """Makes a figure as Matplotlib objects; None if it has nothing to show."""
  return _KINDS[type(figure)][1](part, figure)


def _names(figures: Sequence[layout.Figure]) -> list[str]:
  names, kinds = [], [type(figure) for figure in figures]
  for figure in figures:
    name, _, told = _KINDS[type(figure)]
    several = kinds.count(type(figure)) > 1
    names.append('_'.join((name, *(told(figure) if several else ()))))
  for name in names:
    if names.count(name) > 1:
      raise ConfigError(
        f'{names.count(name)} figures of the report would be {name}.svg; '
        'leave one out, or give lines of one setting other first metrics'
      )
  return names


def _line(part: Part, figure: layout.Line) -> Picture | None:
  """One panel per metric, with a line for each choice of other settings.

  A system without a value leaves a gap in its line.
  """
  lines = {
    rest: sorted(found, key=lambda point: point[0])
    for rest, found in looks.paths(part.rows, figure.x).items()
    if not all(row.is_baseline for _, row in found)
  }
  points = [point for found in lines.values() for point in found]
  columns = [
    column
    for key in figure.metrics
    for column in part.columns
    if column.key == key and any(row.entries[key].by_seed for _, row in points)
  ]
  if not columns:
    return None
  height = _HEIGHT if len(columns) == 1 else _PANEL_HEIGHT
  picture, axes = looks.panels(len(columns), height)
  several = any(len(row.seeds) > 1 for _, row in points)
  for ax, column in zip(axes, columns, strict=True):
    for rest, (label, mark) in looks.line_styles(list(lines)).items():
      values = [row.entries[column.key].by_seed for _, row in lines[rest]]
      label = label or ('mean over seeds' if several else 'one seed')
      _draw_seeds(ax, [x for x, _ in lines[rest]], values, mark, label)
    _draw_levels(ax, part, column)
    ax.set_title(looks.wrapped(column.label, _PANEL_TITLE))
    ax.set_ylabel(looks.BETTER[column.better])
    ax.set_xlabel(figure.x)
    looks.set_x_axis(ax, sorted({x for x, _ in points}))
  looks.add_legend(picture, axes)
  return picture


def _draw_seeds(
  ax: Axes,
  xs: Sequence[float],
  values: Sequence[Mapping[int, float]],
  mark: Mark,
  label: str,
) -> None:
  """Draws the mean at each x, a band of one std, and every seed."""
  dots = [(x, y) for x, of in zip(xs, values, strict=True) for y in of.values()]
  _draw_dots(ax, [x for x, _ in dots], [y for _, y in dots], mark)
  spreads = [over_seeds(list(of.values())) if of else None for of in values]
  means = [math.nan if spread is None else spread.mean for spread in spreads]
  stds = [(spread and spread.std) or math.nan for spread in spreads]
  lows = [mean - std for mean, std in zip(means, stds, strict=True)]
  highs = [mean + std for mean, std in zip(means, stds, strict=True)]
  ax.fill_between(xs, lows, highs, color=mark.colour, alpha=0.15, linewidth=0)
  ax.plot(
    xs, means, color=mark.colour, marker=mark.marker, ls=mark.dash, label=label
  )


def _draw_dots(
  ax: Axes, xs: Sequence[float], ys: Sequence[float], mark: Mark
) -> None:
  ax.scatter(xs, ys, s=11, color=mark.colour, alpha=0.55, linewidths=0)


def _draw_levels(ax: Axes, part: Part, column: Column) -> None:
  """Draws the baseline and the human texts, which have no x value."""
  baseline = part.baseline
  spread = baseline.entries[column.key].spread if baseline else None
  if baseline is not None and spread is not None:
    colour, label = looks.BASELINE, looks.label_of(baseline)
    ax.axhline(spread.mean, label=label, color=colour, lw=1)
    if spread.std is not None:
      low, high = spread.mean - spread.std, spread.mean + spread.std
      ax.axhspan(low, high, color=colour, alpha=0.08, linewidth=0)
  if column.reference is not None:
    ax.axhline(column.reference, **_HUMAN_LINE)


def _frontier(part: Part, figure: layout.Frontier) -> Picture | None:
  """Draws each system; thin lines join those that differ in one number."""
  keys, columns = (figure.x, figure.y), {c.key: c for c in part.columns}
  if not {*keys} <= columns.keys():
    return None
  means: dict[str, list[float]] = {}
  for row in part.rows:
    spreads = [row.entries[key].spread for key in keys]
    found = [spread.mean for spread in spreads if spread is not None]
    if len(found) == 2:
      means[row.label] = found
  if not means:
    return None
  picture, [ax] = looks.panels(1, _HEIGHT)
  shown = [row for row in part.rows if row.label in means]
  for path in looks.paths(shown, looks.scale_key(part)).values():
    joined = sorted((at, *means[row.label]) for at, row in path)
    _, xs, ys = zip(*joined, strict=True)
    ax.plot(xs, ys, color=_GREY, lw=0.8, zorder=1)
  for row, mark in looks.marked(part):
    if row.label in means:
      x, y = (row.entries[key] for key in keys)
      seeds = sorted(x.by_seed.keys() & y.by_seed.keys())
      xs, ys = ([of.by_seed[seed] for seed in seeds] for of in (x, y))
      _draw_dots(ax, xs, ys, mark)
      ax.errorbar(
        *means[row.label],
        xerr=x.spread and x.spread.std, yerr=y.spread and y.spread.std,
        color=mark.colour, marker=mark.marker, ls='', elinewidth=0.8,
        label=looks.label_of(row),
      )  # fmt: skip
  if figure.log:
    looks.set_logarithmic(ax)
  _draw_human(ax, columns[figure.x].reference, columns[figure.y].reference)
  ax.set_xlabel(looks.axis_title(columns[figure.x], _X_TITLE))
  ax.set_ylabel(looks.axis_title(columns[figure.y], _Y_TITLE))
  looks.add_legend(picture, [ax])
  return picture


def _draw_human(ax: Axes, x: float | None, y: float | None) -> None:
  """Draws human texts as lines, or names their value if they are far off.

  Far lines would squeeze the systems, which are to be compared, into a corner.
  """
  near = 0
  for value, (low, high), draw_line, at, arrows in (
    (x, ax.get_xlim(), ax.axvline, ((0.02, 0.06), (0.98, 0.06)), '←→'),
    (y, ax.get_ylim(), ax.axhline, ((0.02, 0.06), (0.02, 0.94)), '↓↑'),
  ):
    if value is None:
      continue
    # Including the value may at most double an axis.
    if 2 * low - high <= value <= 2 * high - low:
      near += 1
      draw_line(value, **_HUMAN_LINE)
      continue
    above = bool(value > high)
    ax.text(
      *at[above], f'human texts {value:.3g} {arrows[above]}',
      transform=ax.transAxes, ha='left' if at[above][0] < 0.5 else 'right',
      va='center', color=looks.HUMAN, fontsize='small',
    )  # fmt: skip
  if near == 2 and x is not None and y is not None:
    ax.plot(x, y, '*', color=looks.HUMAN, ms=11, label=_HUMAN_LINE['label'])


def _by_count(part: Part, _: layout.ByCount) -> Picture | None:
  """Draws differences to the baseline, paired by seed where possible.

  If the baseline lacks a seed of the system, its mean is subtracted instead.
  Rows that the tables do not compare with the baseline are left out. The model
  before fine-tuning, for example, is so far off that it would set the scale.
  """
  baseline = part.baseline
  shown = [
    (row, mark)
    for row, mark in looks.marked(part)
    if row.nats_by_count and row.compared
  ]
  if baseline is None or not baseline.nats_by_count or not shown:
    return None
  picture, [ax] = looks.panels(1, _HEIGHT)
  for i, (row, mark) in enumerate(shown):
    # Side by side within a bucket, so that none hides another.
    shift = 0.6 * ((i + 0.5) / len(shown) - 0.5)
    places, values = [], []
    for place, (bucket, base) in enumerate(baseline.nats_by_count.items()):
      by_seed = row.nats_by_count.get(bucket, {})
      mean = over_seeds(list(base.values())).mean
      paired = by_seed.keys() <= base.keys()
      places.append(place + shift)
      values.append({
        seed: value - (base[seed] if paired else mean)
        for seed, value in by_seed.items()
      })
    _draw_seeds(ax, places, values, mark, looks.label_of(row))
    for place, bucket in zip(places, baseline.nats_by_count, strict=True):
      found = row.by_count.get(bucket)
      if found is None or found.low is None or found.high is None:
        continue
      if math.isfinite(found.low) and math.isfinite(found.high):
        ax.vlines(place, found.low, found.high, color=mark.colour, lw=1)
  how = 'lower is better'
  if any(row.by_count for row, _ in shown):
    how += '; lines: 95 % intervals'
  if max(map(abs, ax.get_ylim())) > _FAR:
    # A distant system would otherwise squeeze the others together.
    how += '; logarithmic beyond ±1'
    ax.set_yscale('symlog', linthresh=1)
    ticks = [sign * x for x in (0.5, 1, 2, 4, 8) for sign in (-1, 1)]
    low, high = (1.1 * end for end in ax.get_ylim())
    ax.set_ylim(low, high)
    ax.set_yticks([0, *(x for x in ticks if low <= x <= high)])
    ax.yaxis.set_major_formatter('{x:g}')
    ax.minorticks_off()
  label = looks.label_of(baseline)
  ax.axhline(0, color=looks.BASELINE, lw=1, label=label)
  ax.set_xticks(
    range(len(baseline.nats_by_count)),
    [f'{b}\n{part.tokens_by_count[b]:,}' for b in baseline.nats_by_count],
  )
  ax.set_xlabel(
    'occurrences of the token in the training data; target tokens measured'
  )
  ax.set_ylabel(f'nats a token minus baseline\n({how})')
  ax.grid(visible=False, axis='x')
  looks.add_legend(picture, [ax])
  return picture


def _curves(part: Part, _: layout.Curves) -> Picture | None:
  shown = [x for x in looks.marked(part) if any(x[0].curves.values())]
  if not shown:
    return None
  picture, [ax] = looks.panels(1, _HEIGHT)
  heights = []
  for row, mark in shown:
    for points in row.curves.values():
      steps, nats = zip(*points, strict=True) if points else ((), ())
      ax.plot(
        steps, nats, label=looks.label_of(row), color=mark.colour, ls=mark.dash,
        lw=1.1, marker=mark.marker if len(points) < 3 else '',
      )  # fmt: skip
      heights += filter(math.isfinite, nats)
  if heights:
    margin = 0.05 * (max(heights) - min(heights)) or 0.5
    ax.set_ylim(min(heights) - margin, max(heights) + margin)
  ax.set_xlabel('step')
  ax.set_ylabel('validation nats a token\n(lower is better)')
  looks.add_legend(picture, [ax])
  return picture


def _heat_map(part: Part, figure: layout.HeatMap) -> Picture | None:
  """Draws a cell per pair of settings that occur, also where no run exists."""
  column = next((c for c in part.columns if c.key == figure.metric), None)
  cells = _cells(part, figure)
  if column is None:
    return None
  spreads = [row.entries[column.key].spread for row in cells.values()]
  means = [spread.mean for spread in spreads if spread is not None]
  if not means:
    return None
  xs, ys = (
    sorted({pair[i] for pair in cells}, key=looks.order) for i in range(2)
  )
  picture, [ax] = looks.panels(1, 1.1 + _CELL_HEIGHT * len(ys))
  for i, x in enumerate(xs):
    for j, y in enumerate(ys):
      _draw_cell(ax, (i, j), cells.get((x, y)), column, means)
  ax.set_xlim(0, len(xs))
  ax.set_ylim(0, len(ys))
  ax.set_xticks([i + 0.5 for i in range(len(xs))], list(map(looks.word, xs)))
  ax.set_yticks([j + 0.5 for j in range(len(ys))], list(map(looks.word, ys)))
  ax.set_xlabel(figure.x)
  ax.set_ylabel(figure.y)
  title = looks.axis_title(column, _X_TITLE)
  if column.reference is not None:
    title += f'\nhuman texts: {number(column.reference, column.digits)}'
  ax.set_title(title)
  ax.grid(visible=False)
  ax.tick_params(length=0)
  for side in ('left', 'bottom'):
    ax.spines[side].set_visible(False)
  return picture


def _cells(
  part: Part, figure: layout.HeatMap
) -> dict[tuple[Setting, Setting], Row]:
  cells: dict[tuple[Setting, Setting], Row] = {}
  for row in part.rows:
    if not {figure.x, figure.y} <= row.settings.keys():
      continue
    pair = row.settings[figure.x], row.settings[figure.y]
    if pair in cells:
      raise ConfigError(
        f'heat map of {figure.x} and {figure.y} in part {part.name!r}: systems '
        f'{cells[pair].label!r} and {row.label!r} both have {pair}; leave the '
        'figure out, or make a part of each value of the third setting'
      )
    cells[pair] = row
  return cells


def _draw_cell(
  ax: Axes,
  place: tuple[int, int],
  row: Row | None,
  column: Column,
  means: Sequence[float],
) -> None:
  """Writes the number on its colour, or on grey why there is none."""
  spread = None if row is None else row.entries[column.key].spread
  if spread is None:
    text = 'missing' if row is None else absent(row)
    ground, ink, hatch = _PALE_GREY, 'black', '////'
  else:
    text = mean_and_std(spread, column.digits, '\n')
    low, high = min(means), max(means)
    share = (spread.mean - low) / (high - low) if high > low else 0.5
    ground, ink, hatch = looks.shade(share), 'black', ''
    if share < 0.55:  # too dark for black
      ink = 'white'
  ax.add_patch(
    Rectangle(place, 1, 1, facecolor=ground, hatch=hatch, edgecolor='white')
  )
  x, y = place
  ax.text(x + 0.5, y + 0.5, text, color=ink, ha='center', va='center')


# Name, how it is drawn, and what tells several of a kind apart.
_KINDS: dict[type, tuple[str, Callable[..., Picture | None], Any]] = {
  layout.Line: ('line', _line, lambda x: (x.x, *x.metrics[:1])),
  layout.Frontier: ('frontier', _frontier, lambda x: (x.x, x.y)),
  layout.ByCount: ('by_count', _by_count, lambda _: ()),
  layout.HeatMap: ('heat_map', _heat_map, lambda x: (x.x, x.y, x.metric)),
  layout.Curves: ('curves', _curves, lambda _: ()),
}
