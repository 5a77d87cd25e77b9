"""Runs what an experiment declares, and records the results.

experiments/NAME/records.jsonl has a line per table row and seed;
definitions.json defines their metrics.
"""

import dataclasses
import functools
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from pdl_jax.report.declare import Experiment, Study
from pdl_jax.report.plan import Planned
from pdl_jax.storage import files
from pdl_jax.sweep import claims
from pdl_jax.sweep.axes import Cell
from pdl_jax.sweep.child import Command
from pdl_jax.sweep.local import Outcome

RECORDS, DEFINITIONS = 'records.jsonl', 'definitions.json'
# (cells, root, command) -> outcome: an engine with its workers and retries.
Sweep = Callable[[Sequence[Cell], Path, Command], Outcome]
# The fields that match a record to a declared row.
_KEY = ('study', 'row', 'seed', 'hash', 'predictions')


@dataclasses.dataclass
class _Definition:
  unit: str
  definition: str
  signature: str = ''


class _Row(NamedTuple):
  """A row of a table at one seed, and the run that it shows."""

  key: tuple[Any, ...]  # values of _KEY
  run: Planned
  overrides: dict[str, Any]
  decode: tuple[str, ...] = ()  # flags of `evaluate`


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that can be made at once, each once."""

  title: str
  root: Path  # parent of their folders
  runs: tuple[Planned, ...]
  starts: bool = False  # whether others start from them; no table shows these

  @property
  def cells(self) -> list[Cell]:
    """The cells of the runs."""
    return [run.cell for run in self.runs]


def planned(
  experiment: Experiment, known: Collection[str] = ()
) -> Iterator[Group]:
  """Yields all runs: first those that others start from, then seed by seed.

  Runs whose hash is `known` are left out.
  """
  starts = [plan.base(study) for study in experiment.studies]
  different = {start.cell.digest: start for start in starts if start}
  for digest, start in different.items():
    if digest not in known:
      title = f'what they start from, in {start.root}'
      yield Group(title, start.root, (start,), starts=True)
  for seed in sorted({seed for s in experiment.studies for seed in s.seeds}):
    for study in experiment.studies:
      if seed in study.seeds:
        found = {run.cell.digest: run for _, run in plan.runs(study, seed)}
        runs = tuple(x for digest, x in found.items() if digest not in known)
        root = plan.root(study.config)
        if runs:
          yield Group(f'{study.title}, seed {seed}, in {root}', root, runs)


def recorded(
  experiment: Experiment, records: Sequence[Record]
) -> dict[str, float]:
  """Maps the cell hash of each fully recorded run to its seconds.

  The run folders need not be on this machine.
  """
  done = {_key(r): r['seconds'] for r in records if r['state'] == 'done'}
  rows = [row for study in experiment.studies for row in _rows(study)]
  missing = {row.run.cell.digest for row in rows if row.key not in done}
  return {
    row.run.cell.digest: done[row.key]
    for row in rows
    if row.run.cell.digest not in missing
  }


def carry_out(experiment: Experiment, folder: Path, sweep: Sweep) -> int:
  """Makes the runs that have no records, and collects after each group.

  Returns the number of failed cells.
  """
  failed, known = 0, recorded(experiment, read(folder))
  groups = list(planned(experiment, known))
  if all(group.starts for group in groups):
    print(f'all runs are in {folder / RECORDS}')
    return 0
  for group in groups:
    print(f'{group.title}:', flush=True)
    by_cell = {run.cell.digest: run for run in group.runs}
    outcome = sweep(
      group.cells, group.root,
      lambda cell, at, of=by_cell: of[cell.digest].command(at),
    )  # fmt: skip
    failed += len(outcome.failed)
    if outcome.left:
      break
    failed += _decode(experiment, group.root)
    keep(experiment, folder)
  print(f'python launch.py report {folder} makes tables and figures of it')
  return failed


def _decode(experiment: Experiment, root: Path) -> int:
  """Decodes finished runs again where rows ask for other decoding settings.

  Returns how many could not be; the command has said why.
  """
  folders, failed = claims.run_folders(root), 0
  for study in experiment.studies:
    for row in _rows(study):
      at = folders.get(row.run.cell.digest)
      if not row.decode or row.run.root != root or at is None:
        continue
      path = at / 'evaluations.json'
      is_decoded = path.exists() and row.key[-1] in read_evaluations(at)
      if claims.finished(at) and not is_decoded:
        command = [sys.executable, 'launch.py', 'evaluate', str(at)]
        failed += subprocess.run([*command, *row.decode]).returncode != 0
  return failed


def _rows(study: Study, *, before: bool = False) -> Iterator[_Row]:
  """Yields the rows of all runs, or for each that of before fine-tuning.

  That row is equal for all runs, and has the first seed, whichever provides it.
  """
  for seed in study.seeds:
    for variant, run in plan.runs(study, seed):
      overrides = {**study.overrides, **variant.overrides}
      who, predictions = (study.name, variant.label, seed), 'after'
      way = [f'{key}={value}' for key, value in variant.decode.items()]
      if before:
        who, predictions = (study.name, study.before, study.seeds[0]), 'before'
        overrides = dict(study.overrides)
      elif way:
        predictions = f'after-{",".join(way)}'
      yield _Row(
        (*who, run.cell.digest, predictions), run, overrides,
        tuple(f'--decode.{each}' for each in way),
      )  # fmt: skip


def keep(experiment: Experiment, folder: Path) -> None:
  """Writes the records of all runs that have ended.

  Records of runs that are not on this machine stay as they are.
  """
  known = {_key(record): record for record in read(folder)}
  definitions, records = read_definitions(folder), []
  attempts = functools.cache(claims.attempts)

  @functools.cache
  def folders(root: Path) -> dict[str, Path]:
    return claims.run_folders(root) if root.exists() else {}

  def is_there(row: _Row) -> bool:
    at = folders(row.run.root).get(row.run.cell.digest)
    return row.key in known or (at is not None and claims.finished(at))

  for study in experiment.studies:
    before = filter(is_there, _rows(study, before=True) if study.before else ())
    for row in itertools.chain(itertools.islice(before, 1), _rows(study)):
      root, digest = row.run.root, row.run.cell.digest
      at, who = folders(root).get(digest), dict(zip(_KEY, row.key, strict=True))
      found = at and collect(
        at, who['predictions'], attempts(root).get(digest, [])
      )
      if found:
        record, defined = found
        records.append({**who, 'overrides': row.overrides, **record})
        definitions |= {fingerprint(defined): defined} if defined else {}
      elif row.key in known:
        records.append(known[row.key])
  used = {record.get('definitions') for record in records}
  kept = {key: definitions[key] for key in sorted(definitions) if key in used}
  for name, text in (
    (RECORDS, ''.join(json.dumps(record) + '\n' for record in records)),
    (DEFINITIONS, json.dumps(kept, indent=1) + '\n'),
  ):
    partial = folder / f'{name}.partial'
    partial.write_text(text, 'utf-8')
    partial.replace(folder / name)


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
  return tuple(record[field] for field in _KEY)


def read(folder: Path) -> list[Record]:
  """Reads the records of an experiment; [] before its first run."""
  path = folder / RECORDS
  if not path.exists():
    return []
  mend = f'git checkout {path} brings it back'
  records = files.read_lines(path, {'state': str}, mend)
  for number, record in enumerate(records, start=1):
    done = record['state'] == 'done'
    found = files.fault(record, DONE if done else NOT_DONE)
    if found := found or (done and _spoilt(record)):
      raise DataError(f'{path}:{number}: {found}; {mend}')
  return records


def _spoilt(record: Record) -> str:
  """Names the first impossible value of a record; '' if there is none."""
  examples = len(record['groups'])
  if min(record['groups'], default=-1) < 0:
    return f'groups are not numbers from 0 of {examples} examples'
  for name, sums in record['items'].items():
    if len(sums) != examples:
      return f'items.{name} has {len(sums)} examples, groups {examples}'
  return next((
    f'{field}.{name} is {value}, not a finite number'
    for field in ('metrics', 'nats_by_count', 'items')
    for name, values in record[field].items()
    for value in (values if field == 'items' else [values])
    if value is not None and not math.isfinite(value)
  ), '')  # fmt: skip


def read_definitions(folder: Path) -> dict[str, dict[str, Any]]:
  """Reads fingerprint -> metric -> its unit, definition and signature."""
  path = folder / DEFINITIONS
  if not path.exists():
    return {}
  mend = f'git checkout {path} brings it back'
  return files.read_json(path, dict[str, dict[str, _Definition]], mend)
