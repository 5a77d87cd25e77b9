"""Adapters in the format of PEFT: adapter_config.json and one safetensors file.

An adapted layer has lora_A.weight, [r, in], and lora_B.weight, [out, r], even
where the layer's matrix is [in, out] (GPT-2).
"""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.model import lora
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.lora import LoRAConfig
from pdl_jax.pretrained import layout, safetensors
from pdl_jax.pretrained.fields import Fields, read_object
from pdl_jax.pretrained.hf_write import write_json
from pdl_jax.pretrained.layout import OUTPUT, Shape, Slot
from pdl_jax.pretrained.safetensors import listed

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
_ROOT = 'base_model.model.'
# Keys that change no function: of training, of an adapter's place (its tensors
# tell it), of layers that do not occur here, and of initialisation.
_HARMLESS = (
  'auto_mapping', 'corda_config', 'eva_config', 'exclude_modules',
  'fan_in_fan_out', 'inference_mode', 'layers_pattern', 'loftq_config',
  'lora_dropout', 'lora_ga_config', 'megatron_core', 'peft_version',
  'qalora_group_size', 'revision', 'runtime_config', 'target_modules',
  'task_type',
)  # fmt: skip
# Other initialisations may have changed the base weights. PEFT subtracts the
# initial product when it opens such an adapter, or cannot.
_STARTS = (None, True, False, 'gaussian', 'eva', 'orthogonal')
# Beside an adapter of the head, PEFT saves a copy of the head.
_COPY = _ROOT + OUTPUT.replace('.weight', '.base_layer.weight')
_MERGE = (
  '; merge it with PEFT (merge_and_unload) and give the whole model as '
  'model.pretrained'
)
Params = dict
Pair = tuple[np.ndarray, np.ndarray]
Tensors = Mapping[str, np.ndarray]


class Adapter(NamedTuple):
  """An adapter in the layout of `model.lm`."""

  path: Path
  pairs: dict[layout.Path, Pair]  # A and B, stacked; 0 in unadapted layers
  rank: int
  scale: float  # the factor of the products
  every_layer: bool  # whether all layers are adapted
  base: str  # name or path of the base model, or ''
  head_VxD: np.ndarray | None = None  # a copy of the base model's head

  def check_head(self, params: Params) -> None:
    """Refuses an adapter whose base has another output head."""
    if self.head_VxD is None:
      return
    has = params['head'][lora.MATRIX]
    if not jnp.array_equal(has, jnp.asarray(self.head_VxD, has.dtype)):
      raise DataError(
        f'{self.path / TENSORS}: {_COPY} is not the output head of the '
        'model; the adapter is of another one'
      )

  def check(self, asked: LoRAConfig) -> None:
    """Refuses to continue training with other LoRA settings."""
    if self.scale <= 0 or not self.every_layer:
      where = '' if self.every_layer else ', in some of the layers'
      raise ConfigError(
        f'model.adapter {self.path} has the factor {self.scale}{where}; only '
        'one with a factor > 0, in all layers, is trained on. With another '
        'optimizer.trainable it is added to the weights'
      )
    has = {_target(path) for path in self.pairs}
    same = has == set(asked.targets) and self.rank == asked.rank
    if not same or abs(self.scale - asked.scale) > 1e-6:
      targets = [name for name in lora.TARGETS if name in has]
      raise ConfigError(
        f'model.adapter {self.path} is not what model.lora says; to train it '
        f'on give --config.model.lora.rank={self.rank} '
        f'--config.model.lora.alpha={self.scale * self.rank:g} '
        f'--config.model.lora.targets={",".join(targets)}'
      )


def read(path: Path, config: ModelConfig) -> Adapter:
  """Opens the adapter of a model of a family that transformers has."""
  fields = _config(path)
  rank, scale = fields.count('r'), _scale(fields)
  every_layer = fields.get('layers_to_transform', []) == []
  base = str(fields.get('base_model_name_or_path', ''))
  fields.finish()
  # Older versions of PEFT put the adapter's name into tensor names.
  tensors = {
    _ROOT + name.removeprefix(_ROOT).replace('.default.weight', '.weight'): x
    for name, x in safetensors.open_file(path / TENSORS).items()
  }
  head_VxD = None
  if config.head.kind == 'dense':
    head_VxD = tensors.pop(_COPY, None)
  found = _adapted(path, config, tensors)
  if every_layer:
    found = {slot: range(len(slot.names)) for slot in found}
  _check(path, tensors, found, rank)
  return Adapter(
    path,
    {slot.path: _pair(slot, i, tensors, rank) for slot, i in found.items()},
    rank,
    scale,
    all(len(layers) == len(slot.names) for slot, layers in found.items()),
    base,
    head_VxD,
  )


def insert(adapter: Adapter, params: Params) -> Params:
  """Puts the adapter's parameters beside the matrices of a model."""
  made = jax.tree.map(lambda x: x, params)  # New dicts, the same arrays.
  for (*way, name), pair in adapter.pairs.items():
    names = lora.names(str(name))
    layout.at(made, way).update(zip(names, pair, strict=True))
  return made


def add(adapter: Adapter, params: Params) -> Params:
  """Adds the adapter to the matrices of a model."""
  pairs = {
    path: (a, b * adapter.scale) for path, (a, b) in adapter.pairs.items()
  }
  params = insert(adapter._replace(pairs=pairs), params)
  unit = LoRAConfig(1, alpha=1.0, targets=lora.TARGETS)
  # Compiled, so that a product is sharded like its matrix.
  return jax.jit(partial(lora.merged, unit))(params)


def write(folder: Path, config: ModelConfig, params: Params, base: str) -> None:
  """Writes the adapters in host `params`; `base` names their base model."""
  c, made, targets = config.lora, {}, set()
  for slot in _slots(config):
    if not c.adapts(_target(slot.path)):
      continue
    if slot.place.parts > 1:
      raise ConfigError(
        '--adapter: GPT-2 has query, key and value in one matrix, and PEFT one '
        'adapter for it; without --adapter the whole model is written'
      )
    *way, name = slot.path
    of_layers = (slot._replace(path=(*way, x)).layers(params)
                 for x in lora.names(str(name)))  # fmt: skip
    for matrix, a, b in zip(slot.names, *of_layers, strict=True):
      sides = a.reshape(-1, c.rank), b.reshape(c.rank, -1)
      for half, x in zip(_halves(matrix), sides, strict=True):
        made[half] = np.ascontiguousarray(np.asarray(x).T)
    targets.add(_short(slot.names[0], config))
  values = {
    'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'auto_mapping': None,
    'base_model_name_or_path': base, 'revision': None, 'inference_mode': True,
    'r': c.rank, 'lora_alpha': c.alpha, 'lora_dropout': c.dropout,
    'target_modules': sorted(targets), 'bias': 'none', 'use_rslora': False,
    'use_dora': False, 'init_lora_weights': True, 'modules_to_save': None,
    'fan_in_fan_out': config.learned_positions, 'layers_to_transform': None,
    'layers_pattern': None, 'rank_pattern': {}, 'alpha_pattern': {},
  }  # fmt: skip
  safetensors.write_file(folder / TENSORS, made)
  write_json(folder / CONFIG, values)


def _config(path: Path) -> Fields:
  if not os.path.isfile(path / CONFIG):
    raise DataError(f'model.adapter: there is no {path / CONFIG}')
  if not os.path.isfile(path / TENSORS):
    raise DataError(
      f'model.adapter: there is no {path / TENSORS}; pickles (.bin) run code '
      'when they are opened, and are not read: save it as safetensors '
      '(save_pretrained does)'
    )
  where = str(path / CONFIG)
  fields = Fields(read_object(path / CONFIG), where, _MERGE)
  fields.ignore(*_HARMLESS)
  fields.need('peft_type')
  fields.expect('peft_type', 'LORA')
  fields.expect('bias', 'none')
  start = fields.get('init_lora_weights')
  if start not in _STARTS:
    raise fields.refusal(
      'init_lora_weights', start, 'it changes the base weights'
    )
  return fields


def _scale(fields: Fields) -> float:
  rank, alpha = fields.count('r'), fields.need('lora_alpha')
  if type(alpha) not in (int, float) or not math.isfinite(alpha):
    raise fields.refusal('lora_alpha', alpha, 'it is no number')
  return alpha / (rank**0.5 if fields.flag('use_rslora', False) else rank)


def _slots(config: ModelConfig) -> list[Slot]:
  return [
    slot
    for slot in layout.slots(config)
    if slot.place.inputs and _target(slot.path) in lora.TARGETS
  ]


def _target(path: layout.Path) -> str:
  return lora.HEAD if path[0] == 'head' else str(path[-1])


def _halves(matrix: str) -> tuple[str, str]:
  start = _ROOT + matrix.removesuffix('.weight')
  return f'{start}.lora_A.weight', f'{start}.lora_B.weight'


def _short(matrix: str, config: ModelConfig) -> str:
  """Returns PEFT's name of a layer in every block: its last words."""
  # GPT-2 has two c_proj in a block.
  words = 2 if config.learned_positions else 1
  return '.'.join(matrix.removesuffix('.weight').split('.')[-words:])


def _sides(slot: Slot) -> tuple[Shape, Shape]:
  shape, inputs = slot.layer_shape, slot.place.inputs
  first, second = shape[:inputs], shape[inputs:]
  # The rows of a head are outputs.
  return (second, first) if slot.path[0] == 'head' else (first, second)


def _adapted(
  path: Path, config: ModelConfig, tensors: Tensors
) -> dict[Slot, Sequence[int]]:
  """Finds the layers of each matrix that have an adapter, or half of one."""
  found: dict[Slot, Sequence[int]] = {}
  for slot in _slots(config):
    layers = [
      i for i, name in enumerate(slot.names)
      if tensors.keys() & set(_halves(name))
    ]  # fmt: skip
    if layers and slot.place.parts > 1:
      raise DataError(
        f'{path / TENSORS}: the adapter of {slot.names[layers[0]]}, in which '
        f'query, key and value lie side by side, is not read{_MERGE}'
      )
    if layers:
      found[slot] = layers
  return found


def _check(
  path: Path, tensors: Tensors, found: dict[Slot, Sequence[int]], rank: int
) -> None:
  where = f'{path / TENSORS} does not fit the model'
  need: dict[str, Shape] = {}
  for slot, layers in found.items():
    into, out = map(math.prod, _sides(slot))
    for i in layers:
      shapes = (rank, into), (out, rank)
      need |= zip(_halves(slot.names[i]), shapes, strict=True)
  layout.check(where, {name: x.shape for name, x in tensors.items()}, need)
  if not need:
    raise DataError(f'{where}: no adapter in it')
  wrong = [
    name for name, x in tensors.items()
    if x.dtype.kind in 'iub' or not np.isfinite(x.astype(np.float32)).all()
  ]  # fmt: skip
  if wrong:
    raise DataError(
      f'{where}: numbers that are not finite floats in {listed(wrong)}'
    )


def _pair(
  slot: Slot, layers: Sequence[int], tensors: Tensors, rank: int
) -> Pair:
  into, out = _sides(slot)
  a = np.zeros((len(slot.names), *into, rank), np.float32)
  b = np.zeros((len(slot.names), rank, *out), np.float32)
  for i in layers:
    of_a, of_b = (tensors[name] for name in _halves(slot.names[i]))
    a[i] = of_a.T.reshape(*into, rank)
    b[i] = of_b.T.reshape(rank, *out)
  return (a, b) if slot.is_stacked else (a[0], b[0])

