"""The pure train step: against its definition, its batch and its mesh."""

import dataclasses
from functools import cache, partial

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
from pdl_jax.train.step import (
  gradient_sums,
  loss_sums,
  score_step,
  train_step,
)
from tests import small

pytestmark = pytest.mark.usefixtures('quick_compile')
WEIGHTS = jnp.asarray(np.random.default_rng(1).uniform(0.1, 5, 64), jnp.float32)


def one_device():
  return make_mesh((1, 1, 1), jax.devices()[:1])


def make_state(mesh, config=None, params=None, **changes):
  config = config or small.step_config()
  return state.create(
    params or small.params(), config.model, small.optimizer_config(**changes),
    config.optimizer, mesh,
  )  # fmt: skip


@cache
def gradients(shape=(1, 1, 1), kind='rope', grad_accum_steps=1):
  """Of 16 rows, with an attention that has learned something."""
  attention = AttentionConfig(kind, ComplexConfig(delta_init='published'))
  model = dataclasses.replace(small.MODEL, attention=attention)
  params = lm.extended(model, small.params(), jax.random.key(0))
  config = small.step_config(model=model, grad_accum_steps=grad_accum_steps)
  mesh = make_mesh(shape, jax.devices()[: np.prod(shape)])
  with jax.set_mesh(mesh):
    start = make_state(mesh, config, params)
    placed = put_batch(small.batch(16), mesh)
    run = jax.jit(partial(gradient_sums, config))
    found = run(start.trained, start.frozen, placed, LossTables(WEIGHTS))
  return jax.tree.map(np.asarray, found)


@cache
def compiled_step():
  return jax.jit(partial(train_step, small.step_config()))


def close(found, expected):
  """Equal to fp32 rounding, on the scale of each array."""

  def check(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

  jax.tree.map(check, found, expected)


@jax.jit
def naive_loss(params, batch, weights):
  """The loss from full logits: every position, then a choice of them."""
  logits = lm.logits(
    small.MODEL, params, batch['tokens'], batch['segments'], batch['positions']
  )
  logits = jnp.take_along_axis(logits, batch['reads'][..., None], axis=1)
  return pdl_loss(logits, batch['labels'], weights, where=batch['where'])


def test_gradient_is_that_of_the_naive_loss():
  batch = small.batch(16)
  grads, (weighted, plain) = gradients()
  run = jax.jit(jax.value_and_grad(naive_loss))
  loss, expected = run(small.params(), batch, WEIGHTS)
  assert weighted.num / weighted.den == pytest.approx(float(loss), rel=1e-6)
  close(jax.tree.map(lambda g: g / weighted.den, grads), expected)
  plain_loss = naive_loss(small.params(), batch, jnp.ones(64))
  assert plain.num / plain.den == pytest.approx(float(plain_loss), rel=1e-6)
  assert plain.den == batch['where'].sum()
  # The step logs the norm of the divided gradient.
  _, scalars = compiled_step()(
    make_state(one_device()), batch, LossTables(WEIGHTS)
  )
  norm = float(optax.tree.norm(grads) / weighted.den)
  assert float(scalars['gradient_norm']) == pytest.approx(norm, rel=1e-5)


def test_micro_batches_share_one_denominator():
  whole, (total, _) = gradients()
  for count in (2, 4):
    parts, (sums, _) = gradients(grad_accum_steps=count)
    np.testing.assert_allclose(total, sums, rtol=1e-6)
    close(whole, parts)
  # What it must not be: the mean of the micro-batches' own means.
  halves = [{k: v[i::2] for k, v in small.batch(16).items()} for i in range(2)]
  means = [float(naive_loss(small.params(), h, WEIGHTS)) for h in halves]
  assert abs(np.mean(means) - total.num / total.den) > 1e-3


@pytest.mark.parametrize(
  ('shape', 'kind', 'count'),
  [
    ((8, 1, 1), 'rope', 1), ((2, 2, 2), 'complex', 2), ((2, 2, 2), 'alibi', 1),
    ((1, 1, 8), 'complex', 2), ((1, 1, 8), 'scaled_rope', 1),
  ],
)  # fmt: skip
def test_meshes_agree_with_one_device(shape, kind, count):
  """And what attention learns is split over them."""
  expected, found = (gradients(x, kind, count) for x in ((1, 1, 1), shape))
  close(found, expected)
  own = expected[0]['blocks'][0]['attention']
  assert all(np.abs(own[name]).max() > 0 for name in KINDS[kind].learns)


@cache
def three_steps(shape):
  """Losses, the last state's embedding, and how often a step was traced."""
  mesh, traces = make_mesh(shape, jax.devices()[: np.prod(shape)]), []
  config = small.step_config()

  def traced(*arguments):
    traces.append(1)
    return train_step(config, *arguments)

  with jax.set_mesh(mesh):
    current = make_state(mesh)
    check_sharded(current, shape)
    step, losses = jax.jit(traced, donate_argnums=0), []
    for seed in range(3):
      placed = put_batch(small.batch(seed=seed), mesh)
      tables = LossTables(WEIGHTS * (1 + seed))
      current, scalars = step(current, placed, tables)
      losses.append(float(scalars['loss']))
  # Still sharded after training, not gathered by the compiler.
  check_sharded(current, shape)
  return losses, len(traces)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_steps_on_meshes_agree_with_one_device(shape):
  (expected, once), (losses, again) = map(three_steps, ((1, 1, 1), shape))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert len(set(losses)) == 3
  assert once == again == 1


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


def test_a_step_that_is_not_finite_is_skipped_and_counted():
  step, good = compiled_step(), LossTables(WEIGHTS)
  start = make_state(one_device())
  spoilt = jax.tree.map(lambda x: x, start.trained)
  spoilt['norm']['scale'] = jnp.full(32, jnp.nan)
  for bad, tables in (
    (start, LossTables(jnp.full(64, jnp.inf))),
    (start._replace(trained=spoilt), good),
  ):
    after, scalars = step(bad, small.batch(16), tables)
    again, _ = step(after, small.batch(16), tables)
    mended = again._replace(trained=start.trained)
    last, _ = step(mended, small.batch(16), good)
    jax.tree.map(
      np.testing.assert_array_equal, (bad.trained, bad.opt_state),
      (after.trained, after.opt_state),
    )  # fmt: skip
    counts = [
      (int(x.skipped), int(x.skipped_in_row)) for x in (after, again, last)
    ]
    assert counts == [(1, 1), (2, 2), (2, 0)]
    assert int(last.step) == 3
    assert not np.isfinite(scalars['gradient_norm'])


def test_reductions_differ_by_their_denominator_only():
  batch = small.batch()
  names = ('weighted_mean', 'token_mean', 'sum')

  @jax.jit
  def sums(params):
    losses = (Loss(LOSSES['power_law'], {}, name) for name in names)
    return [
      loss_sums(
        small.step_config(loss=loss), params, batch, LossTables(WEIGHTS)
      )
      for loss in losses
    ]

  found = sums(small.params())
  weight = WEIGHTS[batch['labels']][batch['where']].sum()
  for (weighted, plain), den in zip(
    found, (weight, batch['where'].sum(), 0), strict=True
  ):
    assert float(weighted.den) == pytest.approx(float(den), rel=1e-6)
    nums = [float(x.num) for x in (weighted, plain)]
    assert nums == pytest.approx([float(x.num) for x in found[0]], rel=1e-6)


@pytest.mark.parametrize('trainable', ['last_layers', 'norms'])
def test_only_what_is_chosen_trains(trainable):
  mesh, step = one_device(), jax.jit(partial(train_step, small.step_config()))
  start = make_state(mesh, trainable=trainable, last_layers=1)
  after, _ = step(start, small.batch(), LossTables(WEIGHTS))
  jax.tree.map(np.testing.assert_array_equal, start.frozen, after.frozen)
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), start.trained, after.trained
  )
  assert all(jax.tree.leaves(moved))
  names = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(start.trained)
  ]
  if trainable == 'norms':
    assert all(name.endswith("['scale']") for name in names)
  assert all('embed' not in name for name in names)


def test_overfits_one_batch():
  current, batch = make_state(one_device()), small.batch(16)
  start, losses = current.trained, []
  for _ in range(90):
    current, scalars = compiled_step()(current, batch, LossTables(WEIGHTS))
    losses.append(float(scalars['plain_loss']))
  assert losses[0] > 3
  assert losses[-1] < 0.05
  # Everything trains.
  moved = jax.tree.map(lambda a, b: (a != b).any(), start, current.trained)
  assert len(jax.tree.leaves(moved)) == 11 and all(jax.tree.leaves(moved))


def test_scores_are_the_plain_loss():
  batch, params = small.batch(), small.params()
  nll = jax.jit(partial(score_step, small.MODEL))(params, batch)
  mean = nll.sum() / batch['where'].sum()
  expected = naive_loss(params, batch, jnp.ones(64))
  assert float(mean) == pytest.approx(float(expected), rel=1e-6)
  assert not np.asarray(nll)[~batch['where']].any()
