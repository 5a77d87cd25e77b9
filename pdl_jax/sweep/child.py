"""Runs a claimed cell as a child process.

The child is what a user would run, a `launch.py` command line. It has its own
process group, and its output goes to log.txt of the run folder.
"""

import dataclasses
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pdl_jax import process
from pdl_jax.sweep import claims
from pdl_jax.sweep.claims import PREEMPTED, Attempt, Cell, End

Command = Callable[[Cell, Path], list[str]]

_TAIL = 8192  # bytes at the end of a log that may hold the error


@dataclasses.dataclass
class Child:
  """A run as a child process; a local.Worker."""

  cell: Cell
  attempt: Attempt
  run: Path
  popen: subprocess.Popen
  began: float  # time.monotonic()
  logged: int  # bytes of the log at the start
  told: int = 0  # signals passed to it

  def poll(self) -> int | None:
    """Returns the exit code once it has ended, and gives the cell back."""
    code, error = self.popen.poll(), ''
    if code is None:
      return None
    if self.told and code == -signal.SIGTERM:
      code = PREEMPTED  # before it could listen, or told twice
    if code == 0 and not claims.finished(self.run):
      code, error = 1, 'ended with exit code 0 and without results.json'
    elif code < 0:
      error = f'killed by {signal.Signals(-code).name}'
    elif code not in (0, PREEMPTED):
      error = _last_error(self.run / 'log.txt', self.logged)
    seconds = time.monotonic() - self.began
    self.attempt.write_end(End(code, round(seconds, 1), error))
    return code

  def stop(self, signals: int) -> None:
    """Sends SIGTERM unless the child has had that many signals."""
    if self.told < signals:
      self.told += 1
      self.popen.terminate()

  def beat(self) -> None:
    """Keeps the claim fresh, or ends a run that another machine took over."""
    self.attempt.beat()
    if self.attempt.superseded:
      self.popen.kill()


def start(
  root: Path, command: Command, cell: Cell, before: Sequence[Attempt]
) -> Child | None:
  """Claims a cell and runs it; returns None if another sweeper was first."""
  attempt = claims.claim(root, cell.digest, before)
  if attempt is None:
    return None
  run = claims.open_run(root, cell)
  if claims.finished(run):
    # Another sweeper finished the cell after this one had looked.
    attempt.write_end(End(PREEMPTED, 0.0, ''))
    return None
  with (run / 'log.txt').open('ab') as log:
    name, line = attempt.path('worker'), command(cell, run)
    child = process.spawn(name, line, stdout=log, stderr=log)
    return Child(cell, attempt, run, child, time.monotonic(), log.tell())


def _last_error(log: Path, start: int) -> str:
  with log.open('rb') as file:
    file.seek(max(start, log.stat().st_size - _TAIL))
    text = file.read().decode(errors='replace')
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('error: ')]
  return (errors or lines or ['nothing was printed'])[-1][:300]
