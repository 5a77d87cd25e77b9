"""What trains, and at which rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.model import lm
from pdl_jax.train.optimizer import (
  OptimizerConfig,
  make_optimizer,
  make_schedule,
  merge,
  partition,
  trainable_mask,
)
from tests.tiny_model import PARAMS

STEPS, WARMUP, PEAK = 40, 5, 1e-2


def config(**changes):
  fields = {
    'learning_rate': PEAK, 'warmup_steps': WARMUP, 'schedule': 'cosine',
    'end_lr_ratio': 0.1, 'b1': 0.9, 'b2': 0.99, 'eps': 1e-8,
    'weight_decay': 0.1, 'clip_norm': 1.0, 'grad_accum_steps': 1,
    'trainable': 'all', 'last_layers': 1,
  }
  return OptimizerConfig(**{**fields, **changes})


def paths(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in leaves
    if leaf is not False
  }


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'constant'])
@pytest.mark.parametrize('warmup', [0, 1, WARMUP])
def test_schedule_at_its_ends(schedule, warmup):
  rate = make_schedule(config(schedule=schedule, warmup_steps=warmup), STEPS)
  rates = np.array([rate(step) for step in range(STEPS + 1)])
  assert rates[0] == pytest.approx(PEAK / (warmup + 1))
  assert rates[warmup] == pytest.approx(PEAK)
  assert rates.max() == pytest.approx(PEAK)
  end = PEAK if schedule == 'constant' else PEAK * 0.1
  assert rates[STEPS] == pytest.approx(end, rel=1e-5)
  assert (np.diff(rates[:warmup]) > 0).all()
  assert (np.diff(rates[warmup:]) <= 0).all()


def test_no_step_of_a_run_has_a_rate_of_zero():
  rate = make_schedule(config(end_lr_ratio=0.0), STEPS)
  assert min(float(rate(step)) for step in range(STEPS)) > 0


def test_weight_decay_on_matrices_only():
  optimizer = make_optimizer(config(warmup_steps=0), STEPS)

  @jax.jit
  def step(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    return optax.apply_updates(params, updates)

  def check(path, old, new):
    factor = 1 if path[-1].key == 'scale' else 1 - PEAK * 0.1
    np.testing.assert_allclose(new, old * factor, rtol=1e-6)

  params = PARAMS
  jax.tree_util.tree_map_with_path(check, params, step(params))


def test_gradients_are_clipped_by_their_global_norm():
  optimizer = make_optimizer(config(clip_norm=0.5), STEPS)
  params = {'a': jnp.zeros(3), 'b': {'scale': jnp.zeros(4)}}

  def moments_of(size):
    gradient = jax.tree.map(lambda x: jnp.full(x.shape, size), params)
    return optimizer.update(gradient, optimizer.init(params), params)[1]

  moments = [moments_of(size) for size in (1.0, 100.0)]
  for a, b in zip(*map(jax.tree.leaves, moments), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  first = optax.tree.get(moments[0], 'mu')
  assert float(optax.tree.norm(first)) == pytest.approx(0.1 * 0.5, rel=1e-5)


def test_what_trains():
  every = paths(PARAMS)

  def trained(trainable, params=PARAMS):
    return paths(trainable_mask(config(trainable=trainable), params))

  assert trained('all') == every
  assert trained('norms') == {
    'norm/scale', 'blocks/0/attention_norm/scale', 'blocks/0/mlp_norm/scale',
  }
  upper = {p.replace('blocks/0', 'blocks/1') for p in every if 'blocks' in p}
  split = lm.split_blocks(PARAMS, 1)
  assert trained('last_layers', split) == upper | {'norm/scale'}
  # The last layers of a model that is not split are all layers.
  assert trained('last_layers') == every - {'embed_VxD'}


@pytest.mark.parametrize('trainable', ['all', 'norms', 'last_layers'])
def test_merge_is_the_inverse_of_partition(trainable):
  params = lm.split_blocks(PARAMS, 1)
  mask = trainable_mask(config(trainable=trainable), params)
  trained, frozen = partition(params, mask)
  whole = merge(trained, frozen)
  assert jax.tree.structure(whole) == jax.tree.structure(params)
  for a, b in zip(*map(jax.tree.leaves, (whole, params)), strict=True):
    assert a is b
  assert paths(trained) == paths(mask)
  assert not paths(trained) & paths(frozen)
  both = len(jax.tree.leaves(trained)) + len(jax.tree.leaves(frozen))
  assert both == len(jax.tree.leaves(params))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'learning_rate': 0.0}, r'optimizer.learning_rate must be > 0 and'),
    ({'learning_rate': float('nan')}, 'must be > 0 and finite, got nan'),
    ({'head_lr_multiplier': float('inf')}, 'must be > 0 and finite, got inf'),
    ({'head_lr_multiplier': 0.0}, 'head_lr_multiplier must be > 0 and finite'),
    ({'weight_decay': float('inf')}, 'weight_decay must be >= 0 and finite'),
    ({'eps': -1.0}, 'eps must be > 0'),
    ({'clip_norm': 0}, 'clip_norm must be > 0'),
    ({'grad_accum_steps': 0}, 'grad_accum_steps must be > 0'),
    ({'b1': 1.0}, r'b1 must be in \[0, 1\), got 1\.0'),
    ({'b2': -0.1}, r'b2 must be in \[0, 1\)'),
    ({'warmup_steps': -1}, 'warmup_steps must be >= 0 and finite, got -1'),
    ({'end_lr_ratio': -0.1}, 'end_lr_ratio must be >= 0'),
    ({'weight_decay': -0.1}, 'weight_decay must be >= 0'),
    ({'schedule': 'cos'}, "'cos' is not one of cosine, linear, constant"),
    ({'trainable': 'head'}, "'head' is not one of all, last_layers, norms"),
    (
      {'trainable': 'last_layers', 'last_layers': 0},
      'last_layers must be >= 1, got 0',
    ),
  ],
)
def test_errors_name_the_key_and_the_value(change, message):
  with pytest.raises(ConfigError, match=message):
    config(**change)


def test_a_head_of_its_own_moves_so_many_times_as_far():
  tail = {'codebooks_MxKxS': jnp.ones((1, 2, 2))}
  head = {'bias_V': jnp.zeros(3), 'tail': tail}
  params = {'norm': {'scale': jnp.ones(4)}, 'head': head}
  gradients = jax.tree.map(jnp.ones_like, params)

  def moved(**changes):
    chain = make_optimizer(config(**changes), STEPS)
    updates, _ = chain.update(gradients, chain.init(params), params)
    return updates

  plain, faster = moved(), moved(head_lr_multiplier=10.0)
  np.testing.assert_array_equal(plain['norm']['scale'], faster['norm']['scale'])
  for one, ten in zip(
    *(jax.tree.leaves(x['head']) for x in (plain, faster)), strict=True
  ):
    np.testing.assert_allclose(10 * one, ten, rtol=1e-6)


