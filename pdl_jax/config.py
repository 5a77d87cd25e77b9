"""Every key of a configuration, composed of the settings of each package.

A field has the key's default, and the comment above it says what it means:
`python launch.py --help_config` prints them all.
"""

import dataclasses
import difflib
import functools
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

import numpy as np
from ml_collections import ConfigDict

from pdl_jax.data.settings import DataSettings
from pdl_jax.data.tasks import TASKS
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.settings import EvaluateSettings
from pdl_jax.generate import DecodeSettings
from pdl_jax.losses import settings as loss_settings
from pdl_jax.losses.settings import LossSettings
from pdl_jax.mesh import MeshSettings
from pdl_jax.model import settings as model_settings
from pdl_jax.model.settings import ModelSettings
from pdl_jax.storage.files import fault
from pdl_jax.train import rules
from pdl_jax.train.optimizer import OptimizerConfig
from pdl_jax.train.settings import TrainSettings

# Keys that change where a run is kept, what it prints or the memory it takes,
# but no number beyond rounding.
_SILENT = (
  'data.data_dir', 'loss.memory_mb', 'train.log_every',
  'train.keep_checkpoints',
)  # fmt: skip
_LARGEST = float(np.finfo(np.float32).max)
# Keys of version 0.1, by their last part, and what they are called now.
RENAMED = {
  'codes': 'model.vq.codebook_size', 'codebooks': 'model.vq.num_codebooks',
  'compose': 'model.vq.combine', 'own': 'model.vq.num_exact',
  'tail_from': 'model.vq.tail_start',
  'tail_codes': 'model.vq.tail_codebook_size',
  'tail_codebooks': 'model.vq.tail_num_codebooks',
  'delta': 'model.complex.delta_sharing', 'offset': 'model.complex.phase_bias',
  'start': 'model.complex.delta_init', 'scaled': 'model.complex.scale_scores',
  'sign': 'model.complex.position_sign',
  'general_table': 'loss.background_table',
  'general_share': 'loss.background_weight',
  'head_factor': 'optimizer.head_lr_multiplier',
  'final_fraction': 'optimizer.end_lr_ratio',
  'accumulation': 'optimizer.grad_accum_steps',
  'max_skipped': 'train.max_nonfinite_steps', 'draw': 'evaluate.sample_index',
}  # fmt: skip


def unknown_key(key: str, asked: str) -> str:
  """Says how a key that there is not is called now, or which is nearest.

  `asked` is the key with its groups, as far as it is known.
  """
  if (last := key.rpartition('.')[2]) in RENAMED:
    return f'config key {last!r} is called {RENAMED[last]} now'
  known = [each.name for each in keys()]
  nearest = difflib.get_close_matches(asked, known, n=1, cutoff=0)[0]
  return (
    f'there is no config key {key!r}; did you mean {nearest!r}? '
    '(--help_config prints all)'
  )


def check_numbers(prefix: str, values: Mapping[str, Any]) -> None:
  """Refuses numbers that no array of a run can hold; keys get the prefix."""
  for name, value in values.items():
    key = f'{prefix}{name}'
    if isinstance(value, Mapping):
      check_numbers(f'{key}.', value)
    elif isinstance(value, int):
      # Seeds are unsigned 32-bit integers.
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


_GROUPS = {
  'model': ModelSettings, 'data': DataSettings, 'loss': LossSettings,
  'optimizer': OptimizerConfig, 'train': TrainSettings,
  'evaluate': EvaluateSettings, 'decode': DecodeSettings,
  'mesh': MeshSettings,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything a run is made of; `resolved` is its configuration as JSON."""

  # Seed of the order of the data and of random initialization.
  seed: int
  model: ModelSettings
  data: DataSettings
  loss: LossSettings
  optimizer: OptimizerConfig
  train: TrainSettings
  evaluate: EvaluateSettings
  decode: DecodeSettings
  mesh: MeshSettings
  resolved: dict[str, Any]

  def __post_init__(self):
    if self.model.attention_impl == 'cudnn' and self.packs:
      raise ConfigError(
        'model.attention_impl cudnn cannot keep the documents of a row apart, '
        f'and rows of data.task {self.data.task} are packed; take chunked'
      )

    model = self.model
    if model.matmul_precision and (model.attention_impl, model.dtype) == (
      'splash', 'bfloat16'
    ):
      raise ConfigError(
        'model.attention_impl splash multiplies bfloat16 in one pass: leave '
        f'out model.matmul_precision {model.matmul_precision}, or take chunked'
      )

  @property
  def packs(self) -> bool:
    """Whether rows that train consist of several documents."""
    return TASKS[self.data.task].documents

  @property
  def note(self) -> str:
    """Says in a line how the run departs from its configuration; '' if not."""
    asked = OptimizerConfig(**self.resolved['optimizer']).warmup_steps
    if asked == self.optimizer.warmup_steps:
      return ''
    return (
      f'warm-up    {self.optimizer.warmup_steps} steps, a tenth of train.steps '
      f'{self.train.steps}: optimizer.warmup_steps {asked} would leave none '
      'for the decay'
    )

  @property
  def hash(self) -> str:
    """The `config_hash` of the configuration."""
    return config_hash(self.resolved)

  def differing(self, kept: Mapping[str, Any]) -> list[str]:
    """Names keys whose value in a kept configuration gives other numbers."""
    before, now = read(kept), read(self.resolved)
    return [
      f'{key}: {before.get(key, "not read")} there, '
      f'{now.get(key, "not read")} here'
      for key in sorted((before.keys() | now.keys()) - {'hash'})
      if before.get(key) != now.get(key)
    ]

  @property
  def trains_adapters(self) -> bool:
    """Whether adapters train."""
    return self.optimizer.trainable == 'lora'

  @classmethod
  def from_config(cls, config: ConfigDict) -> 'Settings':
    """Checks and freezes a configuration; ConfigError names key and value."""
    return cls.from_resolved(json.loads(config.to_json()))

  @classmethod
  def from_resolved(cls, resolved: dict[str, Any]) -> 'Settings':
    """Does the same for plain values, as a run folder keeps them.

    Groups that the run does not read are checked, and then None.
    """
    if found := fault(resolved, {'seed': int, **_GROUPS}):
      raise ConfigError(f'config: {found}')
    check_numbers('', resolved)
    if resolved['seed'] < 0:
      raise ConfigError(f'seed must be >= 0, got {resolved["seed"]}')
    train = TrainSettings(**resolved['train'])
    optimizer = OptimizerConfig(**resolved['optimizer'])
    if optimizer.warmup_steps >= train.steps:
      optimizer = dataclasses.replace(optimizer, warmup_steps=train.steps // 10)
    return cls(
      seed=resolved['seed'],
      model=ModelSettings.from_config(
        resolved['model'], _unread(_defaults() | flatten(resolved))
      ),
      data=DataSettings(**resolved['data']),
      loss=LossSettings.from_config(resolved['loss']),
      optimizer=optimizer,
      train=train,
      evaluate=EvaluateSettings(**resolved['evaluate']),
      decode=DecodeSettings(**resolved['decode']),
      mesh=MeshSettings(**resolved['mesh']),
      resolved=resolved,
    )


def defaults() -> dict[str, Any]:
  """Returns every key's default, in groups; a loss's own keys are a group."""
  made = {name: dataclasses.asdict(group()) for name, group in _GROUPS.items()}
  return {'seed': 0, **made, 'loss': made['loss'] | made['loss'].pop('rivals')}


class Key(NamedTuple):
  """A key of a configuration: its dotted name, default and meaning."""

  name: str
  default: Any
  meaning: str


def keys() -> Iterator[Key]:
  """Yields every key; one without a comment shares the one above."""
  yield from _keys(Settings, '', {'seed': 0})
  for name, group in _GROUPS.items():
    yield from _keys(group, f'{name}.', dataclasses.asdict(group()))


def _keys(group: type, prefix: str, values: Mapping[str, Any]) -> Iterator[Key]:
  comment, fresh = '', True
  types = {field.name: field.type for field in dataclasses.fields(group)}
  for line in map(str.strip, inspect.getsource(group).splitlines()):
    name = line.partition(':')[0]
    if line.startswith('# '):
      comment = line[2:] if fresh else f'{comment} {line[2:]}'
      fresh = False
    elif name.isidentifier() and name in values:
      fresh = True
      kind = next(iter(get_args(types[name])), types[name])
      if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield from _keys(kind, f'{prefix}{name}.', values[name])
        continue
      # Groups of losses stand beside the keys of `loss`.
      found = values[name] if name == 'rivals' else {name: values[name]}
      for key, default in flatten(found).items():
        yield Key(prefix + key, default, comment)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens a nested configuration to {'loss.alpha': 0.5, ...}."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


@functools.cache
def _defaults() -> dict[str, Any]:
  """Returns the default of every key, except those of a user's own losses."""
  groups = defaults()
  loss = {
    name: value for name, value in groups['loss'].items()
    if not isinstance(value, dict) or not loss_settings.is_counted_whole(name)
  }  # fmt: skip
  return flatten({**groups, 'loss': loss})


def read(config: Mapping[str, Any]) -> dict[str, Any]:
  """Flattens the keys that can change a result; missing ones get defaults.

  Power-Law Decay Loss at alpha 0 is cross-entropy, and counts as it.
  """
  flat = _defaults() | flatten(config)
  # A stored table also decides which tokens are rare in the results.
  if (
    flat['loss.name'] == 'power_law'
    and flat['loss.alpha'] == 0
    and not flat['loss.frequency_table']
  ):
    flat['loss.name'] = 'cross_entropy'
  return _counted(flat)


def _counted(flat: Mapping[str, Any]) -> dict[str, Any]:
  left_out = _unread(flat) | {*_SILENT}
  return {key: value for key, value in flat.items() if key not in left_out}


def numbers(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the keys of `read` that are not at their defaults.

  Two configurations with equal `numbers` are one run.
  """
  default, none = _defaults(), object()
  return {k: v for k, v in read(config).items() if v != default.get(k, none)}


def unread(config: Mapping[str, Any], overrides: Iterable[str]) -> list[str]:
  """Lists overrides (dotted keys) that change nothing, as KEY=VALUE."""
  flat = flatten(config)
  ignored = _unread(flat)
  return [
    f'{key}={flat[key]}'
    for key in sorted(overrides)
    if key in ignored and flat[key] != _defaults().get(key)
  ]


def _unread(flat: Mapping[str, Any]) -> set[str]:
  """Names keys that the chosen loss, model and trainable part do not read."""
  found = loss_settings.unread(flat) | model_settings.unread(flat)
  if flat['optimizer.trainable'] != 'last_layers':
    found.add('optimizer.last_layers')
  found |= {f'optimizer.{x}' for x in rules.unread(flat['optimizer.name'])}
  # A head that is the input embedding has no learning rate of its own.
  head, pretrained = flat.get('model.head'), flat['model.pretrained']
  if not (head != 'tied' if head else pretrained.startswith('run:')):
    found.add('optimizer.head_lr_multiplier')
  return found


def config_hash(config: Mapping[str, Any]) -> str:
  """Hashes everything that changes numbers to 8 hex digits."""
  text = json.dumps(numbers(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_id(config: Mapping[str, Any], overrides: Iterable[str]) -> str:
  """Names a run by the overrides (dotted keys) that change its numbers."""
  counted = _counted(flatten(config))
  changed = [
    f'{key.rsplit(".", 1)[-1]}={counted[key]}'
    for key in sorted(overrides)
    if key in counted
  ]
  return ','.join(changed).replace('/', '_')[:80] or 'default'
