"""Rotation of queries and keys: RoPE, its scalings, and complex attention.

Pair i of a query or key is a complex number of modulus l and angle t. RoPE
(arXiv:2104.09864) turns it by its position times g_i. Complex attention (CMHA,
arXiv:2505.10222) also learns delta and b. The score of a query at position m
and a key at n is

  sum_i l_q l_k cos(delta_i (t_q - t_k) + b_i + (m - n) g_i).

This is the real part of a product of two numbers, each turned on its own: the
query by (delta - 1) t_q + b + m g, the key by (delta - 1) t_k + n g. So it is
an ordinary dot product with an ordinary cache. At delta 1 and b 0 it is RoPE.

The published code instead builds an array of heads x L x L x Dh. It adds its
padding mask as numbers and never passes the causal one. Its 1e-9 inside the
modulus is left out, because nothing is divided by it here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdl_jax.errors import ConfigError, one_of

ROPE_SCALINGS = ('none', 'linear', 'llama3', 'yarn')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched to a longer context.

  Attributes:
    kind: none; linear, which divides all by the factor (arXiv:2306.15595);
      llama3, which divides the low ones (arXiv:2407.21783); or yarn, which
      does so by parts (arXiv:2309.00071).
    factor: growth of the context.
    low, high: turns over the original context, for llama3 and yarn. Frequencies
      from `high` on are kept; those up to `low` are divided by the factor.
    original: context length before stretching.
    magnitude: yarn's factor of queries and keys.
    whole_dims: whether yarn rounds the ends of its ramp to whole dims.
  """

  kind: str = 'none'
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: int = 0
  magnitude: float = 1.0
  whole_dims: bool = True

  def __post_init__(self):
    one_of('rope scaling', self.kind, ROPE_SCALINGS)
    if not (self.factor >= 1 and self.magnitude > 0):
      raise ConfigError(
        f'rope scaling needs factor >= 1 and magnitude > 0, got {self.factor} '
        f'and {self.magnitude}'
      )
    if self.kind in ('llama3', 'yarn') and not (
      self.original > 0 and 0 < self.low < self.high
    ):
      raise ConfigError(
        f'rope scaling {self.kind} needs an original context > 0 and 0 < low < '
        f'high, got {self.original}, {self.low} and {self.high}'
      )


UNSCALED = RopeScaling()


def frequencies(
  base: float, pairs: int, scaling: RopeScaling
) -> np.ndarray:
  """Returns g_i = base**(-i / P) after scaling, [P]: fp64, rounded to fp32.

  linear gives g / factor. With llama3 the share of g that is kept grows from 0
  to 1 with the turns over the original context, between `low` and `high`. yarn
  uses a ramp in i between the dims whose turns are `high` and `low`. P is half
  the width of a head.
  """
  plain_P = base ** (-np.arange(pairs) / pairs)
  if scaling.kind == 'linear':
    return (plain_P / scaling.factor).astype(np.float32)
  kept_P = np.ones(pairs)
  if scaling.kind == 'llama3':
    turns_P = scaling.original * plain_P / (2 * math.pi)
    kept_P = (turns_P - scaling.low) / (scaling.high - scaling.low)
  if scaling.kind == 'yarn':
    first, last = _ramp(base, pairs, scaling)
    kept_P = 1 - (np.arange(pairs) - first) / max(last - first, 1e-3)
  kept_P = np.clip(kept_P, 0, 1)
  mixed_P = kept_P * plain_P + (1 - kept_P) * plain_P / scaling.factor
  return mixed_P.astype(np.float32)


def _ramp(
  base: float, pairs: int, scaling: RopeScaling
) -> tuple[float, float]:
  """Returns the dims whose frequencies make `high` and `low` turns."""

  def dim(turns: float) -> float:
    longest = scaling.original / (turns * 2 * math.pi)
    return pairs * math.log(longest) / math.log(base)

  first, last = dim(scaling.high), dim(scaling.low)
  if scaling.whole_dims:
    first, last = math.floor(first), math.ceil(last)
  return max(first, 0), min(last, 2 * pairs - 1)


# Squared modulus below which a pair has no angle.
_LEAST = 1e-30
# pi / 2 in parts. The first two have few bits: their products with up to 2**17
# quarter turns are exact in fp32.
_QUARTER_1 = round(math.pi / 2 * 2**6) / 2**6
_QUARTER_2 = round((math.pi / 2 - _QUARTER_1) * 2**13) / 2**13
_QUARTER_3 = math.pi / 2 - _QUARTER_1 - _QUARTER_2


def _fit(
  f: Callable[[np.ndarray], np.ndarray], degree: int, end: float
) -> list[float]:
  """Returns coefficients, highest first, of f(sqrt(s)) for s in [0, end**2]."""
  made = np.polynomial.Chebyshev.interpolate(
    lambda s: f(np.sqrt(s)), degree, [0, end**2]
  )
  return made.convert(kind=np.polynomial.Polynomial).coef[::-1].tolist()


# Polynomials to fp32 rounding, which compilers vectorize. On CPUs, XLA calls a
# function per element for cosine and arctangent.
_ARCTAN = _fit(lambda x: np.arctan(x) / x, 5, math.tan(math.pi / 8))
# (1 + s / 8) (f - 1) / s with s = r**2, where f is cos(r) or sin(r) / r.
_SIN = _fit(lambda r: (1 / r**2 + 1 / 8) * (np.sin(r) / r - 1), 4, math.pi / 4)
_COS = _fit(lambda r: (1 / r**2 + 1 / 8) * (np.cos(r) - 1), 4, math.pi / 4)


def _polynomial(coefficients: list[float], x: Array) -> Array:
  y = jnp.full_like(x, coefficients[0])
  for c in coefficients[1:]:
    y = y * x + c
  return y


@jax.custom_jvp
def cos_sin(phase: Array) -> tuple[Array, Array]:
  """Returns (cos, sin) of fp32 phases up to 2**17, with error up to 1.2e-7."""
  quarters = jnp.round(phase * (2 / math.pi))
  rest = phase - quarters * _QUARTER_1 - quarters * _QUARTER_2
  rest -= quarters * _QUARTER_3
  # 1 + s f / (1 + s / 8) as one quotient: XLA computes a quotient once, but a
  # polynomial again in every fusion that reads it.
  square = rest * rest
  divisor = 1 + square / 8
  sin = rest * (divisor + square * _polynomial(_SIN, square))
  cos = divisor + square * _polynomial(_COS, square)
  place = quarters.astype(jnp.int32)
  is_odd = (place & 1) == 1
  sin, cos = jnp.where(is_odd, cos, sin), jnp.where(is_odd, sin, cos)
  return (
    jnp.where(((place + 1) & 2) == 2, -cos, cos) / divisor,
    jnp.where((place & 2) == 2, -sin, sin) / divisor,
  )


@cos_sin.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple:
  cos, sin = cos_sin(*primals)
  (change,) = tangents
  return (cos, sin), (-sin * change, cos * change)


def angle(real: Array, imaginary: Array) -> Array:
  """Returns atan2(imaginary, real) in [-pi, pi]; 0 for a zero pair.

  It jumps by 2 pi at the negative real axis. With a non-integer delta, the
  score jumps there too.
  """
  x, y = jnp.abs(real), jnp.abs(imaginary)
  low, high = jnp.minimum(x, y), jnp.maximum(x, y)
  # Beyond pi / 8, take the rest to pi / 4.
  is_wide = low > math.tan(math.pi / 8) * high
  # A zero pair gives 0 / 1.
  is_zero = high * high < _LEAST
  divisor = jnp.where(is_wide, low + high, high)
  tangent = jnp.where(is_wide, low - high, low)
  tangent = jnp.where(is_zero, 0.0, tangent) / jnp.where(is_zero, 1.0, divisor)
  found = tangent * _polynomial(_ARCTAN, tangent * tangent)
  found += jnp.where(is_wide & ~is_zero, math.pi / 4, 0.0)
  found = jnp.where(y > x, math.pi / 2 - found, found)
  found = jnp.where((real < 0) & ~is_zero, math.pi - found, found)
  found = jnp.where(is_zero, 0.0, found)
  return jnp.where(imaginary < 0, -found, found)


def _rotated(real: Array, imaginary: Array, cos: Array, sin: Array) -> tuple:
  return real * cos - imaginary * sin, imaginary * cos + real * sin


def _phase(
  real: Array,
  imaginary: Array,
  place_BxLx1xP: Array,
  delta_HxP: Array,
  offset_HxP: Array | None,
) -> Array:
  phase = place_BxLx1xP + (delta_HxP - 1.0)[None, None] * angle(real, imaginary)
  return phase if offset_HxP is None else phase + offset_HxP[None, None]


@jax.custom_vjp
def _turn(
  pairs: tuple[Array, Array],
  place_BxLx1xP: Array,
  delta_HxP: Array,
  offset_HxP: Array | None,
) -> tuple[Array, Array]:
  """Returns the turned real and imaginary parts, [B, L, H, P]."""
  return _turn_forward(pairs, place_BxLx1xP, delta_HxP, offset_HxP)[0]


def _turn_forward(pairs: tuple[Array, Array], *how: Any) -> tuple:
  cos, sin = cos_sin(_phase(*pairs, *how))
  return _rotated(*pairs, cos, sin), (pairs, cos, sin, *how[1:])


def _turn_backward(kept: tuple, change: tuple[Array, Array]) -> tuple:
  """Handles angle and turn in one pass: apart they would keep twice as much."""
  (real, imaginary), cos, sin, delta_HxP, offset_HxP = kept
  of_real, of_imaginary = _rotated(*change, cos, -sin)
  of_phase = real * of_imaginary - imaginary * of_real
  square = real * real + imaginary * imaginary
  is_zero = square < _LEAST
  along = of_phase * (delta_HxP - 1.0)[None, None]
  along = jnp.where(is_zero, 0.0, along) / jnp.where(is_zero, 1.0, square)
  of_delta = (of_phase * angle(real, imaginary)).sum((0, 1))
  if delta_HxP.shape[0] == 1:
    of_delta = of_delta.sum(0, keepdims=True)
  return (
    (of_real - imaginary * along, of_imaginary + real * along),
    None,
    of_delta,
    None if offset_HxP is None else of_phase.sum((0, 1)),
  )


_turn.defvjp(_turn_forward, _turn_backward)


def turn(
  x_BxLxHxDh: Array,
  positions_BxL: Array,
  base: float,
  delta_HxP: Array | None = None,
  offset_HxP: Array | None = None,
  sign: int = 1,
  frequencies_P: Array | np.ndarray | None = None,
) -> Array:
  """Turns the pairs (x_i, x_{i + Dh/2}) by position, angle and offset.

  Phases are fp32 whatever the dtype of x. With a delta, only reverse-mode
  differentiation works.

  Args:
    base: g_i = base**(-2i/Dh), unless `frequencies_P` gives g.
    delta_HxP: factor of a pair's angle, P = Dh/2; H may be 1 for all heads.
      None is 1, as in RoPE.
    offset_HxP: b, of queries alone; None is 0.
    sign: of the position, 1 or -1.
  """
  half = x_BxLxHxDh.shape[-1] // 2
  if frequencies_P is None:
    frequencies_P = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  frequency = sign * jnp.asarray(frequencies_P)
  place = positions_BxL[:, :, None, None] * frequency[None, None, None, :]
  real, imaginary = jnp.split(x_BxLxHxDh.astype(jnp.float32), 2, axis=-1)
  if delta_HxP is not None:
    turned = _turn((real, imaginary), place, delta_HxP, offset_HxP)
  else:
    if offset_HxP is not None:
      place = place + offset_HxP[None, None]
    cos, sin = cos_sin(place)
    turned = _rotated(real, imaginary, cos, sin)
  return jnp.concatenate(turned, axis=-1).astype(x_BxLxHxDh.dtype)
