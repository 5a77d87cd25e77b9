"""Does the project's flag of XLA change what the other experiments measured?

  make debian
  python -m experiments.corpus
  python -m benchmarks.xla_flag
"""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks.harness import Record
from configs import language_model
from experiments import small
from pdl_jax import process
from pdl_jax.config import Settings, flatten
from pdl_jax.data import pipeline
from pdl_jax.losses import LOSSES
from pdl_jax.mesh import batch_share, put_batch
from pdl_jax.report import index, plan
from pdl_jax.report.declare import Experiment
from pdl_jax.run import finetune, prepare, restore
from pdl_jax.train import state
from pdl_jax.train.preemption import StopRequest
from pdl_jax.train.step import train_step

RUNS = Path('runs') / 'xla_flag'
# Settings that change neither a program nor the shape of its arguments.
_SAME = (
  'seed', 'train.', 'evaluate.', 'data.train_limit', 'decode.seed',
  'optimizer.learning_rate', 'optimizer.head_lr_multiplier',
  'optimizer.warmup_steps',
)  # fmt: skip
# A larger difference, as a share of the largest value, is not rounding.
ROUNDING = 1e-3
# Hash -> the experiments that declare a program, and a configuration of it.
Programs = dict[str, tuple[list[str], Mapping[str, Any]]]
# Ways to run a program: with the flag and without.
WAYS = ('with', 'without')


def measure(options: harness.Options) -> list[Record]:
  """Measures this version of the compiler; the records of others stay.

  A tiny benchmark has one program, which needs no base.
  """
  folder = RUNS / ('tiny' if options.tiny else version())
  for way in WAYS if options.tiny else ('base', *WAYS):
    harness.alone({'way': way, 'folder': str(folder)})
  others = [
    record for record in harness.read_cases(options.place)
    if record['jaxlib'] != version()
  ]  # fmt: skip
  return [*others, *compared(folder)]


def measure_case(case: dict[str, str]) -> Record:
  """Makes the base, or runs all programs in one way, in this process."""
  way, folder = case['way'], Path(case['folder'])
  if way == 'base':
    make_base(folder / way)
  else:
    run_all(folder, way)
  return case


def version() -> str:
  """Returns the version of the compiler."""
  return metadata.version('jaxlib')


def make_base(folder: Path) -> None:
  """Makes a run like that of `small.BASE`, but short."""
  short = {'train.steps': 20, 'train.checkpoint_every': 20}
  config = language_model.get_config('small')
  config.update_from_flattened_dict({
    **small.BASE.overrides, **short, 'optimizer.warmup_steps': 5,
    'evaluate.examples': 8,
  })
  finetune.run(Settings.from_config(config), folder, StopRequest())


def programs(folder: Path) -> Programs:
  """Finds the programs of all experiments; `tiny` folders get one."""
  found: Programs = {}
  for experiment in index.experiments(Path('experiments')):
    declared = getattr(plan.module(experiment), 'EXPERIMENT', None)
    for config in _configs(declared) if declared else ():
      flat = flatten(config)
      names = found.setdefault(_program(flat), ([], config))[0]
      if experiment.name not in names:
        names.append(experiment.name)
  if folder.name == 'tiny':
    found = {
      name: (names, config) for name, (names, config) in found.items()
      if (config['data']['name'], config['model']['pretrained']) == (
        'sotu_interleaved', ''
      )
    }  # fmt: skip
    return dict([*found.items()][:1])
  return found


def _configs(declared: Experiment) -> Iterator[Mapping[str, Any]]:
  for study in declared.studies:
    if begun := plan.base(study):
      yield begun.cell.config
    for variant, run in plan.runs(study, study.seeds[0]):
      config = copy.deepcopy(dict(run.cell.config))
      config['decode'] |= variant.decode
      yield config


def _program(flat: Mapping[str, Any]) -> str:
  """Hashes a configuration; equal for those that compile the same programs."""
  spec = LOSSES[flat['loss.name']]
  kept = {
    key: value for key, value in flat.items()
    if not key.startswith(('loss.', *_SAME))
  }  # fmt: skip
  own = spec.terms or spec.on_logits or spec.bias
  kept |= {
    'loss': flat['loss.name'] if own else 'a weight per type',
    'reduction': flat['loss.reduction'],
    'scheduled': flat['loss.schedule'] != 'constant',
    'decode.tilt': bool(flat['decode.tilt']),
  }
  if flat['model.pretrained'].startswith('run:'):
    kept['model.pretrained'] = 'run:'
  text = json.dumps(kept, sort_keys=True)
  return sha256(text.encode()).hexdigest()[:8]


def run_all(folder: Path, way: str) -> None:
  """Runs each program, in this process."""
  if way == 'without':
    # Importing `harness` has set it, but JAX has not started yet.
    flags = os.environ['XLA_FLAGS'].replace(process.XLA_FLAG, '')
    os.environ['XLA_FLAGS'] = flags
  (folder / way).mkdir(parents=True, exist_ok=True)
  for name, (_, declared) in programs(folder).items():
    path = folder / way / f'{name}.npz'
    if path.exists():
      continue
    config = copy.deepcopy(dict(declared))
    config['data']['train_limit'] = 400
    splits = config['data']['splits']
    splits['train'] = f'{splits["train"].partition("[")[0]}[:20%]'
    if config['model']['pretrained'].startswith('run:'):
      config['model']['pretrained'] = f'run:{folder / "base"}'
    found = run_once(Settings.from_resolved(config))
    partial = path.with_suffix('.partial.npz')
    np.savez(partial, allow_pickle=False, **found)
    partial.replace(path)


def run_once(settings: Settings) -> dict[str, np.ndarray]:
  """Returns what a batch and a step give, by name."""
  mesh = finetune.mesh_for(settings)
  with jax.set_mesh(mesh):
    ready = prepare.prepare(settings, None)
    config = finetune.make_step_config(settings, ready.model.config)
    current = state.create(
      ready.model.params, config.model, settings.optimizer, config.optimizer,
      mesh,
    )  # fmt: skip
    predictor = finetune.make_predictor(settings, mesh, ready, settings.decode)
    numbers = prepare.drawn_examples(settings, ready)
    numbers = numbers[: settings.evaluate.batch_size]
    batches = pipeline.train_iterator(
      ready.training_rows(), settings.train.batch_size, settings.seed,
      *batch_share(mesh), settings.data.buckets,
    )  # fmt: skip
    batch = put_batch(next(batches), mesh)
    step = jax.jit(lambda *inputs: train_step(config, *inputs))
    current, scalars = step(current, batch, ready.tables)
    found = {
      key: np.asarray(scalars[key])
      for key in ('loss', 'plain_loss', 'gradient_norm')
    }
    leaves = jax.tree.leaves(current.opt_state)
    found['moments'] = np.concatenate([
      # Enough of each array to tell two programs apart.
      np.asarray(leaf, np.float64).ravel()[:10_000] for leaf in leaves
    ])
    records = predictor.predict(
      restore.params_of(config.model, current), ready.held_out.examples,
      numbers, lambda: None,
    )  # fmt: skip
    leaves = jax.tree_util.tree_leaves_with_path(ready.model.params)
    codes = [x for at, x in leaves if 'codes_MxV' in jax.tree_util.keystr(at)]
    if codes:
      found['codes'] = np.concatenate([np.ravel(x) for x in codes])
    for key in ('reference_nll', 'token_ids'):
      rows = [np.asarray(record[key]) for record in records]
      found[key] = np.concatenate(rows)
  return found


def compared(folder: Path) -> list[Record]:
  """Returns a record per program that was run both ways."""
  records, declared = [], programs(folder)
  for name, (experiments, config) in declared.items():
    flat, paths = flatten(config), [
      folder / way / f'{name}.npz' for way in WAYS
    ]
    if not all(path.exists() for path in paths):
      continue
    flagged, plain = ({**np.load(path)} for path in paths)
    records.append({
      'jaxlib': version(), 'program': name, 'of': len(declared),
      'experiments': experiments,
      'data': flat['data.name'], 'loss': flat['loss.name'],
      'head': flat['model.head'], 'attention': flat['model.attention'],
      'model': flat['model.pretrained'].partition(':')[0] or 'from scratch',
      'differences': {
        key: difference(flagged[key], plain[key])
        for key in flagged if key not in ('token_ids', 'codes')
      },
      # Share of types' codes, before the step, that differ; None without codes.
      'other_codes': float((flagged['codes'] != plain['codes']).mean())
      if 'codes' in flagged else None,
      'same_tokens': np.array_equal(
        flagged['token_ids'], plain['token_ids']
      ),
    })  # fmt: skip
  return records


def difference(one: np.ndarray, other: np.ndarray) -> float:
  """Returns the largest one, as a share of the largest value; inf for NaN."""
  gap = np.abs(one.astype(np.float64) - other).max()
  share = float(gap / max(np.abs(one).max(), 1e-30))
  return share if np.isfinite(share) else float('inf')


def table(records: list[Record]) -> str:
  """Formats the largest differences by version and quantity."""
  headings = (
    'jaxlib', 'programs', 'quantity', 'largest relative difference',
    f'beyond {ROUNDING:g}', 'of',
  )  # fmt: skip
  rows = []
  for jaxlib in sorted({record['jaxlib'] for record in records}):
    mine = [record for record in records if record['jaxlib'] == jaxlib]
    rows += [(jaxlib, *row) for row in _rows(mine)]
  return harness.markdown(headings, rows, 'lrlrrl')


def _rows(records: list[Record]) -> Iterator[tuple[str, ...]]:
  count = f'{len(records)} of {records[0]["of"]}'
  for key in records[0]['differences']:
    worst = max(records, key=lambda record: record['differences'][key])
    beyond = sum(r['differences'][key] > ROUNDING for r in records)
    yield (
      count, key, f'{worst["differences"][key]:.1e}', str(beyond),
      ', '.join(worst['experiments']),
    )  # fmt: skip
  coded = [r for r in records if r.get('other_codes') is not None]
  if coded:
    worst = max(coded, key=lambda record: record['other_codes'])
    yield (
      f'{len(coded)} with codes', 'share of other codes',
      f'{worst["other_codes"]:.1e}',
      f'{sum(r["other_codes"] > 0 for r in coded)} above 0',
      ', '.join(worst['experiments']),
    )  # fmt: skip
  other = [record for record in records if not record['same_tokens']]
  names = sorted({name for r in other for name in r['experiments']})
  yield (
    count, 'decoded tokens differ', '-', str(len(other)), ', '.join(names)
  )


if __name__ == '__main__':
  harness.main(__file__, measure, table, measure_case)
