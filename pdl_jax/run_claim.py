"""Claims of a run folder: one process at a time trains in it.

run.N.claim names the process; a later N follows one that is dead. Elsewhere
its machine's silence decides.
"""

import contextlib
import errno
import functools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pdl_jax import process
from pdl_jax.errors import HostError, PdlError, PreemptedError

# Seconds until another machine's untouched claim is dead. A sweep waits longer
# before it begins the run again.
_STALE = 120.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
  """Makes a run folder, and keeps other processes from training in it.

  A new folder is removed if the run is refused before it has made anything. The
  first process of a run claims for all of them, and may call this again.

  Raises:
    HostError: another process works in it; nothing is touched.
  """
  import jax

  finished = (path / 'results.json').exists()  # It is only read.
  if finished or jax.process_index() or any(map(_is_own, claims(path))):
    yield
    return
  made = not path.exists()
  path.mkdir(parents=True, exist_ok=True)
  claim, over = _claim(path), threading.Event()
  try:
    if claim is not None:
      threading.Thread(target=_beat, args=(claim, over), daemon=True).start()
    yield
  except (PdlError, OSError) as error:
    if made and not begun(path) and not isinstance(error, PreemptedError):
      shutil.rmtree(path, ignore_errors=True)
    raise
  finally:
    over.set()
    if claim is not None:
      claim.unlink(missing_ok=True)
    if made:
      # A folder that is still empty goes, whatever ended the run.
      with contextlib.suppress(OSError):
        path.rmdir()


def begun(path: Path) -> bool:
  """Whether a run has made predictions, which come first."""
  return any((path / 'predictions').glob('*'))


def check_unclaimed(path: Path) -> None:
  """Raises HostError if another living process works in a run folder."""
  for claim in claims(path):
    with contextlib.suppress(FileNotFoundError):  # given back just now
      now = process.clock(path)
      if _is_own(claim) or not process.holds(claim, now, _STALE):
        continue
      owner, age = process.owner(claim), now - claim.stat().st_mtime
      since = time.strftime(
        '%Y-%m-%d %H:%M:%S', time.localtime(owner.get('time', now - age))
      )
      there = (
        f'kill {owner["pid"]} stops it'
        if owner.get('machine') == process.machine()
        else f'it was heard of {age:.0f} s ago; if that machine is gone, the '
        f'same command works after {_STALE:.0f} s of silence'
      )
      raise HostError(
        f'{path} is in use by process {owner.get("pid")} on '
        f'{owner.get("host")} since {since}: wait for it, or choose another '
        f'--workdir; {there}'
      )


def lives(path: Path, now: float) -> bool:
  """Whether a living process works in a run folder; writes nothing."""
  for claim in claims(path):
    with contextlib.suppress(FileNotFoundError):
      if process.holds(claim, now, _STALE):
        return True
  return False


def claims(path: Path) -> list[Path]:
  """Lists the claims in a run folder, the newest last."""
  found = [x for x in path.glob('run.*.claim') if _number(x).isdecimal()]
  return sorted(found, key=lambda claim: int(_number(claim)))


def _number(claim: Path) -> str:
  return claim.name.split('.')[1]


def _is_own(claim: Path) -> bool:
  with contextlib.suppress(FileNotFoundError):
    owner = process.owner(claim)
    here = owner.get('machine') == process.machine()
    return here and owner.get('pid') == os.getpid() and process.alive(owner)
  return False


def _claim(path: Path) -> Path | None:
  """Claims a folder; None if the system or file system supports no claims."""
  if not process.machine():
    check_unclaimed(path)
    return None
  while True:
    check_unclaimed(path)
    before = claims(path)
    number = int(_number(before[-1])) + 1 if before else 1
    claim = path / f'run.{number}.claim'
    try:
      if not process.claim(claim):
        continue
    except OSError as error:
      if error.errno not in _NO_LINKS:
        raise
      _say_unclaimed(path)
      return None
    try:
      # A slow process may have claimed an older number.
      check_unclaimed(path)
    except HostError:
      claim.unlink()
      raise
    for dead in before:
      dead.unlink(missing_ok=True)
    return claim


@functools.cache
def _say_unclaimed(path: Path) -> None:
  print(
    f'{path} is on a file system without hard links: see to it that no other '
    'process trains in it'
  )


def _beat(claim: Path, over: threading.Event) -> None:
  while not over.wait(process.HEARTBEAT):
    with contextlib.suppress(OSError):  # a lost disk: the run itself says so
      os.utime(claim)
