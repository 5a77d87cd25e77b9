"""When the weights set in: a factor for alpha that follows the step."""

import jax.numpy as jnp
from jax import Array

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.losses.checks import check_number

SCHEDULES = ('constant', 'warmup', 'anneal', 'cross_entropy_first')
_RAMPS = ('warmup', 'anneal')


def decay_factor(
  step: Array | int, *, kind: str, start: int, steps: int
) -> Array:
  """Share of alpha that holds at a step: alpha(step) = alpha * factor(step).

      ramp(step) = min(max((step - start) / steps, 0), 1)

      constant             1
      warmup               ramp(step)
      anneal               1 - ramp(step)
      cross_entropy_first  1 if step >= start else 0

  A factor of 0 is exactly 0, where `power_law_weights` gives weights of exactly
  one: 'warmup' and 'cross_entropy_first' begin as cross-entropy, 'anneal' ends
  as it. With a traced step one compiled program serves every step.

  Args:
    step: of training, an integer >= 0; may be traced.
    kind: one of SCHEDULES.
    start: step at which the change begins, >= 0.
    steps: length of the ramp, >= 1 for 'warmup' and 'anneal', else unread.

  Returns:
    factor in [0, 1], a scalar in fp32.
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
  """Refuses a schedule that `decay_factor` does; starts no backend."""
  one_of('schedule', kind, SCHEDULES)
  check_number('start', start)
  check_number('steps', steps)
  if kind in _RAMPS and steps < 1:
    raise ConfigError(f'{kind} needs steps of at least 1, got {steps}')
