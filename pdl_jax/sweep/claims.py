"""Claims say who runs which cell, on a file system that sweepers share.

  ROOT/<name>/                  the run folder of a cell; config.json has its
                                hash
  ROOT/sweep/<mark>.cells       names, by hash, of the cells that a sweep has
  ROOT/sweep/<hash>.<n>.claim   who makes attempt n at a cell; touched now and
                                then while it lasts
  ROOT/sweep/<hash>.<n>.worker  the process that became the run
  ROOT/sweep/<hash>.<n>.end     how it ended: exit code, seconds, last error

Nothing is ever removed. Once the last attempt at a cell has ended, or its owner
is dead, attempt n + 1 claims the cell. The file system lets exactly one sweeper
succeed (process.claim).
"""

import dataclasses
import json
import os
import re
import secrets
import shutil
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdl_jax import process
from pdl_jax.errors import DataError, HostError, PreemptedError
from pdl_jax.storage import files

# Seconds without a touch until a claim counts as dead.
STALE = 300.0
PREEMPTED = PreemptedError.exit_code
_PROCESS = {'pid': int, 'started': int | None}

# Older folders all have the hash in their name.
_NAME_WITH_HASH = re.compile(r'.*-([0-9a-f]{8})')

Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep; several points of the product can be the same run.

  Attributes:
    labels: one per point, as in 'alpha=0.5 seed=1'.
    overrides: dotted key -> value, of the first point.
    config: resolved, as the run folder keeps it.
    run_id: the name of its folder, unless the run has one already. The hash
      is added where another run of the same root has that name.
    digest: the hash of all settings that change numbers; it identifies the run.
  """

  labels: tuple[str, ...]
  overrides: Overrides
  config: Mapping[str, Any]
  run_id: str
  digest: str

  @property
  def flags(self) -> list[str]:
    """The overrides as arguments of launch.py."""
    return [f'--config.{key}={value}' for key, value in self.overrides.items()]


@dataclasses.dataclass(frozen=True)
class End:
  """How an attempt ended."""

  code: int  # exit code, or below 0 the signal that killed it
  seconds: float
  error: str  # its last line, if it failed

  @property
  def failed(self) -> bool:
    """Whether it neither finished nor stopped after saving."""
    return self.code not in (0, PREEMPTED)


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One claim of one cell."""

  folder: Path  # ROOT/sweep
  digest: str  # the hash of the cell
  number: int  # counts from 1

  def path(self, kind: str) -> Path:
    """Returns the path of its claim, worker or end."""
    return self.folder / f'{self.digest}.{self.number}.{kind}'

  @property
  def end(self) -> End | None:
    """How it ended; None while it lasts, or if its sweeper was killed."""
    if not self.path('end').exists():
      return None
    found = files.read_json(self.path('end'), End)
    return End(found['code'], found['seconds'], found['error'])

  def write_end(self, end: End) -> None:
    """Gives the cell back."""
    files.write_whole(self.path('end'), json.dumps(dataclasses.asdict(end)))

  def beat(self) -> None:
    """Shows other machines that its sweeper lives."""
    os.utime(self.path('claim'))

  @property
  def superseded(self) -> bool:
    """Whether another machine took this one's silence for death."""
    later = following(self.folder.parent, self.digest, [self])
    return later.path('claim').exists()

  def lasts(self, now: float) -> bool:
    """Whether it has not ended, and its sweeper or its run lives."""
    if self.path('end').exists():
      return False
    path = self.path('claim')
    if files.read_json(path, {'machine': str})['machine'] != process.machine():
      return now - path.stat().st_mtime < STALE
    # In this order: a dead sweeper starts no more runs.
    return any(
      self.path(kind).exists()
      and process.alive(files.read_json(self.path(kind), _PROCESS))
      for kind in ('claim', 'worker')
    )


def open_folder(root: Path, cells: Sequence[Cell]) -> None:
  """Makes the folder of the claims, and notes there what a sweep is to run.

  Raises:
    HostError: this is no Linux.
  """
  if not process.machine():
    raise HostError('--sweep needs Linux: it looks for processes in /proc')
  text = json.dumps({cell.digest: cell.run_id for cell in cells}, indent=2)
  # The same sweep has the same file, whoever works on it.
  path = root / 'sweep' / f'{zlib.crc32(text.encode()):08x}.cells'
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    files.write_whole(path, f'{text}\n', secrets.token_hex(4))


def claim(root: Path, digest: str, before: Sequence[Attempt]) -> Attempt | None:
  """Makes the next attempt at a cell; returns None if another was first.

  The last attempt before it must have ended or be dead.
  """
  attempt = following(root, digest, before)
  return attempt if process.claim(attempt.path('claim')) else None


def following(root: Path, digest: str, before: Sequence[Attempt]) -> Attempt:
  """Names the next attempt at a cell, claimed or not."""
  number = before[-1].number + 1 if before else 1
  return Attempt(root / 'sweep', digest, number)


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

  If the hash is unreadable, the folder's name is the key. Of several folders of
  one run, a finished one wins.
  """
  found: dict[str, Path] = {}
  for path in sorted(root.iterdir()):
    digest = run_hash(path)
    if digest and (digest not in found or finished(path)):
      found[digest] = path
  return found


def folder_of(
  digest: str, run_id: str, folders: Mapping[str, Path]
) -> Path | None:
  """Returns the folder of a cell among `run_folders`, even a torn one."""
  return folders.get(digest, folders.get(run_id))


def run_hash(path: Path) -> str:
  """Returns the hash of the run in a folder, or '' if there is no run.

  It is in config.json. If that is torn, the hash at the end of the folder's
  name counts, or else the name itself.
  """
  named = _NAME_WITH_HASH.fullmatch(path.name)
  if not os.path.lexists(path / 'config.json'):
    return named[1] if named else ''
  try:
    return files.read_json(path / 'config.json', {'hash': str})['hash']
  except DataError:
    return named[1] if named else path.name


def default_folder(root: Path, name: str, digest: str) -> Path:
  """Returns where a single run goes: ROOT/NAME, or ROOT/NAME-HASH.

  The hash is added if another run has that name, or if an older run of this
  configuration has it already.
  """
  plain, hashed = root / name, root / f'{name}-{digest}'
  found = run_hash(plain)
  other = found and found not in (digest, name)
  return hashed if other or hashed.exists() else plain


def open_run(root: Path, cell: Cell) -> Path:
  """Returns the folder of a cell, and makes it if there is none.

  A new folder appears together with its config.json, so its owner is known.
  """
  found = folder_of(cell.digest, cell.run_id, run_folders(root))
  if found is not None:
    return found
  made = root / 'sweep' / f'{cell.digest}.{secrets.token_hex(4)}'
  made.mkdir()
  text = json.dumps({'hash': cell.digest, **cell.config}, indent=2)
  (made / 'config.json').write_text(f'{text}\n', 'utf-8')
  for name in (cell.run_id, f'{cell.run_id}-{cell.digest}'):
    path = root / name
    try:
      return made.rename(path)
    except OSError:
      if not path.exists():
        raise
    if run_hash(path) == cell.digest:  # Another sweeper has just made it.
      shutil.rmtree(made)
      return path
  raise HostError(f'{path} is in the way of a run; move it')


def finished(run: Path) -> bool:
  """Whether a run folder has results."""
  return os.path.lexists(run / 'results.json')
