"""Defines the flags for several hosts, and the processes that they ask for."""

import os
import re
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pdl_jax.errors import ConfigError, HostError

if TYPE_CHECKING:
  from pdl_jax.cluster.multihost import Place

_MULTIHOST = flags.DEFINE_bool(
  'multihost', False, 'This is one of several hosts, each with this command.'
)
_PROCESSES = flags.DEFINE_integer(
  'processes', None, 'Rehearse --multihost here, on CPUs: so many processes.',
  lower_bound=1,
)  # fmt: skip
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where JAX cannot find it.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'With --coordinator: how many there are.',
  lower_bound=1,
)  # fmt: skip
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'With --coordinator: which of them this is, from 0.',
  lower_bound=0,
)  # fmt: skip
_JOIN_SECONDS = flags.DEFINE_integer(
  'join_seconds', 300, 'How long hosts wait for each other.', lower_bound=1
)
STUCK_SECONDS = flags.DEFINE_integer(
  'stuck_seconds', 1800, 'With several hosts: how long anything may take, '
  'the longest compilation too, before the run is called stuck.',
  lower_bound=1,
)  # fmt: skip
_BACKEND = flags.DEFINE_enum(
  'backend', None, ['cpu', 'gpu', 'tpu'], 'Nothing else will do.'
)
DEVICES = flags.DEFINE_integer(
  'devices', None, 'With --dry_run: how many will be there.', lower_bound=1
)
TOPOLOGY = flags.DEFINE_string(
  'topology', '', 'With --dry_run: compile the step for these TPUs, such as '
  'v6e:4x4 (of each slice), and say what it takes of a chip. Needs libtpu.',
)  # fmt: skip
OF_DRY_RUN = ('devices', 'topology')
# Flags that a sweep passes on to its cells.
_OF_CELLS = ('processes', 'join_seconds', 'stuck_seconds', 'backend')
_OF_HOSTS = (
  'multihost', 'processes', 'coordinator', 'num_processes', 'process_id',
  'backend',
)  # fmt: skip
# JAX's own default for the seconds until a silent process counts as dead.
_HEARTBEAT = 100


def choose_backend() -> None:
  """Tells JAX which backend to use; call it before JAX looks for one."""
  import jax

  from pdl_jax.cluster.multihost import Place

  if jax.config.values['jax_enable_x64']:
    raise HostError(
      'JAX_ENABLE_X64 is set: counts, losses and checkpoints are made for fp32 '
      'and would not be those of other runs; unset it'
    )
  elsewhere = _MULTIHOST.value or _PROCESSES.value or TOPOLOGY.value
  if Place.here() is None and elsewhere:
    # The chips are for the processes that this one starts, or not here.
    jax.config.update('jax_platforms', 'cpu')
  elif _BACKEND.value:
    jax.config.update('jax_platforms', _BACKEND.value)


def places(workdir: Path) -> 'list[Place]':
  """Returns the processes to start; [] if this one is to train itself."""
  from pdl_jax.cluster.multihost import Place, number_here

  if Place.here() is not None:
    return []
  coordinator, count, number = check()
  if _PROCESSES.value:
    # A rehearsal uses this machine's CPUs, whatever else it has.
    os.environ['JAX_PLATFORMS'] = 'cpu'
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    coordinator, count = f'localhost:{port}', _PROCESSES.value
    named = [(str(each), each) for each in range(count)]
  elif _MULTIHOST.value:
    own = number_here() if number is None else number
    named = [(socket.gethostname() if own is None else str(own), number)]
  else:
    return []
  folder = str(workdir.absolute() / 'hosts')
  limits = _JOIN_SECONDS.value, min(_HEARTBEAT, STUCK_SECONDS.value)
  return [
    Place(folder, name, coordinator, count, each, *limits)
    for name, each in named
  ]


def check() -> tuple[str | None, int | None, int | None]:
  """Checks the flags; returns coordinator, number of processes, own number."""
  coordinator = _COORDINATOR.value
  count, number = _NUM_PROCESSES.value, _PROCESS_ID.value
  missing = [coordinator, count, number].count(None)
  if missing not in (0, 3) or (not missing and not _MULTIHOST.value):
    raise ConfigError(
      '--coordinator, --num_processes and --process_id go together, and with '
      '--multihost; without them JAX looks for the cluster itself'
    )
  if _MULTIHOST.value and _PROCESSES.value:
    raise ConfigError(
      '--processes rehearses on one machine what --multihost does on several; '
      'give one'
    )
  if _PROCESSES.value and _BACKEND.value not in (None, 'cpu'):
    raise ConfigError(
      f'--processes rehearses on CPUs; leave out --backend={_BACKEND.value}'
    )
  if coordinator is not None and not re.fullmatch(r'.+:\d+', coordinator):
    raise ConfigError(f'--coordinator={coordinator} has to be HOST:PORT')
  if count is not None and number is not None and number >= count:
    raise ConfigError(
      f'--process_id {number} is not one of {count}, which begin at 0'
    )
  return coordinator, count, number


def check_alone(command: str) -> None:
  """Refuses flags of several hosts, which a command gives each host itself."""
  given = [name for name in _OF_HOSTS if flags.FLAGS[name].present]
  if given:
    raise ConfigError(
      f'{command} tells each host which it is; leave out --{given[0]}'
    )


def devices() -> int | None:
  """Returns how many devices a run will have; None if no flag says it.

  With several processes on CPUs, each has one device.
  """
  found = DEVICES.value or _PROCESSES.value or _NUM_PROCESSES.value
  if found and TOPOLOGY.value:
    raise ConfigError(
      f'--topology={TOPOLOGY.value} says how many devices there are, and so '
      f'does another flag ({found}); give one'
    )
  return found


def without(arguments: Sequence[str], names: Collection[str]) -> list[str]:
  """Drops the flags with these names, and their values."""
  kept: list[str] = []
  rest = iter(arguments)
  for argument in rest:
    name, equals, _ = argument.lstrip('-').partition('=')
    if not argument.startswith('-') or name not in names:
      kept.append(argument)
    elif not equals and not name.endswith('dry_run'):
      next(rest)  # Its value is the next argument.
  return kept


def without_dry_run(arguments: Sequence[str]) -> list[str]:
  """Drops --dry_run, and what only it reads."""
  return without(arguments, ('dry_run', 'nodry_run', *OF_DRY_RUN))


def of_cells(hosts: int) -> list[str]:
  """Lists the flags that a sweep passes on to its cells of `hosts` machines."""
  if _MULTIHOST.value or _COORDINATOR.value:
    raise ConfigError(
      '--multihost makes this one of the hosts of one run, not of a sweep; a '
      'sweep finds hosts for its cells by --engine=ray --hosts_per_cell=N'
    )
  if _PROCESSES.value and hosts > 1:
    raise ConfigError(
      f'--processes={_PROCESSES.value} rehearses on one machine what '
      f'--hosts_per_cell={hosts} does on several; give one'
    )
  return [
    f'--{name}={flags.FLAGS[name].value}'
    for name in _OF_CELLS
    if flags.FLAGS[name].present
  ]
