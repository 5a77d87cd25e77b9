"""Weight against frequency rank, as SVG in the colours of the page around."""

import math
from html import escape

import numpy as np

from pdl_jax.preview import facts
from pdl_jax.preview.content import Preview, Token

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 46
_MOST_TICKS = 8
# Both are seen on white and on black.
_DOTS, _RINGS = '#4b93d6', '#e07b1c'


class _Axis:
  """From values to pixels, on a linear scale or a logarithmic one."""

  def __init__(
    self, low: float, high: float, first: float, last: float, log: bool
  ):
    self._log = log
    self.low, self.high = low, high
    self._ends = self._at(low), self._at(high)
    self._pixels = first, last

  def _at(self, value: float) -> float:
    return math.log10(value) if self._log else value

  def pixel(self, value: float) -> float:
    """To a tenth."""
    (low, high), (first, last) = self._ends, self._pixels
    share = (self._at(value) - low) / (high - low)
    return round(first + share * (last - first), 1)

  def ticks(self) -> list[float]:
    """Round numbers from low to high, few enough to be read."""
    if not self._log:
      step = _round_up((self.high - self.low) / _MOST_TICKS)
      first = math.ceil(self.low / step)
      return [step * n for n in range(first, math.floor(self.high / step) + 1)]
    decades = range(math.floor(self._ends[0]), math.ceil(self._ends[1]) + 1)
    every = math.ceil(len(decades) / _MOST_TICKS)
    digits = (1, 2, 5) if len(decades) <= 4 else (1,)
    found = [d * 10.0**k for k in decades[::every] for d in digits]
    return [tick for tick in found if self.low <= tick <= self.high]


def _round_up(value: float) -> float:
  """The next of 1, 2, 5, 10, 20, ... (0.1, 0.2, ...)."""
  decade = 10.0 ** math.floor(math.log10(value))
  return next(d * decade for d in (1, 2, 5, 10) if d * decade >= value)


def svg(preview: Preview) -> str:
  """The plot: a dot for each counted type, a ring for each shown type.

  Weights of 0 have no place on a logarithmic axis, and are left out.
  """
  log = preview.kind == 'weight'
  values_R = preview.values_R
  drawn_R = values_R > 0 if log else np.isfinite(values_R)
  x, y = _axes(values_R[drawn_R], values_R.size, log)
  shown = {
    (token.rank, token.value): token
    for example in preview.examples
    for token in example.tokens
    if token.rank is not None
    and token.value is not None
    and drawn_R[token.rank - 1]
  }
  label = f'{preview.kind} against frequency rank'
  return '\n'.join([
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" '
    'fill="currentColor" font-size="12">',
    *_frame(preview, x, y),
    _dots(values_R, drawn_R, x, y),
    *(
      _ring(x.pixel(rank), y.pixel(value), preview, token)
      for (rank, value), token in shown.items()
    ),
    '</svg>',
  ])


def _axes(values: np.ndarray, ranks: int, log: bool) -> tuple[_Axis, _Axis]:
  low, high = float(values.min()), float(values.max())
  # Long enough for one of 1, 2, 5, 10 to be on it, even for equal values.
  low, high = (low / 1.6, high * 1.6) if log else (low - 0.5, high + 0.5)
  return (
    _Axis(1, max(ranks, 2), LEFT, WIDTH - RIGHT, True),
    _Axis(low, high, HEIGHT - BOTTOM, TOP, log),
  )


def _frame(preview: Preview, x: _Axis, y: _Axis) -> list[str]:
  bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
  stroked = 'fill="none" stroke="currentColor"'
  grid = f'{stroked} stroke-opacity="0.2"'
  drawn = []
  for tick in x.ticks():
    at = x.pixel(tick)
    drawn.append(f'<path {grid} d="M{at} {TOP}V{bottom}"/>')
    drawn.append(
      f'<text x="{at}" y="{bottom + 17}" text-anchor="middle">{tick:,.0f}'
      '</text>'
    )
  for tick in y.ticks():
    at = y.pixel(tick)
    drawn.append(f'<path {grid} d="M{LEFT} {at}H{right}"/>')
    drawn.append(
      f'<text x="{LEFT - 7}" y="{at + 4}" text-anchor="end">{tick:g}</text>'
    )
  unit = 'weight' if preview.kind == 'weight' else f'{preview.kind} in nats'
  middle = (TOP + bottom) / 2
  drawn += [
    f'<path {stroked} d="M{LEFT} {TOP}V{bottom}H{right}"/>',
    f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
    'frequency rank of the type (1: the commonest)</text>',
    f'<text transform="translate(14 {middle}) rotate(-90)" '
    f'text-anchor="middle">{unit}</text>',
  ]
  return drawn


def _dots(
  values_R: np.ndarray, drawn_R: np.ndarray, x: _Axis, y: _Axis
) -> str:
  """One path; types that fall on the same pixel are drawn once."""
  places = {
    (round(x.pixel(rank)), round(y.pixel(value))): None
    for rank, value in zip(
      (np.flatnonzero(drawn_R) + 1).tolist(),
      values_R[drawn_R].tolist(),
      strict=True,
    )
  }
  path = ''.join(f'M{across} {down}h0' for across, down in places)
  return (
    f'<path fill="none" stroke="{_DOTS}" stroke-width="3" '
    f'stroke-linecap="round" d="{path}"/>'
  )


def _ring(x: float, y: float, preview: Preview, token: Token) -> str:
  title = escape(f'{token.text}: {facts.hover(preview, token)}')
  return (
    f'<circle cx="{x}" cy="{y}" r="4" fill="{_RINGS}" fill-opacity="0.2" '
    f'stroke="{_RINGS}" stroke-width="1.5"><title>{title}</title></circle>'
  )
