"""Complex multi-head attention (CMHA, arXiv:2505.10222), causal and factorised.

Pair i of a query or key is a complex number of modulus l and angle t. With
delta and b learned, the score of a query at m and a key at n is

  sum_i l_q l_k cos(delta_i (t_q - t_k) + b_i + (m - n) g_i),

the real part of a product of two numbers, each turned on its own: the query by
(delta - 1) t_q + b + m g, the key by (delta - 1) t_k + n g. So it is an
ordinary dot product, with an ordinary cache, and at delta 1 and b 0 it is RoPE.

The published code has an array of heads x L x L x Dh instead, adds its padding
mask as numbers, and never passes the causal one. Its 1e-9 inside the modulus is
left out: nothing is divided by it here.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Squared modulus below which a pair has no angle.
_LEAST = 1e-30
# pi / 2 in parts of few bits: so many quarter turns, up to 2**17, times either
# of the first two are exact in fp32.
_QUARTER_1 = round(math.pi / 2 * 2**6) / 2**6
_QUARTER_2 = round((math.pi / 2 - _QUARTER_1) * 2**13) / 2**13
_QUARTER_3 = math.pi / 2 - _QUARTER_1 - _QUARTER_2


def _fit(
  f: Callable[[np.ndarray], np.ndarray], degree: int, end: float
) -> list[float]:
  """Coefficients, the highest first, of f(sqrt(s)) for s in [0, end**2]."""
  made = np.polynomial.Chebyshev.interpolate(
    lambda s: f(np.sqrt(s)), degree, [0, end**2]
  )
  return made.convert(kind=np.polynomial.Polynomial).coef[::-1].tolist()


# Polynomials that compilers vectorize, to fp32 rounding: on CPUs XLA calls a
# function for each element's cosine or arctangent.
_ARCTAN = _fit(lambda x: np.arctan(x) / x, 5, math.tan(math.pi / 8))
# Of (1 + s / 8) (f - 1) / s, f the cosine or the sine of r by r.
_SIN = _fit(lambda r: (1 / r**2 + 1 / 8) * (np.sin(r) / r - 1), 4, math.pi / 4)
_COS = _fit(lambda r: (1 / r**2 + 1 / 8) * (np.cos(r) - 1), 4, math.pi / 4)


def _polynomial(coefficients: list[float], x: Array) -> Array:
  y = jnp.full_like(x, coefficients[0])
  for c in coefficients[1:]:
    y = y * x + c
  return y


@jax.custom_jvp
def cos_sin(phase: Array) -> tuple[Array, Array]:
  """(cos, sin) of fp32 phases, to 1.2e-7, up to 2**17."""
  quarters = jnp.round(phase * (2 / math.pi))
  rest = phase - quarters * _QUARTER_1 - quarters * _QUARTER_2
  rest -= quarters * _QUARTER_3
  # 1 + s f / (1 + s / 8) as one quotient: XLA computes a quotient once, and a
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
  """atan2(imaginary, real) in [-pi, pi]; 0 of a zero pair.

  It jumps by 2 pi at the negative real axis: for a delta that is no integer
  the score jumps there too.
  """
  x, y = jnp.abs(real), jnp.abs(imaginary)
  low, high = jnp.minimum(x, y), jnp.maximum(x, y)
  # Beyond pi / 8, what is left to pi / 4.
  is_wide = low > math.tan(math.pi / 8) * high
  # A zero pair: 0 / 1.
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
  """Real and imaginary parts [B, L, H, P], turned."""
  return _turn_forward(pairs, place_BxLx1xP, delta_HxP, offset_HxP)[0]


def _turn_forward(pairs: tuple[Array, Array], *how: Any) -> tuple:
  cos, sin = cos_sin(_phase(*pairs, *how))
  return _rotated(*pairs, cos, sin), (pairs, cos, sin, *how[1:])


def _turn_backward(kept: tuple, change: tuple[Array, Array]) -> tuple:
  """Of both in one: each operation alone would keep twice as much."""
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
  """Pairs (x_i, x_{i + Dh/2}), turned by position, angle and offset.

  Phases are fp32 whatever the dtype of x. With a delta it is differentiated in
  reverse mode only.

  Args:
    x_BxLxHxDh: queries or keys.
    positions_BxL: position of each token in its document.
    base: g_i = base**(-2i/Dh).
    delta_HxP: what the angle of a pair is multiplied with, P = Dh/2; H may be
      1 for all heads; None: 1, as in RoPE (arXiv:2104.09864).
    offset_HxP: b, of queries alone; None: 0.
    sign: of the position: 1, or -1.
    frequencies_P: g of another form, whatever the base.
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
