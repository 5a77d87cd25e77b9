"""The main job: evaluate, fine-tune, evaluate again, and say what changed."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdl_jax import (
  frequency,
  optimizer,
  sharding,
  state,
  summary,
  weighting,
)
from pdl_jax.checkpoint import Checkpointer
from pdl_jax.data import pipeline, sources
from pdl_jax.data.pipeline import Examples, Survey
from pdl_jax.data.tasks import TASKS
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate import run as evaluation
from pdl_jax.evaluate.predict import Predictor
from pdl_jax.frequency import FrequencyTable
from pdl_jax.losses import LOSSES, LossTables
from pdl_jax.model import api
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.optimizer import merge
from pdl_jax.records import RunFolder, environment
from pdl_jax.settings import Settings
from pdl_jax.state import TrainState
from pdl_jax.step import StepConfig, train_step
from pdl_jax.train import Loop, StopRequest
from pdl_jax.weighting import Frequencies

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


def run(settings: Settings, workdir: Path, stop: StopRequest) -> None:
  """The whole job in a run folder; picks up where an earlier call stopped.

  Raises:
    PdlError: with one line that says what to do; status.json has it too.
  """
  weighting.make_loss(settings.loss)  # Refuses before the folder is opened.
  mesh = sharding.make_mesh(settings.mesh)
  sharding.check_batch(
    mesh,
    'train.batch_size',
    settings.train.batch_size,
    settings.optimizer.accumulation,
  )
  sharding.check_batch(
    mesh, 'evaluate.batch_size', settings.evaluate.batch_size, 1
  )
  folder = RunFolder(workdir, settings.resolved)
  if folder.finished:
    print(f'{workdir} is finished; its table again:\n')
    summary.print_results(folder.read('results.json'))
    return
  folder.write('env.json', environment(mesh.shape))
  folder.write_status('starting', 0)
  with jax.set_mesh(mesh):
    results = _run(settings, mesh, folder, stop)
  folder.write_text('table.md', summary.tables(results))
  folder.write('results.json', results)
  folder.write_status('finished', settings.train.steps)
  summary.print_results(results)
  print(f'\nrun folder: {workdir}')


def _run(
  settings: Settings, mesh: Mesh, folder: RunFolder, stop: StopRequest
) -> dict[str, Any]:
  began = time.monotonic()
  task, lengths = TASKS[settings.data.task], settings.data.lengths
  load = partial(
    sources.load, settings.data.name, data_dir=settings.data.data_dir or None
  )
  train_source = load('train')
  model = _load_model(settings, folder, train_source)
  print(f'model      {model.name}: {_count(model.params):,} parameters')
  state.check_layers(settings.optimizer, model.config)
  if lengths.sequence > model.config.context:
    raise ConfigError(
      f'data.max_prompt {lengths.prompt} and data.max_target {lengths.target} '
      f'make {lengths.sequence} tokens, the context of {model.name} is '
      f'{model.config.context}'
    )

  def open_split(source: sources.Source, limit: int) -> tuple[Examples, Survey]:
    seen = pipeline.survey(source, task, model.tokenizer, lengths)
    print(f'{source.split:10s} {seen.describe()}')
    usable = seen.usable[:limit] if limit else seen.usable
    return Examples(source, usable, task, model.tokenizer, lengths), seen

  train, seen = open_split(train_source, settings.data.train_limit)
  validation, _ = open_split(load('validation'), 0)
  held_out, _ = open_split(load(settings.evaluate.split), 0)
  frequencies = _frequencies(settings, folder, train_source, model, seen)
  table, specials = frequencies.task, model.tokenizer.special_ids
  tables = weighting.make_tables(settings.loss, frequencies, specials)
  weights_V = tables.weights_V
  used = frequencies.used.fingerprint[:8]
  print(f'loss       {summary.loss_name(settings.loss)} (table {used})')
  if LOSSES[settings.loss.name].weights is not None:
    print(weighting.describe(weights_V, table, model.tokenizer))
  _, labels = train.prompt_and_target(0)
  print(weighting.check_alpha_zero(table, np.asarray(labels)))

  tilt, bias_V = settings.evaluate.tilt, None
  tilted = f' tilt={tilt:g}' if tilt else ''
  if tilt:
    bias_V = weighting.tilt_bias(table.counts_V, tilt, specials)
  predictor = Predictor(
    model.config, mesh, model.tokenizer, settings.evaluate.batch_size, tilt,
    bias_V,
  )  # fmt: skip
  chosen = pipeline.sample(held_out, settings.evaluate.examples)
  watched = pipeline.sample(validation, settings.evaluate.validation_examples)

  def evaluate(name: str, current: TrainState) -> list[dict[str, Any]]:
    records = predictor.predict(
      _params(current), held_out, chosen, lambda: stop.check('evaluating')
    )
    folder.write_predictions(name, records)
    return records

  def validate(current: TrainState) -> float:
    losses = predictor.nll(
      _params(current), validation, watched, lambda: None
    )
    return float(np.concatenate(losses).mean())

  step_config = _step_config(settings, model.config)
  at_step = weighting.schedule(settings.loss, frequencies, specials)
  start = state.create(
    model.params, model.config, settings.optimizer, step_config.optimizer, mesh
  )
  before = folder.predictions('before')
  if before is None:
    print('\nbefore fine-tuning: scoring and generating')
    before = evaluate('before', start)
  trained = _train(
    settings, mesh, folder, stop, train, step_config, start,
    _step(step_config, at_step, tables), validate,
  )  # fmt: skip
  print('\nafter fine-tuning: scoring and generating')
  after = evaluate('after', trained)
  score = partial(
    evaluation.evaluate,
    counts_V=table.counts_V,
    neutral_ids=model.tokenizer.special_ids,
  )
  return {
    'columns': {
      model.name + tilted: score(before),
      summary.loss_name(settings.loss) + tilted: score(after),
    },
    'loss': summary.loss_record(settings.loss, frequencies, tables),
    'examples': summary.shown(before, after),
    'split': f'{settings.data.name}/{settings.evaluate.split}',
    'seed': settings.seed,
    'steps': settings.train.steps,
    'tilt': tilt,
    'skipped_steps': int(trained.skipped),
    'seconds_this_call': round(time.monotonic() - began, 1),
  }


def _load_model(
  settings: Settings, folder: RunFolder, source: sources.Source
) -> Model:
  options = settings.model
  if options.pretrained:
    file = GGUFModel(find_package_file(options.pretrained))
    return Model(
      file.fields['general.basename'],
      file.config(options.dtype, options.remat),
      file.params(),
      Tokenizer.from_gguf(file),
    )
  tokenizer = _train_tokenizer(settings, folder, source)
  config = ModelConfig(
    vocab_size=tokenizer.vocab_size,
    width=options.width,
    layers=options.layers,
    heads=options.heads,
    kv_heads=options.kv_heads,
    head_dim=options.head_dim,
    mlp=options.mlp,
    context=settings.data.lengths.sequence,
    dtype=options.dtype,
    remat=options.remat,
  )
  key = jax.random.key(settings.seed)
  params = jax.jit(partial(api.init, config))(key)
  return Model('untrained', config, params, tokenizer)


def _train_tokenizer(
  settings: Settings, folder: RunFolder, source: sources.Source
) -> Tokenizer:
  path = folder.path / 'tokenizer.json'
  if not path.exists():
    task = TASKS[settings.data.task]
    records = (source[i] for i in range(min(len(source), _BPE_RECORDS)))
    texts = (r[field] for r in records for field in (task.source, task.target))
    name = f'bpe-{settings.data.name}'
    trained = Tokenizer.train(texts, settings.model.vocab_size, name)
    folder.write_text(path.name, trained.definition)
  return Tokenizer.load(path)


def _frequencies(
  settings: Settings,
  folder: RunFolder,
  source: sources.Source,
  model: Model,
  seen: Survey,
) -> Frequencies:
  """Counted or stored, mixed, or by words; the run folder keeps the task's."""
  tokenizer, loss = model.tokenizer, settings.loss
  stored = partial(
    frequency.load,
    tokenizer=tokenizer.fingerprint,
    tokenizer_name=tokenizer.name,
    vocab_size=model.config.vocab_size,
  )
  if loss.frequency_table:
    table = stored(Path(loss.frequency_table))
  else:
    table = FrequencyTable(
      seen.counts_V,
      tokenizer.fingerprint,
      tokenizer.name,
      source.fingerprint,
      source.name,
      source.split,
    )
    table.save(folder.path / 'frequency.npz')
  used, words_V = table, None
  if loss.general_table:
    general = stored(Path(loss.general_table))
    used = frequency.mix(table, general, loss.general_share)
  if loss.name == 'power_law' and loss.level == 'word':
    task = TASKS[settings.data.task]
    targets = pipeline.target_texts(source, task, seen)
    words = (w for texts in targets for w in tokenizer.encode_words(texts))
    words_V = frequency.word_level(words, model.config.vocab_size)
  return Frequencies(table, used, words_V)


def _step(
  config: StepConfig,
  at_step: Callable[[LossTables, Array], LossTables] | None,
  tables: LossTables,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict]]:
  """The compiled step; under a schedule its tables follow the step."""

  def one(current: TrainState, batch: dict, tables: LossTables) -> tuple:
    if at_step is not None:
      tables = at_step(tables, current.step)
    return train_step(config, current, batch, tables)

  compiled = jax.jit(one, donate_argnums=0)
  return lambda current, batch: compiled(current, batch, tables)


def _step_config(settings: Settings, model: ModelConfig) -> StepConfig:
  steps = settings.train.steps
  return StepConfig(
    model=model,
    optimizer=optimizer.make_optimizer(settings.optimizer, steps),
    schedule=optimizer.make_schedule(settings.optimizer, steps),
    loss=weighting.make_loss(settings.loss),
    accumulation=settings.optimizer.accumulation,
  )


def _train(
  settings: Settings,
  mesh: Mesh,
  folder: RunFolder,
  stop: StopRequest,
  examples: Examples,
  step_config: StepConfig,
  start: TrainState,
  step: Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict]],
  validate: Callable[[TrainState], float],
) -> TrainState:
  batches = pipeline.train_iterator(
    examples,
    settings.train.batch_size,
    settings.seed,
    jax.process_index(),
    jax.process_count(),
  )
  with Checkpointer(
    folder.path, keep=settings.train.keep_checkpoints, best='validation_nats'
  ) as checkpoints:
    restored = checkpoints.restore_latest(_abstract(start), batches)
    if restored is not None:
      number, start, _ = restored
      for line in checkpoints.damaged:
        print(line)
      print(f'resumed from step {number}')
    loop = Loop(
      settings=settings.train,
      mesh=mesh,
      step=step,
      validate=validate,
      batches=batches,
      checkpoints=checkpoints,
      folder=folder,
      stop=stop,
    )
    return loop.run(start)


def _abstract(tree: Tree) -> Tree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def _params(current: TrainState) -> Tree:
  return api.join_blocks(merge(current.trained, current.frozen))


def _count(params: Tree) -> int:
  return sum(x.size for x in jax.tree.leaves(params))
