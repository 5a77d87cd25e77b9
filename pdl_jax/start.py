"""The model that a run starts from, with its tokenizer."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from pdl_jax import finished, optimizer, sharding, state
from pdl_jax.data.sources import Source
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.model import api
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.records import RunFolder
from pdl_jax.settings import Settings

# Texts that the tokenizer of a model from scratch is trained on.
_BPE_RECORDS = 4000
Tree = Any


@dataclasses.dataclass(frozen=True)
class Model:
  """A model before fine-tuning, on the host, with its tokenizer."""

  name: str
  config: ModelConfig
  params: Tree
  tokenizer: Tokenizer


def load_model(
  settings: Settings, folder: RunFolder | None, source: Source
) -> Model:
  """The pretrained model, that of a run, or one with its own tokenizer."""
  options = settings.model
  kind, _, place = options.pretrained.partition(':')
  if kind == 'run':
    return _trained_model(settings, Path(place), source)
  if options.pretrained:
    file = GGUFModel(find_package_file(options.pretrained))
    return Model(
      file.fields['general.basename'],
      file.config(options.dtype, options.remat),
      file.params(),
      Tokenizer.from_gguf(file),
    )
  tokenizer = _own_tokenizer(settings, folder, source)
  new = max(settings.data.max_target, settings.decode.max_new_tokens)
  config = ModelConfig(
    vocab_size=tokenizer.vocab_size,
    width=options.width,
    layers=options.layers,
    heads=options.heads,
    kv_heads=options.kv_heads,
    head_dim=options.head_dim,
    mlp=options.mlp,
    context=settings.data.max_prompt + new - 1,
    dtype=options.dtype,
    remat=options.remat,
  )
  key = jax.random.key(settings.seed)
  params = jax.jit(partial(api.init, config))(key)
  return Model('untrained', config, params, tokenizer)


def _trained_model(settings: Settings, run: Path, source: Source) -> Model:
  """What a finished run ended with, on the host of every process."""
  before, folder = finished.open_run('model.pretrained', run)
  model = load_model(before, folder, source)
  start = state.create(
    model.params, model.config, before.optimizer,
    optimizer.make_optimizer(before.optimizer, before.train.steps),
    sharding.make_mesh(settings.mesh),
  )  # fmt: skip
  params = finished.params_of(finished.restore(before, folder, start))
  options = settings.model
  return Model(
    run.name,
    dataclasses.replace(
      model.config, dtype=options.dtype, remat=options.remat
    ),
    multihost_utils.process_allgather(params, tiled=True),
    model.tokenizer,
  )


def _own_tokenizer(
  settings: Settings, folder: RunFolder | None, source: Source
) -> Tokenizer:
  name = f'bpe-{settings.data.name}'
  if folder is not None and (folder.path / 'tokenizer.json').exists():
    return Tokenizer.load(folder.path / 'tokenizer.json', name)
  records = (source[i] for i in range(min(len(source), _BPE_RECORDS)))
  texts = (record[part] for record in records for part in ('source', 'target'))
  trained = Tokenizer.train(texts, settings.model.vocab_size, name)
  if folder is not None:
    folder.write_text('tokenizer.json', trained.definition)
  return trained
