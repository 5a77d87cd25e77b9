"""Runs cells on the machines of a Ray cluster.

An attempt at a cell is a task on machines reserved for it (placement.py). The
task claims the cell, in the folder that all machines share, and looks after its
run (gang.py). This side chooses the next cell, and learns from the claims how
each attempt ended. So sweepers of both engines can share a folder.

RAY_ADDRESS names the cluster, of which this machine must be a part. Without it,
a cluster is started here for as long as the sweep lasts.
"""

import contextlib
import dataclasses
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pdl_jax.data.schema import check_known
from pdl_jax.errors import ConfigError, HostError, reason
from pdl_jax.sweep import claims, gang, local, placement
from pdl_jax.sweep.child import Command
from pdl_jax.sweep.claims import PREEMPTED, Attempt, Cell
from pdl_jax.sweep.placement import Wanted

_RESOURCES = ('CPU', 'GPU', 'TPU')
# Environment variables that change the numbers of a run.
_PASSED_ON = ('JAX_', 'XLA_', 'LIBTPU_')
_ANSWER = 10.0  # seconds for the cluster to answer; Ray alone takes minutes
_LATE = 30.0  # seconds until a waiting cell says so, or tries another slice


def parse_resources(entries: Sequence[str]) -> dict[str, float]:
  """Returns a cell's share of its machine: one CPU, plus 'TPU=4' and so on."""
  wanted = {'CPU': 1.0}
  for entry in entries:
    name, _, number = entry.partition('=')
    check_known('resource', name, _RESOURCES)
    try:
      wanted[name] = float(number)
    except ValueError:
      wanted[name] = math.nan
    if not 0 <= wanted[name] < math.inf:
      raise ConfigError(f'--resources {entry} is not NAME=NUMBER, as in TPU=4')
  return wanted


@contextlib.contextmanager
def engine(
  root: Path, command: Command, wanted: Wanted
) -> Iterator[local.Start]:
  """Starts cells on a cluster, for `local.run`.

  The machines share the working folder, the run folders and the packages, under
  the same paths. A cell is restarted when the claim of its lost machine is
  stale, or at once if its process was killed on this machine. A gang that lost
  one of its other machines did not fail: it restarts once enough are there.
  """
  ray = _connect()
  try:
    yield Engine(ray, root, command, wanted).start
  finally:
    ray.shutdown()


def _connect() -> ModuleType:
  try:
    import ray
    from ray.exceptions import RayError
  except ModuleNotFoundError as error:
    raise HostError(
      f'--engine=ray needs the package {error.name}, which is not installed: '
      'pip install ray'
    ) from error
  address = os.environ.get('RAY_ADDRESS') or 'local'
  try:
    host, _, port = address.rpartition(':')
    if host and port.isdecimal() and '://' not in address:
      socket.create_connection((host, int(port)), _ANSWER).close()
    # Ray forks to start its daemons, so nothing may have started JAX here.
    ray.init(
      address, include_dashboard=False, log_to_driver=False,
      logging_level=logging.ERROR,
    )  # fmt: skip
  # RuntimeError: another version of Ray or Python. RayError: no access.
  except (OSError, ValueError, RuntimeError, RayError) as error:
    raise HostError(
      f'the Ray cluster RAY_ADDRESS={address} cannot be used: '
      f'{reason(error)[:200]}; it needs this version of Ray, and its token '
      'with RAY_AUTH_MODE=token'
    ) from error
  return ray


class Engine:
  """Starts attempts at cells as tasks of Ray."""

  def __init__(
    self, ray: ModuleType, root: Path, command: Command, wanted: Wanted
  ):
    self.ray, self.wanted = ray, wanted
    self._root, self._command = root, command
    # Slice -> when it was last asked for, by time.monotonic.
    self._asked = dict.fromkeys(placement.slices(ray, wanted), 0.0)
    self._tasks: list[_Task] = []

  def start(self, cell: Cell, before: Sequence[Attempt]) -> '_Task':
    """Asks for machines, and sends a task that begins once they are there."""
    ray = self.ray
    self._tasks = [task for task in self._tasks if not task.over]
    used = [task.slice_name for task in self._tasks]
    name = min(self._asked, key=lambda name: (name in used, self._asked[name]))
    self._asked[name] = time.monotonic()
    run = claims.open_run(self._root, cell)
    environment = {
      name: value
      for name, value in os.environ.items()
      if name.startswith(_PASSED_ON)
    }
    group = placement.reserve(ray, self.wanted, name)
    first, *others = placement.task_options(ray, self.wanted, group)
    reference = (
      ray.remote(gang.lead)
      .options(name=cell.run_id, **first)
      .remote(
        cell, self._root, before, self._command(cell, run),
        (Path.cwd(), environment), others,
      )
    )  # fmt: skip
    attempt = claims.following(self._root, cell.digest, before)
    self._tasks.append(_Task(self, cell, run, attempt, reference, group, name))
    return self._tasks[-1]


@dataclasses.dataclass
class _Task:
  """A run somewhere on the cluster; a local.Worker."""

  engine: Engine
  cell: Cell
  run: Path
  attempt: Attempt  # the one to claim, unless another sweeper is first
  reference: Any  # Ray's reference to the task
  group: Any  # Ray's placement group of its machines
  slice_name: str  # '' if it needs none
  asked: float = dataclasses.field(default_factory=time.monotonic)
  told: int = 0  # signals passed on to it
  stopped: bool = False  # asked to end, perhaps unheard
  over: bool = False

  def poll(self) -> int | None:
    """Returns 0 or 75 once it is over; files tell how a run failed."""
    ray = self.engine.ray
    ended, _ = ray.wait([self.reference], timeout=0)
    if not ended:
      return None
    self.over = True
    ray.util.remove_placement_group(self.group)
    try:
      ray.get(self.reference)
    except ray.exceptions.RayError as error:
      if not self.stopped:  # Otherwise it was stopped before it began.
        self._explain(error)
    return 0 if claims.finished(self.run) else PREEMPTED

  def _explain(self, error: Exception) -> None:
    if isinstance(error, self.engine.ray.exceptions.RayTaskError):
      last = str(error).strip().splitlines()[-1:]
      raise HostError(
        'a machine of the Ray cluster cannot run cells: '
        f'{(last or [type(error).__name__])[0]}; it needs '
        f'{Path.cwd()} and the packages under the same path as here'
      )
    name = type(error).__name__
    print(f'{self.cell.run_id} lost its process: {name}', flush=True)

  def stop(self, signals: int) -> None:
    """Interrupts the task if it has heard fewer signals than that."""
    if self.told < signals:
      # Once it has claimed, it listens; before that Ray may lose a signal.
      self.told += self._begun
      self._cancel()

  def beat(self) -> None:
    """Reports that it waits for machines, and gives those of a slice back."""
    if self._begun or self.stopped or time.monotonic() < self.asked + _LATE:
      return
    self.asked = time.monotonic()
    where = f' of slice {self.slice_name}' if self.slice_name else ''
    wanted = self.engine.wanted
    print(f'{self.cell.run_id} waits for {wanted}{where}', flush=True)
    if self.slice_name:
      self._cancel()  # The next attempt asks for another slice.

  @property
  def _begun(self) -> bool:
    return self.attempt.path('claim').exists()

  def _cancel(self) -> None:
    self.stopped = True
    # Not its own tasks: the processes of a gang end together.
    self.engine.ray.cancel(self.reference, recursive=False)
