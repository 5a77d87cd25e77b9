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
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdl_jax import process
from pdl_jax.errors import HostError
from pdl_jax.sweep import child, claims, local
from pdl_jax.sweep.claims import PREEMPTED, Attempt, Cell

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
  # Nothing is claimed before all machines have entered.
  if _lost([_ask(each, enter, *origin) for each in others]):
    return
  attempt = claims.following(root, cell.digest, before)
  following: list[Any] = []  # Ray's references to the tasks

  def command(_: Cell, run: Path) -> list[str]:
    """Starts a process on each of the others; returns the line of process 0."""
    if not others:
      return line
    joined = [*line, *_meeting(len(others) + 1)]
    for number, options in enumerate(others, 1):
      following.append(_ask(
        options, follow, attempt.path(f'{number}.worker'),
        run / f'log.{number}.txt', [*joined, f'--process_id={number}'], origin,
      ))  # fmt: skip
    return [*joined, '--process_id=0']

  with local.take_signals() as signals:
    leader = child.start(root, command, cell, before)
    if leader is None:
      return
    next_beat = 0.0
    while leader.poll() is None:
      leader.stop(len(signals))
      if time.monotonic() > next_beat:
        next_beat = time.monotonic() + process.HEARTBEAT
        leader.beat()
      time.sleep(local.POLL)
    if following:
      _end(following, attempt)


def follow(name: Path, log: Path, line: list[str], origin: Origin) -> None:
  """Looks after a process whose process 0 is on another machine."""
  enter(*origin)
  with log.open('ab') as file:
    own = process.spawn(name, line, stdout=file, stderr=file)
  try:
    while own.poll() is None:
      time.sleep(local.POLL)
  finally:
    own.kill()
    own.wait()


def _meeting(count: int) -> list[str]:
  """Returns the flags by which processes find the one on this machine."""
  with socket.socket() as probe:
    probe.bind(('', 0))
    port = probe.getsockname()[1]
  where = f'{_ray().util.get_node_ip_address()}:{port}'
  return ['--multihost', f'--coordinator={where}', f'--num_processes={count}']


def _end(following: Sequence[Any], attempt: Attempt) -> None:
  """Ends the others; losing a machine does not count as a failed attempt."""
  ray, every = _ray(), {'num_returns': len(following), 'timeout': _GRACE}
  ended, late = ray.wait(following, **every)
  for each in late:
    ray.cancel(each)
  ray.wait(following, **every)  # After this, the run's machines are released.
  end = attempt.end
  if _lost(ended) and end and end.code == HostError.exit_code:
    attempt.write_end(dataclasses.replace(end, code=PREEMPTED))


def _ask(
  options: Mapping[str, Any], task: Callable[..., None], *args: Any
) -> Any:
  return _ray().remote(task).options(**options).remote(*args)


def _lost(tasks: Sequence[Any]) -> bool:
  """Waits for tasks; returns whether a machine of theirs is lost."""
  ray = _ray()
  try:
    for each in tasks:
      ray.get(each)
  except ray.exceptions.RayTaskError:
    raise
  except ray.exceptions.RayError:
    return True
  return False


def _ray() -> Any:
  import ray

  return ray
