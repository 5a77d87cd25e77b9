"""What a process prints: all of it to its log, what people want to see here."""

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TextIO

# Of the libraries below JAX: for a bug report, not for who reads a terminal.
_NOISE = re.compile(r'[IWE]\d{4} \d\d:\d\d:|\[Gloo\] |WARNING: All log ')
# From here on a process tells how it crashed.
_CRASH = re.compile(r'Traceback \(most recent|F\d{4} \d\d:\d\d:|Fatal Python')
_SENTENCE = re.compile(r'(error|stopped): ')


class Output:
  """Passes on what a child process prints, a thread for each of its pipes.

  Attributes:
    sentence: the last line by which it said why it ends.
    crash: lines from a crash on; not shown.
  """

  def __init__(self, child: subprocess.Popen, log: Path, shown: bool):
    """
    Args:
      child: with pipes of text as stdout and stderr.
      log: gets everything, at its end.
      shown: whether the terminal gets it too, but for noise and crashes.
    """
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
    """Waits for what is left of it, once the child has ended."""
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
