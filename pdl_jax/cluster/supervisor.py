"""Supervises the processes of a host, and says in a sentence how they ended.

JAX aborts a process whose peers are gone. The supervisor starts the processes
and survives them. From the files of all hosts (heartbeat.py) it reads which
never came, died or is stuck. Nothing waits longer than its time limit.
"""

import contextlib
import dataclasses
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, TextIO

from pdl_jax import process
from pdl_jax.cluster import fault, heartbeat
from pdl_jax.cluster.heartbeat import End, Standing
from pdl_jax.cluster.multihost import Place
from pdl_jax.errors import FaultError, HostError, PreemptedError
from pdl_jax.train.preemption import hear

_POLL = 0.2
_HOST = HostError.exit_code
_STACKS = 3.0  # seconds for a stuck process to write its stacks
_KNOWN = (0, 2, 3, 4, 5, 6, FaultError.exit_code, 75)
# How the libraries below JAX say that another process is gone.
_PEER = re.compile(
  r'[Gg]loo|coordination service|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat'
)
# Lines of those libraries for bug reports, not for readers of a terminal.
_NOISE = re.compile(r'[IWE]\d{4} \d\d:\d\d:|\[Gloo\] |WARNING: All log ')
# From such a line on, a process tells how it crashed.
_CRASH = re.compile(r'Traceback \(most recent|F\d{4} \d\d:\d\d:|Fatal Python')
_SENTENCE = re.compile(r'(error|stopped): ')


class Output:
  """Passes on what a child process prints, with one thread per pipe.

  The log gets all of it; the terminal, if shown, all except noise and crashes.

  Attributes:
    sentence: the last line that says why it ends.
    crash: lines from a crash on.
  """

  def __init__(self, child: subprocess.Popen, log: Path, shown: bool):
    self.sentence, self.crash = '', list[str]()
    self._shown, self._lock = shown, threading.Lock()
    self._log = log.open('a', encoding='utf-8')
    self._threads = [
      threading.Thread(target=self._pass_on, args=pair, daemon=True)
      for pair in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    ]
    for thread in self._threads:
      thread.start()

  def finish(self) -> None:
    """Waits for the rest, once the child has ended."""
    for thread in self._threads:
      thread.join(timeout=5)

  def _pass_on(self, pipe: IO[str], terminal: TextIO) -> None:
    crashed = False
    for line in pipe:
      with self._lock:
        self._log.write(line)
        self._log.flush()
      if _SENTENCE.match(line):
        self.sentence = line.strip()
      crashed = crashed or bool(_CRASH.match(line))
      if crashed:
        self.crash.append(line)
      elif self._shown and not _NOISE.match(line):
        terminal.write(line)
        terminal.flush()


@dataclasses.dataclass
class Host:
  """One process of this host.

  Attributes:
    end: how it ended; None while it runs.
    asked: when it was found stuck and asked where it is; 0 if never.
  """

  place: Place
  child: subprocess.Popen
  output: Output
  end: End | None = None
  asked: float = 0.0


def start(places: Sequence[Place], command: Sequence[str]) -> list[Host]:
  """Starts a process for each place; the first one's output is shown."""
  Path(places[0].folder).mkdir(parents=True, exist_ok=True)
  hosts = []
  for number, place in enumerate(places):
    for suffix in ('json', 'end', 'stacks', fault.FILE):
      place.file(suffix).unlink(missing_ok=True)
    child = process.spawn(
      place.file('worker'), command, env=place.environment(),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8',
      errors='replace',
    )  # fmt: skip
    output = Output(child, place.file('log'), shown=number == 0)
    hosts.append(Host(place, child, output))
  return hosts


class Ended(NamedTuple):
  """The exit code of a host's processes, and why if none has said it itself."""

  code: int
  words: str


def supervise(hosts: list[Host], stuck_seconds: float) -> Ended:
  """Waits for the processes of this host, and prints why they ended.

  Args:
    stuck_seconds: how long anything that a process notes may take.
  """
  watch = _Watch(hosts, stuck_seconds)
  before = hear(watch.receive)
  try:
    while not watch.over():
      time.sleep(_POLL)
    return watch.conclude()
  finally:
    for host in hosts:
      if host.child.poll() is None:
        host.child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
          host.child.wait(_STACKS)
    for number, handler in before.items():
      signal.signal(number, handler)


class _Watch:
  def __init__(self, hosts: list[Host], stuck_seconds: float):
    self._hosts, self._stuck = hosts, stuck_seconds
    self._place = hosts[0].place
    self._folder = Path(self._place.folder)
    self._began, self._signals, self._failed = time.time(), 0, 0.0
    self._found = ''  # a sentence that names the stuck hosts

  def receive(self, _: int) -> None:
    """Passes a signal on; the second one ends everything."""
    self._signals += 1
    for host in self._hosts:
      if host.child.poll() is None:
        host.child.terminate() if self._signals == 1 else host.child.kill()

  def over(self) -> bool:
    """Looks at every process once and returns whether all have ended.

    After a failure, it also returns True once the others had time to notice.
    """
    standings = heartbeat.standings(self._folder, self._began)
    for host in self._hosts:
      if host.end is None:
        self._look(host, standings)
    grace = self._place.heartbeat_seconds + heartbeat.SILENCE
    late = self._failed and time.time() > self._failed + grace
    return bool(late) or all(host.end for host in self._hosts)

  def conclude(self) -> Ended:
    ends = [host.end for host in self._hosts if host.end is not None]
    if all(end.code in heartbeat.GOOD for end in ends):
      return Ended(max(end.code or 0 for end in ends), '')
    if self._found:
      return Ended(_HOST, self._found)  # Printed when it was found.
    reason = heartbeat.primary(ends)
    if reason is None:
      ended = self._of_others(ends[0])
    elif reason.words == self._hosts[0].output.sentence:
      return Ended(reason.code or _HOST, '')
    else:
      ended = Ended(reason.code or _HOST, reason.sentence)
    print(f'error: {ended.words}; {self._files("log")}', file=sys.stderr)
    for host in self._hosts:
      if ended.code == 1 and host.end is reason:
        print(''.join(host.output.crash), end='', file=sys.stderr)
    return ended

  def _look(self, host: Host, standings: list[Standing]) -> None:
    code = host.child.poll()
    own = next((x for x in standings if x.name == host.place.name), None)
    if code is None:
      if own is not None:
        self._check_stuck(host, own, standings)
      return
    host.output.finish()
    who = own.who if own else f'host {socket.gethostname()}'
    doing = f'last seen {own.doing}' if own else 'before it began'
    code, words = self._meaning(host, code, doing)
    host.end = End(host.place.name, who, code, words, time.time())
    host.end.write(self._folder)
    if code not in heartbeat.GOOD and not self._failed:
      self._failed = time.time()

  def _meaning(
    self, host: Host, code: int, doing: str
  ) -> tuple[int | None, str]:
    """Returns an exit code and words; the code of a consequence is None."""
    crash = ''.join(host.output.crash)
    with contextlib.suppress(FileNotFoundError):
      crash += host.place.file(fault.FILE).read_text('utf-8', 'replace')
    peer_gone = _PEER.search(crash)
    if host.asked:
      return _HOST, f'was stuck, {doing}'
    if code in _KNOWN and not (peer_gone and code == FaultError.exit_code):
      return code, host.output.sentence
    if self._signals and code in (-signal.SIGTERM, -signal.SIGKILL):
      return PreemptedError.exit_code, 'was told to stop'
    if peer_gone:
      return None, f'aborted, {doing}'
    if code < 0:
      usual = ' (out of memory?)' * (code == -signal.SIGKILL)
      name = signal.Signals(-code).name
      return _HOST, f'was killed by {name}{usual}, {doing}'
    return 1, f'crashed, {doing}'

  def _check_stuck(
    self, host: Host, own: Standing, standings: list[Standing]
  ) -> None:
    if own.doing == heartbeat.JOINING or self._failed or self._signals > 1:
      return
    now = time.time()
    # A process that does not even write is stopped, or starved.
    quiet = own.quiet + max(now - own.time - heartbeat.SILENCE, 0)
    if host.asked and now > host.asked + _STACKS:
      host.child.kill()
    elif quiet > self._stuck and not host.asked:
      host.asked = now
      host.child.send_signal(signal.SIGUSR1)
      if not self._found:
        # A process that cannot write its standing cannot write its stacks.
        lost = heartbeat.silent(standings, now)
        self._found = lost or heartbeat.stuck(standings, now)
        more = self._files('log' if lost else 'stacks')
        limit = f'--stuck_seconds is {self._stuck:g}'
        print(f'error: {self._found}; {limit}; {more}', file=sys.stderr)

  def _of_others(self, own: End) -> Ended:
    """Finds why processes elsewhere made those of this host abort."""
    deadline, place = time.time() + heartbeat.SILENCE, self._place
    # These are silent too, but as a consequence.
    ended = [host.place.name for host in self._hosts if host.end is not None]
    words = ''
    while not words:
      now = time.time()
      standings = heartbeat.standings(self._folder, self._began)
      reason = heartbeat.primary(heartbeat.ends(self._folder, self._began))
      if reason is not None:
        return Ended(reason.code or _HOST, reason.sentence)
      if own.words.endswith(heartbeat.JOINING):
        words = heartbeat.missing(
          standings, place.processes, place.join_seconds, place.coordinator
        )
      else:
        others = [one for one in standings if one.name not in ended]
        words = heartbeat.silent(others, now)
      if not words and now > deadline:
        words = f'{own.who} {own.words}, and no other host says why'
      time.sleep(_POLL)
    return Ended(_HOST, words)

  def _files(self, suffix: str) -> str:
    what = {'log': 'all that was printed', 'stacks': 'where each thread is'}
    files = ', '.join(str(host.place.file(suffix)) for host in self._hosts)
    return f'{what[suffix]}: {files}'
