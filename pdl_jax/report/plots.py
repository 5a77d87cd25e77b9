"""What each figure of a report shows, as Matplotlib objects.

Every function gives None where the part has nothing to draw.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from pdl_jax.report import marks as looks
from pdl_jax.report.layout import Column, Frontier, Line, Part, Row
from pdl_jax.report.marks import Mark
from pdl_jax.report.statistics import Spread, over_seeds

_HUMAN_LINE = {
  'color': looks.HUMAN,
  'ls': '--',
  'lw': 1.2,
  'label': 'human texts',
}
_Side = Literal['left', 'right']
# Where the words stand of a value beyond an axis, below or above it.
_EDGES: dict[tuple[str, bool], tuple[float, float, _Side, str]] = {
  ('x', False): (0.02, 0.06, 'left', '←'),
  ('x', True): (0.98, 0.06, 'right', '→'),
  ('y', False): (0.02, 0.06, 'left', '↓'),
  ('y', True): (0.02, 0.94, 'left', '↑'),
}
# Inches.
_PANEL_HEIGHT, _HEIGHT = 2.3, 3.6
# Characters.
_PANEL_TITLE, _X_TITLE, _Y_TITLE = 44, 80, 42
_GREY = '#9a9a9a'
# Nats beyond which an axis of differences is logarithmic, but for the first.
_FAR = 3.0


def line(part: Part, figure: Line) -> Picture | None:
  """A panel a metric, in it a line for each choice of the other settings.

  A system without a value leaves a gap in its line.
  """
  lines: dict[looks.Rest, list[tuple[float, Row]]] = {}
  for row in part.rows:
    x = looks.number_at(row, figure.x)
    if x is not None:
      rest = looks.rest_of(row, figure.x)
      lines.setdefault(rest, []).append((x, row))
  lines = {
    rest: found
    for rest, found in lines.items()
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
  styles = looks.line_styles(list(lines))
  several = any(len(row.seeds) > 1 for _, row in points)
  for ax, column in zip(axes, columns, strict=True):
    for rest, (label, mark) in styles.items():
      found = sorted(lines[rest], key=lambda point: point[0])
      values = [row.entries[column.key].by_seed for _, row in found]
      label = label or ('mean over seeds' if several else 'one seed')
      _draw_seeds(ax, [x for x, _ in found], values, mark, label)
    _draw_levels(ax, part, column)
    ax.set_title(looks.wrapped(column.label, _PANEL_TITLE))
    ax.set_ylabel(looks.BETTER[column.better])
    ax.set_xlabel(figure.x)
    looks.set_x_axis(ax, sorted({x for x, _ in points}), figure.log_x)
  looks.add_legend(picture, axes)
  return picture


def frontier(part: Part, figure: Frontier) -> Picture | None:
  """Means with standard deviations; systems of one scale joined by a line."""
  columns = {column.key: column for column in part.columns}
  shown = [
    (row, mark)
    for row, mark in zip(part.rows, looks.marks(part), strict=True)
    if {figure.x, figure.y} <= columns.keys()
    and row.entries[figure.x].spread
    and row.entries[figure.y].spread
  ]
  if not shown:
    return None
  picture, [ax] = looks.panels(1, _HEIGHT)
  _join(ax, part, figure)
  for row, mark in shown:
    _draw_system(ax, row, figure, mark)
  if figure.log:
    looks.set_logarithmic(ax)
  _draw_human(ax, columns[figure.x].reference, columns[figure.y].reference)
  ax.set_xlabel(looks.axis_title(columns[figure.x], _X_TITLE))
  ax.set_ylabel(looks.axis_title(columns[figure.y], _Y_TITLE))
  looks.add_legend(picture, [ax])
  return picture


def by_count(part: Part) -> Picture | None:
  """Differences of paired seeds where the baseline has all of the system's.

  Otherwise the mean of the baseline is taken from each seed. What the tables do
  not compare with the baseline, such as the model before fine-tuning, is left
  out: its distance would set the scale.
  """
  baseline = next((row for row in part.rows if row.is_baseline), None)
  if baseline is None or not baseline.nats_by_count:
    return None
  buckets = list(baseline.nats_by_count)
  shown = [
    (row, mark)
    for row, mark in zip(part.rows, looks.marks(part), strict=True)
    if row.nats_by_count
    and any(entry.difference for entry in row.entries.values())
  ]
  if not shown:
    return None
  picture, [ax] = looks.panels(1, _HEIGHT)
  for i, (row, mark) in enumerate(shown):
    # Side by side within a bucket, so that none hides another.
    shift = 0.6 * ((i + 0.5) / len(shown) - 0.5)
    values = [
      _minus(row.nats_by_count.get(b, {}), baseline.nats_by_count[b])
      for b in buckets
    ]
    places = [place + shift for place in range(len(buckets))]
    _draw_seeds(ax, places, values, mark, looks.label_of(row))
    for place, bucket in zip(places, buckets, strict=True):
      found = row.by_count.get(bucket)
      if found is None or found.low is None or found.high is None:
        continue
      if math.isfinite(found.low) and math.isfinite(found.high):
        ax.vlines(place, found.low, found.high, color=mark.colour, lw=1)
  how = 'lower is better'
  if any(row.by_count for row, _ in shown):
    how += '; lines: 95 % intervals'
  if max(map(abs, ax.get_ylim())) > _FAR:
    # One that is far off leaves the others room to be told apart.
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
  counted = [f'{b}\n{part.tokens_by_count[b]:,}' for b in buckets]
  ax.set_xticks(range(len(buckets)), counted)
  ax.set_xlabel(
    'occurrences of the token in the training data; target tokens measured'
  )
  ax.set_ylabel(f'nats a token minus baseline\n({how})')
  ax.grid(visible=False, axis='x')
  looks.add_legend(picture, [ax])
  return picture


def curves(part: Part) -> Picture | None:
  """A line a run. One that diverged does not set the scale of the others."""
  shown = [
    (row, mark)
    for row, mark in zip(part.rows, looks.marks(part), strict=True)
    if any(row.curves.values())
  ]
  if not shown:
    return None
  picture, [ax] = looks.panels(1, _HEIGHT)
  heights = []
  for row, mark in shown:
    label = looks.label_of(row)
    for points in row.curves.values():
      steps, nats = zip(*points, strict=True) if points else ((), ())
      few = mark.marker if len(points) < 3 else ''
      style = {'color': mark.colour, 'ls': mark.dash, 'lw': 1.1, 'marker': few}
      ax.plot(steps, nats, label=label, **style)
      if row.state != 'diverged':
        heights += filter(math.isfinite, nats)
  if heights:
    margin = 0.05 * (max(heights) - min(heights)) or 0.5
    ax.set_ylim(min(heights) - margin, max(heights) + margin)
  ax.set_xlabel('step')
  ax.set_ylabel('validation nats a token\n(lower is better)')
  looks.add_legend(picture, [ax])
  return picture


def _draw_seeds(
  ax: Axes,
  xs: Sequence[float],
  values: Sequence[Mapping[int, float]],
  mark: Mark,
  label: str,
) -> None:
  """The mean at each x, one standard deviation around it, and every seed."""
  means, stds = [], []
  dots = [(x, y) for x, of in zip(xs, values, strict=True) for y in of.values()]
  _draw_dots(ax, [x for x, _ in dots], [y for _, y in dots], mark)
  for by_seed in values:
    spread = over_seeds(label, list(by_seed.values())) if by_seed else None
    means.append(math.nan if spread is None else spread.mean)
    stds.append(_std(spread) or math.nan)
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


def _std(spread: Spread | None) -> float | None:
  return None if spread is None else spread.std


def _draw_levels(ax: Axes, part: Part, column: Column) -> None:
  """The baseline and the human texts, which have no place on the x axis."""
  for row in part.rows:
    spread = row.entries[column.key].spread
    if not row.is_baseline or spread is None:
      continue
    style = {'color': looks.BASELINE, 'lw': 1}
    ax.axhline(spread.mean, label=looks.label_of(row), **style)
    if spread.std is not None:
      low, high = spread.mean - spread.std, spread.mean + spread.std
      ax.axhspan(low, high, color=looks.BASELINE, alpha=0.08, linewidth=0)
  if column.reference is not None:
    ax.axhline(column.reference, **_HUMAN_LINE)


def _join(ax: Axes, part: Part, figure: Frontier) -> None:
  """Thin lines through the systems that differ in one number alone."""
  key = looks.scale_key(part)
  paths: dict[looks.Rest, list[tuple[float, float, float]]] = {}
  for row in part.rows:
    at = looks.number_at(row, key)
    x, y = row.entries[figure.x].spread, row.entries[figure.y].spread
    if at is not None and x is not None and y is not None:
      rest = looks.rest_of(row, key)
      paths.setdefault(rest, []).append((at, x.mean, y.mean))
  for path in paths.values():
    _, xs, ys = zip(*sorted(path), strict=True)
    ax.plot(xs, ys, color=_GREY, lw=0.8, zorder=1)


def _draw_system(ax: Axes, row: Row, figure: Frontier, mark: Mark) -> None:
  x, y = row.entries[figure.x], row.entries[figure.y]
  if x.spread is None or y.spread is None:
    return
  seeds = sorted(x.by_seed.keys() & y.by_seed.keys())
  xs, ys = [x.by_seed[s] for s in seeds], [y.by_seed[s] for s in seeds]
  _draw_dots(ax, xs, ys, mark)
  ax.errorbar(
    x.spread.mean,
    y.spread.mean,
    xerr=x.spread.std,
    yerr=y.spread.std,
    color=mark.colour,
    marker=mark.marker,
    ls='',
    elinewidth=0.8,
    label=looks.label_of(row),
  )


def _draw_human(ax: Axes, x: float | None, y: float | None) -> None:
  """Lines; of texts that are far off only where to look for them.

  They would leave the systems, which are to be told apart, one corner.
  """
  limits = {'x': ax.get_xlim(), 'y': ax.get_ylim()}
  near = set()
  for axis, value in (('x', x), ('y', y)):
    if value is None:
      continue
    low, high = limits[axis]
    # The axis is at most twice as long with it.
    if 2 * low - high <= value <= 2 * high - low:
      near.add(axis)
      draw = ax.axvline if axis == 'x' else ax.axhline
      draw(value, **_HUMAN_LINE)
    else:
      at_x, at_y, across, arrow = _EDGES[axis, value > high]
      ax.text(
        at_x, at_y, f'human texts {value:.3g} {arrow}', transform=ax.transAxes,
        ha=across, va='center', color=looks.HUMAN, fontsize='small',
      )  # fmt: skip
  if len(near) == 2 and x is not None and y is not None:
    ax.plot(x, y, '*', color=looks.HUMAN, ms=11, label=_HUMAN_LINE['label'])


def _minus(
  by_seed: Mapping[int, float], baseline: Mapping[int, float]
) -> dict[int, float]:
  if not baseline:
    return {}
  mean = over_seeds('baseline', list(baseline.values())).mean
  paired = by_seed.keys() <= baseline.keys()
  return {
    seed: value - (baseline[seed] if paired else mean)
    for seed, value in by_seed.items()
  }
