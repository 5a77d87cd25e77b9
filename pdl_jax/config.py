"""The configuration as frozen dataclasses: read once, checked once.

`configs/common.py` lists and explains every key; this file is where a value
of the wrong size is refused.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pdl_jax.data.examples import Lengths
from pdl_jax.data.tasks import TASKS
from pdl_jax.errors import ConfigError
from pdl_jax.generate import DecodeSettings
from pdl_jax.losses import LOSSES
from pdl_jax.losses.checks import check_number
from pdl_jax.losses.frequency import UNITS
from pdl_jax.losses.power_law import EPSILON_POLICIES, NORMALIZE, UNSEEN
from pdl_jax.losses.reduce import REDUCTIONS
from pdl_jax.losses.schedule import SCHEDULES, check_schedule
from pdl_jax.mesh import MESH_AXES
from pdl_jax.model import lora
from pdl_jax.model.config import (
  ATTENTIONS,
  BIASES,
  COMPOSITIONS,
  DELTAS,
  HEADS,
  STARTS_OF_DELTA,
  AttentionConfig,
  HeadConfig,
)
from pdl_jax.model.heads.fit import MAPPINGS, STARTS
from pdl_jax.model.lora import LoRAConfig
from pdl_jax.storage.files import fault
from pdl_jax.train.optimizer import OptimizerConfig

_LARGEST = float(np.finfo(np.float32).max)


def _one_of(key: str, value: Any, allowed: Any) -> None:
  if value not in allowed:
    known = ', '.join(str(name) or "''" for name in allowed)
    raise ConfigError(f'{key} {value!r} is not one of {known}')


def check_numbers(prefix: str, values: Mapping[str, Any]) -> None:
  """Refuses numbers that no array of a run can hold.

  Args:
    prefix: of the keys, for the error.
    values: a configuration or a group of it.

  Raises:
    ConfigError: naming the first one.
  """
  for name, value in values.items():
    key = f'{prefix}{name}'
    if isinstance(value, Mapping):
      check_numbers(f'{key}.', value)
    elif isinstance(value, int):
      # Seeds are 32 bits without a sign.
      most = 2**32 - 1 if name == 'seed' else 2**31 - 1
      if not -(2**31) <= value <= most:
        got = value if abs(value) < 10**40 else 'one of more than 40 digits'
        raise ConfigError(
          f'{key} must be a whole number of at most {most}, got {got}'
        )
    elif isinstance(value, float) and not abs(value) <= _LARGEST:
      raise ConfigError(
        f'{key} must be finite and fit in fp32 (3.4e38), got {value}'
      )


def _positive(group: str, settings: Any, *names: str) -> None:
  for name in names:
    if not getattr(settings, name) >= 1:
      raise ConfigError(
        f'{group}.{name} must be >= 1, got {getattr(settings, name)}'
      )


def _not_negative(group: str, settings: Any, *names: str) -> None:
  for name in names:
    if not getattr(settings, name) >= 0:
      raise ConfigError(
        f'{group}.{name} must be >= 0, got {getattr(settings, name)}'
      )


@dataclasses.dataclass(frozen=True)
class CodeSettings:
  """Of a vq head: its size, and how types get their codes."""

  codes: int = 1024
  codebooks: int = 1
  compose: str = 'product'
  mapping: str = 'kmeans_output'
  start: str = 'rows'
  own: int = 0
  tail_from: int = 0
  tail_codes: int = 256
  tail_codebooks: int = 16
  tail_rank: int = 0

  def __post_init__(self):
    _positive(
      'model.vq', self, 'codes', 'codebooks', 'tail_codes', 'tail_codebooks'
    )
    _not_negative('model.vq', self, 'own', 'tail_from', 'tail_rank')
    _one_of('model.vq.compose', self.compose, COMPOSITIONS)
    _one_of('model.vq.mapping', self.mapping, MAPPINGS)
    _one_of('model.vq.start', self.start, STARTS)


@dataclasses.dataclass(frozen=True)
class ComplexSettings:
  """Of complex attention; see `model.config.AttentionConfig`."""

  delta: str = 'head'
  offset: bool = True
  start: str = 'rope'
  scaled: bool = True
  sign: int = 1


@dataclasses.dataclass(frozen=True)
class LoRASettings:
  """Of adapters; see `model.lora.LoRAConfig`."""

  rank: int = 16
  alpha: float = 32.0
  dropout: float = 0.0
  targets: str = 'all'

  def __post_init__(self):
    _positive('model.lora', self, 'rank')
    self.config(gated=True)

  def config(self, gated: bool) -> LoRAConfig:
    """With all linear layers of a block by name.

    Args:
      gated: whether feed-forward layers have a gate.
    """
    every = (*lora.ATTENTION, *(x for x in lora.MLP if gated or x != 'gate'))
    some = tuple(name.strip() for name in self.targets.split(','))
    return LoRAConfig(
      self.rank, self.alpha, self.dropout,
      every if self.targets == 'all' else some,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """Where the model comes from; the shape is for models from scratch.

  What has a default was not there in earlier versions.
  """

  pretrained: str
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  vocab_size: int
  dtype: str
  remat: bool
  tokenizer: str = ''
  rope_base: float = 10_000.0
  attention: str = ''
  head: str = ''
  bias: str = 'none'
  rank: int = 0
  vq: CodeSettings = dataclasses.field(default_factory=CodeSettings)
  complex: ComplexSettings = ComplexSettings()
  param_dtype: str = 'float32'
  adapter: str = ''
  lora: LoRASettings = LoRASettings()

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> 'ModelSettings':
    """With the groups of keys of vq heads, complex attention and adapters."""
    groups = {
      'vq': CodeSettings(**config.get('vq', {})),
      'complex': ComplexSettings(**config.get('complex', {})),
      'lora': LoRASettings(**config.get('lora', {})),
    }
    return cls(**{**config, **groups})

  def __post_init__(self):
    _one_of('model.attention', self.attention, ('', *ATTENTIONS))
    _one_of('model.complex.delta', self.complex.delta, DELTAS)
    _one_of('model.complex.start', self.complex.start, STARTS_OF_DELTA)
    _one_of('model.complex.sign', self.complex.sign, (1, -1))
    if self.complex.delta == 'fixed' and self.complex.start == 'published':
      raise ConfigError(
        'model.complex.start published is of a delta that is learned, and '
        'model.complex.delta is fixed; take model.complex.start rope (1) or '
        'zero (0)'
      )
    _one_of('model.head', self.head, ('', *HEADS))
    _one_of('model.bias', self.bias, BIASES)
    _not_negative('model', self, 'rank')
    if self.adapter and not self.pretrained:
      raise ConfigError(
        f'model.adapter {self.adapter} needs the pretrained model that it is '
        'of: set model.pretrained'
      )
    made_up = ('random', 'blocks', 'frequency_blocks')
    if self.head == 'vq' and not self.pretrained and not (
      self.vq.mapping in made_up and self.vq.start == 'random'
    ):
      raise ConfigError(
        f'model.vq.mapping {self.vq.mapping} and model.vq.start '
        f'{self.vq.start}: a model from scratch has no trained rows to make '
        f'codes of; take a mapping of {", ".join(made_up)}, and start random'
      )

  @property
  def precision(self) -> dict[str, Any]:
    """Fields of a ModelConfig that any model takes from here."""
    return {
      'dtype': self.dtype, 'param_dtype': self.param_dtype,
      'remat': self.remat,
    }  # fmt: skip

  @property
  def positions(self) -> AttentionConfig | None:
    """The attention that is asked for; None: what the model has."""
    if not self.attention:
      return None
    if self.attention != 'complex':
      return AttentionConfig(self.attention)
    return AttentionConfig('complex', **dataclasses.asdict(self.complex))

  @property
  def output(self) -> HeadConfig | None:
    """The head that is asked for; None: what the model has.

    Raises:
      ConfigError: keys that do not fit together.
    """
    if not self.head:
      return None
    if self.head == 'adaptive':
      return HeadConfig(
        'adaptive', self.bias, self.rank, own=self.vq.own,
        tail_from=self.vq.tail_from,
      )  # fmt: skip
    if self.head != 'vq':
      return HeadConfig(self.head, self.bias, self.rank)
    return HeadConfig(
      'vq', self.bias, self.rank, self.vq.codes, self.vq.codebooks,
      self.vq.compose, self.vq.mapping == 'learned', self.vq.own,
      self.vq.tail_from, self.vq.tail_codes, self.vq.tail_codebooks,
      self.vq.tail_rank,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """The data set and the lengths of its examples."""

  name: str
  data_dir: str
  fields: dict[str, str]
  splits: dict[str, str]
  bad_records: str
  task: str
  max_prompt: int
  max_target: int
  train_limit: int
  buckets: int

  def __post_init__(self):
    _one_of('data.task', self.task, TASKS)
    _one_of('data.bad_records', self.bad_records, ('error', 'skip'))
    _positive('data', self, 'max_prompt', 'max_target', 'buckets')
    _not_negative('data', self, 'train_limit')
    if TASKS[self.task].documents and self.buckets > 1:
      raise ConfigError(
        f'data.buckets {self.buckets}: rows of {self.task} are packed and of '
        'one length; leave it at 1'
      )

  @property
  def lengths(self) -> Lengths:
    """Sizes of the arrays."""
    return Lengths(self.max_prompt, self.max_target)


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """The loss by name, and the numbers that it reads.

  Attributes:
    rivals: the keys of each rival's own, by its name.
  """

  name: str
  alpha: float
  epsilon: float
  epsilon_policy: str
  unit: str
  level: str
  clip: float
  normalize: str
  unseen: str
  reduction: str
  frequency_table: str
  general_table: str
  general_share: float
  schedule: str
  schedule_start: int
  schedule_steps: int
  label_smoothing: float
  z_loss: float
  rivals: dict[str, dict[str, Any]]

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> 'LossSettings':
    """Parts the groups of the rivals from the keys above them."""
    rivals = {k: v for k, v in config.items() if isinstance(v, dict)}
    flat = {k: v for k, v in config.items() if k not in rivals}
    return cls(**flat, rivals=rivals)

  def __post_init__(self):
    _one_of('loss.name', self.name, LOSSES)
    _one_of('loss.unit', self.unit, UNITS)
    _one_of('loss.normalize', self.normalize, NORMALIZE)
    _one_of('loss.unseen', self.unseen, UNSEEN)
    _one_of('loss.epsilon_policy', self.epsilon_policy, EPSILON_POLICIES)
    _one_of('loss.level', self.level, ('token', 'word'))
    _one_of('loss.schedule', self.schedule, SCHEDULES)
    if self.level == 'word' and self.unit != 'count':
      raise ConfigError('loss.level word counts words: loss.unit must be count')
    if self.level == 'word' and (self.general_table or self.frequency_table):
      raise ConfigError(
        "loss.level word counts this task's words: leave out "
        'loss.general_table and loss.frequency_table'
      )
    if not 0 <= self.general_share <= 1:
      raise ConfigError(
        f'loss.general_share must be in [0, 1], got {self.general_share}'
      )
    if self.general_share and not self.general_table:
      raise ConfigError(
        f'loss.general_share {self.general_share} needs a loss.general_table'
      )
    if not 0 <= self.label_smoothing < 1:
      raise ConfigError(
        f'loss.label_smoothing must be in [0, 1), got {self.label_smoothing}'
      )
    check_number('loss.z_loss', self.z_loss)
    try:
      # Not the factor itself: a sweeper must not start JAX.
      check_schedule(self.schedule, self.schedule_start, self.schedule_steps)
    except ConfigError as error:
      raise ConfigError(
        f'loss.schedule (with schedule_start and schedule_steps): {error}'
      ) from None
    spec = LOSSES[self.name]
    if self.schedule != 'constant' and spec.weights is None:
      raise ConfigError(
        f'loss.schedule {self.schedule} needs a loss with a weight per type; '
        f'{self.name} has none'
      )
    _one_of('loss.reduction', self.reduction, REDUCTIONS)
    check_number('loss.alpha', self.alpha)
    check_number('loss.epsilon', self.epsilon)
    if self.clip and not 1 <= self.clip < math.inf:
      raise ConfigError(
        'loss.clip must be 0 (no limit) or a finite number of at least 1, got '
        f'{self.clip}'
      )


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """Length of the training, and what happens every so many steps."""

  steps: int
  batch_size: int
  log_every: int
  checkpoint_every: int
  keep_checkpoints: int
  max_skipped: int

  def __post_init__(self):
    _positive('train', self, *(f.name for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
  """How much of the held-out data is scored and generated from."""

  split: str
  examples: int
  draw: int
  validation_examples: int
  batch_size: int

  def __post_init__(self):
    _one_of('evaluate.split', self.split, ('validation', 'test'))
    _not_negative('evaluate', self, 'draw')
    _positive('evaluate', self, 'examples', 'validation_examples', 'batch_size')


# What a configuration looks like, before any value is looked at.
_SHAPE = {
  'seed': int, 'model': ModelSettings, 'data': DataSettings,
  'loss': {
    field.name: field.type
    for field in dataclasses.fields(LossSettings)
    if field.name != 'rivals'
  },
  'optimizer': OptimizerConfig, 'train': TrainSettings,
  'evaluate': EvaluateSettings, 'decode': DecodeSettings,
  'mesh': dict.fromkeys(MESH_AXES, int),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything a run is made of.

  Attributes:
    resolved: the configuration as plain Python values, for the run folder.
  """

  seed: int
  model: ModelSettings
  data: DataSettings
  loss: LossSettings
  optimizer: OptimizerConfig
  train: TrainSettings
  evaluate: EvaluateSettings
  decode: DecodeSettings
  mesh: tuple[int, int, int]
  resolved: dict[str, Any]

  @property
  def note(self) -> str:
    """A line on what is done otherwise than the configuration says; or ''."""
    asked = self.resolved['optimizer']['warmup_steps']
    if asked == self.optimizer.warmup_steps:
      return ''
    return (
      f'warm-up    {self.optimizer.warmup_steps} steps, a tenth of train.steps '
      f'{self.train.steps}: optimizer.warmup_steps {asked} would leave none '
      'for the decay'
    )

  @property
  def trains_adapters(self) -> bool:
    """Whether adapters are what trains."""
    return self.optimizer.trainable == 'lora'

  @classmethod
  def from_config(cls, config: ConfigDict) -> 'Settings':
    """Checks and freezes a configuration.

    Raises:
      ConfigError: with the key and the value that is wrong.
    """
    return cls.from_resolved(json.loads(config.to_json()))

  @classmethod
  def from_resolved(cls, resolved: dict[str, Any]) -> 'Settings':
    """The same from plain values, as a run folder keeps them."""
    if found := fault(resolved, _SHAPE):
      raise ConfigError(f'config: {found}')
    check_numbers('', resolved)
    if resolved['seed'] < 0:
      raise ConfigError(f'seed must be >= 0, got {resolved["seed"]}')
    warmup = resolved['optimizer']['warmup_steps']
    steps = resolved['train']['steps']
    if warmup >= steps > 0:
      warmup = steps // 10
    data, fsdp, tensor = (resolved['mesh'][axis] for axis in MESH_AXES)
    return cls(
      seed=resolved['seed'],
      model=ModelSettings.from_config(resolved['model']),
      data=DataSettings(**resolved['data']),
      loss=LossSettings.from_config(resolved['loss']),
      optimizer=OptimizerConfig(
        **{**resolved['optimizer'], 'warmup_steps': warmup}
      ),
      train=TrainSettings(**resolved['train']),
      evaluate=EvaluateSettings(**resolved['evaluate']),
      decode=DecodeSettings(**resolved['decode']),
      mesh=(data, fsdp, tensor),
      resolved=resolved,
    )
