"""Writes a finished run as a folder that Hugging Face tools read."""

import contextlib
import dataclasses
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from pdl_jax.config import Settings, read
from pdl_jax.data.pretrained_tokenizer import token_ids, write_tokenizer
from pdl_jax.data.tasks import TASKS
from pdl_jax.errors import ConfigError
from pdl_jax.model import lora
from pdl_jax.model.lora import NO_LORA
from pdl_jax.pretrained import peft
from pdl_jax.pretrained.hf_write import config_values, write_json, write_model
from pdl_jax.run import prepare, restore, summary
from pdl_jax.run.load_model import restored_model, shape, trained_model
from pdl_jax.run.open_model import Model
from pdl_jax.run_folder import RunFolder

_ADAPTER = (
  'This is an adapter in the format of PEFT: it needs the model that it '
  'started from, base_model_name_or_path in adapter_config.json, which may '
  'have to be changed to where you have that.'
)


def run(workdir: Path, folder: Path, adapter_alone: bool = False) -> None:
  """Writes the model that a run ended with, its tokenizer and a model card.

  Args:
    folder: is made; must not hold anything yet.
    adapter_alone: write only the trained adapter, in PEFT's format, instead of
      the model with the adapter merged.
  """
  settings, run_folder = restore.open_run('export', workdir)
  if folder.exists() and any(folder.iterdir()):
    raise ConfigError(f'--to: {folder} is not empty; name a new folder')
  # Refuses a model that no family has, before any weight is read.
  values = config_values(dataclasses.replace(shape(settings), lora=NO_LORA))
  if adapter_alone:
    _check_adapter(settings, workdir)
  source = prepare.load_source(settings, 'train')
  load = restored_model if adapter_alone else trained_model
  model = load(settings, run_folder, settings, source)
  own = lora.adapters(model.params) if adapter_alone else {}
  adapters = multihost_utils.process_allgather(own, tiled=True) if own else {}
  if jax.process_index() != 0:
    return
  with _made_beside(folder) as beside:
    note = _ADAPTER if adapter_alone else ''
    card = model_card(settings, run_folder, model, note)
    (beside / 'README.md').write_text(card, 'utf-8')
    if adapter_alone:
      base = settings.model.pretrained
      peft.write(beside, model.config, adapters, base)
      told = f'adapter of {base}: {folder}\n{_ADAPTER}'
    else:
      _write_model(settings, model, beside)
      told = f'{values["model_type"]} model: {folder}'
  print(told)


@contextlib.contextmanager
def _made_beside(folder: Path) -> Iterator[Path]:
  """Yields a folder that gets its name once whole; errors leave none."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    dir=folder.parent, prefix=f'{folder.name}.', suffix='.partial'
  ) as beside:
    made = Path(beside) / folder.name
    made.mkdir()
    yield made
    made.replace(folder.resolve())


def _write_model(settings: Settings, model: Model, folder: Path) -> None:
  values = config_values(model.config) | token_ids(model.tokenizer)
  is_chat = not TASKS[settings.data.task].documents
  write_tokenizer(folder, model.tokenizer, is_chat)
  write_json(folder / 'generation_config.json', {
    **token_ids(model.tokenizer), 'do_sample': False,
    'max_new_tokens':
      settings.decode.max_new_tokens or settings.data.max_target,
  })  # fmt: skip
  write_model(folder, model.config, model.params, values)


def _check_adapter(settings: Settings, workdir: Path) -> None:
  if not settings.trains_adapters:
    raise ConfigError(
      f'--adapter: the run in {workdir} trained no adapter '
      f'(optimizer.trainable {settings.optimizer.trainable}); without it the '
      'whole model is written'
    )
  if not settings.model.pretrained:
    raise ConfigError(
      f'--adapter: the run in {workdir} began from random weights, '
      'which no other tool has; without it the whole model is written'
    )


def model_card(
  settings: Settings, folder: RunFolder, model: Model, note: str = ''
) -> str:
  """Formats README.md: the model, its results, and the command behind them."""
  results = folder.read('results.json')
  environment = folder.read('env.json', {'commit': str | None})
  asked = read(settings.resolved)
  flags = ' \\\n  '.join(
    f'--config.{key}={shlex.quote(str(value))}'
    for key, value in sorted(asked.items())
  )
  task = settings.data.task
  note = f'{note}\n\n' if note else ''
  return (
    f'# {model.name}\n\n'
    f'Started from {settings.model.pretrained or "random weights"}, trained on '
    f'{settings.data.name} ({task}) for {settings.train.steps} steps with '
    f'{summary.loss_name(settings.loss)}, by pdl_jax.\n\n{note}'
    f'## Results on {results["split"]}\n\n{summary.tables(results)}\n\n'
    '## How to reproduce them\n\n'
    f'With pdl_jax at commit {environment["commit"]}; the hash of the '
    f'configuration is {settings.hash}.\n\n'
    f'```\npython launch.py --config=configs/{task}.py \\\n  {flags}\n```\n'
  )
