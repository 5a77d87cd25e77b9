"""Bytes alive at once, against small programs counted by hand."""

import jax
import jax.numpy as jnp

from pdl_jax.cluster import liveness

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
BYTES = 4 * 64


def peak(f, *shapes):
  return liveness.peak_bytes(jax.make_jaxpr(f)(*shapes))


def test_arguments_are_not_counted_and_outputs_are():
  assert peak(lambda x: x, SQUARE) == 0
  assert peak(lambda x: x @ x, SQUARE) == BYTES

  def f(x):
    y = jnp.exp(x)
    return y, y @ x

  assert peak(f, SQUARE) == 2 * BYTES


def test_what_is_read_no_more_is_gone():
  """Of a chain of matmuls, two at once: what is read and what is written."""
  assert peak(lambda x: x @ x @ x, SQUARE) == 2 * BYTES
  assert peak(lambda x: x @ x @ x @ x @ x, SQUARE) == 2 * BYTES


def test_what_is_read_later_stays():
  def f(x):
    a = x @ x
    b = a @ x
    return (b @ x) @ a

  assert peak(f, SQUARE) == 3 * BYTES


def test_elementwise_work_is_fused_where_it_is_read_once():
  assert peak(lambda x: jnp.exp(x + 1.0) @ x, SQUARE) == BYTES
  assert peak(lambda x: jax.nn.silu(x @ x) @ x, SQUARE) == 2 * BYTES

  def twice(x):
    y = jnp.exp(x)
    return (y @ x) @ y

  assert peak(twice, SQUARE) == 3 * BYTES


def test_a_fused_array_keeps_what_it_is_made_of():
  def f(x):
    a = x @ x
    b = jnp.exp(a)
    c = x @ x
    return c @ b

  assert peak(f, SQUARE) == 3 * BYTES


def test_the_carry_of_a_loop_is_written_over():
  def f(x):
    return jax.lax.fori_loop(0, 5, lambda _, y: y @ x, x @ x)

  counter = 4
  assert peak(f, SQUARE) == 2 * BYTES + counter


def test_a_slice_is_written_in_place():
  def f(x):
    def body(i, total):
      return jax.lax.dynamic_update_slice(total, x[:1] + total[:1], (i, 0))

    return jax.lax.fori_loop(0, 8, body, x @ x)

  assert peak(f, SQUARE) < 2 * BYTES


def test_the_peak_of_one_layer():
  def f(x):
    return jax.lax.scan(lambda y, _: (y @ x @ x @ x, y @ x), x, length=7)

  jaxpr = jax.make_jaxpr(f)(SQUARE)
  assert liveness.loop_peaks(jaxpr, 6) == []
  # What goes on to the next turn, and what is kept of this one.
  assert liveness.loop_peaks(jaxpr, 7) == [2 * BYTES]


def test_loops_in_loops_write_over_the_same_carry():
  def f(x):
    def outer(_, total):
      return jax.lax.fori_loop(0, 3, lambda _, y: y.at[0].add(x[0]), total)

    return jax.lax.fori_loop(0, 5, outer, x @ x)

  assert peak(f, SQUARE) < 1.5 * BYTES
