"""Runs cells until each is done or failed: chooses, retries, hears signals.

An engine is how one is started: as a child of this process (child.start), or on
a Ray cluster (ray_engine.engine).
"""

import contextlib
import dataclasses
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from pdl_jax import process
from pdl_jax.errors import ConfigError, PreemptedError
from pdl_jax.sweep import claims
from pdl_jax.sweep.claims import Attempt, Cell
from pdl_jax.train.preemption import hear

# Seconds between looks at own runs, and at what other sweepers do.
POLL = 0.1
_LOOK = 1.0


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of a sweep."""

  done: int  # cells with results, before this call or now
  failed: dict[str, str]  # name of a cell given up -> its last error line
  left: int  # cells not done because of fail_fast


class Worker(Protocol):
  """A run of a cell that has been started, on this machine or another."""

  cell: Cell

  def poll(self) -> int | None:
    """Returns the exit code once it has ended and its end is written."""

  def stop(self, signals: int) -> None:
    """Passes on the next signal unless it has had that many."""

  def beat(self) -> None:
    """Shows that it lives."""


Start = Callable[[Cell, Sequence[Attempt]], Worker | None]


@contextlib.contextmanager
def take_signals() -> Iterator[list[int]]:
  """Collects the signals that ask to stop; see `hear`."""
  signals: list[int] = []
  before = hear(signals.append)
  try:
    yield signals
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def run(
  cells: Sequence[Cell],
  root: Path,
  workers: int,
  retries: int,
  fail_fast: bool,
  start: Start,
) -> Outcome:
  """Runs cells until each has results or was given up.

  Other sweepers may work on the same folder; if they die, their cells are taken
  over. Call this in the main thread: it gets the signals, and its death ends
  the runs.

  Args:
    cells: in the order in which they start.
    retries: how often a cell may fail after the first time, during this call.
      Runs that stopped after saving (exit code 75) or whose sweeper was killed
      did not fail. A bad configuration (2) is not retried.
    fail_fast: whether the first cell given up stops the others, which save.
    start: (cell, its attempts so far, all ended or dead) -> its run, or None if
      another sweeper was first.

  Raises:
    PreemptedError: after SIGTERM or Ctrl-C, which was passed to the runs. A
      second signal ends them at once.
  """
  if workers < 1 or retries < 0:
    raise ConfigError(
      f'--workers must be >= 1 and --retries >= 0, got {workers} and {retries}'
    )
  claims.open_folder(root, cells)
  with take_signals() as signals:
    outcome = _Sweeper(
      list(cells), root, workers, retries, fail_fast, start, signals
    ).run()
  if signals:
    raise PreemptedError(
      f'by a signal with {outcome.done} of {len(cells)} cells done; '
      'the same command continues'
    )
  return outcome


@dataclasses.dataclass
class _Sweeper:
  pending: list[Cell]  # neither done nor given up
  root: Path
  workers: int
  retries: int
  fail_fast: bool
  start: Start
  signals: list[int]

  def __post_init__(self):
    self.total, self.done = len(self.pending), 0
    self.failed: dict[str, str] = {}
    self.running: list[Worker] = []
    self.tried = Counter[str]()  # cell hash -> starts by this call
    self.next_look = self.next_beat = 0.0  # time.monotonic()
    # Failures before this call do not count.
    every = itertools.chain(*claims.attempts(self.root).values())
    self.history = {each for each in every if each.end is not None}

  def run(self) -> Outcome:
    while True:
      self._poll()
      self._look()
      if self._stopping:
        # Each signal is passed on once; the first lets the runs save.
        for worker in self.running:
          worker.stop(max(len(self.signals), 1))
      if not self.running and (self._stopping or not self.pending):
        return Outcome(self.done, self.failed, len(self.pending))
      if time.monotonic() >= self.next_beat:
        self.next_beat = time.monotonic() + process.HEARTBEAT
        for worker in self.running:
          worker.beat()
      time.sleep(POLL)

  @property
  def _stopping(self) -> bool:
    return bool(self.signals or (self.fail_fast and self.failed))

  def _poll(self) -> None:
    """Lets the cells of runs that have ended be looked at again."""
    codes = [(worker, worker.poll()) for worker in self.running]
    self.running = [worker for worker, code in codes if code is None]
    ends = [code for _, code in codes if code is not None]
    if 0 in ends or (ends and self._stopping):
      self.next_look = 0.0  # Otherwise, runs that end at once would spin.

  def _look(self) -> None:
    """Settles cells that are done or given up, and starts others."""
    free = len(self.running) < self.workers
    if not free or time.monotonic() < self.next_look:
      return
    self.next_look = time.monotonic() + _LOOK
    now = process.clock(self.root / 'sweep')
    attempts = claims.attempts(self.root)
    folders = claims.run_folders(self.root)
    ours = {worker.cell.digest for worker in self.running}
    startable = []
    for cell in list(self.pending):
      before = attempts.get(cell.digest, [])
      folder = claims.folder_of(cell.digest, cell.run_id, folders)
      if cell.digest in ours:
        continue
      if folder is not None and claims.finished(folder):
        self._settle(cell, '')
      elif before and before[-1].lasts(now):
        continue
      elif error := self._given_up(before):
        self._settle(cell, error)
      else:
        startable.append((cell, before))
    # Last, because settling a cell may have stopped the sweep.
    startable.sort(key=lambda pair: self.tried[pair[0].digest])
    for cell, before in startable:
      if len(self.running) == self.workers or self._stopping:
        return
      if (worker := self.start(cell, before)) is not None:
        self.tried[cell.digest] += 1
        self.running.append(worker)

  def _given_up(self, before: Sequence[Attempt]) -> str:
    new = [each.end for each in before if each not in self.history]
    ends = [end for end in new if end is not None and end.failed]
    final = any(end.code == ConfigError.exit_code for end in ends)
    return ends[-1].error if final or len(ends) > self.retries else ''

  def _settle(self, cell: Cell, error: str) -> None:
    self.pending.remove(cell)
    if error:
      self.failed[cell.run_id] = error
    else:
      self.done += 1
    word = f'failed: {error}' if error else 'done'
    settled = self.total - len(self.pending)
    print(f'[{settled}/{self.total}] {cell.run_id} {word}', flush=True)
