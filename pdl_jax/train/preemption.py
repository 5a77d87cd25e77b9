"""Signals that ask a run to stop where it can be continued."""

import os
import select
import signal
from collections.abc import Callable
from typing import Any

from pdl_jax.errors import PreemptedError


def hear(receive: Callable[[int], None]) -> dict[int, Any]:
  """Calls a function at SIGTERM, Ctrl-C and SIGHUP; returns the old handlers.

  Under nohup a closing terminal changes nothing. Otherwise SIGHUP comes twice
  and output fails: neither may end what is still to be saved.
  """

  def take(number: int, _: object) -> None:
    if number == signal.SIGHUP:
      signal.signal(number, signal.SIG_IGN)
      _leave_terminal()
    receive(number)

  numbers = [signal.SIGTERM, signal.SIGINT]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    numbers.append(signal.SIGHUP)
  return {number: signal.signal(number, take) for number in numbers}


def _leave_terminal() -> None:
  """Sends output that nobody can read to nowhere, so that no write fails."""
  gone = select.poll()
  for output in (1, 2):
    gone.register(output, 0)
  for output, _ in gone.poll(0):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)


class StopRequest:
  """Whether SIGTERM, Ctrl-C or SIGHUP has come; a second one ends at once.

  `check` raises where it is safe to stop; the loop asks `reached` and saves
  first. All hosts ask equally often, and all are told at the same question
  (cluster.multihost.SharedStop).
  """

  def __init__(self):
    self.requested = False
    hear(self._receive)

  def _receive(self, number: int) -> None:
    self.requested = True
    if number != signal.SIGHUP:
      signal.signal(number, signal.SIG_DFL)

  def note(self, doing: str) -> None:
    """Notes what begins, for those who look after several hosts."""

  def reached(self, doing: str) -> bool:
    """Notes what is being done, and returns whether to stop."""
    self.note(doing)
    return self.requested

  def check(self, doing: str) -> None:
    """Raises PreemptedError if a signal has come."""
    if self.requested or self.reached(doing):
      raise PreemptedError(
        f'by a signal while {doing}; the same command continues'
      )
