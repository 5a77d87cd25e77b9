"""Schedules of alpha: the ramps, and what a factor of 0 does to the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax import pdl_loss, power_law_weights
from pdl_jax.errors import ConfigError
from pdl_jax.losses.cross_entropy import cross_entropy
from pdl_jax.losses.schedule import SCHEDULES, decay_factor

# With a clip, sums of these round: the mean alone does not give exactly one.
FREQUENCY = np.append(1 / np.arange(1.0, 50.0), 0.0)
# A number of steps with thirds, so that rounding would show at the ends.
START, STEPS = 4, 6
FACTORS = {
  'constant': [1] * 14,
  'warmup': [0] * 5 + [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6] + [1] * 4,
  'anneal': [1] * 5 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6] + [0] * 4,
  'cross_entropy_first': [0] * 4 + [1] * 10,
}


def factor(step, kind, start=START, steps=STEPS):
  return decay_factor(step, kind=kind, start=start, steps=steps)


@pytest.mark.parametrize('kind', SCHEDULES)
def test_factors_step_by_step(kind):
  traced = jax.jit(lambda step: factor(step, kind))
  for at in (lambda step: factor(step, kind), lambda x: traced(jnp.int32(x))):
    found = [at(step) for step in range(14)]
    assert all(f.dtype == jnp.float32 and f.shape == () for f in found)
    np.testing.assert_allclose(found, FACTORS[kind], rtol=1e-6, atol=0)
  ends = [i for i, f in enumerate(FACTORS[kind]) if f in (0, 1)]
  assert [factor(i, kind) for i in ends] == [FACTORS[kind][i] for i in ends]


def test_ramps():
  for start in (0, 3):
    for steps in (1, 7, 1000):
      middle, end = start + steps // 3, start + steps
      for step in (0, start, start + 1, middle, end, 10**6):
        up = factor(step, 'warmup', start, steps)
        assert 0 <= up <= 1
        assert up + factor(step, 'anneal', start, steps) == 1
  # A ramp of one step is cross-entropy first, a step later.
  for step in range(9):
    ramp = factor(step, 'warmup', start=3, steps=1)
    assert ramp == factor(step, 'cross_entropy_first', start=4)


def test_steps_beyond_float32_are_counted_exactly():
  start = 2**30 + 1
  assert factor(start, 'warmup', start, 2) == 0
  assert factor(start + 1, 'warmup', start, 2) == 0.5


@pytest.mark.parametrize('kind', SCHEDULES)
def test_one_program_for_all_steps_with_exact_cross_entropy_at_zero(kind):
  traces = []
  key = jax.random.key(0)
  logits = 4 * jax.random.normal(key, (9, FREQUENCY.size))
  labels = jnp.arange(41, 50)
  weights = lambda alpha: power_law_weights(
    FREQUENCY, alpha=alpha, epsilon=0.5, clip=3.0
  )

  @jax.jit
  def both(step):
    traces.append(step)
    weights_V = weights(0.75 * factor(step, kind))
    return (
      weights_V,
      pdl_loss(logits, labels, weights_V),
      cross_entropy(logits, labels),
    )

  for step, expected in enumerate(FACTORS[kind]):
    weights_V, ours, plain = both(jnp.int32(step))
    assert (np.asarray(weights_V) == 1).all() == (expected == 0)
    assert (ours == plain) == (expected == 0)
    np.testing.assert_allclose(weights_V, weights(0.75 * expected), rtol=1e-5)
  assert len(traces) == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      {'kind': 'cosine'},
      "schedule 'cosine' is not one of constant, warmup, anneal, cross_entropy",
    ),
    ({'step': -1}, 'step must be a finite number >= 0, got -1'),
    ({'start': -2}, 'start must be a finite number >= 0, got -2'),
    ({'steps': -3}, 'steps must be a finite number >= 0, got -3'),
    ({'kind': 'constant', 'steps': -3}, 'steps .* >= 0, got -3'),
    ({'steps': 0}, 'warmup needs steps of at least 1, got 0'),
    ({'kind': 'anneal', 'steps': 0}, 'anneal needs steps .* got 0'),
  ],
)
def test_errors_name_the_numbers(arguments, message):
  valid = {'step': 5, 'kind': 'warmup', 'start': START, 'steps': STEPS}
  with pytest.raises(ConfigError, match=message):
    decay_factor(**{**valid, **arguments})


@pytest.mark.parametrize('kind', ['constant', 'cross_entropy_first'])
def test_steps_are_not_needed_without_a_ramp(kind):
  assert factor(START, kind, steps=0) == 1
