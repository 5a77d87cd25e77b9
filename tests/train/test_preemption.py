"""Signals that ask a run to stop."""

import os
import signal

import pytest

from pdl_jax.errors import PreemptedError
from pdl_jax.train.preemption import StopRequest, hear


def test_a_hangup_that_is_ignored_stays_ignored():
  """As under nohup."""
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  heard = []
  before = hear(heard.append)
  os.kill(os.getpid(), signal.SIGHUP)
  assert heard == [] and before.keys() == {signal.SIGTERM, signal.SIGINT}
  assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGHUP'])
def test_a_signal_is_a_request_that_the_next_question_answers(name):
  stop = StopRequest()
  stop.check('reading')
  os.kill(os.getpid(), getattr(signal, name))
  with pytest.raises(PreemptedError, match='while saving; the same command'):
    stop.check('saving')
