"""Schedules for alpha: a factor that depends on the training step."""

import jax.numpy as jnp
from jax import Array

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.losses.checks import check_number

SCHEDULES = ('constant', 'warmup', 'anneal', 'cross_entropy_first')
_RAMPS = ('warmup', 'anneal')


def decay_factor(
  step: Array | int, *, kind: str, start: int, steps: int
) -> Array:
  """Returns factor(step) in [0, 1], fp32: alpha(step) = alpha * factor(step).

      ramp(step) = min(max((step - start) / steps, 0), 1)

      constant             1
      warmup               ramp(step)
      anneal               1 - ramp(step)
      cross_entropy_first  1 if step >= start else 0

  A factor of exactly 0 makes all `power_law_weights` exactly 1. So 'warmup'
  and 'cross_entropy_first' begin as cross-entropy, and 'anneal' ends as it.
  `step` may be traced: one compiled program serves every step. Ramps need
  `steps` >= 1; other schedules do not read it.
  """
  check_number('step', step)
  check_schedule(kind, start, steps)
  past = jnp.asarray(step) - start
  if kind == 'constant':
    return jnp.ones(past.shape, jnp.float32)
  if kind == 'cross_entropy_first':
    return (past >= 0).astype(jnp.float32)
  ramp = jnp.clip(past.astype(jnp.float32) / steps, 0.0, 1.0)
  return ramp if kind == 'warmup' else 1.0 - ramp


def check_schedule(kind: str, start: int, steps: int) -> None:
  """Refuses what `decay_factor` refuses, without starting a JAX backend."""
  one_of('schedule', kind, SCHEDULES)
  check_number('start', start)
  check_number('steps', steps)
  if kind in _RAMPS and steps < 1:
    raise ConfigError(f'{kind} needs steps of at least 1, got {steps}')
