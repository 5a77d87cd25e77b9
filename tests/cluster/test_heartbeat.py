"""Who is to blame, from what hosts leave behind."""

import pytest

from pdl_jax.cluster import heartbeat
from pdl_jax.cluster.heartbeat import SILENCE, End, Standing

NOW = 1000.0


def standing(process, doing='in step 5', ticks=9, quiet=2.0, time=NOW):
  return Standing(
    str(process), f'host{process}', 40, process, doing, ticks, quiet, time
  )


def end(code, words, time=NOW, process=1):
  who = f'process {process} (pid 40 on host{process})'
  return End(str(process), who, code, words, time)


def test_the_one_behind_is_stuck():
  found = heartbeat.stuck(
    [standing(0, quiet=30), standing(1, 'reading the batch of step 5', 8, 31)],
    NOW,
  )
  assert found == (
    'stuck: process 1 (pid 40 on host1), reading the batch of step 5 for 31 s, '
    'while process 0 (pid 40 on host0) is in step 5'
  )


def test_none_behind():
  found = heartbeat.stuck([standing(0, quiet=30), standing(1, quiet=30)], NOW)
  assert found == (
    'all hosts are stuck: in step 5 for 30 s, none behind the others'
  )


def test_one_alone_counts_the_time_since_it_wrote():
  found = heartbeat.stuck([standing(0, quiet=30, time=NOW - 5)], NOW)
  assert found == 'process 0 (pid 40 on host0) is stuck: in step 5 for 35 s'


def test_the_first_reason_counts_and_no_consequence():
  ends = [
    end(None, 'aborted', 1), end(75, 'stopped: x', 2), end(0, '', 2),
    end(3, 'error: no text', 4), end(4, 'was killed by SIGKILL', 3, process=2),
  ]  # fmt: skip
  reason = heartbeat.primary(ends)
  assert reason is not None
  assert heartbeat.sentence(reason) == (
    'process 2 (pid 40 on host2) was killed by SIGKILL'
  )
  assert heartbeat.sentence(ends[3]) == (
    'process 1 (pid 40 on host1) ended: no text'
  )
  assert heartbeat.primary(ends[:3]) is None


def test_the_silent_one():
  heard = standing(0, time=NOW - SILENCE + 1)
  assert heartbeat.silent([heard], NOW) is None
  found = heartbeat.silent([heard, standing(1, time=NOW - 60)], NOW)
  assert found is not None
  assert found.startswith(
    'process 1 (pid 40 on host1) has not been heard of for 60 s (last seen in '
    'step 5)'
  )


@pytest.mark.parametrize(
  ('came', 'count', 'words'),
  [
    ([0, 2], 4, 'processes 1, 3 of 4 never came within 9 s'),
    ([0], 2, 'process 1 of 2 never came within 9 s'),
    ([0, 1], 2, 'all 2 processes run, but did not meet within 9 s: each must '
                'reach h:1'),
    ([0, 1], None, 'not all hosts came within 9 s; those that came: process 0 '
                   '(pid 40 on host0), process 1 (pid 40 on host1)'),
  ],
)  # fmt: skip
def test_who_never_came(came, count, words):
  found = heartbeat.missing([standing(n) for n in came], count, 9, 'h:1')
  assert found.startswith(words)
