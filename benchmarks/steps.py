"""Makes whole training steps of one device, on random tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from configs import summarize
from pdl_jax.config import Settings
from pdl_jax.mesh import make_mesh
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.run import loss_tables
from pdl_jax.train import optimizer, state
from pdl_jax.train.optimizer import OptimizerConfig
from pdl_jax.train.state import TrainState
from pdl_jax.train.step import StepConfig


def main_job() -> tuple[Settings, GGUFModel]:
  """Returns the settings of configs/summarize.py, and its pretrained model."""
  settings = Settings.from_config(summarize.get_config())
  return settings, GGUFModel(find_package_file(settings.model.pretrained))


def begin(
  model: ModelConfig, params: dict, options: OptimizerConfig, settings: Settings
) -> tuple[StepConfig, TrainState]:
  """Makes a step with the loss and length of these settings, and its state."""
  steps = settings.train.steps
  config = StepConfig(
    model=model,
    optimizer=optimizer.make_optimizer(options, steps),
    schedule=optimizer.make_schedule(options, steps),
    loss=loss_tables.make_loss(settings.loss),
    grad_accum_steps=1,
  )
  mesh = make_mesh((1, 1, 1))
  return config, state.create(params, model, options, config.optimizer, mesh)


def batch(
  settings: Settings, vocab_size: int, rows: int, length: int
) -> dict[str, jax.Array]:
  """Makes full rows; every position is a target unless settings read fewer."""
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
