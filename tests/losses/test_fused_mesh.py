"""A linear head's loss over a mesh of eight: that of one device."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pdl_jax import pdl_loss
from pdl_jax.losses.fused import plan
from pdl_jax.losses.fused.api import (
  Axes,
  FusedConfig,
  linear_pdl_loss,
  linear_token_stats,
)

pytestmark = pytest.mark.usefixtures('quick_compile')

NAMES = ('data', 'fsdp', 'tensor')
SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
# Tokens and vocabulary that no mesh divides; a width that none and that all do.
N, V, ODD, EVEN = 37, 101, 7, 16
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
PAIRS = pytest.mark.parametrize(
  ('method', 'kind'), [('tokens', AUTO), ('vocabulary', EXPLICIT)]
)


@pytest.fixture(autouse=True, scope='module')
def small_limits():
  """Groups of few rows, blocks of 8 columns."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plan, 'MIN_TOKENS', 8)
    patch.setattr(plan, '_COLUMN', 8)
    yield


def make_mesh(shape, kind=AUTO, names=NAMES):
  return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


@functools.cache
def make_inputs(n, columns, width):
  """Hidden, head, bias, labels, weights_V, where; on no mesh."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (
    normal(n, width), normal(width, columns), normal(columns),
    rng.integers(0, columns, n), rng.uniform(0.1, 5, columns).astype('f'),
    rng.random(n) < 0.6,
  )  # fmt: skip


def loss_and_gradients(method, masked, **options):
  """Of (hidden, head, bias, labels, weights_V, where)."""

  def value_and_gradients(hidden, head, bias, labels, weights_V, where):
    loss = lambda hidden, head, bias: linear_pdl_loss(
      hidden, head, labels, weights_V, bias_V=bias,
      where=where if masked else None, label_smoothing=0.1, z_loss=1e-3,
      config=FusedConfig(method, memory_bytes=1, **options),
    )  # fmt: skip
    return jax.value_and_grad(loss, (0, 1, 2))(hidden, head, bias)

  return jax.jit(value_and_gradients)


def stats_and_gradients(masked, **options):
  """All five statistics, and the gradients of their sums times 1, 2, 3."""

  def values_and_gradients(hidden, head, bias, labels, _, where):
    def total(hidden, head, bias):
      stats = linear_token_stats(
        hidden, head, labels, bias_V=bias, where=where if masked else None,
        temperature=0.7, config=FusedConfig(memory_bytes=1, **options),
      )  # fmt: skip
      sums = [x.sum() for x in (stats.log_z, stats.label, stats.average)]
      return sums[0] + 2 * sums[1] + 3 * sums[2], stats

    return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(
      hidden, head, bias
    )

  return jax.jit(values_and_gradients)


@functools.cache
def on_one_device(program, width, *arguments):
  """Cached: what the meshes are held against."""
  return jax.device_get(program(*arguments)(*make_inputs(N, V, width)))


def same(found, expected):
  """To 2e-6 of the norm; integers exactly."""
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  for a, b in pairs:
    a = np.asarray(jax.device_get(a))
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    if a.dtype == np.float32:
      assert np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b)
    else:
      np.testing.assert_array_equal(a, b)


def on_mesh(mesh, program, width, **options):
  """With the mesh of `jax.set_mesh`."""
  inputs = make_inputs(N, V, width)
  inputs = jax.device_put(inputs, NamedSharding(mesh, P()))
  with jax.set_mesh(mesh):
    return program(**options)(*inputs)


@pytest.mark.parametrize(
  ('shape', 'width'), [*((shape, EVEN) for shape in SHAPES), ((2, 2, 2), ODD)]
)
@PAIRS
def test_loss_and_gradients(shape, width, method, kind):
  masked = method == 'tokens'
  program = functools.partial(loss_and_gradients, method, masked)
  found = on_mesh(make_mesh(shape, kind), program, width)
  same(found, on_one_device(loss_and_gradients, width, method, masked))


@pytest.mark.parametrize(
  ('shape', 'kind', 'masked'),
  [((2, 2, 2), AUTO, True), ((1, 1, 8), EXPLICIT, False)],
)
def test_statistics(shape, kind, masked):
  program = functools.partial(stats_and_gradients, masked)
  found = on_mesh(make_mesh(shape, kind), program, EVEN)
  same(found, on_one_device(stats_and_gradients, EVEN, masked))


def test_argmax_is_the_first_of_equals_on_any_device():
  hidden = jnp.ones((9, 2))
  head = jnp.zeros((2, 21)).at[:, jnp.array([4, 9, 20])].set(1.0)
  mesh = make_mesh((1, 1, 8), EXPLICIT)
  arguments = jax.device_put(
    (hidden, head, jnp.zeros(9, int)), NamedSharding(mesh, P())
  )
  stats = functools.partial(linear_token_stats, wants=('argmax',))
  with jax.set_mesh(mesh):
    assert (jax.jit(stats)(*arguments).argmax == 4).all()


@PAIRS
def test_labels_that_are_ignored_or_out_of_range(method, kind):
  hidden, head, _, labels, weights_V, where = make_inputs(N, V, EVEN)
  mesh = make_mesh((2, 2, 2), kind)
  labels = np.where(where, labels, -100)

  @jax.jit
  def found(hidden, head, labels):
    loss = lambda hidden, head: linear_pdl_loss(
      hidden, head, labels, jnp.asarray(weights_V),
      config=FusedConfig(method, memory_bytes=1, mesh=mesh),
    )  # fmt: skip
    return jax.value_and_grad(loss, (0, 1))(hidden, head)

  whole = lambda *inputs: jax.device_put(inputs, NamedSharding(mesh, P()))
  expected = jax.value_and_grad(
    lambda hidden, head: pdl_loss(
      hidden @ head, jnp.where(where, labels, 0), jnp.asarray(weights_V),
      where=jnp.asarray(where),
    ), (0, 1)
  )(jnp.asarray(hidden), jnp.asarray(head))  # fmt: skip
  same(found(*whole(hidden, head, labels)), expected)
  labels[5] = -1
  loss, (by_hidden, by_head) = found(*whole(hidden, head, labels))
  assert jnp.isnan(loss)
  assert np.isnan(by_hidden[5]).all()
  assert np.isnan(by_head).all()


@pytest.mark.parametrize(
  ('method', 'masked'), [('tokens', True), ('vocabulary', False)]
)
def test_inside_a_shard_map_of_the_callers(method, masked):
  """Its own tokens to each device, with the checks that JAX makes there."""
  hidden, head, bias, labels, weights_V, where = make_inputs(40, V, EVEN)
  mesh = make_mesh((4, 2), AUTO, ('data', 'other'))
  tokens = P('data')

  def of(loss):
    def local(hidden, head, bias, smoothing, labels, where):
      sums = loss(
        hidden, head, bias, labels, jnp.asarray(weights_V), reduction='sums',
        where=where if masked else None, label_smoothing=smoothing,
      )  # fmt: skip
      num, den = jax.lax.psum(sums, 'data')
      return num / den

    everywhere = jax.shard_map(
      local, mesh=mesh,
      in_specs=(tokens, P(), P(), P(), tokens, tokens), out_specs=P(),
    )  # fmt: skip
    return jax.jit(jax.value_and_grad(everywhere, (0, 1, 2)))

  def ours(hidden, head, bias, *rest, **options):
    return linear_pdl_loss(
      hidden, head, *rest, bias_V=bias, **options,
      config=FusedConfig(method, memory_bytes=1),
    )  # fmt: skip

  def dense(hidden, head, bias, *rest, **options):
    return pdl_loss(hidden @ head + bias[None], *rest, **options)

  inputs = hidden, head, bias, 0.1, labels, where
  same(of(ours)(*inputs), of(dense)(*inputs))


@pytest.mark.parametrize(
  ('names', 'axes', 'method'),
  [
    # No axis splits the width: the head is whole on every replica.
    (('replica', 'model'), Axes(('replica',), None, 'model'), 'vocabulary'),
    # An axis that splits nothing of ours: each device does the same.
    (('data', 'expert'), Axes(), 'tokens'),
  ],
)
def test_axes_of_other_names(names, axes, method):
  mesh = make_mesh((2, 4), AUTO, names)
  program = functools.partial(loss_and_gradients, method, True)
  found = on_mesh(mesh, program, EVEN, axes=axes)
  same(found, on_one_device(loss_and_gradients, EVEN, method, True))


COLLECTIVE = re.compile(
  r'= (\(.*?\)|\S+) (?:all-reduce|all-gather|reduce-scatter|all-to-all'
  r'|collective-permute)(?:-start)?\('
)


def collectives(program):
  """Shapes of what every collective of a compiled program gives."""
  found = []
  for result in COLLECTIVE.findall(program):
    for sizes in re.findall(r'\w+\[([\d,]*)\]', result):
      found.append(tuple(int(x) for x in sizes.split(',') if x))
  return found


@pytest.mark.usefixtures('full_compile')
@PAIRS
def test_no_collective_of_the_size_of_the_logits(method, kind):
  n, columns, width = 512, 384, EVEN
  mesh = make_mesh((2, 2, 2), kind)
  batch = P(('data', 'fsdp'))
  specs = (batch, P('fsdp', 'tensor'), P('tensor'), batch, P(), batch)
  inputs = [
    jax.device_put(x, NamedSharding(mesh, spec))
    for x, spec in zip(make_inputs(n, columns, width), specs, strict=True)
  ]
  with jax.set_mesh(mesh):
    compiled = loss_and_gradients(method, True).lower(*inputs).compile()
  shapes = collectives(compiled.as_text())
  assert (width, columns // 2) in shapes  # the gathered head
  largest = max(width * columns, n * width)
  assert n * columns // mesh.size > largest
  assert all(math.prod(shape) <= largest for shape in shapes)
  # Not even a tile's: four statistics of a few rows, and gradients.
  gradients = {(width // 2, columns // 2), (n // 4, width)}
  matrices = {shape for shape in shapes if len(shape) > 1 and shape[0] > 4}
  assert matrices == {(width, columns // 2), *gradients}
  _, gradients = compiled(*inputs)
  for gradient, x in zip(gradients, inputs[:3], strict=True):
    assert gradient.sharding.is_equivalent_to(x.sharding, x.ndim)
