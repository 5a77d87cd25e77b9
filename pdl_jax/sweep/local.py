"""Runs cells as child processes of one machine, until each is done or failed.

A cell is exactly what a user would run: the command line of `launch.py`, in a
process group of its own, with its output in log.txt of its run folder.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from pdl_jax.errors import ConfigError, PreemptedError
from pdl_jax.sweep import process, queue
from pdl_jax.sweep.axes import Cell
from pdl_jax.sweep.queue import PREEMPTED, Attempt, End

Command = Callable[[Cell, Path], list[str]]

# Seconds between looks at the own runs, and at what other sweepers do.
_POLL = 0.1
_LOOK = 1.0
_TAIL = 8192  # bytes of a log in which the error is looked for


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a sweep came to.

  Attributes:
    done: cells with results, before this call or now.
    failed: run id of each cell that was given up -> its last error line.
    left: cells not done because of fail_fast.
  """

  done: int
  failed: dict[str, str]
  left: int


@dataclasses.dataclass
class _Worker:
  """One run of a cell.

  Attributes:
    logged: size of the log before it began.
    told: signals that were passed to it.
  """

  cell: Cell
  attempt: Attempt
  run: Path
  child: subprocess.Popen
  began: float
  logged: int
  told: int = 0


class _Signals:
  """Counts SIGTERM and Ctrl-C."""

  def __init__(self):
    self.count = 0

  def receive(self, _: int, __: FrameType | None) -> None:
    self.count += 1


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
  """Takes both signals for a while."""
  signals, numbers = _Signals(), (signal.SIGTERM, signal.SIGINT)
  before = [signal.signal(number, signals.receive) for number in numbers]
  try:
    yield signals
  finally:
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


def run(
  cells: Sequence[Cell],
  root: Path,
  workers: int,
  retries: int,
  fail_fast: bool,
  command: Command,
) -> Outcome:
  """Runs what is not done yet; other sweepers may be at the same folder.

  Returns once every cell has results or was given up, those of other sweepers
  too: theirs are taken over if they die. To be called in the main thread,
  whose death is what ends the runs.

  Args:
    cells: in the order in which they are begun.
    root: holds a run folder for each.
    workers: runs at once.
    retries: how often a cell may fail, after the first time, while this call
      lasts. Runs that stopped after saving (exit code 75) or whose sweeper was
      killed did not fail; a bad configuration (2) is not tried again.
    fail_fast: whether the first cell given up stops the others, which save.
    command: (cell, run folder) -> the command line that runs it.

  Raises:
    ConfigError: workers or retries out of range.
    PreemptedError: after SIGTERM or Ctrl-C, which was passed to the runs; a
      second one ends them at once.
    HostError: not on Linux.
  """
  if workers < 1 or retries < 0:
    raise ConfigError(
      f'--workers must be >= 1 and --retries >= 0, got {workers} and {retries}'
    )
  queue.open_folder(root)
  with _signals() as signals:
    sweeper = _Sweeper(
      cells, root, workers, retries, fail_fast, command, signals
    )
    outcome = sweeper.run()
  if signals.count:
    raise PreemptedError(
      f'by a signal with {outcome.done} of {len(cells)} cells done; '
      'the same command continues'
    )
  return outcome


class _Sweeper:
  def __init__(
    self,
    cells: Sequence[Cell],
    root: Path,
    workers: int,
    retries: int,
    fail_fast: bool,
    command: Command,
    signals: _Signals,
  ):
    self._root, self._workers, self._retries = root, workers, retries
    self._fail_fast, self._command, self._signals = fail_fast, command, signals
    self._total, self._pending = len(cells), list(cells)
    self._running: list[_Worker] = []
    self._failed: dict[str, str] = {}
    self._done = 0
    self._tried = Counter[str]()
    self._next_look = self._next_beat = 0.0
    # What had ended before this call is history; it may be tried again.
    self._history = {
      (attempt.digest, attempt.number)
      for each in queue.attempts(root).values()
      for attempt in each
      if attempt.end is not None
    }

  def run(self) -> Outcome:
    """Looks after the runs until nothing is left to do."""
    while True:
      for worker in [w for w in self._running if w.child.poll() is not None]:
        self._end(worker)
      self._look()
      if self._stopping:
        self._stop()
      if not self._running and (self._stopping or not self._pending):
        return Outcome(self._done, self._failed, len(self._pending))
      self._beat()
      time.sleep(_POLL)

  @property
  def _stopping(self) -> bool:
    gave_up = self._fail_fast and bool(self._failed)
    return gave_up or self._signals.count > 0

  def _look(self) -> None:
    """Settles cells that are done or given up, and starts others."""
    free = len(self._running) < self._workers
    if not free or time.monotonic() < self._next_look:
      return
    self._next_look = time.monotonic() + _LOOK
    attempts, now = queue.attempts(self._root), queue.clock(self._root)
    folders = queue.run_folders(self._root)
    ours = {worker.cell.digest for worker in self._running}
    for cell in sorted(self._pending, key=lambda c: self._tried[c.digest]):
      before, folder = attempts.get(cell.digest, []), folders.get(cell.digest)
      if cell.digest in ours:
        continue
      if folder is not None and queue.finished(folder):
        self._settle(cell, '')
      elif before and before[-1].lasts(now):
        continue
      elif error := self._given_up(before):
        self._settle(cell, error)
      elif len(self._running) < self._workers and not self._stopping:
        self._start(cell, before)

  def _given_up(self, before: Sequence[Attempt]) -> str:
    """The last error of a cell that has failed too often, or ''."""
    ends = [
      end
      for attempt in before
      if (attempt.digest, attempt.number) not in self._history
      and (end := attempt.end) is not None
      and end.failed
    ]
    final = any(end.code == ConfigError.exit_code for end in ends)
    return ends[-1].error if final or len(ends) > self._retries else ''

  def _settle(self, cell: Cell, error: str) -> None:
    self._pending.remove(cell)
    if error:
      self._failed[cell.run_id] = error
    else:
      self._done += 1
    word = f'failed: {error}' if error else 'done'
    settled = self._total - len(self._pending)
    print(f'[{settled}/{self._total}] {cell.run_id} {word}', flush=True)

  def _start(self, cell: Cell, before: Sequence[Attempt]) -> None:
    attempt = queue.claim(self._root, cell.digest, before)
    if attempt is None:
      return
    run = queue.run_folders(self._root).get(cell.digest)
    if run is not None and queue.finished(run):
      # By another sweeper, after this one had looked.
      attempt.write_end(End(PREEMPTED, 0.0, ''))
      return
    run = self._root / cell.run_id if run is None else run
    run.mkdir(exist_ok=True)
    self._tried[cell.digest] += 1
    with (run / 'log.txt').open('ab') as log:
      child = subprocess.Popen(
        [
          sys.executable, '-I', '-S', process.__file__, str(os.getpid()),
          str(attempt.path('worker')), *self._command(cell, run),
        ],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        # Ctrl-C reaches the sweeper alone, which passes it on once.
        process_group=0,
        # Else what was printed last would stand after the error.
        env={**os.environ, 'PYTHONUNBUFFERED': '1'},
      )  # fmt: skip
      worker = _Worker(
        cell, attempt, run, child, time.monotonic(), log.tell()
      )
    self._running.append(worker)

  def _end(self, worker: _Worker) -> None:
    """Writes down how a run ended, and lets the cell be looked at again."""
    self._running.remove(worker)
    code, error = worker.child.returncode, ''
    if worker.told and code == -signal.SIGTERM:
      code = PREEMPTED  # before it could listen, or told twice
    if code == 0 and not queue.finished(worker.run):
      code, error = 1, 'ended with exit code 0 and without results.json'
    elif code < 0:
      error = f'killed by {signal.Signals(-code).name}'
    elif code not in (0, PREEMPTED):
      error = _last_error(worker.run / 'log.txt', worker.logged)
    seconds = time.monotonic() - worker.began
    worker.attempt.write_end(End(code, round(seconds, 1), error))
    if code == 0 or self._stopping:
      self._next_look = 0.0  # Else a run that ends at once would spin.

  def _stop(self) -> None:
    """Passes on each signal once; the first lets the runs save."""
    for worker in self._running:
      if worker.told < max(self._signals.count, 1):
        worker.told += 1
        worker.child.terminate()

  def _beat(self) -> None:
    if time.monotonic() < self._next_beat:
      return
    self._next_beat = time.monotonic() + queue.HEARTBEAT
    for worker in self._running:
      worker.attempt.beat()
      if worker.attempt.superseded:
        worker.child.kill()


def _last_error(log: Path, start: int) -> str:
  """The line of a log that says what went wrong, from a position on."""
  with log.open('rb') as file:
    file.seek(max(start, log.stat().st_size - _TAIL))
    text = file.read().decode(errors='replace')
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('error: ')]
  return (errors or lines or ['nothing was printed'])[-1][:300]
