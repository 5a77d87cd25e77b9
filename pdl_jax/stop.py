"""Signals that ask a run to stop where it can be continued."""

import signal
from types import FrameType

from pdl_jax.errors import PreemptedError


class StopRequest:
  """Whether SIGTERM or Ctrl-C has come; a second one ends at once.

  `check` raises where it is safe to stop; the loop asks `reached` and saves
  first. Of several hosts each asks as often as the others, and all are told
  at the same question (launch.multihost.SharedStop).

  Attributes:
    requested: whether to stop.
  """

  def __init__(self):
    self.requested = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._receive)

  def _receive(self, number: int, _: FrameType | None) -> None:
    self.requested = True
    signal.signal(number, signal.SIG_DFL)

  def note(self, doing: str) -> None:
    """Says what is begun; for those who look after several hosts."""

  def reached(self, doing: str) -> bool:
    """Notes what is being done; whether to stop."""
    self.note(doing)
    return self.requested

  def check(self, doing: str) -> None:
    """Raises PreemptedError if a signal has come."""
    if self.requested or self.reached(doing):
      raise PreemptedError(
        f'by a signal while {doing}; the same command continues'
      )
