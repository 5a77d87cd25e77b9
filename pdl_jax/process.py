"""Processes: which are alive, what they claim, and how they end together.

Runs as a script too, by its path and with the standard library alone: it ties
itself to the process that started it, leaves its name, and becomes the
command.

  python process.py PARENT_PID FILE COMMAND...
"""

import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Takes reductions from YNNPACK, which computes some of them wrong; products
# stay with it. Values of this flag add up, whatever else is set. See sentinel.
XLA_FLAG = '--xla_cpu_experimental_ynn_fusion_type=-reduce'
# Seconds: a claim that other machines read is touched so often.
HEARTBEAT = 15.0
_PR_SET_PDEATHSIG = 1
_PREEMPTED = 75


def set_xla_flags() -> None:
  """Appends XLA_FLAG to the environment's XLA_FLAGS; before JAX starts.

  What the user has set stays, also where XLA_FLAGS names a file of flags.
  """
  given = os.environ.get('XLA_FLAGS', '')
  if given.strip() and not given.strip().startswith('-'):
    # To append to a name would name another file.
    path = Path(given)
    given = path.read_text(encoding='utf-8') if path.is_file() else ''
  if XLA_FLAG not in given.split():
    os.environ['XLA_FLAGS'] = f'{given.strip()} {XLA_FLAG}'.strip()


def machine() -> str:
  """One boot of one machine, and the process ids that are seen from here.

  '' where that is not known: such a machine makes no claims, but reads them.
  """
  if not Path('/proc/self/ns/pid').is_symlink():
    return ''
  boot = Path('/proc/sys/kernel/random/boot_id').read_text('utf-8').strip()
  return f'{boot} {Path("/proc/self/ns/pid").readlink()}'


def start_time(pid: int) -> int | None:
  """When a process began, in ticks since the boot; None if it has ended.

  With the process id it is one process: ids are used again.
  """
  try:
    text = Path(f'/proc/{pid}/stat').read_text('utf-8', 'replace')
  except (FileNotFoundError, ProcessLookupError):
    return None
  # The name, in brackets, may hold anything.
  state, *fields = text[text.rindex(')') + 2 :].split()
  return None if state in 'ZX' else int(fields[18])


def claim(path: Path) -> bool:
  """Makes a file that says whose something is; False: there is one already.

  It is a hard link to a file that is already whole, which is atomic on NFS
  too; locks do not outlive their holder's host there, and a file made by
  O_EXCL is empty for a moment, in which its maker may die.

  Raises:
    OSError: the folder cannot be written to, or knows no hard links.
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
      # An NFS client may ask twice, and hear this of its own link.
      return os.fstat(whole.fileno()).st_nlink == 2
  return True


def owner(path: Path) -> dict[str, Any]:
  """Who made a claim; nothing of one that is torn.

  Raises:
    FileNotFoundError: nobody, or it has been given back.
  """
  try:
    found = json.loads(path.read_bytes())
  except ValueError:
    found = None
  return found if isinstance(found, dict) else {}


def holds(path: Path, now: float, stale: float) -> bool:
  """Whether a claim is of a process that lives.

  That of another machine cannot be seen: there the file's age decides.

  Args:
    path: of the claim.
    now: seconds since 1970 by the clock that the claims are dated with.
    stale: seconds, after which a claim that nobody touches is dead.

  Raises:
    FileNotFoundError: it has been given back.
  """
  found = owner(path)
  if found.get('machine') != machine():
    return now - path.stat().st_mtime < stale
  return alive(found)


def alive(name: dict[str, Any]) -> bool:
  """Whether this machine's process of that id and start time lives."""
  began = start_time(name.get('pid', 0))
  return began is not None and began == name.get('started')


def clock(folder: Path) -> float:
  """Seconds since 1970, as the file system dates what is in a folder."""
  with tempfile.TemporaryFile(dir=folder) as file:
    return os.fstat(file.fileno()).st_mtime


def get_when_parent_dies(number: signal.Signals) -> None:
  """Asks the kernel to send this process a signal then, however it dies.

  If it is dead already there is none.

  Raises:
    OSError: the kernel refuses.
  """
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(_PR_SET_PDEATHSIG, number) != 0:
    raise OSError(ctypes.get_errno(), 'prctl(PR_SET_PDEATHSIG) failed')


def tied(name: Path) -> list[str]:
  """What stands before a command that is to end with this process.

  Args:
    name: file that will say which process it is.
  """
  return [
    sys.executable, '-I', '-S', __file__, str(os.getpid()), str(name),
  ]  # fmt: skip


def become(parent: int, file: Path, command: list[str]) -> None:
  """Turns this process into the command; ends instead if the parent is gone.

  The command gets SIGTERM when the parent dies, however it dies. A sweeper
  that finds the parent dead and no file knows that the command never ran:
  the file is written before it is looked whether the parent lives.

  Args:
    parent: id of the process that started this one.
    file: gets id and start time of this process, which the command keeps.
    command: its arguments; the first is looked for on the path.
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
