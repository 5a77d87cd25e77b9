"""Makes one attempt at a cell, on the Ray machines that it was given.

The first machine claims the cell and looks after its run, as a sweeper there
would. If there are others, the run is process 0 of several, and a task on each
other machine looks after one more process:

  ROOT/sweep/<hash>.<n>.<i>.worker      the parent of process i, from 1
  ROOT/<name>/log.<i>.txt               what it printed

The parents make the processes end together (cluster/supervisor.py). The attempt
ends as process 0 does.
"""

import dataclasses
import functools
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdl_jax.errors import HostError
from pdl_jax.sweep import child, claims, local
from pdl_jax.sweep.cell import Cell
from pdl_jax.sweep.claims import PREEMPTED, Attempt

# After process 0 ends, the parents have these seconds to learn why theirs did.
_GRACE = 30.0

# Working folder and environment of the sweeper, which its tasks adopt.
Origin = tuple[Path, Mapping[str, str]]


def enter(folder: Path, environment: Mapping[str, str]) -> None:
  """Makes this process work in a folder, with variables that runs read."""
  os.chdir(folder)
  os.environ.update(environment)


def lead(
  cell: Cell,
  root: Path,
  before: Sequence[Attempt],
  line: list[str],
  origin: Origin,
  others: Sequence[Mapping[str, Any]],
) -> None:
  """Claims the cell and looks after its run; Ray cancels it by Ctrl-C.

  Args:
    before: attempts at the cell, all ended or dead.
    line: the command line of the run on one machine.
    others: Ray's task options for each of the other machines.
  """
  enter(*origin)
  attempt = claims.following(root, cell.digest, before)
  gang = _Gang(attempt, line, origin, others)
  if not gang.meet():
    return
  with local.take_signals() as signals:
    leader = child.start(root, gang.start, cell, before)
    if leader is None:
      return
    next_beat = 0.0
    while leader.poll() is None:
      leader.stop(len(signals))
      if time.monotonic() > next_beat:
        next_beat = time.monotonic() + claims.HEARTBEAT
        leader.beat()
      time.sleep(local.POLL)
    gang.end()


def follow(name: Path, log: Path, line: list[str], origin: Origin) -> None:
  """Looks after a process whose process 0 is on another machine."""
  enter(*origin)
  with log.open('ab') as file:
    own = child.spawn(name, line, file)
  try:
    while own.poll() is None:
      time.sleep(local.POLL)
  finally:
    own.kill()
    own.wait()


@dataclasses.dataclass
class _Gang:
  """The machines of an attempt; see lead for the fields."""

  attempt: Attempt
  line: list[str]
  origin: Origin
  others: Sequence[Mapping[str, Any]]

  def __post_init__(self):
    import ray

    self._ray: Any = ray
    self._following: list[Any] = []  # Ray's references to the tasks

  def meet(self) -> bool:
    """Waits until the others have entered; False if one of them is lost."""
    return not self._lost(
      [self._ask(each, enter, *self.origin) for each in self.others]
    )

  def start(self, cell: Cell, run: Path) -> list[str]:
    """Starts a process on each of the others; returns the line of process 0."""
    if not self.others:
      return self.line
    with socket.socket() as probe:
      probe.bind(('', 0))
      port = probe.getsockname()[1]
    line = [
      *self.line, '--multihost',
      f'--coordinator={self._ray.util.get_node_ip_address()}:{port}',
      f'--num_processes={len(self.others) + 1}',
    ]  # fmt: skip
    for number, options in enumerate(self.others, 1):
      name = self.attempt.path(f'{number}.worker')
      log, own = run / f'log.{number}.txt', [*line, f'--process_id={number}']
      self._following.append(
        self._ask(options, follow, name, log, own, self.origin)
      )
    return [*line, '--process_id=0']

  def end(self) -> None:
    """Ends the others; losing a machine does not count as a failed attempt."""
    if not self._following:
      return
    wait = functools.partial(
      self._ray.wait, self._following, num_returns=len(self._following),
      timeout=_GRACE,
    )  # fmt: skip
    ended, late = wait()
    for each in late:
      self._ray.cancel(each)
    wait()  # After this, the run's machines are released.
    end = self.attempt.end
    if self._lost(ended) and end and end.code == HostError.exit_code:
      self.attempt.write_end(dataclasses.replace(end, code=PREEMPTED))

  def _ask(
    self, options: Mapping[str, Any], task: Callable[..., None], *args: Any
  ) -> Any:
    return self._ray.remote(task).options(**options).remote(*args)

  def _lost(self, tasks: Sequence[Any]) -> bool:
    errors = self._ray.exceptions
    try:
      for each in tasks:
        self._ray.get(each)
    except errors.RayTaskError:
      raise
    except errors.RayError:
      return True
    return False
