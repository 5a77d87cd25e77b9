"""The main job: evaluate, fine-tune, evaluate again, and say what changed."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pdl_jax import own_files
from pdl_jax.config import Settings
from pdl_jax.data import pipeline
from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.predict import Predictor, record_ids
from pdl_jax.evaluate.run import evaluate
from pdl_jax.generate import DecodeSettings
from pdl_jax.losses import LossTables, sentinel
from pdl_jax.losses.fused.api import FusedConfig
from pdl_jax.mesh import batch_share, check_batch
from pdl_jax.model import kernels
from pdl_jax.model.config import ModelConfig
from pdl_jax.run import loss_tables, prepare, restore, summary, untrained
from pdl_jax.run.head_report import head_size, report_head
from pdl_jax.run.load_model import machine_bytes, shape
from pdl_jax.run.prepare import Setup
from pdl_jax.run_claim import claimed
from pdl_jax.run_folder import RunFolder, environment
from pdl_jax.train import optimizer
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
  """Does the whole job in a run folder; resumes where an earlier call stopped.

  `stop` is asked where it is safe to stop. `inspect` gets what was read before
  anything is compiled for it, and may raise.
  """
  # Settings are refused before the folder is opened.
  loss = loss_tables.make_loss(settings.loss)
  if not os.path.lexists(workdir / 'results.json'):
    shape(settings, machine_bytes())
    print(sentinel.check_backend(loss))
  mesh = mesh_for(settings)
  with claimed(workdir):
    folder = RunFolder(workdir, settings)
    if folder.finished:
      print(f'{workdir} is finished; its table again:\n')
      summary.print_results(folder.read('results.json', summary.SHOWN))
      return
    own = {
      'own_files': own_files.digests(),
      'loss_memory_mb': loss.tile_bytes // 2**20,
    }
    folder.write_status('starting', 0)
    with computing(settings, mesh):
      folder.write('env.json', environment(mesh.shape) | own)
      results = _run(settings, mesh, folder, stop, inspect)
    folder.write_text('table.md', summary.tables(results))
    folder.write('results.json', results)
    folder.write_status('finished', settings.train.steps)
    summary.print_results(results)
    print(f'\nrun folder: {workdir}')


def mesh_for(settings: Settings) -> Mesh:
  """Makes the mesh; training and evaluation batches must divide over it.

  Its devices must have the kernel that attends.
  """
  kernels.check_device(settings.model.attention_impl)
  mesh, parts = settings.mesh.make(), settings.optimizer.grad_accum_steps
  check_batch(mesh, 'train.batch_size', settings.train.batch_size, parts)
  check_batch(mesh, 'evaluate.batch_size', settings.evaluate.batch_size, 1)
  return mesh


@contextlib.contextmanager
def computing(settings: Settings, mesh: Mesh) -> Iterator[None]:
  """Sets the mesh and the precision of matrix products."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    if asked := settings.model.matmul_precision:
      stack.enter_context(jax.default_matmul_precision(asked))
    yield


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
  counts_V = ready.frequencies.task.counts_V
  job = Job(settings, mesh, folder, stop, ready, settings.decode)
  start = restore.start_state(settings, model.config, model.params, mesh)
  said, stages = ' fine-tuning', {}
  stages['before'] = job.predict('before', start, trained=False, said=said)
  trained = job.train(start)
  stages['after'] = job.predict('after', trained, trained=True, said=said)
  if model.config.head.learned:
    own = restore.params_of(model.config, trained)['head']
    found = {'head': multihost_utils.process_allgather(own, tiled=True)}
    report_head(folder, model.config, found, model.tokenizer, counts_V)
  measured = measure(settings, folder, stages, counts_V, specials)
  decoded = summary.decode_name(settings.decode)
  return {
    'columns': {
      model.label + decoded: measured['before'],
      summary.loss_name(settings.loss) + decoded: measured['after'],
    },
    'loss': summary.loss_record(
      settings.loss, ready.frequencies, ready.tables
    ),
    'head': head_size(model.config, model.params)._asdict(),
    'neutral_ids': list(specials),
    'examples': summary.shown(stages['before'], stages['after']),
    'task': settings.data.task,
    'split': f'{settings.data.name}/{settings.evaluate.split}',
    'seed': settings.seed,
    'steps': settings.train.steps,
    'decode': settings.resolved['decode'],
    'skipped_steps': int(trained.skipped),
    'padding_share': summary.padding_share(folder.metrics()),
    'seconds_this_call': round(time.monotonic() - began, 1),
  }


@dataclasses.dataclass
class Job:
  """Evaluates and trains the model of one run."""

  settings: Settings
  mesh: Mesh
  folder: RunFolder
  stop: StopRequest
  ready: Setup
  decode: DecodeSettings

  @cached_property
  def predictor(self) -> Predictor:
    """The compiled model, which adds the bias of `tilt` to the logits."""
    return make_predictor(self.settings, self.mesh, self.ready, self.decode)

  def predict(
    self, name: str, current: TrainState, *, trained: bool, said: str = ''
  ) -> list[dict[str, Any]]:
    """Makes prediction records, or goes on with those that are stored.

    Those of a model that is not `trained` may come from a run beside this one.
    """
    print(f'\n{name}{said}: scoring and generating')
    folder, predictor = self.folder, self.predictor
    stored = folder.predictions(name)
    if stored is not None:
      return stored
    params = restore.params_of(self.ready.model.config, current)
    examples = self.ready.held_out.examples
    numbers = prepare.drawn_examples(self.settings, self.ready).tolist()
    key = '' if trained else untrained.key(predictor, params, examples, numbers)
    if key and (adopted := self._adopt(name, key)):
      return adopted
    ids = {
      number: record_ids(examples.record(number)['id'], self.decode.samples)
      for number in numbers
    }
    kept = folder.partial_predictions(name)
    left = [number for number in numbers if not kept.keys() >= {*ids[number]}]
    new = predictor.predict(
      params, examples, np.asarray(left, int),
      lambda: self.stop.check(f'evaluating ({name})'),
      lambda records: folder.append_predictions(name, records),
    )  # fmt: skip
    kept |= {record['id']: record for record in new}
    records = [kept[x] for number in numbers for x in ids[number]]
    folder.write_predictions(name, records)
    if key:
      folder.note_key(name, key)
    done = predictor.throughput
    if done.decode_seconds:
      print(
        f'{done.prefill_tokens / done.prefill_seconds:,.0f} prompt tokens/s, '
        f'{done.decode_tokens / done.decode_seconds:,.0f} generated tokens/s, '
        f'prompt lengths compiled: {done.compilations}'
      )
    return records

  def _adopt(self, name: str, key: str) -> list[dict[str, Any]] | None:
    donor = self.folder.adopt(name, key) if self.folder.writes else None
    # Another run may write its own now: all processes do as the first one.
    found = np.asarray(donor is not None)
    if not multihost_utils.broadcast_one_to_all(found):
      return None
    print(f'they are those of {donor}' if donor else 'they are those of a run')
    return self.folder.predictions(name)

  def validate(self, current: TrainState) -> float:
    """Measures the unweighted loss on validation data, in nats per token."""
    examples = self.ready.validation.examples
    count = self.settings.evaluate.validation_examples
    numbers = pipeline.sample(examples, count)
    params = restore.params_of(self.ready.model.config, current)
    losses = self.predictor.nll(params, examples, numbers, lambda: None)
    return float(np.concatenate(losses).mean())

  def train(self, start: TrainState) -> TrainState:
    """Trains to the last step, from the newest checkpoint or from `start`."""
    settings = self.settings
    batches = pipeline.train_iterator(
      self.ready.training_rows(), settings.train.batch_size, settings.seed,
      *batch_share(self.mesh), settings.data.buckets,
    )  # fmt: skip
    elsewhere = self.ready.model.in_files(start)
    with restore.open_checkpoints(
      settings, self.folder, elsewhere
    ) as checkpoints:
      restored = checkpoints.restore_latest(start, batches)
      for line in filter(None, (*checkpoints.damaged, checkpoints.missing)):
        print(line)
      if restored is not None:
        number, start, _ = restored
        print(f'resumed from step {number}')
      elif checkpoints.missing:
        print('begins from step 0')
      loop = Loop(
        settings=settings.train, mesh=self.mesh, folder=self.folder,
        step=_step(settings, self.ready), validate=self.validate,
        batches=batches, checkpoints=checkpoints, stop=self.stop,
      )  # fmt: skip
      return loop.run(start)


def make_predictor(
  settings: Settings, mesh: Mesh, ready: Setup, decode: DecodeSettings
) -> Predictor:
  """Makes a predictor that decodes as `decode` says."""
  tokenizer, bias_V = ready.model.tokenizer, None
  if decode.tilt:
    counts_V = ready.frequencies.task.counts_V
    bias_V = loss_tables.tilt_bias(counts_V, decode.tilt, tokenizer.special_ids)
  batch = settings.evaluate.batch_size
  fused = FusedConfig(exp_accuracy=settings.loss.exp_accuracy)
  return Predictor(
    ready.model.config, mesh, tokenizer, batch, decode, bias_V, fused
  )


def measure(
  settings: Settings,
  folder: RunFolder,
  stored: Mapping[str, Sequence[Record]],
  counts_V: np.ndarray,
  special_ids: Sequence[int],
) -> dict[str, dict[str, Any]]:
  """Measures sets of predictions by name; the folder keeps their sums."""
  options = prepare.metric_options(settings)
  found = {
    name: evaluate(records, counts_V, special_ids, **options)
    for name, records in stored.items()
  }
  items = {name: measured.items for name, measured in found.items()}
  folder.write_text('items.json', json.dumps(items) + '\n')
  return {name: measured.results for name, measured in found.items()}


def make_step_config(settings: Settings, model: ModelConfig) -> StepConfig:
  """Collects what the train step is compiled for."""
  how = settings.optimizer, settings.train.steps
  return StepConfig(
    model=model,
    optimizer=optimizer.make_optimizer(*how),
    schedule=optimizer.make_schedule(*how),
    loss=loss_tables.make_loss(settings.loss),
    grad_accum_steps=settings.optimizer.grad_accum_steps,
    dropout_seed=settings.seed,
  )


def _step(
  settings: Settings, ready: Setup
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict]]:
  """Compiles the step; under a schedule its loss tables depend on the step."""
  config = make_step_config(settings, ready.model.config)
  at_step = loss_tables.schedule(
    settings.loss, ready.frequencies, ready.model.tokenizer.special_ids
  )

  def one(current: TrainState, batch: dict, tables: LossTables) -> tuple:
    if at_step is not None:
      tables = at_step(tables, current.step)
    return train_step(config, current, batch, tables)

  compiled = jax.jit(one, donate_argnums=0)
  return lambda current, batch: compiled(current, batch, ready.tables)
