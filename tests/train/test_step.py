"""The pure train step: against its definition, its batch and its mesh."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdl_jax.losses import LOSSES, Loss, LossTables
from pdl_jax.losses.cross_entropy import pdl_loss
from pdl_jax.mesh import make_mesh, put_batch
from pdl_jax.model import lm
from pdl_jax.model.positions import KINDS, AttentionConfig, ComplexConfig
from pdl_jax.train import state
from pdl_jax.train.step import gradient_sums, score_step, train_step
from tests import small

pytestmark = pytest.mark.usefixtures('quick_compile')
WEIGHTS = jnp.asarray(np.random.default_rng(1).uniform(0.1, 5, 64), jnp.float32)
MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8)]


def make_state(mesh, config=None, params=None, **changes):
  config = config or small.step_config()
  return state.create(
    params or small.params(), config.model, small.optimizer_config(**changes),
    config.optimizer, mesh,
  )  # fmt: skip


def one_device():
  return make_mesh((1, 1, 1), jax.devices()[:1])


def gradients(mesh, batch, weights=WEIGHTS, params=None, **changes):
  config = small.step_config(**changes)
  with jax.set_mesh(mesh):
    start = make_state(mesh, config, params)
    placed = put_batch(batch, mesh)
    run = jax.jit(partial(gradient_sums, config))
    found = run(start.trained, start.frozen, placed, LossTables(weights))
  return jax.tree.map(np.asarray, found)


def close(found, expected):
  """Equal to fp32 rounding, on the scale of each array."""

  def check(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

  jax.tree.map(check, found, expected)


def naive_loss(params, batch, weights):
  """The loss from full logits: every position, then a choice of them."""
  logits = lm.logits(
    small.MODEL, params, batch['tokens'], batch['segments'], batch['positions']
  )
  logits = jnp.take_along_axis(logits, batch['reads'][..., None], axis=1)
  return pdl_loss(logits, batch['labels'], weights, where=batch['where'])


def test_gradient_is_that_of_the_naive_loss():
  batch = small.batch()
  grads, (weighted, plain) = gradients(one_device(), batch)
  loss, expected = jax.value_and_grad(naive_loss)(
    small.params(), batch, WEIGHTS
  )
  assert weighted.num / weighted.den == pytest.approx(float(loss), rel=1e-6)
  close(jax.tree.map(lambda g: g / weighted.den, grads), expected)
  plain_loss = naive_loss(small.params(), batch, jnp.ones(64))
  assert plain.num / plain.den == pytest.approx(float(plain_loss), rel=1e-6)
  assert plain.den == batch['where'].sum()


def test_micro_batches_share_one_denominator():
  batch = small.batch()
  whole, (total, _) = gradients(one_device(), batch)
  for count in (2, 4):
    parts, (sums, _) = gradients(one_device(), batch, grad_accum_steps=count)
    np.testing.assert_allclose(total, sums, rtol=1e-6)
    close(whole, parts)
  # What it must not be: the mean of the micro-batches' own means.
  halves = [{k: v[i::2] for k, v in batch.items()} for i in range(2)]
  means = [float(naive_loss(small.params(), h, WEIGHTS)) for h in halves]
  assert abs(np.mean(means) - total.num / total.den) > 1e-3


@pytest.mark.parametrize(
  ('shape', 'grad_accum_steps'),
  [(MESHES[0], 1), (MESHES[1], 2), (MESHES[2], 1)],
)
def test_meshes_agree_with_one_device(shape, grad_accum_steps):
  batch = small.batch(rows=16)
  grads, sums = gradients(
    one_device(), batch, grad_accum_steps=grad_accum_steps
  )
  sharded = gradients(
    make_mesh(shape), batch, grad_accum_steps=grad_accum_steps
  )
  close(sharded, (grads, sums))


@pytest.mark.parametrize(
  ('kind', 'shape'),
  [('complex', MESHES[1]), ('complex', MESHES[2]), ('scaled_rope', MESHES[2]),
   ('alibi', MESHES[1])],
)  # fmt: skip
def test_what_attention_learns_is_split_over_meshes(kind, shape):
  attention = AttentionConfig(kind, ComplexConfig(delta_init='published'))
  model = dataclasses.replace(small.MODEL, attention=attention)
  params = lm.extended(model, small.params(), jax.random.key(0))
  batch, mesh = small.batch(), make_mesh(shape)
  expected, found = (
    gradients(where, batch, params=params, model=model)
    for where in (one_device(), mesh)
  )
  close(found, expected)
  own = expected[0]['blocks'][0]['attention']
  assert all(np.abs(own[name]).max() > 0 for name in KINDS[kind].learns)


@pytest.mark.parametrize('shape', MESHES)
def test_steps_on_meshes_agree_with_one_device(shape):
  config = small.step_config()

  def train(mesh):
    with jax.set_mesh(mesh):
      current = make_state(mesh)
      check_sharded(current, tuple(mesh.shape.values()))
      step = jax.jit(partial(train_step, config), donate_argnums=0)
      losses = []
      for seed in range(3):
        placed = put_batch(small.batch(seed=seed), mesh)
        current, scalars = step(current, placed, LossTables(WEIGHTS))
        losses.append(float(scalars['loss']))
    return losses, current

  expected, _ = train(one_device())
  losses, final = train(make_mesh(shape))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert len(set(losses)) == 3
  # Still sharded after training, not gathered by the compiler.
  check_sharded(final, shape)


def check_sharded(current, shape):
  """Parameters and moments hold a share on each device, not a copy."""
  _, fsdp, tensor = shape
  moments = current.opt_state[1][0]
  for tree in (current.trained, moments.mu, moments.nu):
    (blocks,) = tree['blocks']
    for leaf, parts in (
      (tree['embed_VxD'], fsdp * tensor),
      (blocks['attention']['query'], fsdp * tensor),
      (blocks['attention']['output'], fsdp * tensor),
      (blocks['mlp']['gate'], fsdp * tensor),
      (blocks['mlp']['down'], fsdp * tensor),
      (tree['norm']['scale'], fsdp),
    ):
      shards = {str(shard.index) for shard in leaf.addressable_shards}
      assert len(shards) == parts
      assert leaf.addressable_shards[0].data.size == leaf.size // parts


@pytest.mark.usefixtures('full_compile')
def test_no_array_of_logits_for_every_position():
  """Memory of the step grows with targets x V at most, not with B x L x V."""
  vocabulary, rows = 20_000, 16
  model = small.ModelConfig(**{
    **small.MODEL.__dict__, 'vocab_size': vocabulary, 'width': 8, 'layers': 1,
  })  # fmt: skip
  config = small.step_config(model=model)
  params = lm.init(model, jax.random.key(0))
  batch = small.batch(rows)
  for name in ('tokens', 'segments', 'positions'):
    batch[name] = np.pad(batch[name], ((0, 0), (0, 91)))
  mesh = one_device()
  with jax.set_mesh(mesh):
    start = state.create(
      params, model, small.optimizer_config(), config.optimizer, mesh
    )
    lowered = jax.jit(partial(train_step, config), donate_argnums=0).lower(
      start, batch, LossTables(jnp.ones(vocabulary))
    )
  compiled = lowered.compile()
  logits = 4 * batch['tokens'].size * vocabulary
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < 0.3 * logits
  batch_size, length = batch['tokens'].shape
  text = compiled.as_text()
  assert f'{batch_size},{length},{vocabulary}]' not in text


@pytest.mark.parametrize('bad', ['weights', 'parameters'])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad):
  config, mesh = small.step_config(), one_device()
  with jax.set_mesh(mesh):
    start = make_state(mesh)
    before = jax.tree.map(np.asarray, (start.trained, start.opt_state))
    step = jax.jit(partial(train_step, config))
    bad_V = WEIGHTS.at[:].set(jnp.inf) if bad == 'weights' else WEIGHTS
    weights = LossTables(bad_V)
    if bad == 'parameters':
      start.trained['norm']['scale'] = jnp.full(32, jnp.nan)
      before = jax.tree.map(np.asarray, (start.trained, start.opt_state))
    after, scalars = step(start, small.batch(), weights)
    again, _ = step(after, small.batch(), weights)
    good, _ = step(
      again._replace(trained=make_state(mesh).trained), small.batch(),
      LossTables(WEIGHTS),
    )
  jax.tree.map(
    np.testing.assert_array_equal, before, (after.trained, after.opt_state)
  )
  assert (int(after.skipped), int(after.skipped_in_row)) == (1, 1)
  assert (int(again.skipped), int(again.skipped_in_row)) == (2, 2)
  assert (int(good.skipped), int(good.skipped_in_row)) == (2, 0)
  assert int(good.step) == 3
  assert not np.isfinite(scalars['gradient_norm'])


@pytest.mark.parametrize('reduction', ['weighted_mean', 'token_mean', 'sum'])
def test_reductions_differ_by_their_denominator_only(reduction):
  batch = small.batch()
  loss = Loss(LOSSES['power_law'], {}, reduction)
  _, (sums, plain) = gradients(one_device(), batch, loss=loss)
  expected = {
    'weighted_mean': WEIGHTS[batch['labels']][batch['where']].sum(),
    'token_mean': plain.den,
    'sum': 0,
  }[reduction]
  assert sums.den == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize('trainable', ['all', 'last_layers', 'norms'])
def test_only_what_is_chosen_trains(trainable):
  config = small.step_config()
  mesh = one_device()
  changes = {'trainable': trainable, 'last_layers': 1}
  with jax.set_mesh(mesh):
    start = make_state(mesh, **changes)
    frozen = jax.tree.map(np.asarray, start.frozen)
    trained = jax.tree.map(np.asarray, start.trained)
    after, _ = jax.jit(partial(train_step, config))(
      start, small.batch(),
      LossTables(WEIGHTS),
    )
  jax.tree.map(np.testing.assert_array_equal, frozen, after.frozen)
  moved = jax.tree.map(
    lambda a, b: bool((a != np.asarray(b)).any()), trained, after.trained
  )
  assert all(jax.tree.leaves(moved))
  names = {
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(trained)
  }
  assert {
    'all': len(names) == 11,
    'norms': all(name.endswith("['scale']") for name in names),
    'last_layers': all('embed' not in name for name in names),
  }[trainable]


def test_overfits_one_batch():
  config = small.step_config()
  mesh, batch = one_device(), small.batch()
  with jax.set_mesh(mesh):
    current = make_state(mesh)
    step = jax.jit(partial(train_step, config), donate_argnums=0)
    losses = []
    for _ in range(90):
      current, scalars = step(current, batch, LossTables(WEIGHTS))
      losses.append(float(scalars['plain_loss']))
  assert losses[0] > 3
  assert losses[-1] < 0.05


def test_the_step_is_traced_once():
  config, mesh, traces = small.step_config(), one_device(), []

  def traced(*arguments):
    traces.append(1)
    return train_step(config, *arguments)

  with jax.set_mesh(mesh):
    current, step = make_state(mesh), jax.jit(traced, donate_argnums=0)
    for seed in range(3):
      placed = put_batch(small.batch(seed=seed), mesh)
      current, _ = step(current, placed, LossTables(WEIGHTS * (1 + seed)))
  assert len(traces) == 1


def test_scores_are_the_plain_loss():
  batch, params = small.batch(), small.params()
  nll = jax.jit(partial(score_step, small.MODEL))(params, batch)
  mean = nll.sum() / batch['where'].sum()
  expected = naive_loss(params, batch, jnp.ones(64))
  assert float(mean) == pytest.approx(float(expected), rel=1e-6)
  assert not np.asarray(nll)[~batch['where']].any()


def test_the_logged_norm_is_that_of_the_divided_gradient():
  config = small.step_config(optimizer=optax.sgd(1.0))
  mesh = one_device()
  with jax.set_mesh(mesh):
    start = make_state(mesh, config)
    _, scalars = train_step(
      config, start, small.batch(), LossTables(WEIGHTS)
    )
  grads, (weighted, _) = gradients(mesh, small.batch())
  norm = optax.tree.norm(grads) / weighted.den
  assert float(scalars['gradient_norm']) == pytest.approx(float(norm), rel=1e-5)
