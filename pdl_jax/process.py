"""Tells which processes live, makes claims, and ties processes together.

This file is also a script that needs only the standard library. It ties itself
to the process that started it, writes its name, and becomes a command:

  python process.py PARENT_PID FILE COMMAND...
"""

import ctypes
import hashlib
import json
import os
import platform
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from subprocess import Popen

# Takes reductions from YNNPACK, which computes some of them wrong; it keeps
# products. XLA adds this to other values of the flag. See losses/sentinel.py.
XLA_FLAG = '--xla_cpu_experimental_ynn_fusion_type=-reduce'
# Seconds between touches of a claim that other machines read.
HEARTBEAT = 15.0
_PR_SET_PDEATHSIG = 1
_PREEMPTED = 75


def set_xla_flags() -> None:
  """Appends XLA_FLAG to the environment's XLA_FLAGS, before JAX starts.

  The user's flags stay, even if XLA_FLAGS names a file of flags.
  """
  given = os.environ.get('XLA_FLAGS', '')
  if given.strip() and not given.strip().startswith('-'):
    # Appending to a file name would name another file.
    path = Path(given)
    given = path.read_text(encoding='utf-8') if path.is_file() else ''
  if XLA_FLAG not in given.split():
    os.environ['XLA_FLAGS'] = f'{given.strip()} {XLA_FLAG}'.strip()


def keep_compiled() -> None:
  """Lets JAX keep compiled programs in the user's cache folder.

  Call it before JAX starts. A folder that the environment names stays, and an
  empty name keeps nothing.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  folder = user_cache('compiled')
  # A program for CPUs has their instructions, and hosts may share a home.
  folder /= hashlib.sha256(_instructions().encode()).hexdigest()[:8]
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # JAX would stop where it cannot write.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def user_cache(name: str) -> Path:
  """Returns the user's folder of a name for what can be made again."""
  given = os.environ.get('XDG_CACHE_HOME')
  return Path(given or os.path.expanduser('~/.cache'), 'pdl_jax', name)


def _instructions() -> str:
  try:
    text = Path('/proc/cpuinfo').read_text('utf-8', 'replace')
  except OSError:
    return platform.processor()
  lines = text.splitlines()
  names = ('flags', 'Features')
  return next((line for line in lines if line.startswith(names)), '')


def machine() -> str:
  """Identifies this boot of this machine, and its namespace of process ids.

  Returns '' if that is unknown. Such a machine reads claims but makes none.
  """
  if not Path('/proc/self/ns/pid').is_symlink():
    return ''
  boot = Path('/proc/sys/kernel/random/boot_id').read_text('utf-8').strip()
  return f'{boot} {Path("/proc/self/ns/pid").readlink()}'


def start_time(pid: int) -> int | None:
  """Returns when a process began, in ticks since boot; None if it has ended.

  Process ids are reused, so only both together identify a process.
  """
  try:
    text = Path(f'/proc/{pid}/stat').read_text('utf-8', 'replace')
  except (FileNotFoundError, ProcessLookupError):
    return None
  # The name, in brackets, may hold anything.
  state, *fields = text[text.rindex(')') + 2 :].split()
  return None if state in 'ZX' else int(fields[18])


def claim(path: Path) -> bool:
  """Makes a file that names an owner, unless it exists; returns whether it did.

  The file is a hard link to one that is already complete, which is atomic on
  NFS too. There, a lock would be lost with its holder's host. A file made by
  O_EXCL is empty for a moment, in which its maker may die.

  Raises:
    OSError: the folder is not writable, or does not support hard links.
  """
  owner = {
    'machine': machine(),
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'started': start_time(os.getpid()),
    'time': time.time(),
  }
  with tempfile.NamedTemporaryFile(
    'w', dir=path.parent, encoding='utf-8'
  ) as whole:
    json.dump(owner, whole)
    whole.flush()
    try:
      os.link(whole.name, path)
    except FileExistsError:
      # An NFS client may ask twice, and be told of its own link.
      return os.fstat(whole.fileno()).st_nlink == 2
  return True


def owner(path: Path) -> dict[str, Any]:
  """Reads who made a claim; returns {} if it is torn.

  Raises:
    FileNotFoundError: nobody has made it, or it has been given back.
  """
  try:
    found = json.loads(path.read_bytes())
  except ValueError:
    found = None
  return found if isinstance(found, dict) else {}


def holds(path: Path, now: float, stale: float) -> bool:
  """Returns whether the process that made a claim lives.

  On another machine the process cannot be seen, so the file's age decides.

  Args:
    now: seconds since 1970, by the clock that dates the claims.
    stale: seconds after which an untouched claim is dead.

  Raises:
    FileNotFoundError: it has been given back.
  """
  found = owner(path)
  if found.get('machine') != machine():
    return now - path.stat().st_mtime < stale
  return alive(found)


def alive(name: dict[str, Any]) -> bool:
  """Returns whether this machine's process of that id and start time lives."""
  began = start_time(name.get('pid', 0))
  return began is not None and began == name.get('started')


def clock(folder: Path) -> float:
  """Returns seconds since 1970, by the clock that dates files in a folder."""
  with tempfile.TemporaryFile(dir=folder) as file:
    return os.fstat(file.fileno()).st_mtime


def get_when_parent_dies(number: signal.Signals) -> None:
  """Asks the kernel to signal this process when its parent dies.

  If the parent is already dead, no signal comes.
  """
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(_PR_SET_PDEATHSIG, number) != 0:
    raise OSError(ctypes.get_errno(), 'prctl(PR_SET_PDEATHSIG) failed')


def spawn(name: Path, command: Sequence[str], **options: Any) -> 'Popen':
  """Starts a process that gets SIGTERM when this one ends, however it ends.

  That is so on Linux, where the file `name` will identify the process. Ctrl-C
  reaches this process alone, which passes it on.

  Args:
    options: further ones of Popen.
  """
  import subprocess

  tied = [sys.executable, '-I', '-S', __file__, str(os.getpid()), str(name)]
  return subprocess.Popen(
    [*tied, *command] if sys.platform == 'linux' else command,
    stdin=subprocess.DEVNULL, process_group=0,
    # Otherwise output could follow the error in a log.
    env={**os.environ, 'PYTHONUNBUFFERED': '1', **options.pop('env', {})},
    **options,
  )  # fmt: skip


def become(parent: int, file: Path, command: list[str]) -> None:
  """Turns this process into a command, or ends it if the parent is gone.

  The command gets SIGTERM when the parent dies, however it dies. The file is
  written before the parent is checked. So if a sweeper finds the parent dead
  and no file, the command never ran.

  Args:
    parent: id of the process that started this one.
    file: gets id and start time of this process, which the command keeps.
    command: a program, found on the PATH, and its arguments.
  """
  get_when_parent_dies(signal.SIGTERM)
  name = {'pid': os.getpid(), 'started': start_time(os.getpid())}
  partial = file.with_name(f'{file.name}.partial')
  partial.write_text(json.dumps(name), 'utf-8')
  partial.replace(file)
  if os.getppid() != parent:
    sys.exit(_PREEMPTED)
  try:
    os.execvp(command[0], command)
  except FileNotFoundError:
    sys.exit(f'error: there is no program {command[0]}')


if __name__ == '__main__':
  become(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
