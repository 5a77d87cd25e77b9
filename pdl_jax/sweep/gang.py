"""One cell on several machines at once: a task of Ray on each.

The first claims the cell and starts process 0; then it leaves in the folder of
the claims where the processes meet, and the others start theirs:

  ROOT/sweep/<hash>.<token>.gang        the attempt, and HOST:PORT of process 0
  ROOT/sweep/<hash>.<n>.<i>.worker      the parent of process i from 1
  ROOT/<run id>/log.<i>.txt             what it printed

How the processes end together is the business of their parents
(launch/parent.py); the end of the attempt is that of process 0.
"""

import dataclasses
import json
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from pdl_jax.errors import HostError
from pdl_jax.storage import files
from pdl_jax.sweep import child, claims, local
from pdl_jax.sweep.axes import Cell
from pdl_jax.sweep.claims import Attempt

_LOOK = 0.5  # seconds between looks for the meeting
# Seconds for the meeting to be there: the first begins when the others do.
_MEET = 600.0
# Seconds for the parents to find out, once process 0 has ended, why theirs did.
_GRACE = 30.0


@dataclasses.dataclass(frozen=True)
class Member:
  """A place in a gang.

  Attributes:
    meeting: file that says where its processes meet.
    processes: how many there are.
    number: of the one that is here.
    of_slice: whether its machine is a host of a TPU slice, which has a number.
  """

  meeting: Path
  processes: int
  number: int
  of_slice: bool

  def here(self) -> 'Member':
    """With the number of this machine, if that has one."""
    if not self.of_slice:
      return self
    import ray

    labels = ray.get_runtime_context().get_node_labels()
    # Strings, whatever their type in Ray says.
    number = int(str(labels['ray.io/tpu-worker-id']))
    return dataclasses.replace(self, number=number)

  def flags(self, coordinator: str) -> list[str]:
    """That make a command line one of several hosts."""
    return [
      '--multihost', f'--coordinator={coordinator}',
      f'--num_processes={self.processes}', f'--process_id={self.number}',
    ]  # fmt: skip


def lead(
  member: Member,
  cell: Cell,
  root: Path,
  before: Sequence[Attempt],
  line: list[str],
) -> None:
  """Claims the cell and looks after process 0, once.

  Args:
    member: number 0.
    cell: to be run.
    root: holds the run folders.
    before: attempts at the cell, none of which lasts.
    line: the command line of the run alone.
  """

  def meet(cell: Cell, run: Path) -> list[str]:
    where = f'{_address()}:{_free_port()}'
    attempt = claims.attempts(root)[cell.digest][-1]  # claimed a moment ago
    text = json.dumps({'number': attempt.number, 'coordinator': where})
    partial = member.meeting.with_suffix('.partial')
    partial.write_text(text, 'utf-8')
    partial.replace(member.meeting)
    return [*line, *member.flags(where)]

  with local.take_signals() as signals:
    leader = child.start(root, meet, cell, before)
    next_beat = 0.0
    while leader is not None and leader.poll() is None:
      leader.stop(signals.count)
      if time.monotonic() > next_beat:
        next_beat = time.monotonic() + claims.HEARTBEAT
        leader.beat()
      time.sleep(local.POLL)


def follow(
  member: Member, cell: Cell, root: Path, run: Path, line: list[str]
) -> None:
  """Waits for the meeting and looks after another process; Ctrl-C ends that.

  Later signals are left to process 0, with which all stop.

  Args:
    member: not number 0.
    cell: that process 0 claims.
    root: holds the run folders.
    run: that of the cell.
    line: the command line of the run alone.

  Raises:
    HostError: the first process did not say where.
  """
  give_up = time.monotonic() + _MEET
  while not member.meeting.exists():
    if time.monotonic() > give_up:
      raise HostError(
        f'process {member.number} of {member.processes} was not told in '
        f'{_MEET:g} s where they meet: there is no {member.meeting}'
      )
    time.sleep(_LOOK)
  found = files.read_json(member.meeting, {'number': int, 'coordinator': str})
  attempt = Attempt(root / 'sweep', cell.digest, found['number'])
  name = attempt.path(f'{member.number}.worker')
  before = signal.signal(signal.SIGINT, lambda *_: None)
  try:
    with (run / f'log.{member.number}.txt').open('ab') as log:
      own = child.spawn(name, [*line, *member.flags(found['coordinator'])], log)
    over = float('inf')
    while own.poll() is None and time.monotonic() < over + _GRACE:
      if attempt.end is not None or attempt.superseded:
        over = min(over, time.monotonic())
      time.sleep(_LOOK)
    own.kill()
    own.wait()
  finally:
    signal.signal(signal.SIGINT, before)


def _address() -> str:
  """Of this machine, for the others of the cluster."""
  import ray

  return ray.util.get_node_ip_address()


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('', 0))
    return probe.getsockname()[1]
