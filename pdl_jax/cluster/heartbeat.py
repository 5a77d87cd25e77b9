"""What each host of a run says of itself in the run folder, for the others.

  hosts/NAME.json    where it stands, once a second, by its process
  hosts/NAME.worker  which process it is, by itself
  hosts/NAME.end     how it ended, by its parent
  hosts/NAME.stacks  where its threads were when it was found stuck
  hosts/NAME.log     what it printed
"""

import dataclasses
import json
import os
import socket
import threading
import time
from pathlib import Path

from pdl_jax.storage import files

# Of files that hosts write: how long others may see an old one, and how far
# their clocks may be apart.
SILENCE = 15.0
_EVERY = 1.0


@dataclasses.dataclass(frozen=True)
class Standing:
  """Where a host stands.

  Attributes:
    name: of its files.
    host: its network name.
    pid: of the process there.
    process: its number among the processes; None if it is not known yet.
    doing: in words.
    ticks: how many things were begun: equal on hosts that are equally far.
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
    """The host, for a sentence."""
    if self.process is None:
      return f'pid {self.pid} on {self.host}'
    return f'process {self.process} (pid {self.pid} on {self.host})'


@dataclasses.dataclass(frozen=True)
class End:
  """How a host ended.

  Attributes:
    name: of its files.
    who: the host, for a sentence.
    code: exit code for those who wait for it; None: it aborted, and what made
      it abort is elsewhere.
    words: a sentence without its subject, or its own error line.
    time: when, in seconds since 1970.
  """

  name: str
  who: str
  code: int | None
  words: str
  time: float

  def write(self, folder: Path) -> None:
    """For the other hosts."""
    _write(folder / f'{self.name}.end', dataclasses.asdict(self))


class Journal:
  """Writes a host's standing from a thread of its own.

  Its silence then says that the whole process stands still, and old news in it
  that only its work does.
  """

  def __init__(self, folder: Path, name: str, process: int | None):
    self._path = folder / f'{name}.json'
    self._name, self.process = name, process
    self._doing, self._ticks, self._since = 'starting', 0, time.monotonic()
    self.write()
    threading.Thread(target=self._run, daemon=True).start()

  def note(self, doing: str) -> None:
    """Something is begun."""
    self._doing, self._since = doing, time.monotonic()
    self._ticks += 1
    if self._since - self._written > _EVERY / 2:
      self.write()

  def write(self) -> None:
    """Where it stands now."""
    self._written = time.monotonic()
    standing = Standing(
      self._name, socket.gethostname(), os.getpid(), self.process,
      self._doing, self._ticks, round(time.monotonic() - self._since, 1),
      time.time(),
    )  # fmt: skip
    _write(self._path, dataclasses.asdict(standing))

  def _run(self) -> None:
    while True:
      time.sleep(_EVERY)
      try:
        self.write()
      except OSError:
        # A full or lost disk: the job itself says so, or falls silent here.
        continue


def _write(path: Path, value: dict) -> None:
  partial = path.with_name(f'{path.name}.{threading.get_ident()}')
  partial.write_text(json.dumps(value), 'utf-8')
  partial.replace(path)


def standings(folder: Path, since: float) -> list[Standing]:
  """Of the hosts that wrote after some time, in the order of their numbers."""
  found = [
    Standing(**files.read_json(path, Standing))
    for path in folder.glob('*.json')
  ]
  found = [one for one in found if one.time >= since - SILENCE]
  return sorted(found, key=lambda one: (one.process is None, one.process or 0))


def ends(folder: Path, since: float) -> list[End]:
  """Of the hosts that ended after some time, the first one first."""
  found = [End(**files.read_json(p, End)) for p in folder.glob('*.end')]
  found = [one for one in found if one.time >= since - SILENCE]
  return sorted(found, key=lambda one: one.time)
