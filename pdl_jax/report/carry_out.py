"""Runs what an experiment declares, and keeps what the runs left behind.

experiments/NAME/records.jsonl has one line a row of the table and seed;
definitions.json says what their metrics are.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdl_jax.report import plan
from pdl_jax.report.collect import Record, collect, fingerprint
from pdl_jax.report.experiment import Experiment, Study, Variant
from pdl_jax.report.plan import Planned
from pdl_jax.sweep import queue
from pdl_jax.sweep.axes import Cell
from pdl_jax.sweep.local import Command, Outcome

RECORDS, DEFINITIONS = 'records.jsonl', 'definitions.json'
# Of (cells, root, command); the engine with its workers and retries.
Sweep = Callable[[Sequence[Cell], Path, Command], Outcome]


def planned(experiment: Experiment) -> Iterator[tuple[Path, list[Planned]]]:
  """Runs that can be made at once, in order: every study of a seed, then on.

  What the runs of a study start from comes first.
  """
  for study in experiment.studies:
    if (start := plan.base(study)) is not None:
      yield start.root, [start]
  for seed in sorted({seed for s in experiment.studies for seed in s.seeds}):
    for study in experiment.studies:
      if seed in study.seeds:
        different = {
          run.cell.digest: run for _, run in plan.runs(study, seed)
        }  # fmt: skip
        yield plan.root(study), list(different.values())


def carry_out(experiment: Experiment, folder: Path, sweep: Sweep) -> int:
  """Makes the runs that are missing; collects after each group of them.

  Args:
    experiment: what to run.
    folder: of the experiment, for its records.
    sweep: runs cells below a folder until each is done or failed.

  Returns:
    how many cells failed.
  """
  failed = 0
  for root, runs in planned(experiment):
    by_cell = {run.cell.digest: run for run in runs}
    cells = [run.cell for run in runs]
    outcome = sweep(
      cells, root, lambda cell, at, of=by_cell: of[cell.digest].command(at)
    )
    failed += len(outcome.failed)
    if outcome.left:
      break
    _decode(experiment, root)
    keep(experiment, folder)
  return failed


def _decode(experiment: Experiment, root: Path) -> None:
  """Decodes finished runs in the further ways that rows ask for."""
  folders = queue.run_folders(root)
  for _, variant, _, run in _rows(experiment):
    at = folders.get(run.cell.digest)
    if not variant.decode or run.root != root or at is None:
      continue
    if queue.finished(at) and not _is_decoded(at, variant):
      subprocess.run(
        [
          sys.executable, 'launch.py', f'--evaluate={at}',
          *(f'--decode.{key}={value}' for key, value in variant.decode.items()),
        ],
        check=True,
      )  # fmt: skip


def _is_decoded(run: Path, variant: Variant) -> bool:
  path = run / 'evaluations.json'
  name = predictions_of(variant)
  return path.exists() and name in json.loads(path.read_text())


def predictions_of(variant: Variant) -> str:
  """Which predictions of its run a row is of."""
  if not variant.decode:
    return 'after'
  way = ','.join(f'{key}={value}' for key, value in variant.decode.items())
  return f'after-{way}'


def _rows(
  experiment: Experiment,
) -> Iterator[tuple[Study, Variant, int, Planned]]:
  for study in experiment.studies:
    for seed in study.seeds:
      for variant, run in plan.runs(study, seed):
        yield study, variant, seed, run


def keep(experiment: Experiment, folder: Path) -> None:
  """Writes the records of all runs that have ended.

  Those of runs that are not on this machine stay as they are.
  """
  records = {_who(record): record for record in read(folder)}
  definitions = read_definitions(folder)
  wanted = []
  folders: dict[Path, dict[str, Path]] = {}
  attempts: dict[Path, dict[str, list[queue.Attempt]]] = {}
  for study, variant, seed, run in _rows(experiment):
    root = run.root
    if root not in folders:
      folders[root] = queue.run_folders(root) if root.exists() else {}
      attempts[root] = queue.attempts(root)
    at = folders[root].get(run.cell.digest)
    sets = {variant.label: predictions_of(variant)}
    first = variant.label == study.baseline and seed == study.seeds[0]
    if study.before and first:
      sets = {study.before: 'before', **sets}
    for label, predictions in sets.items():
      who = {
        'study': study.name, 'row': label, 'seed': seed,
        'hash': run.cell.digest, 'predictions': predictions,
      }  # fmt: skip
      wanted.append(_who(who))
      tries = attempts[root].get(run.cell.digest, [])
      found = None if at is None else collect(at, predictions, tries)
      if found is None:
        continue
      record, defined = found
      overrides = {**study.overrides, **variant.overrides}
      records[_who(who)] = {**who, 'overrides': overrides, **record}
      if defined:
        definitions[fingerprint(defined)] = defined
  lines = [json.dumps(records[who]) for who in wanted if who in records]
  _write(folder / RECORDS, ''.join(line + '\n' for line in lines))
  used = {json.loads(line).get('definitions') for line in lines}
  kept = {key: definitions[key] for key in sorted(definitions) if key in used}
  _write(folder / DEFINITIONS, json.dumps(kept, indent=1) + '\n')


def _who(record: Mapping[str, Any]) -> tuple[Any, ...]:
  fields = ('study', 'row', 'seed', 'hash', 'predictions')
  return tuple(record[field] for field in fields)


def read(folder: Path) -> list[Record]:
  """The records of an experiment; none before its first run."""
  path = folder / RECORDS
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def read_definitions(folder: Path) -> dict[str, dict[str, Any]]:
  """Fingerprint -> metric -> its unit, definition and signature."""
  path = folder / DEFINITIONS
  return json.loads(path.read_text()) if path.exists() else {}


def _write(path: Path, text: str) -> None:
  partial = path.with_name(f'{path.name}.partial')
  partial.write_text(text)
  partial.replace(path)
