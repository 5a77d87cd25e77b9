"""A metric over two settings, as coloured cells with their numbers."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Rectangle

from pdl_jax.errors import ConfigError
from pdl_jax.report import marks as looks
from pdl_jax.report.layout import Column, HeatMap, Part, Row
from pdl_jax.report.marks import Setting
from pdl_jax.report.wording import absent, number

_CELL_HEIGHT, _TITLE_WIDTH = 0.55, 80
_GREY = '#ececec'


def draw(part: Part, figure: HeatMap) -> Picture | None:
  """A cell for each pair of settings that occur, also where no run is."""
  column = next((c for c in part.columns if c.key == figure.metric), None)
  cells = _cells(part, figure)
  means = [
    spread.mean
    for row in cells.values()
    if column is not None and (spread := row.entries[column.key].spread)
  ]
  if column is None or not means:
    return None
  xs, ys = (
    sorted({pair[i] for pair in cells}, key=looks.order) for i in range(2)
  )
  picture, [ax] = looks.panels(1, 1.1 + _CELL_HEIGHT * len(ys))
  ends = min(means), max(means)
  for i, x in enumerate(xs):
    for j, y in enumerate(ys):
      _draw_cell(ax, (i, j), cells.get((x, y)), column, ends)
  ax.set_xlim(0, len(xs))
  ax.set_ylim(0, len(ys))
  ax.set_xticks([i + 0.5 for i in range(len(xs))], list(map(looks.word, xs)))
  ax.set_yticks([j + 0.5 for j in range(len(ys))], list(map(looks.word, ys)))
  ax.set_xlabel(figure.x)
  ax.set_ylabel(figure.y)
  title = looks.axis_title(column, _TITLE_WIDTH)
  if column.reference is not None:
    title += f'\nhuman texts: {number(column.reference, column.digits)}'
  ax.set_title(title)
  ax.grid(visible=False)
  ax.tick_params(length=0)
  for side in ('left', 'bottom'):
    ax.spines[side].set_visible(False)
  return picture


def _cells(part: Part, figure: HeatMap) -> dict[tuple[Setting, Setting], Row]:
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
  ends: tuple[float, float],
) -> None:
  """Number on colour, or what is to be said instead on grey."""
  spread = None if row is None else row.entries[column.key].spread
  if spread is None:
    text = 'missing' if row is None else absent(row)
    ground, ink, hatch = _GREY, 'black', '////'
  else:
    text = number(spread.mean, column.digits)
    if spread.std is not None:
      text += f'\n± {number(spread.std, column.digits)}'
    low, high = ends
    share = (spread.mean - low) / (high - low) if high > low else 0.5
    ground, ink, hatch = looks.shade(share), looks.ink(share), ''
  ax.add_patch(
    Rectangle(place, 1, 1, facecolor=ground, hatch=hatch, edgecolor='white')
  )
  x, y = place
  ax.text(x + 0.5, y + 0.5, text, color=ink, ha='center', va='center')
