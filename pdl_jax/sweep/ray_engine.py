"""Runs cells on the machines of a Ray cluster.

A task of Ray is the local engine with one cell: it claims the cell where it
runs, in the folder that all machines share, and looks after the child process.
A cell of several machines has a task on each (gang.py).
This side says which cell is next and reads how each ended from those files,
so that sweepers of both engines can be at the same folder.

RAY_ADDRESS says which cluster, of which this must be a machine; without it one
is started here, for as long as the sweep lasts.
"""

import dataclasses
import functools
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pdl_jax.data.schema import check_known
from pdl_jax.errors import ConfigError, HostError, PreemptedError
from pdl_jax.sweep import claims, gang, local, placement
from pdl_jax.sweep.axes import Cell
from pdl_jax.sweep.child import Command
from pdl_jax.sweep.claims import PREEMPTED, Attempt
from pdl_jax.sweep.placement import Placed, Wanted

_RESOURCES = ('CPU', 'GPU', 'TPU')
# Of this environment, what a run has to see on its machine: it changes numbers.
_PASSED_ON = ('JAX_', 'XLA_', 'LIBTPU_')
_PATIENCE = 10.0  # seconds for the cluster to answer; Ray alone takes minutes
# Seconds for all tasks of a gang to end once one has; it takes less.
_LAST = 300.0


def parse_resources(entries: Sequence[str]) -> dict[str, float]:
  """What a cell takes of its machine: one CPU, and what 'TPU=4' and so on say.

  Raises:
    ConfigError: an entry that is not NAME=NUMBER, or a name unknown to Ray.
  """
  wanted = {'CPU': 1.0}
  for entry in entries:
    name, _, number = entry.partition('=')
    check_known('resource', name, _RESOURCES)
    try:
      wanted[name] = float(number)
    except ValueError:
      wanted[name] = math.nan
    if not 0 <= wanted[name] < math.inf:
      raise ConfigError(
        f'--resources {entry} is not NAME=NUMBER, as in TPU=4'
      )
  return wanted


def run_on_ray(
  cells: Sequence[Cell],
  root: Path,
  workers: int,
  retries: int,
  fail_fast: bool,
  command: Command,
  wanted: Wanted,
) -> local.Outcome:
  """Runs what is not done yet on a cluster; the rest is as in local.supervise.

  The machines share the working folder, the run folders and the packages,
  each under the same path everywhere. A cell whose machine was lost is begun
  again when its claim is stale; one whose process was killed, at once if that
  was on this machine. A gang that lost one of its other machines did not fail:
  it is begun again as soon as there are as many.

  Args:
    command: (cell, run folder) -> the command line that runs it.
    wanted: machines of a cell.

  Raises:
    HostError: Ray is not installed, the cluster does not answer, too few
      machines of it have the resources, or one cannot run cells at all.
  """
  ray = _connect()
  try:
    room = placement.Room(ray, wanted)
    start = functools.partial(_start, ray, root, command, wanted, room)
    return local.supervise(cells, root, workers, retries, fail_fast, start)
  finally:
    ray.shutdown()


def _connect() -> ModuleType:
  """Ray, connected to a cluster."""
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
    _check_answers(address)
    # It forks to start its daemons: nothing may have started JAX in a sweeper.
    ray.init(
      address, include_dashboard=False, log_to_driver=False,
      logging_level=logging.ERROR,
    )  # fmt: skip
  # RuntimeError: another version of Ray or Python. RayError: no access.
  except (OSError, ValueError, RuntimeError, RayError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise HostError(
      f'the Ray cluster RAY_ADDRESS={address} cannot be used: {reason[:200]}; '
      'it needs this version of Ray, and its token with RAY_AUTH_MODE=token'
    ) from error
  return ray


def _check_answers(address: str) -> None:
  host, _, port = address.rpartition(':')
  if host and port.isdecimal() and '://' not in address:
    socket.create_connection((host, int(port)), _PATIENCE).close()


def _start(
  ray: ModuleType,
  root: Path,
  command: Command,
  wanted: Wanted,
  room: placement.Room,
  cell: Cell,
  before: Sequence[Attempt],
) -> '_Task | None':
  """Asks Ray to run a cell as soon as there is room."""
  placed = room.place()
  if placed is None:
    return None
  number = before[-1].number + 1 if before else 1
  attempt = Attempt(root / 'sweep', cell.digest, number)
  run = claims.run_folders(root).get(cell.digest, root / cell.run_id)
  passed_on = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(_PASSED_ON)
  }
  line, begun = command(cell, run), attempt.path('claim')
  members: list[gang.Member | None] = [None]
  if wanted.hosts > 1:
    begun = root / 'sweep' / f'{cell.digest}.{secrets.token_hex(4)}.gang'
    members = [
      gang.Member(begun, wanted.hosts, number, wanted.is_slice)
      for number in range(wanted.hosts)
    ]
  references = [
    # No retries of Ray: after a death the claim says when the cell is free.
    ray.remote(_run_cell)
    .options(name=cell.run_id, max_retries=0, **options)
    .remote(cell, root, run, line, Path.cwd(), passed_on, member)
    for options, member in zip(placed.options, members, strict=True)
  ]
  return _Task(ray, cell, run, attempt, begun, references, placed, room)


@dataclasses.dataclass
class _Task:
  """A run somewhere on the cluster; a local.Worker.

  Attributes:
    attempt: that it will claim, unless another sweeper is first.
    begun: file that is there once it listens to signals.
    references: by which Ray knows its tasks that have not ended.
    placed: its machines.
    room: that they are of.
    stopped: whether it was told to end, for certain or not.
    told: signals that it has heard.
    lost: whether one of its tasks was, with its process or machine.
    last: when the others are told to end, once one has ended.
  """

  ray: ModuleType
  cell: Cell
  run: Path
  attempt: Attempt
  begun: Path
  references: list[Any]
  placed: Placed
  room: placement.Room
  stopped: bool = False
  told: int = 0
  lost: bool = False
  last: float = float('inf')

  def poll(self) -> int | None:
    """0 or 75 once it is over; the files tell how a run has failed."""
    ended, self.references = self.ray.wait(
      self.references, num_returns=len(self.references), timeout=0
    )
    for reference in ended:
      try:
        self.ray.get(reference)
      except self.ray.exceptions.RayError as error:
        self._explain(error)
    if self.references:
      begun, now = self.begun.exists(), time.monotonic()
      if ended:
        # Without a meeting they would wait for it for ever; with one they end
        # together, but for those whose machine was lost before they began.
        self.last = min(self.last, now + _LAST) if begun else now
      elif not begun and not self.stopped and (late := self.placed.late()):
        print(f'{self.cell.run_id} is placed again: {late}', flush=True)
        self.last = now
      if now >= self.last:
        self._cancel()
      return None
    self.placed.release()
    end = self.attempt.end
    if self.lost and end is not None and end.code == HostError.exit_code:
      # Of a gang that could not go on without the machine.
      self.attempt.write_end(dataclasses.replace(end, code=PREEMPTED))
    return 0 if claims.finished(self.run) else PREEMPTED

  def _explain(self, error: Exception) -> None:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    if self.stopped:
      return  # Before it had begun.
    if isinstance(error, self.ray.exceptions.RayTaskError):
      raise HostError(
        f'a machine of the Ray cluster cannot run cells: {reason}; it needs '
        f'{Path.cwd()} and the packages under the same path as here'
      )
    self.lost = True
    name = type(error).__name__
    print(f'{self.cell.run_id} lost its process: {name}', flush=True)

  def stop(self, signals: int) -> None:
    """Interrupts it, if it has heard fewer signals than so many."""
    if self.told < signals:
      # It listens before it claims; until then Ray may lose what it is told.
      self.told += self.begun.exists()
      self._cancel()

  def _cancel(self) -> None:
    self.stopped = True
    for reference in self.references:
      self.ray.cancel(reference)

  def beat(self) -> None:
    """Left to the task, which has the claim; until then, is there room?"""
    if not self.begun.exists():
      self.room.fits()


def _run_cell(
  cell: Cell,
  root: Path,
  run: Path,
  line: list[str],
  folder: Path,
  environment: Mapping[str, str],
  member: gang.Member | None = None,
) -> None:
  """What a task does, on whatever machine it is; Ray cancels it by Ctrl-C."""
  os.chdir(folder)
  os.environ.update(environment)
  own = None if member is None else member.here()
  if own is not None and own.number:
    gang.follow(own, cell, root, run, line)
    return
  before = claims.attempts(root).get(cell.digest, [])
  lasts = before and before[-1].lasts(claims.clock(root))
  if lasts or claims.run_folders(root).get(cell.digest, run) != run:
    return  # Another sweeper was at it while this waited for its turn.
  if own is not None:
    gang.lead(own, cell, root, before, line)
    return
  try:
    local.run([cell], root, 1, 0, False, lambda *_: line)
  except PreemptedError:
    return
