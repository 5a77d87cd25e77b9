"""The main job: evaluate, fine-tune, evaluate again, and say what changed."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pdl_jax.config import Settings
from pdl_jax.data import pipeline
from pdl_jax.evaluate.predict import Predictor
from pdl_jax.evaluate.run import evaluate as measure
from pdl_jax.generate import DecodeSettings
from pdl_jax.losses import LossTables, registry, sentinel
from pdl_jax.mesh import batch_share, check_batch, make_mesh
from pdl_jax.model.config import ModelConfig
from pdl_jax.run import fit_head, loss_tables, prepare, summary
from pdl_jax.run.load_model import machine_bytes, shape
from pdl_jax.run.prepare import Setup, Split
from pdl_jax.run.restore import abstract, open_checkpoints, params_of
from pdl_jax.run_folder import RunFolder, claimed, environment
from pdl_jax.train import optimizer, state
from pdl_jax.train.loop import Loop
from pdl_jax.train.preemption import StopRequest
from pdl_jax.train.state import TrainState
from pdl_jax.train.step import StepConfig, train_step

Tree = Any


def run(
  settings: Settings,
  workdir: Path,
  stop: StopRequest,
  inspect: Callable[[Setup], None] | None = None,
) -> None:
  """The whole job in a run folder; picks up where an earlier call stopped.

  Args:
    settings: of the run.
    workdir: its folder.
    stop: asked where it is safe to stop.
    inspect: shown what was read before anything is compiled for it; may raise.

  Raises:
    PdlError: with one line that says what to do; status.json has it too.
  """
  # What refuses does so before the folder is opened.
  loss = loss_tables.make_loss(settings.loss)
  if not os.path.lexists(workdir / 'results.json'):
    shape(settings, machine_bytes())
    print(sentinel.check_backend(loss))
  mesh = mesh_for(settings)
  with claimed(workdir):
    _run_claimed(settings, workdir, mesh, stop, inspect)


def _run_claimed(
  settings: Settings,
  workdir: Path,
  mesh: Mesh,
  stop: StopRequest,
  inspect: Callable[[Setup], None] | None,
) -> None:
  folder = RunFolder(workdir, settings)
  if folder.finished:
    print(f'{workdir} is finished; its table again:\n')
    summary.print_results(folder.read('results.json', summary.SHOWN))
    return
  folder.write(
    'env.json', environment(mesh.shape) | registry.source(settings.loss.name)
  )
  folder.write_status('starting', 0)
  with jax.set_mesh(mesh):
    results = _run(settings, mesh, folder, stop, inspect)
  folder.write_text('table.md', summary.tables(results))
  folder.write('results.json', results)
  folder.write_status('finished', settings.train.steps)
  summary.print_results(results)
  print(f'\nrun folder: {workdir}')


def mesh_for(settings: Settings) -> Mesh:
  """The mesh, over which both kinds of batches must divide."""
  mesh = make_mesh(settings.mesh)
  check_batch(
    mesh,
    'train.batch_size',
    settings.train.batch_size,
    settings.optimizer.grad_accum_steps,
  )
  check_batch(
    mesh, 'evaluate.batch_size', settings.evaluate.batch_size, 1
  )
  return mesh


def _run(
  settings: Settings,
  mesh: Mesh,
  folder: RunFolder,
  stop: StopRequest,
  inspect: Callable[[Setup], None] | None,
) -> dict[str, Any]:
  began = time.monotonic()
  if settings.note:
    print(settings.note)
  stop.note('reading data and model')
  ready = prepare.prepare(settings, folder)
  if inspect is not None:
    inspect(ready)
  model, specials = ready.model, ready.model.tokenizer.special_ids
  state.check_layers(settings.optimizer, model.config)
  predictor = make_predictor(settings, mesh, ready, settings.decode)
  chosen = prepare.drawn_examples(settings, ready)
  watched = pipeline.sample(
    ready.validation.examples, settings.evaluate.validation_examples
  )

  def evaluate(name: str, current: TrainState) -> list[dict[str, Any]]:
    print(f'\n{name} fine-tuning: scoring and generating')
    return predict(
      folder, name, predictor, params_of(model.config, current),
      ready.held_out, chosen, stop,
    )

  def validate(current: TrainState) -> float:
    losses = predictor.nll(
      params_of(model.config, current), ready.validation.examples, watched,
      lambda: None,
    )
    return float(np.concatenate(losses).mean())

  step_config = make_step_config(settings, model.config)
  start = state.create(
    model.params, model.config, settings.optimizer, step_config.optimizer, mesh
  )
  before = evaluate('before', start)
  trained = _train(
    settings, mesh, folder, stop, ready, step_config, start, validate
  )
  after = evaluate('after', trained)
  options = prepare.metric_options(settings)
  counts_V = ready.frequencies.task.counts_V
  if model.config.head.learned:
    own = params_of(model.config, trained)['head']
    found = {'head': multihost_utils.process_allgather(own, tiled=True)}
    prepare.describe_codes(folder, model, found, counts_V)
  measured = {
    name: measure(records, counts_V, specials, **options)
    for name, records in {'before': before, 'after': after}.items()
  }
  items = {name: found.items for name, found in measured.items()}
  folder.write_text('items.json', json.dumps(items) + '\n')
  decoded = summary.decode_name(settings.decode)
  return {
    'columns': {
      prepare.name_before(model) + decoded: measured['before'].results,
      summary.loss_name(settings.loss) + decoded: measured['after'].results,
    },
    'loss': summary.loss_record(
      settings.loss, ready.frequencies, ready.tables
    ),
    'head': fit_head.head_size(model.config, model.params)._asdict(),
    'neutral_ids': list(specials),
    'examples': summary.shown(before, after),
    'task': settings.data.task,
    'split': f'{settings.data.name}/{settings.evaluate.split}',
    'seed': settings.seed,
    'steps': settings.train.steps,
    'decode': settings.resolved['decode'],
    'skipped_steps': int(trained.skipped),
    'padding_share': summary.padding_share(folder.metrics()),
    'seconds_this_call': round(time.monotonic() - began, 1),
  }


def make_predictor(
  settings: Settings, mesh: Mesh, ready: Setup, decode: DecodeSettings
) -> Predictor:
  """Scores and generates in the way that `decode` says."""
  tokenizer, bias_V = ready.model.tokenizer, None
  if decode.tilt:
    counts_V = ready.frequencies.task.counts_V
    bias_V = loss_tables.tilt_bias(counts_V, decode.tilt, tokenizer.special_ids)
  return Predictor(
    ready.model.config, mesh, tokenizer, settings.evaluate.batch_size, decode,
    bias_V,
  )  # fmt: skip


def predict(
  folder: RunFolder,
  name: str,
  predictor: Predictor,
  params: Tree,
  split: Split,
  numbers: np.ndarray,
  stop: StopRequest,
) -> list[dict[str, Any]]:
  """Prediction records, stored ones where there are any.

  Batches are kept as they are finished: a call that was stopped continues.
  """
  stored = folder.predictions(name)
  if stored is not None:
    return stored
  examples, samples = split.examples, predictor.settings.samples
  kept = folder.partial_predictions(name)
  left = [
    number
    for number in numbers.tolist()
    if any(x not in kept for x in record_ids(examples.record(number), samples))
  ]
  new = predictor.predict(
    params, examples, np.asarray(left, int),
    lambda: stop.check(f'evaluating ({name})'),
    lambda records: folder.append_predictions(name, records),
  )  # fmt: skip
  kept |= {record['id']: record for record in new}
  records = [
    kept[x]
    for number in numbers.tolist()
    for x in record_ids(examples.record(number), samples)
  ]
  folder.write_predictions(name, records)
  done = predictor.throughput
  if done.decode_seconds:
    print(
      f'{done.prefill_tokens / done.prefill_seconds:,.0f} prompt tokens/s, '
      f'{done.decode_tokens / done.decode_seconds:,.0f} generated tokens/s, '
      f'{done.compilations} prompt lengths compiled'
    )
  return records


def record_ids(record: dict[str, str], samples: int) -> list[str]:
  """The ids of an example's prediction records."""
  if samples == 1:
    return [record['id']]
  return [f'{record["id"]}#{k}' for k in range(samples)]


def make_step_config(settings: Settings, model: ModelConfig) -> StepConfig:
  """What the train step is compiled for."""
  steps = settings.train.steps
  return StepConfig(
    model=model,
    optimizer=optimizer.make_optimizer(settings.optimizer, steps),
    schedule=optimizer.make_schedule(settings.optimizer, steps),
    loss=loss_tables.make_loss(settings.loss),
    grad_accum_steps=settings.optimizer.grad_accum_steps,
    dropout_seed=settings.seed,
  )


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


def _train(
  settings: Settings,
  mesh: Mesh,
  folder: RunFolder,
  stop: StopRequest,
  ready: Setup,
  step_config: StepConfig,
  start: TrainState,
  validate: Callable[[TrainState], float],
) -> TrainState:
  batches = pipeline.train_iterator(
    ready.training_rows(),
    settings.train.batch_size,
    settings.seed,
    *batch_share(mesh),
    settings.data.buckets,
  )
  at_step = loss_tables.schedule(
    settings.loss, ready.frequencies, ready.model.tokenizer.special_ids
  )
  with open_checkpoints(settings, folder) as checkpoints:
    restored = checkpoints.restore_latest(abstract(start), batches)
    for line in filter(None, (*checkpoints.damaged, checkpoints.missing)):
      print(line)
    if restored is not None:
      number, start, _ = restored
      print(f'resumed from step {number}')
    elif checkpoints.missing:
      print('begins from step 0')
    loop = Loop(
      settings=settings.train,
      mesh=mesh,
      step=_step(step_config, at_step, ready.tables),
      validate=validate,
      batches=batches,
      checkpoints=checkpoints,
      folder=folder,
      stop=stop,
    )
    return loop.run(start)
