"""Bytes alive at once, against small programs counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from pdl_jax.cluster import liveness

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
BYTES = 4 * 64


def peak(f, *shapes):
  return liveness.peak_bytes(jax.make_jaxpr(f)(*shapes))


def read_later(x):
  a = x @ x
  b = a @ x
  return (b @ x) @ a


def read_twice(x):
  y = jnp.exp(x)
  return (y @ x) @ y


def made_of(x):
  a = x @ x
  b = jnp.exp(a)
  c = x @ x
  return c @ b


@pytest.mark.parametrize(
  ('f', 'count'),
  [
    # Arguments are not counted, and outputs are.
    (lambda x: x, 0), (lambda x: x @ x, 1),
    (lambda x: (lambda y: (y, y @ x))(jnp.exp(x)), 2),
    # Of a chain of matmuls, two at once: what is read and what is written.
    (lambda x: x @ x @ x, 2), (lambda x: x @ x @ x @ x @ x, 2),
    (read_later, 3),
    # Elementwise work is fused where it is read once.
    (lambda x: jnp.exp(x + 1.0) @ x, 1), (lambda x: jax.nn.silu(x @ x) @ x, 2),
    (read_twice, 3),
    # A fused array keeps what it is made of.
    (made_of, 3),
  ],
)  # fmt: skip
def test_arrays_alive_at_once(f, count):
  assert peak(f, SQUARE) == count * BYTES


def test_the_carry_of_a_loop_and_a_slice_are_written_over():
  def matmuls(x):
    return jax.lax.fori_loop(0, 5, lambda _, y: y @ x, x @ x)

  def slices(x):
    def body(i, total):
      return jax.lax.dynamic_update_slice(total, x[:1] + total[:1], (i, 0))

    return jax.lax.fori_loop(0, 8, body, x @ x)

  def nested(x):
    def outer(_, total):
      return jax.lax.fori_loop(0, 3, lambda _, y: y.at[0].add(x[0]), total)

    return jax.lax.fori_loop(0, 5, outer, x @ x)

  counter = 4
  assert peak(matmuls, SQUARE) == 2 * BYTES + counter
  assert peak(slices, SQUARE) < 2 * BYTES
  assert peak(nested, SQUARE) < 1.5 * BYTES


def test_the_peak_of_one_layer():
  def f(x):
    return jax.lax.scan(lambda y, _: (y @ x @ x @ x, y @ x), x, length=7)

  jaxpr = jax.make_jaxpr(f)(SQUARE)
  assert liveness.loop_peaks(jaxpr, 6) == []
  # What goes on to the next turn, and what is kept of this one.
  assert liveness.loop_peaks(jaxpr, 7) == [2 * BYTES]
