"""Rotation of queries and keys, against complex numbers in fp64."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from pdl_jax.model.rotary import angle, cos_sin, turn

pytestmark = pytest.mark.usefixtures('quick_compile')
B, L, H, DH = 2, 7, 4, 8
P, BASE = DH // 2, 100.0
POSITIONS = np.broadcast_to(np.arange(L), (B, L))


def arrays(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape or (B, L, H, DH))


def f32(x):
  return jnp.asarray(x, jnp.float32)


def numbers(x):
  return x[..., :P] + 1j * x[..., P:]


def test_rope_is_a_complex_product():
  x = arrays(2, 5, 3, DH)
  positions = np.array([[0, 1, 2, 3, 4], [7, 0, 30, 2, 1000]])
  phase = positions[..., None, None] * 500.0 ** (-np.arange(P) / P)
  turned = numbers(x) * np.exp(1j * phase)
  expected = np.concatenate([turned.real, turned.imag], -1)
  found = turn(f32(x), jnp.asarray(positions), 500.0)
  np.testing.assert_allclose(found, expected, atol=2e-4)
  half = turn(jnp.asarray(x, jnp.bfloat16), jnp.asarray(positions), 500.0)
  assert half.dtype == jnp.bfloat16
  # A phase of 1000 in bfloat16 would be off by radians.
  np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.05)


def direct_scores(q, k, delta, offset, sign):
  """The sum of cosines of the paper, in fp64: [B, H, M, N]."""
  g = BASE ** (-np.arange(P) / P)
  m = POSITIONS[:, :, None, None, None]
  n = POSITIONS[:, None, :, None, None]
  between = np.angle(numbers(q))[:, :, None] - np.angle(numbers(k))[:, None]
  phase = delta * between + offset + sign * (m - n) * g
  product = np.abs(numbers(q))[:, :, None] * np.abs(numbers(k))[:, None]
  return (product * np.cos(phase)).sum(-1).transpose(0, 3, 1, 2)


def test_turned_products_are_the_sum_of_cosines():
  q, k = arrays(), arrays(seed=1)
  delta, offset = arrays(2, H, P, seed=2)
  for sign in (1, -1):
    expected = direct_scores(q, k, delta, offset, sign)
    # Nothing but the distance of positions counts.
    for shift, error in ((0, 2e-5), (50, 2e-4)):
      place = (POSITIONS + shift, BASE, f32(delta))
      turned_q = turn(f32(q), *place, f32(offset), sign)
      turned_k = turn(f32(k), *place, sign=sign)
      found = jnp.einsum('bmhd,bnhd->bhmn', turned_q, turned_k)
      np.testing.assert_allclose(found, expected, atol=error)


def test_delta_one_and_no_offset_is_rope_bit_for_bit():
  x = f32(arrays())
  found = turn(x, POSITIONS, BASE, jnp.ones((H, P)), jnp.zeros((H, P)))
  np.testing.assert_array_equal(found, turn(x, POSITIONS, BASE))


def test_gradients_are_finite_at_zero_and_where_the_angle_jumps():
  pairs = [(0, 0), (1e-20, -1e-20), (-1, 0), (-1, 1e-12), (-1, -1e-12)]
  x = f32(np.repeat(np.asarray(pairs), P, axis=1))[:, None, None]
  delta, offset = jnp.full((1, P), 0.37), jnp.full((1, P), 0.2)

  def total(x, delta, offset):
    return turn(x[None], jnp.ones((1, 1)), BASE, delta, offset).sum()

  for one in x:
    for found in jax.grad(total, (0, 1, 2))(one, delta, offset):
      assert np.isfinite(found).all()
      # A turned pair is no longer than it was: so is what reaches a parameter.
      assert np.abs(found).max() < 10


def test_cosines_are_exact_to_rounding_at_any_position():
  for far in (1.0, 100.0, 1e4, 1.9e5):
    phase = np.random.default_rng(2).uniform(-far, far, 50_000)
    phase = phase.astype(np.float32)
    cos, sin = cos_sin(jnp.asarray(phase))
    np.testing.assert_allclose(cos, np.cos(phase.astype(float)), atol=1.2e-7)
    np.testing.assert_allclose(sin, np.sin(phase.astype(float)), atol=1.2e-7)


def test_angles_are_exact_to_rounding_in_every_direction():
  turns = np.linspace(-np.pi, np.pi, 20_001)[1:-1]
  axes = np.asarray([1, 1j, -1, -1j])
  for modulus in (1e-14, 1.0, 1e18):
    for made in (modulus * np.exp(1j * turns), axes):
      found = angle(f32(made.real), f32(made.imag))
      rounded = np.float32(made.imag), np.float32(made.real)
      expected = np.arctan2(*(x.astype(float) for x in rounded))
      np.testing.assert_allclose(found, expected, atol=4e-7)


def test_gradients_are_those_of_finite_differences():
  x = arrays()
  delta, offset = 1 + 0.3 * arrays(2, H, P, seed=2)
  x, delta, offset = map(f32, (x + np.sign(x), delta, offset))
  check = functools.partial(
    jax.test_util.check_grads, order=1, modes=['rev'], atol=2e-2, rtol=2e-2
  )
  place = functools.partial(turn, positions_BxL=POSITIONS, base=BASE)
  check(
    lambda x, delta, offset: place(x, delta_HxP=delta, offset_HxP=offset),
    (x, delta, offset),
  )
  check(lambda x, one: place(x, delta_HxP=one), (x, delta[:1]))
  check(lambda x, b: place(x, offset_HxP=b), (x, offset))
