"""The modes that every task has, and the axes that sweeps know.

The keys with their defaults and meanings: python launch.py --help_config.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from pdl_jax.config import defaults
from pdl_jax.losses import LOSSES

MODES = ('default', 'tiny', 'small', 'full')


def get_config(mode: str = 'default') -> ConfigDict:
  """The base that every task's config starts from; not a task itself.

  Args:
    mode: default fine-tunes SmolLM2-135M in minutes on two cores. tiny trains
      a small model from scratch in a minute or two, to see every part at work.
      small has about a million parameters, for wide grids: from scratch, or
      from such a run by model.pretrained=run:FOLDER. full is for accelerators,
      with whole data and long context; it is not measured.
  """
  if mode not in MODES:
    raise ValueError(f'mode {mode!r} is not one of {", ".join(MODES)}')
  config = ConfigDict(defaults())
  config.data.buckets = 4
  if mode == 'tiny':
    _tiny(config)
  if mode == 'small':
    _small(config)
  if mode == 'full':
    _full(config)
  return config.lock()


def _tiny(config: ConfigDict) -> None:
  config.model.pretrained = ''
  config.model.vocab_size = 2048
  config.model.layers = 2
  config.data.max_prompt = 64
  config.data.max_target = 32
  config.data.buckets = 1  # More would take longer to compile than they save.
  config.optimizer.trainable = 'all'
  config.optimizer.learning_rate = 3e-3
  config.train.steps = 100
  config.train.checkpoint_every = 50
  config.train.batch_size = 16
  config.evaluate.examples = 32
  config.evaluate.validation_examples = 32


def _small(config: ConfigDict) -> None:
  config.model.pretrained = ''
  config.model.width = 96
  config.model.head_dim = 24
  config.model.mlp = 288
  # Fewer pieces would leave no rare ones.
  config.model.vocab_size = 8192
  config.optimizer.trainable = 'all'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 20
  config.train.steps = 300
  config.train.checkpoint_every = 50
  config.train.batch_size = 16
  config.train.log_every = 10
  config.evaluate.examples = 256
  config.evaluate.validation_examples = 256
  config.evaluate.batch_size = 64


def _full(config: ConfigDict) -> None:
  config.model.dtype = 'bfloat16'
  config.model.remat = True
  config.data.max_prompt = 1024
  config.data.max_target = 128
  config.train.steps = 3000
  config.train.batch_size = 64
  config.train.log_every = 10
  config.train.checkpoint_every = 250
  config.optimizer.trainable = 'all'
  config.optimizer.warmup_steps = 100
  config.optimizer.learning_rate = 1e-4
  config.evaluate.examples = 1000
  config.evaluate.validation_examples = 500
  config.evaluate.batch_size = 64
  config.mesh.data = 1
  config.mesh.fsdp = -1


def sweep_alpha() -> Iterator[dict[str, Any]]:
  """The decay exponent; 0 is cross-entropy."""
  for alpha in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5):
    yield {'loss.alpha': alpha}


def sweep_epsilon() -> Iterator[dict[str, Any]]:
  """The smoothing constant, in counts."""
  for epsilon in (0.1, 1.0, 10.0, 100.0):
    yield {'loss.epsilon': epsilon}


def sweep_loss() -> Iterator[dict[str, Any]]:
  """Every loss, at its defaults."""
  for name in LOSSES:
    yield {'loss.name': name}


def sweep_data() -> Iterator[dict[str, Any]]:
  """The share of the training data; the order of records is random on disk."""
  for percent in (1, 10, 50, 100):
    yield {'data.splits.train': f'train[:{percent}%]'}


def sweep_seed() -> Iterator[dict[str, Any]]:
  """Of the order of the data, and of a model from scratch."""
  for seed in range(3):
    yield {'seed': seed}
