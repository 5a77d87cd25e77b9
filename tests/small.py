"""A model, a batch and a job small enough for tests."""

import functools
import signal

import jax
import numpy as np
import pytest

from configs import summarize
from pdl_jax.config import Settings
from pdl_jax.losses import LOSSES, Loss
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.run import finetune
from pdl_jax.train import loop
from pdl_jax.train import optimizer as optimizers
from pdl_jax.train.step import StepConfig

MODEL = ModelConfig(
  vocab_size=64, width=32, layers=3, heads=8, kv_heads=8, head_dim=4, mlp=48,
  context=16,
)  # fmt: skip
PROMPT, TARGET = 8, 6


@functools.cache
def params(seed=0):
  # Weights larger than at initialisation, so that the layers matter.
  tree = jax.jit(functools.partial(lm.init, MODEL))(jax.random.key(seed))
  return jax.tree.map(lambda x: np.asarray(x * 2 if x.ndim > 1 else x), tree)


def batch(rows=8, seed=0):
  """Rows of different lengths, the arrays of `pipeline.empty_example`."""
  random = np.random.default_rng(seed)
  length = PROMPT + TARGET - 1
  prompt = random.integers(2, PROMPT + 1, rows)
  target = random.integers(1, TARGET + 1, rows)
  column, slot = np.arange(length)[None], np.arange(TARGET)[None]
  used = (prompt + target - 1)[:, None]
  where = slot < target[:, None]
  return {
    'tokens': random.integers(0, 64, (rows, length)).astype(np.int32),
    'segments': (column < used).astype(np.int32),
    'positions': np.where(column < used, column, 0).astype(np.int32),
    'labels': random.integers(0, 64, (rows, TARGET)).astype(np.int32),
    'reads': np.where(where, prompt[:, None] - 1 + slot, 0).astype(np.int32),
    'where': where,
  }


def optimizer_config(**changes):
  settings = {**summarize.get_config('tiny').optimizer, 'learning_rate': 1e-2}
  return optimizers.OptimizerConfig(**{**settings, **changes})


def step_config(**changes):
  config = optimizer_config()
  settings = {
    'model': MODEL,
    'optimizer': optimizers.make_optimizer(config, 100),
    'schedule': optimizers.make_schedule(config, 100),
    'loss': Loss(LOSSES['power_law'], {}),
    'grad_accum_steps': 1,
  }
  return StepConfig(**{**settings, **changes})


def job_config(data_dir, **changes):
  """The tiny mode, smaller still; keys as in 'train.steps'."""
  config = summarize.get_config('tiny')
  config.update_from_flattened_dict({
    'data.data_dir': str(data_dir),
    'data.train_limit': 200,
    'data.max_prompt': 48,
    'data.max_target': 24,
    'model.width': 32,
    'model.layers': 2,
    'model.heads': 2,
    'model.kv_heads': 1,
    'model.head_dim': 16,
    'model.mlp': 48,
    'model.vocab_size': 512,
    'train.steps': 6,
    'train.checkpoint_every': 4,
    'optimizer.warmup_steps': 2,
    'evaluate.examples': 8,
    'evaluate.validation_examples': 8,
    'evaluate.batch_size': 8,
    **changes,
  })
  return config


def settings(data_dir, **changes):
  """Of `job_config`."""
  return Settings.from_config(job_config(data_dir, **changes))


def run_job(data_dir, workdir, **changes):
  """To its end, with the handlers of signals left alone."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(signal, 'signal', lambda *_: None)
    finetune.run(settings(data_dir, **changes), workdir, loop.StopRequest())
  return workdir
