"""Makes one process of several join the others, and stop and end with them."""

import dataclasses
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Self

import jax
from jax.experimental import multihost_utils

from pdl_jax import process
from pdl_jax.cluster.heartbeat import GOOD, JOINING, Journal
from pdl_jax.errors import HostError, reason
from pdl_jax.train.preemption import StopRequest

# How the parent tells a process that it is one of several.
VARIABLE = 'PDL_JAX_HOST'
_PARENT = 'PDL_JAX_PARENT'
# What clusters call the number of a process.
_NUMBERS = (
  'TPU_WORKER_ID', 'SLURM_PROCID', 'JOB_COMPLETION_INDEX',
  'OMPI_COMM_WORLD_RANK',
)  # fmt: skip
# Seconds before exit: others hit the same error a moment later and report it.
_LAST_WORDS = 2.0


@dataclasses.dataclass(frozen=True)
class Place:
  """A process among the others.

  Attributes:
    folder: where hosts write files that begin with their names.
    coordinator: HOST:PORT of process 0. If it and the next two are None, JAX
      finds them in the environment of a TPU pod, Slurm, MPI or Kubernetes.
    processes: how many there are.
    process: the number of this one.
    heartbeat_seconds: how long a silent one is believed to live.
  """

  folder: str
  name: str
  coordinator: str | None
  processes: int | None
  process: int | None
  join_seconds: int
  heartbeat_seconds: int

  def file(self, suffix: str) -> Path:
    """Returns the path of one of the files that heartbeat.py lists."""
    return Path(self.folder) / f'{self.name}.{suffix}'

  def environment(self) -> dict[str, str]:
    """Returns the environment variables that the process is started with."""
    place = json.dumps(dataclasses.asdict(self))
    return {VARIABLE: place, _PARENT: str(os.getpid())}

  @classmethod
  def here(cls) -> Self | None:
    """Returns this process's place, or None if it runs alone."""
    text = os.environ.get(VARIABLE)
    return None if text is None else cls(**json.loads(text))


def number_here() -> int | None:
  """Returns this process's number from the cluster's environment, if any."""
  found = [os.environ[name] for name in _NUMBERS if name in os.environ]
  if not found:
    return None
  # The workers of each slice of TPUs begin at 0.
  before = int(os.environ.get('MEGASCALE_SLICE_ID', 0))
  workers = os.environ.get('TPU_WORKER_HOSTNAMES', '').count(',') + 1
  return int(found[0]) + before * workers


class SharedStop(StopRequest):
  """A request to stop that all hosts hear at the same question.

  JAX takes SIGTERM on any of them and agrees with the others on the next
  question that none has asked yet.
  """

  def __init__(self, journal: Journal):
    self.requested, self._journal, self._asked = False, journal, 0
    # The parent turns Ctrl-C into SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

  def note(self, doing: str) -> None:
    """Records what begins, for those who look for a stuck host."""
    self._journal.note(doing)

  def reached(self, doing: str) -> bool:
    """Notes what is being done and returns whether all are to stop."""
    self.note(doing)
    self._asked += 1
    if not self.requested:
      self.requested = multihost_utils.reached_preemption_sync_point(
        self._asked
      )
    return self.requested


def default_backend() -> str:
  """Starts JAX and returns its backend."""
  try:
    return jax.default_backend()
  except (RuntimeError, AssertionError) as error:
    # Some releases of JAX assert if one of their plugins is missing.
    asked = jax.config.values['jax_platforms']
    raise HostError(
      f'no backend {asked} on this host, which --backend or JAX_PLATFORMS asks '
      'for: mend the driver or libtpu, or end what holds the chips; JAX says: '
      f'{reason(error)}'
    ) from error


def join(place: Place) -> SharedStop:
  """Waits for the other processes; from here on JAX sees all devices.

  If one never comes, JAX ends this process and its parent says why. Without its
  parent it ends at once, as nobody would know that it still writes.
  """
  if sys.platform == 'linux':
    process.get_when_parent_dies(signal.SIGKILL)
    if os.getppid() != int(os.environ[_PARENT]):
      raise HostError('the process that looked after this one is gone')
  stacks = place.file('stacks').open('w', encoding='utf-8')
  faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
  number = number_here() if place.process is None else place.process
  journal = Journal(Path(place.folder), place.name, number)
  journal.note(JOINING)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      place.coordinator, place.processes, place.process,
      initialization_timeout=place.join_seconds,
      heartbeat_timeout_seconds=place.heartbeat_seconds,
      shutdown_timeout_seconds=place.heartbeat_seconds,
    )  # fmt: skip
  except ValueError as error:
    raise HostError(
      '--multihost finds no cluster in the environment of this host: on a TPU '
      'pod, with Slurm, MPI or Kubernetes JAX knows the others, elsewhere give '
      'each host --coordinator=HOST:PORT --num_processes=N --process_id=I'
    ) from error
  except RuntimeError as error:
    raise HostError(
      f'--multihost cannot join the other hosts: {reason(error)}'
    ) from error
  default_backend()
  journal.process = jax.process_index()
  return SharedStop(journal)


def leave(main: Callable[[], int]) -> None:
  """Runs the command and ends this process with its exit code.

  Finished, or told to stop, all hosts leave together. After an error, which
  may be this host's alone, it leaves without waiting for them.
  """
  try:
    code = main()
  except BaseException:
    # An error outside the command: a normal interpreter exit would wait for the
    # others.
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  if code in GOOD:
    sys.exit(code)
  time.sleep(_LAST_WORDS)
  os._exit(code)
