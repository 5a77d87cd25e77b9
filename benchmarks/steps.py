"""Whole training steps, compiled, and timed in turns."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdl_jax.config import Settings
from pdl_jax.model.config import ModelConfig
from pdl_jax.run import loss_tables
from pdl_jax.train import optimizer
from pdl_jax.train.optimizer import OptimizerConfig
from pdl_jax.train.step import StepConfig


def step_config(
  model: ModelConfig, options: OptimizerConfig, settings: Settings
) -> StepConfig:
  """A step with the loss and the length of a run of these settings."""
  steps = settings.train.steps
  return StepConfig(
    model=model,
    optimizer=optimizer.make_optimizer(options, steps),
    schedule=optimizer.make_schedule(options, steps),
    loss=loss_tables.make_loss(settings.loss),
    grad_accum_steps=1,
  )


def batch(
  settings: Settings, vocab_size: int, rows: int, length: int
) -> dict[str, jax.Array]:
  """Full rows: every position is a target but where the settings read few."""
  random = np.random.default_rng(0)
  shape, reads = (rows, length), np.arange(length)
  if settings.model.pretrained:
    reads = reads[settings.data.max_prompt - 1 :]
  targets = (rows, reads.size)
  ids = partial(random.integers, 0, vocab_size)
  made = {
    'tokens': ids(shape),
    'segments': np.ones(shape),
    'positions': np.tile(np.arange(length), (rows, 1)),
    'labels': ids(targets),
    'reads': np.tile(reads, (rows, 1)),
  }
  arrays = {name: jnp.asarray(x, jnp.int32) for name, x in made.items()}
  return {**arrays, 'where': jnp.ones(targets, bool)}


def take_turns(
  calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Seconds of each call in each round, in an order that moves on by one."""
  names = list(calls)
  seconds: dict[str, list[float]] = {name: [] for name in names}
  for number in range(rounds):
    shift = number % len(names)
    for name in names[shift:] + names[:shift]:
      began = time.perf_counter()
      jax.block_until_ready(calls[name]())
      seconds[name].append(time.perf_counter() - began)
  return seconds
