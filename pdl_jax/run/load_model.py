"""The model that a run starts from, with its tokenizer."""

import dataclasses
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pdl_jax.config import Settings
from pdl_jax.data.sources import Source
from pdl_jax.errors import ConfigError, DataError, printable
from pdl_jax.losses.heads import AdaptiveHead
from pdl_jax.model import kernels, lm
from pdl_jax.model.config import AttentionConfig, ModelConfig
from pdl_jax.model.fingerprint import Fingerprint, fingerprint
from pdl_jax.model.lora import NO_LORA, LoRAConfig
from pdl_jax.model.positions import KINDS
from pdl_jax.pretrained import peft
from pdl_jax.run import open_model, restore
from pdl_jax.run.open_model import Model, Start
from pdl_jax.run_folder import RunFolder

# File in the run folder with a pretrained model's logits of fixed tokens.
FINGERPRINT = 'model.json'
# More bytes than any machine has: a dry run may be for another machine.
_ANY_ROOM = 8 * 10**12


def load_model(
  settings: Settings, folder: RunFolder | None, source: Source
) -> Model:
  """Reads the model that model.pretrained names, or makes one from scratch.

  It has the head, the attention and the adapters that are asked for.
  """
  options, key = settings.model, jax.random.key(settings.seed)
  model = _start(settings).model(folder, source)
  if options.adapter:
    model = _with_adapter(settings, model)
  if open_model.is_path(options.pretrained) or options.adapter:
    _check_fingerprint(folder, model)
  if options.output is not None and model.config.head != options.output:
    rows_VxD, bias_V = _output_rows(model)
    config = dataclasses.replace(model.config, head=options.output)
    made = lm.with_head(config, model.params, key)
    model = dataclasses.replace(
      model, config=config, params=made, outputs_VxD=rows_VxD, bias_V=bias_V,
      head_is_new=True,
    )  # fmt: skip
  config = _extended(settings, model.config, model.name)
  if config != model.config:
    params = lm.extended(config, model.params, key)
    model = dataclasses.replace(model, config=config, params=params)
  config = kernels.for_rows(model.config, settings.packs)
  return dataclasses.replace(model, config=config)


def outline(settings: Settings, source: Source) -> Model:
  """Returns `load_model` with shapes in the place of weights, if it can."""
  start = _start(settings)
  if start.outline is None:
    return load_model(settings, None, source)
  model = start.outline(source)
  config = kernels.for_rows(_shape(settings, model.config), settings.packs)
  shapes = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
  return dataclasses.replace(model, config=config, params=shapes)


def shape(settings: Settings, room: int = _ANY_ROOM) -> ModelConfig:
  """Returns the shape of `load_model`'s model without reading weights or data.

  Refuses parameters of more than `room` bytes, see `machine_bytes`.
  """
  options, found = settings.model, _start(settings).config
  _check_room(found, options.pretrained, room)
  return _shape(settings, found)


def _shape(settings: Settings, found: ModelConfig) -> ModelConfig:
  options = settings.model
  if options.adapter:
    adapter = peft.read(Path(options.adapter), found)
    if settings.trains_adapters:
      adapter.check(_lora(settings, found))
  head = options.output or found.head
  config = _extended(settings, found, options.pretrained)
  return dataclasses.replace(config, head=head)


def _start(settings: Settings) -> Start:
  kind, _, place = settings.model.pretrained.partition(':')
  if kind != 'run':
    return open_model.start(settings)
  run = restore.open_run('model.pretrained', Path(place))
  return Start(
    _as_restored(settings, shape(run[0])),
    lambda _, source: trained_model(*run, settings, source),
  )


def trained_model(
  before: Settings, folder: RunFolder, settings: Settings, source: Source
) -> Model:
  """Returns a finished run's model, in fp32 on every host, adapters merged."""
  model = restored_model(before, folder, settings, source)
  config, params = lm.without_adapters(model.config, model.params)
  whole = multihost_utils.process_allgather(params, tiled=True)
  # Products of adapters are computed.
  same = config == model.config
  return dataclasses.replace(
    model, config=config, params=whole, from_files=same
  )


def restored_model(
  before: Settings, folder: RunFolder, settings: Settings, source: Source
) -> Model:
  """Returns a finished run's model on the mesh.

  Args:
    before: the run's settings.
    settings: the new ones, which set dtype, remat and mesh.
    source: training data, for a tokenizer that the run has not kept.
  """
  model = load_model(before, folder, source)
  start = restore.start_state(
    before, model.config, model.params, settings.mesh.make()
  )
  current = restore.restore(before, folder, start)
  params = restore.params_of(model.config, current)
  config = _as_restored(settings, model.config)
  return Model(folder.path.name, config, params, model.tokenizer)


def _as_restored(settings: Settings, config: ModelConfig) -> ModelConfig:
  """Sets the precision asked for; learned codes stay as they are."""
  head = dataclasses.replace(config.head, learned=False)
  return dataclasses.replace(config, **settings.model.precision, head=head)


def _with_adapter(settings: Settings, model: Model) -> Model:
  """Reads an adapter, either to train it further or to merge it."""
  adapter = peft.read(Path(settings.model.adapter), model.config)
  adapter.check_head(model.params)
  base = f'made for {adapter.base}, ' if adapter.base else ''
  does = 'trained on' if settings.trains_adapters else 'added to the weights'
  print(printable(
    f'adapter    {adapter.path}, of rank {adapter.rank}, {base}{does}'
  ))  # fmt: skip
  if not settings.trains_adapters:
    params = peft.add(adapter, model.params)
    return dataclasses.replace(model, params=params, from_files=False)
  asked = _lora(settings, model.config)
  adapter.check(asked)
  config = dataclasses.replace(model.config, lora=asked)
  params = peft.insert(adapter, model.params)
  return dataclasses.replace(model, config=config, params=params)


def _output_rows(model: Model) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Returns rows and bias of a trained head, whole on every host."""
  if model.head_is_new:
    return None, None
  head = lm.head(model.config, model.params)
  if isinstance(head, AdaptiveHead):
    return None, None  # No type has a row: another head begins from scratch.
  bias_V = None if head.bias_V is None else _whole(head.bias_V)
  return _whole(head.rows()), bias_V


def _whole(x: Any) -> np.ndarray:
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  return np.asarray(x)


def _extended(settings: Settings, has: ModelConfig, name: str) -> ModelConfig:
  attention = _attention(settings.model.positions, has.attention, name)
  lora = _lora(settings, has)
  return dataclasses.replace(has, attention=attention, lora=lora)


def _lora(settings: Settings, has: ModelConfig) -> LoRAConfig:
  asked = settings.model.lora
  return NO_LORA if asked is None else asked.config(has.gated)


def _attention(
  asked: AttentionConfig | None, has: AttentionConfig, name: str
) -> AttentionConfig:
  """Returns the attention asked for, if it starts as the trained function."""
  if asked is None or asked == has:
    return has
  extensions = [name for name, kind in KINDS.items() if kind.extends_rope]
  if has.kind != 'rope' or asked.kind not in extensions:
    raise ConfigError(
      f'{_unlike(asked, has)}: {name} was trained with '
      f'{_unlike(has, asked)}; only rope can become another, which '
      f'is {" or ".join(extensions)} (leave model.attention empty to keep what '
      'there is)'
    )
  as_rope = asked.begun_as_rope()
  if asked != as_rope:
    raise ConfigError(
      f'{_unlike(asked, as_rope)}: {name} was trained with rope, and is the '
      f'same model with complex only at {_unlike(as_rope, asked)}'
    )
  return asked


def _unlike(one: AttentionConfig, other: AttentionConfig) -> str:
  """Names the keys of `one` that differ, with their values."""
  if one.kind != other.kind:
    return f'model.attention {one.kind}'
  mine, theirs = (dataclasses.asdict(x.complex) for x in (one, other))
  return ', '.join(
    f'model.complex.{key} {value}'
    for key, value in mine.items()
    if value != theirs[key]
  )


def _check_room(config: ModelConfig, pretrained: str, room: int) -> None:
  """Compares sizes by arithmetic, before anything is allocated."""
  sizes = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(sizes))
  needed = count * np.dtype(config.param_dtype).itemsize
  if needed <= room:
    return
  said = (
    f'takes {needed / 1e9:,.0f} GB for its parameters alone; there are at '
    f'most {room / 1e9:,.0f} GB'
  )
  if pretrained:
    raise DataError(
      f'model.pretrained {pretrained} declares a model that {said}'
    )
  raise ConfigError(
    f'a model of model.layers {config.layers}, width {config.width}, heads '
    f'{config.heads} x {config.head_dim}, mlp {config.mlp} and '
    f'{config.vocab_size} tokens {said}'
  )


def machine_bytes() -> int:
  """Returns the memory of all devices, or of all hosts if devices are CPUs."""
  host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  device = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 0)
  return max(host * jax.process_count(), device * jax.device_count())


def _check_fingerprint(folder: RunFolder | None, model: Model) -> None:
  """Prints and keeps the model's fingerprint; DataError if it has changed."""
  plain = dataclasses.replace(
    model.config, dtype='float32', remat=False, attention_impl='xla'
  )
  found = fingerprint(plain, model.params)
  print(
    f'fingerprint {found.digest}: logits of fixed tokens '
    f'{", ".join(f"{x:.4f}" for x in found.logits)}, norm {found.norm:.4f}'
  )
  if folder is None:
    return
  if not (folder.path / FINGERPRINT).exists():
    folder.write(FINGERPRINT, found._asdict())
    return
  kept = folder.read(FINGERPRINT, Fingerprint.__annotations__)
  before = Fingerprint(**{name: kept[name] for name in Fingerprint._fields})
  if not found.near(before):
    raise DataError(
      f'{model.name} has changed since the run in {folder.path}: logits of '
      f'fixed tokens were {before.logits}, now they are {found.logits}'
    )
