"""Optimizers by name: against NumPy, with masks, meshes and restarts."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from pdl_jax.config import config_hash, unread
from pdl_jax.losses import LossTables
from pdl_jax.mesh import make_mesh, put_batch
from pdl_jax.model import lm
from pdl_jax.model.config import HeadConfig
from pdl_jax.model.lora import LoRAConfig
from pdl_jax.train import state as states
from pdl_jax.train.checkpoint import Checkpointer
from pdl_jax.train.optimizer import make_optimizer
from pdl_jax.train.rules import KEYS, RULES, matrix_axes
from pdl_jax.train.step import train_step
from tests import small

pytestmark = pytest.mark.usefixtures('quick_compile')
NAMES = tuple(RULES)
# Wide enough for Adafactor to keep rows and columns.
MODEL = dataclasses.replace(
  small.MODEL, width=128, mlp=128, layers=2, head_dim=16
)
TABLES = LossTables(jnp.asarray(np.linspace(0.1, 5, 64), jnp.float32))
RATES = {'sgd': 1e-1, 'lion': 1e-3}


def config_of(name, **changes):
  rate = RATES.get(name, 1e-2)
  return small.optimizer_config(
    **{'name': name, 'warmup_steps': 0, 'learning_rate': rate, **changes}
  )


# By hand: one direction of a step in fp64, from gradients of all steps so far.


def adam_by_hand(gradients, c):
  count = len(gradients)
  m = sum((1 - c.b1) * c.b1 ** (count - 1 - i) * g
          for i, g in enumerate(gradients))  # fmt: skip
  v = sum((1 - c.b2) * c.b2 ** (count - 1 - i) * g**2
          for i, g in enumerate(gradients))  # fmt: skip
  return m / (1 - c.b1**count) / (np.sqrt(v / (1 - c.b2**count)) + c.eps)


def nadam_by_hand(gradients, c):
  """Adam whose first moment looks a step ahead, as Muon's does."""
  count, v = len(gradients), 0
  for g in gradients:
    v = c.b2 * v + (1 - c.b2) * g**2
  ahead = momentum_ahead(gradients, c.b1)
  return ahead / (np.sqrt(v / (1 - c.b2**count)) + c.eps)


def momentum_ahead(gradients, b1):
  count, m = len(gradients), 0
  for g in gradients:
    m = b1 * m + (1 - b1) * g
  later = b1 * m / (1 - b1 ** (count + 1))
  return later + (1 - b1) * gradients[-1] / (1 - b1**count)


def muon_by_hand(gradients, c):
  """Of a matrix: five steps of Newton and Schulz, at a mean square of 0.2^2."""
  x = momentum_ahead(gradients, c.b1)
  side = max(x.shape)
  tall = x.shape[0] > x.shape[1]
  x = x.T if tall else x
  x = x / (np.sqrt((x**2).sum()) + c.eps)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return 0.2 * np.sqrt(side) * (x.T if tall else x)


def lion_by_hand(gradients, c):
  m = 0
  for g in gradients:
    sign, m = np.sign(c.b1 * m + (1 - c.b1) * g), c.b2 * m + (1 - c.b2) * g
  return sign


def sgd_by_hand(gradients, c):
  m = 0
  for g in gradients:
    m = g + c.b1 * m
  return m


def adafactor_by_hand(gradients, _):
  row, column, whole = 0, 0, 0
  for step, g in enumerate(gradients):
    old = 1 - (step + 1) ** -0.8
    row = old * row + (1 - old) * (g**2).mean(-1)
    column = old * column + (1 - old) * (g**2).mean(0)
    whole = old * whole + (1 - old) * g**2
  v = whole
  if g.ndim == 2 and min(g.shape) >= 128:
    v = np.outer(row, column) / row.mean()
  x = gradients[-1] / np.sqrt(v)
  return x / max(1, np.sqrt((x**2).mean()))


BY_HAND = {
  'adamw': (adam_by_hand, adam_by_hand), 'lion': (lion_by_hand, lion_by_hand),
  'adafactor': (adafactor_by_hand, adafactor_by_hand),
  'muon': (muon_by_hand, nadam_by_hand), 'sgd': (sgd_by_hand, sgd_by_hand),
}  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_steps_are_those_of_numpy(name):
  """Three of two stacked matrices and vectors, and of an embedding."""
  random = np.random.default_rng(0)
  c = config_of(
    name, schedule='constant', clip_norm=1e9, weight_decay=0.1, b1=0.8, b2=0.95
  )
  shapes = {
    'blocks': ({'mlp': {'up': (2, 128, 160)}, 'norm': {'scale': (2, 128)}},),
    'embed_VxD': (130, 128),
  }
  draw = lambda: jax.tree.map(
    lambda x: random.normal(size=x).astype(np.float32), shapes,
    is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int),
  )  # fmt: skip
  params, gradients = draw(), [draw() for _ in range(3)]
  chain = make_optimizer(c, 10)
  update, state, found = jax.jit(chain.update), chain.init(params), params
  for each in gradients:
    updates, state = update(each, state, found)
    found = optax.apply_updates(found, updates)
  of_layer, of_rest = BY_HAND[name]

  def expected(of, start, every, decay):
    x = start.astype(np.float64)
    every = [g.astype(np.float64) for g in every]
    for i in range(len(every)):
      x = x - c.learning_rate * (of(every[: i + 1], c) + decay * x)
    return x

  def check(get, of, decay):
    by_hand = expected(of, get(params), [get(g) for g in gradients], decay)
    np.testing.assert_allclose(get(found), by_hand, rtol=0, atol=3e-6)

  for i in range(2):
    check(lambda tree, i=i: tree['blocks'][0]['mlp']['up'][i], of_layer, 0.1)
    check(lambda tree, i=i: tree['blocks'][0]['norm']['scale'][i], of_rest, 0)
  check(lambda tree: tree['embed_VxD'], of_rest, 0.1)


def matrices(seed):
  """Every matrix of three layers, with its real number of axes."""
  shapes = jax.eval_shape(partial(lm.init, small.MODEL), jax.random.key(0))
  random = np.random.default_rng(seed)
  return {
    name: jax.tree.map(
      lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), part
    )
    for name, part in shapes.items()
  }


@pytest.mark.parametrize('name', ['muon', 'adafactor'])
def test_a_stacked_leaf_is_each_layer_alone(name):
  params, gradient = matrices(0), matrices(1)
  grown = {**gradient, 'blocks': jax.tree.map(
    lambda x: (np.asarray(x).T * np.float32([1, 3, 9])).T, gradient['blocks']
  )}  # fmt: skip
  optimizer = RULES[name].make(config_of(name))

  @jax.jit
  def second(first, then, params):  # Adafactor clips no first step.
    _, state = optimizer.update(first, optimizer.init(params), params)
    return optimizer.update(then, state, params)[0]['blocks']

  def one(tree, i):
    return {**tree, 'blocks': jax.tree.map(lambda x: x[i:][:1], tree['blocks'])}

  trees = (gradient, grown, params)
  whole = second(*trees)
  for i in range(small.MODEL.layers):
    alone = second(*(one(tree, i) for tree in trees))
    for a, b in zip(*map(jax.tree.leaves, (whole, alone)), strict=True):
      np.testing.assert_allclose(a[i:][:1], b, rtol=0, atol=3e-6)


def test_matrices_of_muon_are_orthogonal_from_all_inputs_to_all_outputs():
  """Attention's too: their heads are one axis of outputs, or of inputs."""
  params, gradient, c = matrices(0), matrices(1), config_of('muon')
  optimizer = RULES['muon'].make(c)
  step = optimizer.update(gradient, optimizer.init(params), params)[0]
  for name in ('query', 'output'):
    whole, found = (
      np.asarray(tree['blocks'][0]['attention'][name][0], float)
      for tree in (gradient, step)
    )
    expected = muon_by_hand([whole.reshape(32, 32)], c).reshape(whole.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  axes = matrix_axes({**params, 'head': {'matrix_VxD': params['embed_VxD']}})
  by_adam = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, x in jax.tree_util.tree_leaves_with_path(
      axes, is_leaf=lambda x: x is None or hasattr(x, 'output_axis')
    )
    if x is None
  }
  assert by_adam == {
    'embed_VxD', 'head/matrix_VxD', 'norm/scale',
    'blocks/0/attention_norm/scale', 'blocks/0/mlp_norm/scale',
  }


@pytest.mark.parametrize('name', NAMES)
def test_weight_decay_and_the_head_have_the_masks_of_all(name):
  """Without a gradient nothing moves but matrices, by rate times decay."""
  params = {**matrices(0), 'head': {'bias_V': jnp.ones(5)}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  chain = make_optimizer(config_of(name, weight_decay=0.1), 10)
  updates, _ = jax.jit(chain.update)(zeros, chain.init(params), params)

  def check(path, old, update):
    vector = path[-1].key in ('scale', 'bias_V')
    factor = 0 if vector else -0.1 * RATES.get(name, 1e-2)
    np.testing.assert_allclose(update, old * factor, rtol=1e-6)

  jax.tree_util.tree_map_with_path(check, params, updates)
  ones = jax.tree.map(jnp.ones_like, params)
  one, ten = (
    make_optimizer(config_of(name, head_lr_multiplier=x), 10) for x in (1, 10.0)
  )
  one, ten = (x.update(ones, x.init(params), params)[0] for x in (one, ten))
  np.testing.assert_allclose(
    10 * one['head']['bias_V'], ten['head']['bias_V'], rtol=1e-6
  )
  np.testing.assert_array_equal(one['embed_VxD'], ten['embed_VxD'])


@cache
def start(name, shape, adapters=()):
  """A step, compiled once for a mesh, and a state before it."""
  model, changes = MODEL, {}
  if adapters:
    head = HeadConfig('dense') if 'head' in adapters else MODEL.head
    model = dataclasses.replace(
      MODEL, lora=LoRAConfig(2, 4.0, targets=adapters), head=head
    )
    changes = {'trainable': 'lora'}
  config = config_of(name, **changes)
  optimizer = make_optimizer(config, 40)
  mesh = make_mesh(shape, jax.devices()[: np.prod(shape)])
  settings = small.step_config(model=model, optimizer=optimizer)
  params = jax.jit(partial(lm.init, model))(jax.random.key(0))
  with jax.set_mesh(mesh):
    made = states.create(params, model, config, optimizer, mesh)
  shapes = states.describe(params, model, config, optimizer, mesh)
  return mesh, jax.jit(partial(train_step, settings)), made, shapes


def trained(name, steps, shape=(1, 1, 1), adapters=()):
  mesh, step, state, _ = start(name, shape, adapters)
  losses = []
  with jax.set_mesh(mesh):
    for _ in range(steps):
      state, scalars = step(state, put_batch(small.batch(), mesh), TABLES)
      losses.append(float(scalars['loss']))
  return state, losses


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('name', NAMES)
def test_each_learns_a_batch(name):
  _, losses = trained(name, 12)
  assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize('name', NAMES)
def test_a_mesh_agrees_with_one_device(name):
  """And what the optimizer keeps is split over it."""
  (_, one), (state, eight) = (trained(name, 3, x) for x in (
    (1, 1, 1), (2, 2, 2)
  ))  # fmt: skip
  # A sign turns where a momentum rounds to the other side of 0.
  np.testing.assert_allclose(eight, one, rtol=1e-3 if name == 'lion' else 1e-4)
  shapes = start(name, (2, 2, 2))[3]
  as_told = lambda x, told: x.sharding.is_equivalent_to(told.sharding, x.ndim)
  assert all(jax.tree.leaves(jax.tree.map(as_told, state, shapes)))
  for x in jax.tree.leaves(state.opt_state):
    if x.size > 1024:
      assert x.addressable_shards[0].data.size == x.size // 4


def test_rows_and_columns_are_split_as_the_axes_that_are_left():
  shapes = start('adafactor', (2, 2, 2))[3]
  found = {
    jax.tree_util.keystr(path).rpartition('.')[2]: (x.shape, x.sharding.spec)
    for path, x in jax.tree_util.tree_leaves_with_path(shapes.opt_state)
    if "['gate']" in jax.tree_util.keystr(path)
  }
  row, column, whole = (
    found[f"{name}['blocks'][0]['mlp']['gate']"]
    for name in ('v_row', 'v_col', 'v')
  )
  assert (row, column) == (
    ((2, 128), P(None, 'fsdp')), ((2, 128), P(None, 'tensor')),
  )  # fmt: skip
  assert whole[0] == (2, 1)


@pytest.mark.parametrize('name', NAMES)
def test_a_restart_is_exact(name, tmp_path):
  expected, _ = trained(name, 3)
  mesh, step, _, shapes = start(name, (1, 1, 1))
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(2, trained(name, 2)[0], None)
  with Checkpointer(tmp_path) as checkpointer:
    found = checkpointer.restore_latest(shapes, None)
  assert found
  with jax.set_mesh(mesh):
    after, _ = step(found[1], put_batch(small.batch(), mesh), TABLES)
  same(after, expected)


@pytest.mark.parametrize('name', NAMES)
def test_a_step_that_is_not_finite_moves_nothing(name):
  mesh, step, before, _ = start(name, (1, 1, 1))
  bad = LossTables(jnp.full(64, jnp.inf))
  with jax.set_mesh(mesh):
    after, _ = step(before, put_batch(small.batch(), mesh), bad)
  same((after.trained, after.opt_state), (before.trained, before.opt_state))
  assert int(after.skipped) == 1


@pytest.mark.parametrize(
  ('name', 'adapters'),
  [*((name, ('query', 'output')) for name in NAMES), ('adafactor', ('head',))],
)
def test_adapters_alone_train(name, adapters):
  state = start(name, (1, 1, 1), adapters)[2]
  after, losses = trained(name, 4, adapters=adapters)
  same(after.frozen, state.frozen)
  assert losses[-1] < losses[0]
  moved = jax.tree.map(
    lambda a, b: (a != b).any(), state.trained, after.trained
  )
  assert all(jax.tree.leaves(moved))


def test_keys_that_an_optimizer_does_not_read_are_not_hashed():
  def hashed(**optimizer):
    return config_hash({'optimizer': optimizer})

  other = {'b1': 0.5, 'b2': 0.5, 'eps': 1e-3, 'mu_dtype': 'bfloat16'}
  assert hashed(name='adamw') == hashed()
  read = {
    'adamw': {*KEYS}, 'adafactor': set(), 'lion': {'b1', 'b2', 'mu_dtype'},
    'muon': {*KEYS}, 'sgd': {'b1', 'mu_dtype'},
  }  # fmt: skip
  for name in NAMES:
    plain = hashed(name=name)
    counted = {
      key for key in KEYS if hashed(**{'name': name, key: other[key]}) != plain
    }
    assert counted == read[name]
  assert len({hashed(name=name) for name in NAMES}) == len(NAMES)
  config = small.job_config('.', **{'optimizer.name': 'lion'}).to_dict()
  config['optimizer']['eps'] = 1e-3
  assert unread(config, ['optimizer.eps']) == ['optimizer.eps=0.001']
