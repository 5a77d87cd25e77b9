"""Reads from its folder how far a sweep is; writes nothing."""

import dataclasses
import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pdl_jax.errors import DataError, printable
from pdl_jax.run_folder import STATUS
from pdl_jax.storage import files
from pdl_jax.sweep import claims
from pdl_jax.sweep.cell import Cell
from pdl_jax.sweep.claims import PREEMPTED, Attempt

_CONFIG = {'train': {'steps': int}}
STATES = ('done', 'running', 'failed', 'queued', 'broken')


@dataclasses.dataclass(frozen=True)
class Row:
  """The state of one cell.

  If its sweeper was killed, a run is queued again. It is broken if one of its
  files is torn, altered or unreadable.
  """

  name: str  # the name of its run folder
  state: str  # one of STATES
  step: int  # last logged; 0 if it has not begun or is done
  steps: int  # of the whole run; 0 if unknown
  age: float | None  # seconds since it last wrote its status
  error: str  # last line of a failed cell, or what is wrong with a broken one
  attempts: int
  seconds: float | None  # duration, if known

  @property
  def left(self) -> float:
    """The share of the run that is still to do."""
    if self.state in ('done', 'failed', 'broken'):
      return 0.0
    return 1 - self.step / self.steps if self.steps else 1.0


def status(root: Path, cells: Sequence[Cell] | None = None) -> list[Row]:
  """Returns the state of each cell, or of each run that is there if None."""
  folders = claims.run_folders(root) if root.exists() else {}
  attempts, now = claims.attempts(root), time.time()
  if cells is None:
    names = {digest: path.name for digest, path in folders.items()}
  else:
    names = {cell.digest: cell.run_id for cell in cells}
  return [
    # A torn folder is keyed by its name.
    _row_or_broken(name, folders.get(digest, folders.get(name)), before, now)
    for digest, name in names.items()
    for before in [attempts.get(digest, [])]
  ]


def _row_or_broken(
  name: str, run: Path | None, attempts: Sequence[Attempt], now: float
) -> Row:
  """Reads a row; a broken run does not hide the others."""
  try:
    return _row(name, run, attempts, now)
  except (DataError, OSError) as error:
    name = name if run is None else run.name
    return Row(name, 'broken', 0, 0, None, str(error), len(attempts), None)


def _row(
  name: str, run: Path | None, attempts: Sequence[Attempt], now: float
) -> Row:
  name = name if run is None else run.name
  row = Row(name, 'queued', 0, 0, None, '', len(attempts), None)
  if run is not None and claims.finished(run):
    files.read_json(run / 'results.json', dict)
    return dataclasses.replace(row, state='done', seconds=_seconds(attempts))
  last = attempts[-1] if attempts else None
  if run is not None and os.path.lexists(run / 'config.json'):
    config = files.read_json(run / 'config.json', _CONFIG)
    row = dataclasses.replace(row, steps=config['train']['steps'])
  if run is not None and os.path.lexists(run / 'status.json'):
    written = files.read_json(run / 'status.json', STATUS)
    age = now - written['heartbeat']
    row = dataclasses.replace(row, step=written['step'], age=age)
    if last is None and written['state'] == 'error':
      return dataclasses.replace(row, state='failed', error=written['error'])
  if last is not None and last.lasts(now):
    return dataclasses.replace(row, state='running')
  end = None if last is None else last.end
  if end is not None and end.failed:
    return dataclasses.replace(row, state='failed', error=end.error)
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
    dataclasses.replace(row, state='queued') if row.state == 'failed' else row
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
