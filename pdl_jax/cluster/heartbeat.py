"""Records what the hosts of a run do, and finds which one is to blame.

  hosts/NAME.json    what the process does, written once a second by itself
  hosts/NAME.worker  which process it is, written by itself
  hosts/NAME.end     how it ended, written by its parent
  hosts/NAME.stacks  where its threads were when it was found stuck
  hosts/NAME.log     what it printed
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdl_jax.errors import PreemptedError
from pdl_jax.storage import files

# Seconds by which a host's file may be old, and host clocks may differ.
SILENCE = 15.0
_EVERY = 1.0
# What a host does first.
JOINING = 'joining the others'
# Exit codes of a run that is finished, or was told to stop.
GOOD = (0, PreemptedError.exit_code)


@dataclasses.dataclass(frozen=True)
class Standing:
  """Where a host stands.

  Attributes:
    name: the prefix of its files.
    process: its number; None if not known yet.
    ticks: how many things it has begun: equal on hosts that are equally far.
    quiet: seconds since the last of them.
    time: when this was written, in seconds since 1970.
  """

  name: str
  host: str
  pid: int
  process: int | None
  doing: str
  ticks: int
  quiet: float
  time: float

  @property
  def who(self) -> str:
    """Names the host in a sentence."""
    if self.process is None:
      return f'pid {self.pid} on {self.host}'
    return f'process {self.process} (pid {self.pid} on {self.host})'


@dataclasses.dataclass(frozen=True)
class End:
  """How a host ended.

  Attributes:
    name: the prefix of its files.
    who: the host, for a sentence.
    code: exit code for its waiting parent; None if it aborted because of an
      error elsewhere.
    words: a sentence without its subject, or its own error line.
    time: seconds since 1970.
  """

  name: str
  who: str
  code: int | None
  words: str
  time: float

  @property
  def sentence(self) -> str:
    """Says what happened to the host, in its own words if it had any."""
    if self.words.startswith('error: '):
      return f'{self.who} ended: {self.words.removeprefix("error: ")}'
    return f'{self.who} {self.words}'

  def write(self, folder: Path) -> None:
    """Writes it for the other hosts."""
    _write(folder / f'{self.name}.end', self)


class Journal:
  """Writes a host's standing from a thread of its own.

  If no standings come, the whole process hangs. If they repeat old news, only
  its work does.
  """

  def __init__(self, folder: Path, name: str, process: int | None):
    self._path = folder / f'{name}.json'
    self._name, self.process = name, process
    self._doing, self._ticks, self._since = 'starting', 0, time.monotonic()
    self.write()
    threading.Thread(target=self._run, daemon=True).start()

  def note(self, doing: str) -> None:
    """Notes that something is begun."""
    self._doing, self._since = doing, time.monotonic()
    self._ticks += 1
    if self._since - self._written > _EVERY / 2:
      self.write()

  def write(self) -> None:
    """Writes where it stands now."""
    self._written = time.monotonic()
    standing = Standing(
      self._name, socket.gethostname(), os.getpid(), self.process, self._doing,
      self._ticks, round(self._written - self._since, 1), time.time(),
    )  # fmt: skip
    _write(self._path, standing)

  def _run(self) -> None:
    while True:
      time.sleep(_EVERY)
      # If the disk is full or gone, the job reports it, or falls silent here.
      with contextlib.suppress(OSError):
        self.write()


def _write(path: Path, value: Standing | End) -> None:
  text = json.dumps(dataclasses.asdict(value))
  # The thread of a journal writes at the same time as others.
  files.write_whole(path, text, mark=str(threading.get_ident()))


def _read(folder: Path, suffix: str, kind: Any, since: float) -> list[Any]:
  paths = folder.glob(f'*.{suffix}')
  found = [kind(**files.read_json(path, kind)) for path in paths]
  return [one for one in found if one.time >= since - SILENCE]


def standings(folder: Path, since: float) -> list[Standing]:
  """Reads those written since then, in the order of process numbers."""
  found = _read(folder, 'json', Standing, since)
  return sorted(found, key=lambda one: (one.process is None, one.process or 0))


def ends(folder: Path, since: float) -> list[End]:
  """Reads those written since then."""
  return _read(folder, 'end', End, since)


def stuck(standings: Sequence[Standing], now: float) -> str:
  """Says who is behind, once no host has got any further for too long.

  A host that waits for others has begun what they have not.
  """

  def doing(one: Standing) -> str:
    return f'{one.doing} for {one.quiet + max(now - one.time, 0):.0f} s'

  least = min(one.ticks for one in standings)
  behind = [one for one in standings if one.ticks == least]
  if len(standings) == 1:
    return f'{standings[0].who} is stuck: {doing(standings[0])}'
  if len(behind) == len(standings):
    return (
      f'all hosts are stuck: {doing(standings[0])}, none behind the others'
    )
  names = ', '.join(f'{one.who}, {doing(one)}' for one in behind)
  ahead = max(standings, key=lambda one: one.ticks)
  return f'stuck: {names}, while {ahead.who} is {ahead.doing}'


def primary(ends: Sequence[End]) -> End | None:
  """Finds the first end that is a cause, not a consequence."""
  reasons = [end for end in ends if end.code not in (None, *GOOD)]
  return min(reasons, key=lambda end: end.time, default=None)


def silent(standings: Sequence[Standing], now: float) -> str:
  """Names the hosts that have fallen silent; '' if none has."""
  names = ', '.join(
    f'{one.who} has not been heard of for {now - one.time:.0f} s (last '
    f'seen {one.doing})'
    for one in standings
    if now - one.time > SILENCE
  )
  return names and f'{names}; the host, its network or its process is gone'


def missing(
  standings: Sequence[Standing],
  processes: int | None,
  seconds: int,
  where: str | None,
) -> str:
  """Says which hosts never came, as far as that is known.

  Args:
    standings: those of the hosts that came to the run folder.
    processes: how many there should be; None if only JAX knows.
    where: HOST:PORT of process 0.
  """
  came = [one.process for one in standings]
  place = where or 'process 0'
  if processes is None or None in came:
    names = ', '.join(one.who for one in standings)
    return (
      f'not all hosts came within {seconds} s; those that came: {names}. Look '
      'at the others: does their command run, is this folder theirs too?'
    )
  never = [number for number in range(processes) if number not in came]
  if not never:
    return (
      f'all {processes} processes run, but did not meet within {seconds} s: '
      f'each must reach {place}, through firewalls, by the same name'
    )
  return (
    f'process{"es" * (len(never) > 1)} {", ".join(map(str, never))} of '
    f'{processes} never came within {seconds} s; is the command running there, '
    f'with this run folder and {place}?'
  )
