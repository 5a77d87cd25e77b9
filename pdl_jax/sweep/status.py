"""Reads from its folder how far a sweep is; writes nothing."""

import dataclasses
import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pdl_jax import run_claim
from pdl_jax.errors import DataError, printable
from pdl_jax.run_folder import STATUS
from pdl_jax.storage import files
from pdl_jax.sweep import claims
from pdl_jax.sweep.claims import PREEMPTED, Attempt, Cell

_CONFIG = {'train': {'steps': int}}
_WORKS = ('starting', 'running')  # what status.json says until the end
STATES = ('done', 'running', 'failed', 'stopped', 'queued', 'broken')


@dataclasses.dataclass(frozen=True)
class Row:
  """The state of one cell, or of a run that no sweep has.

  A cell that was stopped, or whose sweeper was killed, is queued again. Any
  other run is stopped until somebody continues it. It is broken if one of its
  files is torn, altered or unreadable.
  """

  name: str  # the name of its run folder
  state: str = 'queued'  # one of STATES
  step: int = 0  # last logged; 0 if it has not begun or is done
  steps: int = 0  # of the whole run; 0 if unknown
  age: float | None = None  # seconds since it last wrote its status
  error: str = ''  # why it failed, stopped or is broken
  attempts: int = 0
  seconds: float | None = None  # duration, if known

  @property
  def left(self) -> float:
    """The share of the run that is still to do."""
    if self.state not in ('running', 'queued'):
      return 0.0
    return 1 - self.step / self.steps if self.steps else 1.0


def status(root: Path, cells: Sequence[Cell] | None = None) -> list[Row]:
  """Returns the state of each cell.

  If None, these are the runs that are there, and what sweeps are yet to begin.
  """
  folders = claims.run_folders(root) if root.exists() else {}
  attempts, now, torn = claims.attempts(root), time.time(), []
  if cells is None:
    names = {digest: path.name for digest, path in folders.items()}
    for path in sorted((root / 'sweep').glob('*.cells')):
      try:
        declared = files.read_json(path, dict[str, str])
      except DataError as error:
        torn.append(Row(path.name, 'broken', error=str(error)))
        continue
      for digest, name in declared.items():
        if claims.folder_of(digest, name, folders) is None:
          names[digest] = name
  else:
    names = {cell.digest: cell.run_id for cell in cells}
  rows = []
  for digest, name in names.items():
    run = claims.folder_of(digest, name, folders)
    row = Row(name if run is None else run.name)
    before = attempts.get(digest, [])
    try:
      row = _row(row, run, before, now)
    except (DataError, OSError) as error:  # It does not hide the others.
      row = dataclasses.replace(row, state='broken', error=str(error))
    rows.append(dataclasses.replace(row, attempts=len(before)))
  return rows + torn


def _row(
  row: Row, run: Path | None, attempts: Sequence[Attempt], now: float
) -> Row:
  replace = dataclasses.replace
  last, state = attempts[-1] if attempts else None, ''
  alive = last is not None and last.lasts(now)
  if run is not None:
    if claims.finished(run):
      files.read_json(run / 'results.json', dict)
      return replace(row, state='done', seconds=_seconds(attempts))
    if os.path.lexists(run / 'config.json'):
      config = files.read_json(run / 'config.json', _CONFIG)
      row = replace(row, steps=config['train']['steps'])
    if os.path.lexists(run / 'status.json'):
      written = files.read_json(run / 'status.json', STATUS)
      age, state = now - written['heartbeat'], written['state']
      row = replace(row, step=written['step'], age=age)
      if last is None and state in ('error', 'stopped'):
        row = replace(row, error=written['error'])
      # Not every file system has claims.
      silent = run_claim.claims(run) or age > claims.STALE
      alive = alive or (last is None and state in _WORKS and not silent)
    alive = alive or run_claim.lives(run, now)
  if alive:
    return replace(row, state='running', error='')
  if last is not None:
    end = last.end
    if end is not None and end.failed:
      return replace(row, state='failed', error=end.error)
    return row
  if state == 'error':
    return replace(row, state='failed')
  if state:
    why = row.error or 'it was killed or lost; the same command continues'
    return replace(row, state='stopped', error=why)
  return row


def _seconds(attempts: Sequence[Attempt]) -> float | None:
  """Sums the finished run and the parts that it continued."""
  ends = [end for attempt in attempts if (end := attempt.end) is not None]
  if not any(end.code == 0 for end in ends):
    return None  # Its sweeper was killed, or it had none.
  return sum(end.seconds for end in ends if end.code in (0, PREEMPTED))


def remaining_seconds(rows: Sequence[Row], workers: int) -> float | None:
  """Estimates from the median finished cell; None if none has finished."""
  known = [row.seconds for row in rows if row.seconds is not None]
  if not known:
    return None
  return statistics.median(known) * sum(row.left for row in rows) / workers


def format_status(rows: Sequence[Row]) -> str:
  """Formats one line per cell, and a summary line."""
  width = max((len(row.name) for row in rows), default=0)
  lines = [
    printable(f'{row.state:8s} {row.name:{width}s} {_note(row)}'.rstrip())
    for row in rows
  ]
  counts = Counter(row.state for row in rows)
  said = ', '.join(f'{counts[s]} {s}' for s in STATES if counts[s])
  left = remaining_seconds(rows, max(counts['running'], 1))
  ended = not counts['running'] and not counts['queued']
  eta = '' if ended else f'; time left: {_duration(left)}'
  return '\n'.join([*lines, f'{len(rows)} cells: {said or "none"}{eta}'])


def format_dry_run(
  groups: Sequence[tuple[str, Path, Sequence[Cell]]],
  workers: int,
  recorded: Mapping[str, float],
) -> str:
  """Says what would be run, what is done, and how long it may take.

  Args:
    groups: title ('' for none), root and cells of each sweep. A cell that is in
      several groups counts once.
    recorded: cell hash -> seconds, for results that are kept elsewhere. Such
      cells need not run.
  """
  lines, found, labels = [], {}, set[tuple[Path, str]]()
  for title, root, cells in groups:
    lines += [title] if title else []
    for row, cell in zip(status(root, cells), cells, strict=True):
      if cell.digest in recorded and row.state != 'done':
        row = dataclasses.replace(
          row, state='done', seconds=recorded[cell.digest]
        )
      lines.append(f'{row.state:8s} {row.name}  <- {" | ".join(cell.labels)}')
      found[root, cell.digest] = row
      labels |= {(root, label) for label in cell.labels}
  rows = list(found.values())
  done = sum(row.state == 'done' for row in rows)
  again = [
    dataclasses.replace(row, state='queued')
    if row.state in ('failed', 'stopped')
    else row
    for row in rows
  ]
  seconds = 0.0 if done == len(rows) else remaining_seconds(again, workers)
  return '\n'.join([
    *lines,
    f'{len(rows)} cells from {len(labels)} points, {done} done; estimated time '
    f'with {workers} workers: {_duration(seconds)}',
  ])


def _note(row: Row) -> str:
  parts = []
  if row.step and row.steps:
    parts.append(f'step {row.step}/{row.steps}')
  if row.state == 'running' and row.age is not None:
    parts.append(f'heartbeat {_duration(row.age)} ago')
  if row.state == 'done' and row.seconds is not None:
    parts.append(_duration(row.seconds))
  if row.attempts > 1:
    parts.append(f'{row.attempts} attempts')
  return ', '.join([*parts, row.error] if row.error else parts)


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return 'unknown'
  minutes, hours = round(seconds / 60), seconds / 3600
  if seconds < 100:
    return f'{seconds:.0f} s'
  return f'{minutes} min' if minutes < 100 else f'{hours:.1f} h'
