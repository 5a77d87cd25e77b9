"""A linear head's loss without its logits: equal to the naive one, and lean."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdl_jax import pdl_loss, power_law_weights
from pdl_jax.errors import ConfigError
from pdl_jax.losses.core import LossTerms, Sums, TokenStats
from pdl_jax.losses.fused import kernel, plan, tiles
from pdl_jax.losses.fused.api import (
  STATS,
  FusedConfig,
  linear_loss_sums,
  linear_pdl_loss,
  linear_token_stats,
)
from pdl_jax.losses.heads import LinearHead

pytestmark = pytest.mark.usefixtures('quick_compile')

D = 6
# The smallest tiles of the patched limits below: few rows, 8 columns.
SMALL = 1
METHODS = pytest.mark.parametrize('method', ['tokens', 'vocabulary'])


@pytest.fixture(autouse=True, scope='module')
def small_limits():
  """Several groups of rows and blocks of columns from few of either."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plan, 'MIN_TOKENS', 8)
    patch.setattr(plan, '_COLUMN', 8)
    yield


class Case(NamedTuple):
  """Arrays of a loss; weights_V is for the types below `size`."""

  hidden: jax.Array
  head_DxV: jax.Array
  bias_V: jax.Array
  labels: jax.Array
  where: jax.Array
  weights_V: jax.Array


def make_case(shape, columns, size=None, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  size = size or columns
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return Case(
    normal(*shape, D) * scale,
    normal(D, columns),
    normal(columns),
    jnp.asarray(rng.integers(0, size, shape)),
    jnp.asarray(rng.random(shape) < 0.6),
    jnp.asarray(rng.uniform(0.1, 5, size), jnp.float32),
  )


def dense_logits(hidden, head_DxV, bias_V=None, softcap=None, vocab_size=None):
  dot = functools.partial(jnp.matmul, precision='highest')
  logits = dot(hidden.astype(jnp.float32), head_DxV.astype(jnp.float32))
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  if bias_V is not None:
    logits = logits + jnp.expand_dims(bias_V, tuple(range(logits.ndim - 1)))
  return logits[..., :vocab_size]


def naive_loss(
  hidden, head_DxV, labels, weights_V, *, where=None, bias_V=None,
  softcap=None, vocab_size=None, **options,
):  # fmt: skip
  """`pdl_loss` of whole logits."""
  logits = dense_logits(hidden, head_DxV, bias_V, softcap, vocab_size)
  if weights_V is None:
    weights_V = jnp.ones(logits.shape[-1])
  return pdl_loss(logits, labels, weights_V, where=where, **options)


FIELDS = {field.name for field in dataclasses.fields(FusedConfig)}


def flat(function, **fixed):
  """The function with the fields of its config as arguments."""

  def call(*arguments, **options):
    own = {name: options.pop(name) for name in FIELDS & options.keys()}
    config = FusedConfig(**{**fixed, **own})
    return function(*arguments, **options, config=config)

  return call


small = {'memory_bytes': SMALL}
any_loss, small_loss = flat(linear_pdl_loss), flat(linear_pdl_loss, **small)
any_stats, small_stats = (
  flat(linear_token_stats), flat(linear_token_stats, **small)
)  # fmt: skip
any_sums, small_sums = flat(linear_loss_sums), flat(linear_loss_sums, **small)


def close(found, expected, rtol=2e-5):
  """Each array, to a part of its own largest entry, or of 0.01."""
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  for a, b in pairs:
    assert a.shape == b.shape
    atol = rtol * float(jnp.abs(b).max(initial=0.01))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def same_bits(found, expected):
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  for a, b in pairs:
    np.testing.assert_array_equal(a, b)


def with_gradients(loss, arguments=(0, 1), **options):
  return jax.jit(jax.value_and_grad(loss, arguments, **options))


# --- equal to the loss on whole logits ----------------------------------------

SMOOTHED = {'label_smoothing': 0.1, 'z_loss': 1e-2}
EVERYTHING = {**SMOOTHED, 'softcap': 2.0, 'bias': True}
# Shape of the labels, columns of the head, V, rows that a mask leaves (None: no
# mask; whole groups, and quarters of one), options.
COMPARED = {
  'plain': ((3, 15), 37, 37, 27, {}),
  'smoothed': ((3, 15), 37, 37, None, {**SMOOTHED, 'reduction': 'token_mean'}),
  'traced': ((3, 15), 37, 37, 27, {'traced': SMOOTHED, 'reduction': 'sum'}),
  'softcap': ((3, 15), 37, 37, None, {'softcap': 2.0, 'reduction': 'sums'}),
  'bias': ((3, 15), 37, 37, 27, {'bias': True, 'denominator': 7.5}),
  'cross_entropy': ((3, 15), 37, 37, None, {'weighted': False}),
  'padded': ((3, 15), 43, 37, 27, {}),
  'one_token': ((1,), 37, 37, 1, EVERYTHING),
  'block_wider_than_the_vocabulary': ((45,), 5, 5, 21, EVERYTHING),
  'less_than_two_blocks': ((45,), 13, 13, 21, EVERYTHING),
  'whole_blocks_of_padding': (
    (5, 9), 30, 7, 18, {**EVERYTHING, 'reduction': 'token_mean'},
  ),
  'even_blocks': ((7, 3, 2), 24, 24, None, {**EVERYTHING, 'reduction': 'sum'}),
  'one_type': ((45,), 37, 1, 1, {**EVERYTHING, 'reduction': 'sums'}),
  'one_tile': ((3, 15), 37, 37, None, {**EVERYTHING, 'memory_bytes': 2**24}),
}  # fmt: skip


@pytest.mark.parametrize('name', COMPARED)
def test_value_and_every_gradient(name):
  """Of every option, reduction and tiling; of 'sums', those of its num."""
  shape, columns, size, counted, options = COMPARED[name]
  case = make_case(shape, columns, size)
  where = None
  if counted is not None:
    order = np.random.default_rng(2).permutation(case.labels.size)
    where = jnp.asarray(order < counted).reshape(shape)
  options = {'bias': False, 'weighted': True, 'traced': {}, **options}
  bias, weighted, traced = map(options.pop, ('bias', 'weighted', 'traced'))
  memory = options.pop('memory_bytes', SMALL)

  def of(loss, **config):
    def scalar(hidden, head_DxV, bias_V, traced):
      found = loss(
        hidden, head_DxV, case.labels, case.weights_V if weighted else None,
        where=where, bias_V=bias_V, vocab_size=size, **traced, **options,
        **config,
      )  # fmt: skip
      return jax.tree.leaves(found)[0], found

    function = with_gradients(scalar, (0, 1, 2)[: 2 + bias], has_aux=True)
    bias_V = case.bias_V if bias else None
    return function(case.hidden, case.head_DxV, bias_V, traced)

  expected = of(naive_loss)
  for method in ('tokens', 'vocabulary'):
    close(of(any_loss, method=method, memory_bytes=memory), expected)


@METHODS
def test_a_bias_of_minus_infinity_bans_a_type(method):
  case = make_case((3, 15), 37)
  banned = int(np.setdiff1d(np.arange(37), np.asarray(case.labels))[0])
  for softcap in (None, 2.0):

    @jax.jit
    def loss(value, softcap=softcap):
      bias_V = case.bias_V.at[banned].set(value)
      scalar = lambda hidden, head_DxV: small_loss(
        hidden, head_DxV, case.labels, case.weights_V, bias_V=bias_V,
        softcap=softcap, method=method,
      )  # fmt: skip
      return jax.value_and_grad(scalar, (0, 1))(case.hidden, case.head_DxV)

    close(loss(-jnp.inf), loss(-1e4))


@pytest.mark.parametrize(
  ('options', 'masked'),
  [({}, True), (EVERYTHING, False)],
  ids=['masked', 'every_option'],
)
def test_loss_per_token_and_its_cotangent(options, masked):
  case = make_case((3, 15), 37)
  cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(3, 15)))
  options = {**options, 'where': case.where if masked else None}
  bias = options.pop('bias', False)

  def of(loss):
    @jax.jit
    def value_and_gradient(*inputs):
      hidden, head_DxV, *bias_V = inputs
      per_token = lambda hidden, head_DxV, *bias_V: loss(
        hidden, head_DxV, case.labels, case.weights_V, reduction='none',
        bias_V=bias_V[0] if bias_V else None, **options,
      )  # fmt: skip
      value, pull = jax.vjp(per_token, hidden, head_DxV, *bias_V)
      return value, pull(cotangent.astype(jnp.float32))

    return value_and_gradient(*case[: 3 if bias else 2])

  found, expected = of(small_loss), of(naive_loss)
  assert found[0].shape == case.labels.shape
  close(found, expected)


@METHODS
def test_a_transposed_head_is_the_same_head(method):
  """[V, D], as a tied embedding is; what padding columns hold is not read."""
  case = make_case((21,), 43, 37)
  where = case.where if method == 'tokens' else None

  def loss(hidden, head, transposed):
    return small_loss(
      hidden, head, case.labels, case.weights_V, where=where, method=method,
      vocab_size=37, softcap=3.0, transposed=transposed,
    )  # fmt: skip

  run = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  expected = run(case.hidden, case.head_DxV.at[:, 37:].set(0.0), False)
  padded = case.head_DxV.at[:, 37:].set(jnp.nan)
  same_bits(run(case.hidden, padded, False), expected)
  value, (hidden, head) = run(case.hidden, padded.T, True)
  close((value, (hidden, head.T)), expected)

  def of_head(hidden, head):
    return small_loss(
      hidden, LinearHead(head, softcap=3.0), case.labels, case.weights_V,
      where=where, method=method, vocab_size=37,
    )  # fmt: skip

  same_bits(
    with_gradients(of_head)(case.hidden, padded.T), (value, (hidden, head))
  )


def test_arguments_of_the_first_version_work_and_warn():
  case = make_case((21,), 37)
  arguments = case.hidden, case.head_DxV, case.labels
  with pytest.warns(DeprecationWarning, match='config.memory_bytes now'):
    found = linear_token_stats(*arguments, memory_bytes=SMALL, transposed=False)
  same_bits(found, small_stats(*arguments))
  with pytest.warns(DeprecationWarning, match='head_DxV is called head now'):
    linear_token_stats(case.hidden, head_DxV=case.head_DxV, labels=case.labels)


@METHODS
def test_no_token_at_all(method):
  for shape in ((0,), (2, 0)):
    hidden, head = jnp.ones((*shape, 4)), jnp.ones((4, 5))
    labels = jnp.zeros(shape, int)
    loss = lambda *inputs, x=labels: any_loss(*inputs, x, None, method=method)
    value, gradients = with_gradients(loss)(hidden, head)
    assert value == 0
    assert gradients[0].shape == hidden.shape
    assert not gradients[1].any()


@pytest.mark.parametrize(
  ('method', 'reduction', 'masked'),
  [
    ('tokens', 'weighted_mean', True),
    ('tokens', 'token_mean', False),
    ('vocabulary', 'weighted_mean', True),
  ],
)
def test_alpha_zero_is_cross_entropy_bit_for_bit(method, reduction, masked):
  case = make_case((45,), 37)
  counts = np.random.default_rng(3).integers(0, 10**6, 37)

  @jax.jit
  def loss(alpha):
    weights_V = None
    if alpha is not None:
      weights_V = power_law_weights(counts, alpha=alpha, epsilon=1e-7)
    scalar = lambda hidden, head_DxV: small_loss(
      hidden, head_DxV, case.labels, weights_V, reduction=reduction,
      where=case.where if masked else None, method=method,
    )  # fmt: skip
    return jax.value_and_grad(scalar, (0, 1))(case.hidden, case.head_DxV)

  same_bits(loss(0.0), loss(None))


# --- against double precision -------------------------------------------------


def true_loss(hidden, head_DxV, labels):
  """Mean cross-entropy, and the gradients by hidden and head, in fp64."""
  hidden, head = np.asarray(hidden, float), np.asarray(head_DxV, float)
  z = hidden @ head
  z -= z.max(axis=1, keepdims=True)
  p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
  rows = np.arange(len(labels))
  value = (np.log(np.exp(z).sum(axis=1)) - z[rows, labels]).mean()
  p[rows, labels] -= 1
  p /= len(labels)
  return value, (p @ head.T, hidden.T @ p)


def errors(found, truth):
  """Absolute of the value, relative in norm of the gradients."""
  (value, gradients), (true_value, true_gradients) = found, truth
  distance = [abs(float(value) - true_value)]
  for a, b in zip(gradients, true_gradients, strict=True):
    off = np.linalg.norm(np.asarray(a, float) - b)
    distance.append(off / (np.linalg.norm(b) or 1.0))
  return np.array(distance)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('vocabulary', [1, 129, 2049, 50257])
def test_error_is_at_most_twice_that_of_optax(vocabulary, dtype):
  n = 24
  rng = np.random.default_rng(vocabulary)
  labels = rng.integers(0, vocabulary, n)

  @with_gradients
  def theirs(hidden, head_DxV, labels):
    logits = hidden @ head_DxV
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    return cross_entropy(logits, labels).astype(jnp.float32).mean()

  # Blocks of 8 columns, of some hundreds, of all or thousands.
  memories = (SMALL,) if vocabulary < 1000 else (2**16, 2**26)
  if dtype == jnp.bfloat16:
    memories = memories[:1]
  ours = [
    with_gradients(
      lambda hidden, head_DxV, labels, method=method, memory=memory: (
        any_loss(
          hidden, head_DxV, labels, None, method=method, memory_bytes=memory
        )
      )
    )
    for method in ('tokens', 'vocabulary')
    for memory in memories
  ]
  for scale in (0.1, 10.0):  # flat, peaked
    # The worst of a few draws is luck: one rounding of a sum either way.
    count = 64 if vocabulary < 10_000 else 4
    draws = [rng.normal(size=(n, D)) * scale for _ in range(count)]
    head_DxV = jnp.asarray(rng.normal(size=(D, vocabulary)), dtype)
    arguments = [(jnp.asarray(x, dtype), head_DxV, labels) for x in draws]
    truths = [true_loss(*x) for x in arguments]
    worst = lambda f, arguments=arguments, truths=truths: np.max(
      [errors(f(*x), y) for x, y in zip(arguments, truths, strict=True)], 0
    )
    # Nobody is better than the rounding of the logits and of the gradients.
    rounding = np.finfo(np.float32).eps * np.array([10 * scale, 1, 1])
    limit = 2 * np.maximum(worst(theirs), rounding)
    for f in ours:
      assert (worst(f) <= limit).all(), (scale, worst(f), worst(theirs))
      if vocabulary == 1:
        same_bits(f(*arguments[0])[0], jnp.zeros(()))


@pytest.mark.usefixtures('full_compile')
@METHODS
def test_bfloat16_adds_up_in_float32(method):
  """64 groups of rows, 32 blocks of columns: no worse than one tile."""
  rng = np.random.default_rng(0)
  n, columns = 512, 256
  hidden = jnp.asarray(rng.normal(size=(n, D)), jnp.bfloat16)
  head_DxV = jnp.asarray(rng.normal(size=(D, columns)), jnp.bfloat16)
  labels = jnp.asarray(rng.integers(0, columns, n))
  truth = true_loss(hidden, head_DxV, labels)

  def error(memory_bytes):
    scalar = lambda hidden, head_DxV: any_loss(
      hidden, head_DxV, labels, None, method=method, memory_bytes=memory_bytes
    )
    value_and_gradient = jax.jit(jax.value_and_grad(scalar, (0, 1)))
    value, gradients = value_and_gradient(hidden, head_DxV)
    assert value.dtype == jnp.float32
    assert [x.dtype for x in gradients] == [jnp.bfloat16] * 2
    return errors((value, gradients), truth)

  whole = np.maximum(error(2**26), np.finfo(np.float32).eps)
  assert (error(SMALL) <= 2 * whole).all()


# --- what holds for any mask and weights --------------------------------------


@functools.cache
def compiled(shape, loss, **method):
  """Value and gradients of a loss; a program for each shape."""
  del shape
  return with_gradients(
    lambda hidden, head_DxV, labels, weights_V, where: loss(
      hidden, head_DxV, labels, weights_V, where=where, **method
    )
  )


@st.composite
def situations(draw):
  """A shape, a method, and arrays with any mask and weights."""
  n, columns = draw(st.sampled_from([(1, 5), (21, 21)]))
  method = draw(st.sampled_from(['tokens', 'vocabulary']))
  case = make_case(
    (n,), columns, seed=draw(st.integers(0, 99)),
    scale=draw(st.sampled_from([0.0, 1.0, 30.0])),
  )  # fmt: skip
  mask = draw(st.sampled_from(['none', 'all', 'random']))
  flags = st.lists(st.booleans(), min_size=n, max_size=n)
  where = draw(flags) if mask == 'random' else [mask == 'none'] * n
  exponents = st.sampled_from([None, 0, -3, 6, 12])
  powers = draw(st.lists(exponents, min_size=columns, max_size=columns))
  weights = [0.0 if x is None else 10.0**x for x in powers]
  case = case._replace(
    where=jnp.asarray(where, bool),
    weights_V=jnp.asarray(weights, jnp.float32),
  )
  return (n, columns), method, case


def arguments_of(case):
  return case.hidden, case.head_DxV, case.labels, case.weights_V, case.where


@settings(deadline=None, max_examples=60)
@given(situations(), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_any_mask_and_weights_give_the_naive_loss(situation, poison):
  """And nothing leaks from behind the mask."""
  shape, method, case = situation
  ours = compiled(shape, small_loss, method=method)
  found = ours(*arguments_of(case))
  expected = compiled(shape, naive_loss)(*arguments_of(case))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
  value, gradients = found
  if not case.where.any():
    assert not any(x.any() for x in jax.tree.leaves(found))
  np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-5)
  for a, b in zip(gradients, expected[1], strict=True):
    # A saturated softmax leaves differences of equals: no relative bound.
    size = 1 + float(jnp.abs(case.hidden).max())
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * size)
  dirty = case._replace(
    hidden=jnp.where(case.where[:, None], case.hidden, poison),
    labels=jnp.where(case.where, case.labels, -100),
  )
  same_bits(ours(*arguments_of(dirty)), found)
  assert not gradients[0][~case.where].any()


@METHODS
def test_everything_masked(method):
  case = make_case((9,), 5)
  for reduction in ('token_mean', 'sum'):
    scalar = lambda hidden, head_DxV, reduction=reduction: small_loss(
      hidden, head_DxV, jnp.full(9, -100), case.weights_V,
      where=jnp.zeros(9, bool), reduction=reduction, method=method,
    )  # fmt: skip
    found = with_gradients(scalar)(case.hidden * jnp.nan, case.head_DxV)
    assert not any(x.any() for x in jax.tree.leaves(found))


# --- masked rows cost nothing -------------------------------------------------


def numbered(where):
  rows = jnp.arange(len(where), dtype=jnp.float32)
  ids = jnp.arange(len(where))
  return tiles.Tokens(rows[:, None], ids, rows, jnp.asarray(where))


def test_quarters_of_groups_that_any_row_is_in():
  n, device = 33, plan.Plan(masked=True, tokens=16)
  for valid in range(n + 1):
    where = np.random.default_rng(valid).permutation(n) < valid
    moved, steps, order_N = kernel.compress(device, numbered(where))
    # Counted rows first and in order, up to whole groups.
    np.testing.assert_array_equal(moved.labels_N[:valid], np.flatnonzero(where))
    np.testing.assert_array_equal(moved.labels_N[:n], order_N)
    assert moved.where_N.size == 48
    assert moved.where_N[:valid].all()
    assert not moved.where_N[valid:].any()
    # Steps follow one another, and cover a quarter of a group too much at most.
    place = 0
    for size, first, count in steps:
      assert count == 0 or first == place
      place += size * int(count)
    quarters = -(-valid // 4)
    assert place == 4 * (quarters + (quarters % 4 == 3))


def test_without_a_mask_no_row_moves():
  tokens = numbered([True] * 33)
  moved, steps, order_N = kernel.compress(plan.Plan(tokens=16), tokens)
  assert order_N is None
  assert steps == [(16, 0, 2), (1, 32, 1)]
  assert moved is tokens


@pytest.mark.parametrize('differentiate', [False, True])
def test_rows_that_the_loss_ever_sees(differentiate):
  """Counted as the program runs: masked groups are not computed at all."""
  case, seen = make_case((80,), 13), []

  def terms(stats, weight, parameters):
    del parameters
    size = stats.log_z.size
    jax.debug.callback(lambda: seen.append(size))
    return LossTerms(weight * stats.nll, weight)

  loss = lambda hidden, where: small_sums(
    terms, hidden, case.head_DxV, case.labels, case.weights_V, where,
  )[0].num  # fmt: skip
  run = jax.jit(jax.grad(loss) if differentiate else loss)
  tokens, _ = plan.plan_tiles(80, 13, SMALL, differentiate)
  quarter = tokens // 4
  order = np.random.default_rng(0).permutation(80)
  for valid in (0, 1, 3, 8, 17, 40, 79, 80):
    seen.clear()
    run(case.hidden, jnp.asarray(order < valid)).block_until_ready()
    jax.effects_barrier()
    assert valid <= sum(seen) < valid + 2 * quarter


# --- only what was asked for --------------------------------------------------


def inner_jaxprs(eqn):
  for value in jax.tree.leaves(
    eqn.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
  ):
    if hasattr(value, 'eqns') or hasattr(value, 'jaxpr'):
      yield getattr(value, 'jaxpr', value)


def dot_flops(jaxpr):
  """Of all matmuls; loops must have a trip count that is known."""
  total = 0
  for eqn in jaxpr.eqns:
    inside = sum(dot_flops(inner) for inner in inner_jaxprs(eqn))
    assert not inside or eqn.primitive.name not in ('while', 'cond')
    if eqn.primitive.name == 'scan':
      inside *= eqn.params['length']
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
      inside = 2 * depth * math.prod(eqn.outvars[0].aval.shape)
    total += inside
  return total


N_LEAN, V_LEAN = 64, 72


def lean(method, arguments, **options):
  """The gradient by some of (hidden, head), of bf16 inputs; None: the value."""
  case = make_case((N_LEAN,), V_LEAN)

  def scalar(hidden, head_DxV):
    return small_loss(
      hidden, head_DxV, case.labels, case.weights_V, method=method, **options
    ).sum()

  f = jax.value_and_grad(scalar, arguments) if arguments else scalar
  inputs = [x.astype(jnp.bfloat16) for x in (case.hidden, case.head_DxV)]
  return f, inputs


BY_TOKENS, BY_VOCABULARY = (2.1, 4.2, 4.2, 6.2), (2.1, 6.2, 6.2, 8.3)


@pytest.mark.parametrize(
  ('method', 'options', 'limits'),
  [
    ('tokens', {}, BY_TOKENS),
    ('vocabulary', {}, BY_VOCABULARY),
    (None, {}, BY_TOKENS),
    (None, {'reduction': 'none'}, BY_VOCABULARY),
  ],
)
def test_matmuls_of_what_was_asked_for(method, options, limits):
  """None is 'vocabulary' where a value per token is asked for."""
  asked = None, (0,), (1,), (0, 1)
  for arguments, limit in zip(asked, limits, strict=True):
    f, inputs = lean(method, arguments, **options)
    flops = dot_flops(jax.make_jaxpr(f)(*inputs).jaxpr) / (N_LEAN * D * V_LEAN)
    assert math.floor(limit) <= flops <= limit


@METHODS
def test_no_array_of_a_gradient_that_nobody_asked_for(method):
  for arguments in ((0,), (1,), (0, 1)):
    f, inputs = lean(method, arguments)
    # What the compiler is given: on a CPU it makes fp32 of bf16 inputs itself.
    program = jax.jit(f).lower(*inputs).as_text()
    assert (f'tensor<{N_LEAN}x{D}xf32>' in program) == (0 in arguments)
    assert (f'tensor<{D}x{V_LEAN}xf32>' in program) == (1 in arguments)


@pytest.mark.usefixtures('full_compile')
@METHODS
def test_whole_logits_are_never_there(method):
  n, width, columns = 4096, 8, 2048
  whole = 4 * n * columns
  inputs = (
    jax.ShapeDtypeStruct((n, width), jnp.float32),
    jax.ShapeDtypeStruct((width, columns), jnp.float32),
  )
  labels, weights_V = jnp.zeros(n, int), jnp.ones(columns)
  # A 1-MB budget: 128 rows are kept under 'tokens', of 32 MB in all.
  ours = lambda hidden, head_DxV: any_loss(
    hidden, head_DxV, labels, weights_V, method=method, memory_bytes=2**20
  )
  naive = lambda hidden, head_DxV: naive_loss(
    hidden, head_DxV, labels, weights_V
  )

  def temporary(loss):
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs)
    return compiled.compile().memory_analysis().temp_size_in_bytes

  assert temporary(naive) >= whole
  assert temporary(ours) < whole / 10


# --- statistics, and losses made of them --------------------------------------


def dense_stats(logits, labels, temperature):
  """log_z, label, average, expected, argmax from whole logits."""
  log_z = jax.nn.logsumexp(logits / temperature, axis=-1)
  label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  q = jax.nn.softmax(logits / temperature, axis=-1)
  expected = (q * logits).sum(axis=-1)
  return log_z, label, logits.mean(axis=-1), expected, logits.argmax(axis=-1)


@pytest.mark.parametrize(
  ('temperature', 'masked', 'options'),
  [
    (1.0, False, {}),
    (0.7, True, {}),
    (0.7, False, {'softcap': 3.0, 'bias': True, 'vocab_size': 29}),
  ],
)
def test_statistics_and_their_gradients(options, temperature, masked):
  bias = options.get('bias', False)
  options = {k: x for k, x in options.items() if k != 'bias'}
  case = make_case((3, 15), 37, options.get('vocab_size'))
  # Equals: the first of them is the argmax, in another block or the same one.
  head_DxV = case.head_DxV.at[:, [3, 8, 20]].set(case.head_DxV[:, 14:15])
  biases = case.bias_V.at[jnp.array([3, 8, 20])].set(case.bias_V[14])
  where = case.where if masked else None
  normal = np.random.default_rng(1).normal(size=(3, 3, 15))
  cotangents = tuple(jnp.asarray(normal, jnp.float32))
  inputs = (case.hidden, head_DxV) + ((biases,) if bias else ())

  def of(stats):
    @jax.jit
    def value_and_gradient(*inputs):
      def differentiable(hidden, head_DxV, bias_V=None):
        found = stats(hidden, head_DxV, bias_V)
        if masked:
          found = [jnp.where(where, x, 0) for x in found]
        return tuple(found[:3]), tuple(found[3:])

      values, pull, rest = jax.vjp(differentiable, *inputs, has_aux=True)
      return values, rest, pull(cotangents)

    return value_and_gradient(*inputs)

  found = of(
    lambda hidden, head_DxV, bias_V: small_stats(
      hidden, head_DxV, case.labels, where=where, temperature=temperature,
      bias_V=bias_V, **options,
    )
  )  # fmt: skip
  expected = of(
    lambda hidden, head_DxV, bias_V: dense_stats(
      dense_logits(hidden, head_DxV, bias_V, **options), case.labels,
      temperature,
    )
  )  # fmt: skip
  close(found, expected)
  assert found[1][1].dtype == jnp.int32
  if temperature == 1:
    stats = TokenStats(*found[0], *found[1])
    log_p = jax.nn.log_softmax(dense_logits(case.hidden, head_DxV))
    nll = -jnp.take_along_axis(log_p, case.labels[..., None], axis=-1)[..., 0]
    close(stats.nll, nll)
    close(stats.entropy, -(jnp.exp(log_p) * log_p).sum(axis=-1))


def test_masked_statistics_are_zero_even_of_nan():
  case = make_case((45,), 37)
  stats = small_stats(
    jnp.where(case.where[:, None], case.hidden, jnp.nan), case.head_DxV,
    jnp.where(case.where, case.labels, -100), where=case.where,
  )  # fmt: skip
  for x in stats:
    assert not x[~case.where].any()
    assert np.isfinite(x).all()


def test_statistics_that_were_not_asked_for_are_missing():
  case = make_case((9,), 5)
  inputs = case.hidden, case.head_DxV, case.labels
  every = any_stats(*inputs)
  for wanted in ((), *((name,) for name in STATS)):
    some = any_stats(*inputs, wants=wanted)
    same_bits((some.log_z, some.label), (every.log_z, every.label))
    for name in STATS:
      found = getattr(some, name)
      if name in wanted:
        close(found, getattr(every, name))
      elif name == 'argmax':
        assert (found == -1).all()
      else:
        assert jnp.isnan(found).all()


def focal_terms(stats, weight, parameters):
  """Focal loss with a pinch of the average, detached entropy as a weight."""
  gamma = parameters['gamma']
  p = jnp.exp(-stats.nll)
  weight = weight * jax.lax.stop_gradient(1.0 + stats.expected)
  focal = (1.0 - p) ** gamma * stats.nll - 0.1 * stats.average
  return LossTerms(weight * focal, weight)


@pytest.mark.parametrize(
  ('temperature', 'softcap'), [(1.0, None), (0.7, 2.0)]
)
def test_sums_of_a_loss_of_ones_own(temperature, softcap):
  case = make_case((3, 15), 37)

  def of(sums):
    def num(hidden, head_DxV, bias_V, gamma):
      weighted, plain = sums(hidden, head_DxV, bias_V, gamma)
      return weighted.num, (weighted.den, *plain)

    both = jax.jit(jax.value_and_grad(num, (0, 1, 2), has_aux=True))
    return both(*case[:3], jnp.asarray(2.0))

  def ours(hidden, head_DxV, bias_V, gamma):
    return small_sums(
      focal_terms, hidden, head_DxV, case.labels, case.weights_V, case.where,
      parameters={'gamma': gamma}, wants=('average', 'expected'),
      temperature=temperature, softcap=softcap, bias_V=bias_V,
    )  # fmt: skip

  def dense(hidden, head_DxV, bias_V, gamma):
    logits = dense_logits(hidden, head_DxV, bias_V, softcap)
    stats = TokenStats(*dense_stats(logits, case.labels, temperature))
    terms = focal_terms(stats, case.weights_V[case.labels], {'gamma': gamma})
    total = lambda x: jnp.where(case.where, x, 0.0).sum()
    weighted = Sums(*(total(x) for x in terms))
    nll = stats.log_z - stats.label / temperature
    return weighted, Sums(total(nll), total(jnp.ones_like(nll)))

  close(of(ours), of(dense))


def test_only_the_weighted_sum_has_a_gradient():
  """None by plain sums, denominators, parameters or weights."""
  case = make_case((3, 5), 13)
  row = case.where[0]

  def sums(hidden, gamma, weights_V, where=row):
    return small_sums(
      focal_terms, hidden, case.head_DxV, case.labels, weights_V, where,
      parameters={'gamma': gamma}, wants=('average', 'expected'),
    )  # fmt: skip

  def others(*inputs):
    weighted, plain = sums(*inputs)
    return plain.num + plain.den + weighted.den

  def num(*inputs):
    found = sums(*inputs)
    return found[0].num, found

  inputs = case.hidden, 2.0, case.weights_V
  gradient = jax.jit(jax.grad(num, (0, 1, 2), has_aux=True))
  (hidden, gamma, weights_V), with_gradient = gradient(*inputs)
  assert hidden.any()
  assert not gamma
  assert not weights_V.any()
  assert not jax.jit(jax.grad(others))(*inputs).any()
  whole = jnp.broadcast_to(row, case.labels.shape)
  close(with_gradient, jax.jit(sums)(*inputs, whole), 1e-6)
  expected = lambda hidden: any_stats(
    hidden, case.head_DxV, case.labels
  ).expected.sum()
  assert not jax.grad(expected)(case.hidden).any()


# --- refusals -----------------------------------------------------------------

CASE = make_case((9,), 5)
INPUTS = {
  'hidden': CASE.hidden, 'head': CASE.head_DxV, 'labels': CASE.labels,
  'weights_V': CASE.weights_V,
}  # fmt: skip


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (
      {'method': 'tokens', 'reduction': 'none'},
      "reduction 'none' needs method 'vocabulary'",
    ),
    ({'method': 'rows'}, "method 'rows' is not one of tokens, vocabulary"),
    ({'reduction': 'mean'}, "reduction 'mean' is not one of weighted_mean"),
    (
      {'reduction': 'sums', 'denominator': 2.0},
      "reduction 'sums' divides by nothing",
    ),
    (
      {'labels': CASE.labels.at[2].set(-100), 'ignore_index': None},
      r'1 of 9 labels are outside \[0, 5\), the first is -100',
    ),
    ({'labels': CASE.labels[1:]}, r'hidden has shape \(9, 6\).* \(8, 6\)'),
    ({'hidden': CASE.hidden[:, 1:]}, r'hidden has shape \(9, 5\).* \(9, 6\)'),
    ({'bias_V': CASE.bias_V[1:]}, r'bias_V has shape \(4,\), .* 5 columns'),
    ({'vocab_size': 6}, r'vocab_size 6 must be in \[1, 5\]'),
    ({'vocab_size': 0}, r'vocab_size 0 must be in \[1, 5\]'),
    ({'vocab_size': 4}, r'the weight table has shape \(5,\), .* 4 types'),
    ({'transposed': True}, r'hidden has shape .* it must be \(9, 5\)'),
    ({'head': CASE.head_DxV.T}, r'\(9, 5\), or give .* transposed=True'),
    ({'head': CASE.head_DxV[0]}, r'the head has shape \(5,\); it must be'),
    ({'label_smoothing': 1.0}, r'label_smoothing must be in \[0, 1'),
    ({'z_loss': -1.0}, r'z_loss must be in \[0, inf\), got -1'),
    ({'softcap': 0.0}, 'softcap must be > 0 or None, got 0'),
    (
      {'head': LinearHead(CASE.head_DxV.T, softcap=2.0), 'softcap': 3.0},
      'softcap 3.0 is given besides that of the head, 2.0',
    ),
    (
      {'head': (CASE.head_DxV * 3).astype('int8')},
      'head must be floating-point numbers, got int8',
    ),
    ({'hidden': CASE.hidden.tolist()}, 'hidden must be an array .* got list'),
    ({'bias_V': jnp.ones(5, int)}, 'bias_V must be floating-point .* int32'),
    ({'weights_V': -CASE.weights_V}, '5 of its 5 are negative or non-finite'),
    ({'denominator': -2.0}, 'denominator must be a finite number >= 0'),
    ({'memory_bytes': 0}, 'memory_bytes must be > 0 or None, got 0'),
    ({'memory_bytes': jnp.nan}, 'memory_bytes must be > 0 or None, got nan'),
  ],
)
def test_refusals(changed, message):
  arguments = {**INPUTS, **changed}
  if 'vocab_size' in changed:
    arguments['labels'] = jnp.zeros(9, int)
  with pytest.raises(ConfigError, match=message) as refused:
    any_loss(**arguments)
  assert '\n' not in str(refused.value)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'wants': ('median',)}, "wants 'median' is not one of average, expected"),
    ({'temperature': 0.0}, 'temperature must be > 0, got 0'),
    ({'softcap': jnp.nan}, 'softcap must be > 0 or None, got nan'),
    ({'hidden': CASE.hidden.astype(int)}, 'hidden must be floating-point'),
    (
      {'labels': jnp.full(9, 7)},
      r'9 of 9 labels are outside \[0, 5\), the first is 7',
    ),
  ],
)
def test_refusals_of_statistics_and_sums(changed, message):
  """Both functions, the same line."""
  arguments = {**INPUTS, 'where': jnp.ones(9, bool), **changed}
  del arguments['weights_V']
  with pytest.raises(ConfigError, match=message):
    any_stats(**arguments)
  with pytest.raises(ConfigError, match=message):
    any_sums(focal_terms, **arguments, weights_V=None)


# --- labels that are ignored or out of range ----------------------------------


@pytest.mark.parametrize(
  ('method', 'masked', 'reduction'),
  [
    ('tokens', True, 'weighted_mean'),
    ('tokens', False, 'sums'),
    ('vocabulary', True, 'sums'),
    ('vocabulary', False, 'token_mean'),
  ],
)
def test_the_ignored_label_is_a_mask(method, masked, reduction):
  """Of an array of every width; what stands behind it does not matter."""
  case = make_case((37,), 11)
  ignored = jnp.arange(37) % 4 == 1
  labels = jnp.where(ignored, -100, case.labels).astype('int8')
  dirty = jnp.where(ignored[:, None], jnp.nan, case.hidden)
  where = case.where if masked else None

  def of(loss, hidden, labels, where, **options):
    def scalar(hidden, head, labels, where):
      found = loss(
        hidden, head, labels, case.weights_V, where=where, reduction=reduction,
        **options,
      )  # fmt: skip
      return jax.tree.leaves(found)[0], found

    run = with_gradients(scalar, has_aux=True)
    return run(hidden, case.head_DxV, labels, where)

  both = case.where & ~ignored if masked else ~ignored
  close(
    of(small_loss, dirty, labels, where, method=method),
    of(naive_loss, case.hidden, case.labels, both),
  )


@METHODS
def test_inside_jit_a_label_out_of_range_is_nan(method):
  case = make_case((37,), 11)
  weights_V = case.weights_V if method == 'tokens' else None

  @jax.jit
  def found(labels):
    def loss(hidden, head):
      return small_loss(
        hidden, head, labels, weights_V, method=method,
        where=jnp.arange(37) != 3,
      )  # fmt: skip

    return jax.value_and_grad(loss, (0, 1))(case.hidden, case.head_DxV)

  for bad in (-1, -99, 11, 2**31 - 1):
    loss, (hidden, head) = found(case.labels.at[5].set(bad))
    assert jnp.isnan(loss)
    assert jnp.isnan(hidden[5]).all()
    assert jnp.isnan(head).any()
    masked = found(case.labels.at[3].set(bad))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(masked))


def test_statistics_of_an_ignored_label_and_of_one_out_of_range():
  case = make_case((37,), 11)
  labels = case.labels.at[5].set(11).at[7].set(-100)

  def nll(hidden, labels):
    stats = small_stats(
      hidden, case.head_DxV, labels
    )
    return stats.nll.sum(), stats

  hidden, stats = jax.jit(jax.grad(nll, has_aux=True))(case.hidden, labels)
  bad, ignored = jnp.arange(37) == 5, jnp.arange(37) == 7
  for x in (stats.log_z, stats.label, stats.average, stats.expected, stats.nll):
    same_bits(jnp.isnan(x), bad)
    assert x[7] == 0
  same_bits(jnp.isnan(hidden), jnp.broadcast_to(bad[:, None], hidden.shape))
  assert not hidden[ignored].any()


def test_sums_with_a_label_out_of_range_are_nan():
  """The plain ones too, which are only watched."""
  case = make_case((37,), 11)

  @jax.jit
  def sums(labels):
    return small_sums(
      focal_terms, case.hidden, case.head_DxV, labels, None,
      case.where | True, parameters={'gamma': 2.0},
      wants=('average', 'expected'),
    )  # fmt: skip

  weighted, plain = sums(case.labels.at[5].set(-100))
  assert jnp.isnan(jnp.stack([*weighted, plain.num])).all()
  assert plain.den == 37
  assert all(jnp.isfinite(x) for x in jax.tree.leaves(sums(case.labels)))
