"""Runs what an experiment declares, and keeps what the runs left behind.

experiments/NAME/records.jsonl has one line a row of the table and seed;
definitions.json says what their metrics are.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdl_jax.errors import DataError
from pdl_jax.report import plan
from pdl_jax.report.collect import (
  DONE,
  NOT_DONE,
  Record,
  collect,
  fingerprint,
  read_evaluations,
)
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.plan import Planned
from pdl_jax.storage import files
from pdl_jax.sweep import claims
from pdl_jax.sweep.axes import Cell
from pdl_jax.sweep.local import Command, Outcome

RECORDS, DEFINITIONS = 'records.jsonl', 'definitions.json'
# Of (cells, root, command); the engine with its workers and retries.
Sweep = Callable[[Sequence[Cell], Path, Command], Outcome]


@dataclasses.dataclass
class _Definition:
  unit: str
  definition: str
  signature: str = ''


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that can be made at once.

  Attributes:
    title: what they are, for people.
    root: folder that their run folders are in.
    runs: each once, in the order in which they are begun.
    starts: whether it is what other runs start from, and no row of a table.
  """

  title: str
  root: Path
  runs: tuple[Planned, ...]
  starts: bool = False

  @property
  def cells(self) -> list[Cell]:
    """Of the sweep."""
    return [run.cell for run in self.runs]


def recorded(
  experiment: Experiment, records: Sequence[Record]
) -> dict[str, float]:
  """Runs of which nothing is missing: hash of the cell -> seconds it took.

  Their folders need not be on this machine.
  """
  done = {
    _who(record): record['seconds']
    for record in records
    if record['state'] == 'done'
  }
  seconds: dict[str, float] = {}
  missing = set[str]()
  for study, variant, seed, run in _rows(experiment):
    who = _named(study, variant.label, seed, run, predictions_of(variant))
    digest = run.cell.digest
    if _who(who) in done:
      seconds[digest] = done[_who(who)]
    else:
      missing.add(digest)
  return {k: v for k, v in seconds.items() if k not in missing}


def planned(experiment: Experiment) -> Iterator[Group]:
  """All runs, in order: every study of a seed, then the next seed.

  What the runs of a study start from comes first.
  """
  starts = [plan.base(study) for study in experiment.studies]
  different = {start.cell.digest: start for start in starts if start}
  for start in different.values():
    title = f'what they start from, in {start.root}'
    yield Group(title, start.root, (start,), starts=True)
  for seed in sorted({seed for s in experiment.studies for seed in s.seeds}):
    for study in experiment.studies:
      if seed in study.seeds:
        runs = {run.cell.digest: run for _, run in plan.runs(study, seed)}
        root = plan.root(study.config)
        title = f'{study.title}, seed {seed}, in {root}'
        yield Group(title, root, tuple(runs.values()))


def carry_out(experiment: Experiment, folder: Path, sweep: Sweep) -> int:
  """Makes the runs that have no records; collects after each group of them.

  Args:
    experiment: what to run.
    folder: of the experiment, for its records.
    sweep: runs cells below a folder until each is done or failed.

  Returns:
    how many cells failed.
  """
  failed, known = 0, recorded(experiment, read(folder))
  groups = [
    dataclasses.replace(
      group, runs=tuple(r for r in group.runs if r.cell.digest not in known)
    )
    for group in planned(experiment)
  ]
  if not any(group.runs for group in groups if not group.starts):
    print(f'all runs are in {folder / RECORDS}')
    return 0
  for group in groups:
    if not group.runs:
      continue
    print(f'{group.title}:', flush=True)
    by_cell = {run.cell.digest: run for run in group.runs}
    outcome = sweep(
      group.cells, group.root,
      lambda cell, at, of=by_cell: of[cell.digest].command(at),
    )  # fmt: skip
    failed += len(outcome.failed)
    if outcome.left:
      break
    _decode(experiment, group.root)
    keep(experiment, folder)
  print(f'python launch.py report {folder} makes tables and figures of it')
  return failed


def _decode(experiment: Experiment, root: Path) -> None:
  """Decodes finished runs in the further ways that rows ask for."""
  folders = claims.run_folders(root)
  for _, variant, _, run in _rows(experiment):
    at = folders.get(run.cell.digest)
    if not variant.decode or run.root != root or at is None:
      continue
    if claims.finished(at) and not _is_decoded(at, variant):
      subprocess.run(
        [
          sys.executable, 'launch.py', 'evaluate', str(at),
          *(f'--decode.{key}={value}' for key, value in variant.decode.items()),
        ],
        check=True,
      )  # fmt: skip


def _is_decoded(run: Path, variant: Variant) -> bool:
  path = run / 'evaluations.json'
  name = predictions_of(variant)
  return path.exists() and name in read_evaluations(run)


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


class _Runs:
  """The run folders on this machine."""

  def __init__(self):
    self._folders: dict[Path, dict[str, Path]] = {}
    self._attempts: dict[Path, dict[str, list[claims.Attempt]]] = {}

  def folder(self, run: Planned) -> Path | None:
    if run.root not in self._folders:
      there = run.root.exists()
      self._folders[run.root] = claims.run_folders(run.root) if there else {}
      self._attempts[run.root] = claims.attempts(run.root)
    return self._folders[run.root].get(run.cell.digest)

  def finished(self, run: Planned) -> bool:
    folder = self.folder(run)
    return folder is not None and claims.finished(folder)

  def collect(
    self, run: Planned, predictions: str
  ) -> tuple[Record, dict[str, Any]] | None:
    folder = self.folder(run)
    if folder is None:
      return None
    tries = self._attempts[run.root].get(run.cell.digest, [])
    return collect(folder, predictions, tries)


def keep(experiment: Experiment, folder: Path) -> None:
  """Writes the records of all runs that have ended.

  Those of runs that are not on this machine stay as they are.
  """
  before = {_who(record): record for record in read(folder)}
  definitions, runs = read_definitions(folder), _Runs()
  records = []
  for study in experiment.studies:
    rows = [
      (_named(study, variant.label, seed, run, predictions_of(variant)), run,
       {**study.overrides, **variant.overrides})
      for seed in study.seeds
      for variant, run in plan.runs(study, seed)
    ]  # fmt: skip
    for who, run, overrides in [*_first_before(study, before, runs), *rows]:
      found = runs.collect(run, who['predictions'])
      if found is not None:
        record, defined = found
        records.append({**who, 'overrides': overrides, **record})
        definitions |= {fingerprint(defined): defined} if defined else {}
      elif _who(who) in before:
        records.append(before[_who(who)])
  _write(folder / RECORDS, ''.join(json.dumps(r) + '\n' for r in records))
  used = {record.get('definitions') for record in records}
  kept = {key: definitions[key] for key in sorted(definitions) if key in used}
  _write(folder / DEFINITIONS, json.dumps(kept, indent=1) + '\n')


def _named(
  study: Study, row: str, seed: int, run: Planned, predictions: str
) -> Record:
  return {
    'study': study.name, 'row': row, 'seed': seed, 'hash': run.cell.digest,
    'predictions': predictions,
  }  # fmt: skip


def _first_before(
  study: Study, records: Mapping[tuple[Any, ...], Record], runs: _Runs
) -> Iterator[tuple[Record, Planned, dict[str, Any]]]:
  """The model before fine-tuning: the same in all runs, so of the first."""
  if not study.before:
    return
  for seed in study.seeds:
    for _, run in plan.runs(study, seed):
      # The row has one seed, whichever run it is of.
      who = _named(study, study.before, study.seeds[0], run, 'before')
      if _who(who) in records or runs.finished(run):
        yield who, run, dict(study.overrides)
        return


def _who(record: Mapping[str, Any]) -> tuple[Any, ...]:
  fields = ('study', 'row', 'seed', 'hash', 'predictions')
  return tuple(record[field] for field in fields)


def read(folder: Path) -> list[Record]:
  """The records of an experiment; none before its first run."""
  path = folder / RECORDS
  if not path.exists():
    return []
  mend = f'git checkout {path} brings it back'
  records = files.read_lines(path, {'state': str}, mend)
  for number, record in enumerate(records, start=1):
    done = record['state'] == 'done'
    found = files.fault(record, DONE if done else NOT_DONE)
    if not found and done:
      found = _uneven(record)
    if found:
      raise DataError(f'{path}:{number}: {found}; {mend}')
  return records


def _uneven(record: Record) -> str:
  """Which sums are not those of as many examples as there are."""
  examples = len(record['groups'])
  return next((
    f'items.{name} has {len(sums)} examples, groups {examples}'
    for name, sums in record['items'].items()
    if len(sums) != examples
  ), '')  # fmt: skip


def read_definitions(folder: Path) -> dict[str, dict[str, Any]]:
  """Fingerprint -> metric -> its unit, definition and signature."""
  path = folder / DEFINITIONS
  if not path.exists():
    return {}
  mend = f'git checkout {path} brings it back'
  return files.read_json(path, dict[str, dict[str, _Definition]], mend)


def _write(path: Path, text: str) -> None:
  partial = path.with_name(f'{path.name}.partial')
  partial.write_text(text, 'utf-8')
  partial.replace(path)
