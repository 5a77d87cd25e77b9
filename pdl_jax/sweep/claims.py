"""Who runs which cell: claims on a file system that sweepers share.

  ROOT/<run id>/                the ordinary run folder of each cell
  ROOT/sweep/<hash>.<n>.claim   attempt n at a cell, and whose it is; touched
                                now and then while it lasts
  ROOT/sweep/<hash>.<n>.worker  the process that became the run
  ROOT/sweep/<hash>.<n>.end     how it ended: exit code, seconds, last error

Nothing is ever removed or taken away: a cell whose last attempt has ended, or
whose owner is dead, is claimed by making attempt n + 1, and of all who try the
file system lets one (process.claim).
"""

import dataclasses
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pdl_jax import process
from pdl_jax.errors import HostError, PreemptedError
from pdl_jax.storage import files

# Seconds: a claim of another machine is touched so often, and dead when it has
# not been for so long.
HEARTBEAT = process.HEARTBEAT
STALE = 300.0
PREEMPTED = PreemptedError.exit_code
_PROCESS = {'pid': int, 'started': int | None}

_RUN = re.compile(r'.*-([0-9a-f]{8})')


@dataclasses.dataclass(frozen=True)
class End:
  """How an attempt ended."""

  code: int  # exit code; below 0 the signal that killed it
  seconds: float
  error: str  # its last line, if it failed

  @property
  def failed(self) -> bool:
    """Neither finished nor stopped after saving."""
    return self.code not in (0, PREEMPTED)


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One claim of one cell."""

  folder: Path  # that of all claims
  digest: str  # of the cell
  number: int  # from 1

  def path(self, kind: str) -> Path:
    """Names its claim, worker or end."""
    return self.folder / f'{self.digest}.{self.number}.{kind}'

  @property
  def end(self) -> End | None:
    """None while it lasts, and for ever if its sweeper was killed."""
    if not self.path('end').exists():
      return None
    found = files.read_json(self.path('end'), End)
    return End(found['code'], found['seconds'], found['error'])

  def write_end(self, end: End) -> None:
    """Gives the cell back."""
    partial = self.path('end.partial')
    partial.write_text(json.dumps(dataclasses.asdict(end)), 'utf-8')
    partial.replace(self.path('end'))

  def beat(self) -> None:
    """Shows other machines that its sweeper lives."""
    os.utime(self.path('claim'))

  @property
  def superseded(self) -> bool:
    """Whether another machine took this one's silence for death."""
    later = following(self.folder.parent, self.digest, [self])
    return later.path('claim').exists()

  def lasts(self, now: float) -> bool:
    """Whether it has not ended, and its sweeper or its run lives at `clock`."""
    if self.path('end').exists():
      return False
    path = self.path('claim')
    if files.read_json(path, {'machine': str})['machine'] != process.machine():
      return now - path.stat().st_mtime < STALE
    # In this order: a sweeper that is dead starts no more runs.
    return any(
      self.path(kind).exists()
      and process.alive(files.read_json(self.path(kind), _PROCESS))
      for kind in ('claim', 'worker')
    )


def open_folder(root: Path) -> None:
  """Makes the folder of the claims, if there is none.

  Raises:
    HostError: where processes cannot be looked at as on Linux.
  """
  if not process.machine():
    raise HostError('--sweep needs Linux: it looks for processes in /proc')
  (root / 'sweep').mkdir(parents=True, exist_ok=True)


def claim(root: Path, digest: str, before: Sequence[Attempt]) -> Attempt | None:
  """Makes the next attempt at a cell; None if somebody else has made it.

  The last of the attempts before has ended or is dead.
  """
  attempt = following(root, digest, before)
  return attempt if process.claim(attempt.path('claim')) else None


def following(root: Path, digest: str, before: Sequence[Attempt]) -> Attempt:
  """Names the next attempt at a cell, which nobody need have claimed."""
  number = before[-1].number + 1 if before else 1
  return Attempt(root / 'sweep', digest, number)


def clock(root: Path) -> float:
  """Seconds since 1970, as the file system dates the claims."""
  return process.clock(root / 'sweep')


def attempts(root: Path) -> dict[str, list[Attempt]]:
  """Lists the attempts at each cell, by its hash, oldest first."""
  found: defaultdict[str, list[Attempt]] = defaultdict(list)
  for path in (root / 'sweep').glob('*.claim'):
    digest, number = path.stem.split('.')
    found[digest].append(Attempt(path.parent, digest, int(number)))
  for each in found.values():
    each.sort(key=lambda attempt: attempt.number)
  return found


def run_folders(root: Path) -> dict[str, Path]:
  """Finds each run below a folder, by its hash.

  Of several that are the same run under different names, a finished one.
  """
  found: dict[str, Path] = {}
  for path in sorted(root.iterdir()):
    match = _RUN.fullmatch(path.name)
    if match and (match[1] not in found or finished(path)):
      found[match[1]] = path
  return found


def finished(run: Path) -> bool:
  """Whether a run folder has results."""
  return os.path.lexists(run / 'results.json')
