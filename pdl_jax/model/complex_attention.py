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

import jax.numpy as jnp
from jax import Array

# Squared modulus below which a pair has no angle.
_LEAST = 1e-30


def angle(real: Array, imaginary: Array) -> Array:
  """atan2(imaginary, real) in (-pi, pi]; 0, with gradient 0, of a zero pair.

  It jumps by 2 pi at the negative real axis: for a delta that is no integer
  the score jumps there too.
  """
  zero = jnp.square(real) + jnp.square(imaginary) < _LEAST
  return jnp.arctan2(
    jnp.where(zero, 0.0, imaginary), jnp.where(zero, 1.0, real)
  )


def turn(
  x_BxLxHxDh: Array,
  positions_BxL: Array,
  base: float,
  delta_HxP: Array | None = None,
  offset_HxP: Array | None = None,
  sign: int = 1,
) -> Array:
  """Pairs (x_i, x_{i + Dh/2}), turned by position, angle and offset.

  Phases are fp32 whatever the dtype of x.

  Args:
    x_BxLxHxDh: queries or keys.
    positions_BxL: position of each token in its document.
    base: g_i = base**(-2i/Dh).
    delta_HxP: what the angle of a pair is multiplied with, P = Dh/2; H may be
      1 for all heads; None: 1, as in RoPE (arXiv:2104.09864).
    offset_HxP: b, of queries alone; None: 0.
    sign: of the position: 1, or -1.
  """
  half = x_BxLxHxDh.shape[-1] // 2
  frequency = sign * base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  phase = positions_BxL[:, :, None, None] * frequency[None, None, None, :]
  real, imaginary = jnp.split(x_BxLxHxDh.astype(jnp.float32), 2, axis=-1)
  if offset_HxP is not None:
    phase = phase + offset_HxP[None, None]
  if delta_HxP is not None:
    phase = phase + (delta_HxP - 1.0)[None, None] * angle(real, imaginary)
  cos, sin = jnp.cos(phase), jnp.sin(phase)
  turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
  return jnp.concatenate(turned, axis=-1).astype(x_BxLxHxDh.dtype)
