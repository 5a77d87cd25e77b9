"""What trains, and how: parameter selection and the optax chain."""

import dataclasses
import math
from typing import Any

import jax
import optax

from pdl_jax.errors import ConfigError, one_of, positive
from pdl_jax.model import lora
from pdl_jax.model.config import DTYPES
from pdl_jax.model.heads import FIXED
from pdl_jax.model.positions import LEARNED
from pdl_jax.train.rules import RULES

TRAINABLE = ('all', 'last_layers', 'norms', 'lora')
SCHEDULES = ('cosine', 'linear', 'constant')
# Every range refuses NaN, because comparisons with it are false.
_RANGES = (
  ('> 0 and finite', lambda x: 0 < x < math.inf, (
    'learning_rate', 'eps', 'clip_norm', 'grad_accum_steps',
    'head_lr_multiplier',
  )),
  ('>= 0 and finite', lambda x: 0 <= x < math.inf, (
    'warmup_steps', 'end_lr_ratio', 'weight_decay',
  )),
  ('in [0, 1)', lambda x: 0 <= x < 1, ('b1', 'b2')),
)  # fmt: skip
Tree = Any


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer with warm-up and decay, and what trains."""

  # adamw, adafactor (little memory), lion, muon (for the layers' matrices) or
  # sgd (with momentum b1); docs/models.md says what each is and reads.
  name: str = 'adamw'
  # Peak learning rate, reached after the warm-up.
  learning_rate: float = 3e-4
  # If train.steps is not larger, a tenth of train.steps warms up.
  warmup_steps: int = 5
  # Decay after the warm-up: cosine, linear or constant. The step after the
  # last would have end_lr_ratio of the peak.
  schedule: str = 'cosine'
  end_lr_ratio: float = 0.1
  # Decay of the moments, and Adam's epsilon.
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  # Type of the first moment, float32 or bfloat16; the second is fp32.
  mu_dtype: str = 'float32'
  # Decoupled weight decay of matrices.
  weight_decay: float = 0.01
  # Largest global gradient norm.
  clip_norm: float = 1.0
  # Micro-batches per step, under one global denominator.
  grad_accum_steps: int = 1
  # What trains: all; last_layers, the last layers and the final norm; norms;
  # or lora, adapters alone (see model.lora).
  trainable: str = 'last_layers'
  last_layers: int = 10
  # Learning rate of a head's own parameters, as a multiple of learning_rate:
  # codes that stand for many types can take, and need, a larger one.
  head_lr_multiplier: float = 1.0

  def __post_init__(self):
    for wanted, holds, names in _RANGES:
      for name in names:
        if not holds(getattr(self, name)):
          raise ConfigError(
            f'optimizer.{name} must be {wanted}, got {getattr(self, name)}'
          )
    one_of('optimizer.name', self.name, RULES)
    one_of('optimizer.schedule', self.schedule, SCHEDULES)
    one_of('optimizer.trainable', self.trainable, TRAINABLE)
    one_of('optimizer.mu_dtype', self.mu_dtype, DTYPES)
    if self.trainable == 'last_layers':
      positive('optimizer', self, 'last_layers')


# No decay of vectors, or of learned angles: it would pull them from RoPE.
_VECTORS = ('scale', 'bias_V', *LEARNED)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Makes the learning rate by step, for a run of `steps`."""
  peak, warmup = config.learning_rate, config.warmup_steps
  end, rest = peak * config.end_lr_ratio, steps - warmup
  decay = {
    'cosine': optax.cosine_decay_schedule(peak, rest, config.end_lr_ratio),
    'linear': optax.linear_schedule(peak, end, rest),
    'constant': optax.constant_schedule(peak),
  }[config.schedule]
  # Starts above zero: a step at learning rate zero would be lost.
  ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  return optax.join_schedules([ramp, decay], [warmup]) if warmup else decay


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Makes the chain: clipping, direction, decay of matrices, schedule."""

  def matrices(params: Tree) -> Tree:
    def is_matrix(path: tuple, _: object) -> bool:
      name = path[-1].key
      return name not in _VECTORS and not name.endswith('bias')

    return jax.tree_util.tree_map_with_path(is_matrix, params)

  def of_head(params: Tree) -> Tree:
    return {
      name: jax.tree.map(lambda _, own=name == 'head': own, part)
      for name, part in params.items()
    }

  factor = config.head_lr_multiplier
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.chain(
      RULES[config.name].make(config),
      optax.add_decayed_weights(config.weight_decay, matrices),
      optax.scale_by_learning_rate(make_schedule(config, steps)),
    ),
    *([optax.masked(optax.scale(factor), of_head)] if factor != 1 else []),
  )


def trainable_mask(config: OptimizerConfig, params: Tree) -> Tree:
  """Marks the leaves that train; 'last_layers' is the last group of layers."""
  last_group = str(len(params['blocks']) - 1)

  def trains(path: tuple, _: object) -> bool:
    names = [str(getattr(key, 'key', getattr(key, 'idx', key))) for key in path]
    if config.trainable == 'lora' and names[-1] == lora.MATRIX:
      return False
    if names[0] == 'head':
      # A head of its own starts untrained; its codes are indices.
      return names[-1] not in FIXED
    if config.trainable == 'lora':
      return lora.is_adapter(names[-1]) or names[-1] in LEARNED
    if config.trainable == 'all':
      return True
    if config.trainable == 'norms':
      return names[-1] in ('scale', 'bias')
    return names[:2] == ['blocks', last_group] or names[0] == 'norm'

  return jax.tree_util.tree_map_with_path(trains, params)


def partition(params: Tree, mask: Tree) -> tuple[Tree, Tree]:
  """Splits leaves into trained and frozen; None fills the gaps of each tree."""
  trained = jax.tree.map(lambda x, keep: x if keep else None, params, mask)
  frozen = jax.tree.map(lambda x, keep: None if keep else x, params, mask)
  return trained, frozen


def merge(trained: Tree, frozen: Tree) -> Tree:
  """Inverts `partition`."""
  pick = lambda a, b: b if a is None else a  # noqa: E731
  return jax.tree.map(pick, trained, frozen, is_leaf=lambda x: x is None)
