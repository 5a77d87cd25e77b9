"""What a parent says of its processes, from what they and others have left."""

import dataclasses
import json
import re
import signal
import subprocess
import types
from typing import Any, cast

import pytest

from pdl_jax.cluster import heartbeat, supervisor
from pdl_jax.cluster.heartbeat import JOINING, SILENCE, End, Standing
from pdl_jax.cluster.multihost import Place
from pdl_jax.cluster.supervisor import Host, Output, _Watch

GLOO = ['F0000 00:00:00 Check failure stack trace: [Gloo] is gone\n']


class Child:
  """A process that has ended with a code, or runs and hears signals."""

  def __init__(self, code=None):
    self.code, self.heard = code, []

  def poll(self):
    return self.code

  def send_signal(self, number):
    self.heard.append(number)

  def terminate(self):
    self.heard.append(signal.SIGTERM)

  def kill(self):
    self.heard.append(signal.SIGKILL)
    self.code = -signal.SIGKILL


@pytest.fixture
def clock(monkeypatch):
  """A time that stands still until a test moves it."""
  now = types.SimpleNamespace(time=1000.0)

  def sleep(seconds):
    now.time += seconds

  fake = types.SimpleNamespace(time=lambda: now.time, sleep=sleep)
  monkeypatch.setattr(supervisor, 'time', fake)
  return now


def standing(number, doing='stepping', ticks=9, quiet=0.0, age=0.0):
  return Standing(
    str(number), 'there', 40, number, doing, ticks, quiet, 1000.0 - age
  )


def stands(folder, number, *args, **options):
  """Writes where a process stands."""
  text = json.dumps(dataclasses.asdict(standing(number, *args, **options)))
  (folder / f'{number}.json').write_text(text, 'utf-8')


def host(folder, number, code=None, crash=(), sentence=''):
  place = Place(str(folder), str(number), 'there:1', 3, number, 9, 10)
  output = types.SimpleNamespace(
    sentence=sentence, crash=list(crash), finish=lambda: None
  )
  return Host(place, cast(Any, Child(code)), cast(Any, output))


def test_none_is_behind_the_others():
  both = [standing(number, quiet=30, age=5) for number in range(2)]
  assert heartbeat.stuck(both, 1000.0) == (
    'all hosts are stuck: stepping for 35 s, none behind the others'
  )
  assert heartbeat.stuck(both[:1], 1000.0) == (
    'process 0 (pid 40 on there) is stuck: stepping for 35 s'
  )


def test_the_first_cause_counts_and_no_consequence():
  ends = [
    End('1', 'process 1', code, '', 1000.0 + seconds)
    for code, seconds in ((None, 1), (75, 2), (0, 2), (3, 4), (4, 3))
  ]
  assert heartbeat.primary(ends) == ends[4]
  assert heartbeat.primary(ends[:3]) is None


@pytest.mark.parametrize(
  ('came', 'count', 'words'),
  [
    ([0, 2], 4, 'processes 1, 3 of 4 never came within 9 s; is'),
    ([0], 2, 'process 1 of 2 never came within 9 s; is'),
    ([0, 1], 2, 'all 2 processes run, but did not meet within 9 s: each must '
                'reach h:1'),
    ([0, 1], None, 'not all hosts came within 9 s; those that came: process 0 '
                   '(pid 40 on there), process 1 (pid 40 on there)'),
  ],
)  # fmt: skip
def test_who_never_came(came, count, words):
  found = heartbeat.missing(list(map(standing, came)), count, 9, 'h:1')
  assert found.startswith(words)


@pytest.mark.parametrize(
  ('end', 'code', 'words'),
  [
    ({'code': -9}, 4, r'was killed by SIGKILL \(out of memory\?\), last s'),
    ({'code': -11}, 4, 'was killed by SIGSEGV, last seen stepping'),
    ({'code': 3, 'sentence': 'error: no text'}, 3, 'ended: no text'),
    ({'code': 1, 'crash': ['a bug of ours\n']}, 1, 'crashed, last seen stepp'),
  ],
)
def test_the_process_that_is_to_blame_is_named(
  tmp_path, clock, capsys, end, code, words
):
  """The other one was aborted by JAX, which is a consequence."""
  for number in range(2):
    stands(tmp_path, number)
  watch = _Watch([host(tmp_path, 0, -6, GLOO), host(tmp_path, 1, **end)], 60)
  assert watch.over()
  ended = watch.conclude()
  assert ended.code == code
  assert re.match(rf'process 1 \(pid 40 on there\) {words}', ended.words)
  printed = capsys.readouterr().err
  assert printed.startswith(f'error: {ended.words}; all that was printed: ')
  assert ('a bug of ours' in printed) == (code == 1)
  # So that parents on other machines say the same.
  (found,) = [one for one in heartbeat.ends(tmp_path, 0) if one.name == '1']
  assert found.code == code and found.time == clock.time


def test_what_a_process_has_said_itself_is_not_said_again(tmp_path, capsys):
  one = host(tmp_path, 0, 3, sentence='error: no text')
  watch = _Watch([one], 60)
  assert watch.over() and watch.conclude() == (3, '')
  for codes, code in (((0, 0), 0), ((75, 75), 75)):
    watch = _Watch([host(tmp_path, n, c) for n, c in enumerate(codes)], 60)
    assert watch.over() and watch.conclude() == (code, '')
  assert capsys.readouterr().err == ''


def silent_at(age):
  return lambda folder: stands(folder, 0, age=age)


def ended(folder):
  End('0', 'process 0', 3, 'error: no text', 990.0).write(folder)


@pytest.mark.parametrize(
  ('others', 'doing', 'code', 'words'),
  [
    # The own one may have been the first to fall silent.
    (silent_at(20.0), 'stepping', 4, r'process 0 \(pid 40 on there\) has not '
     r'been heard of for 20 s \(last seen stepping\); the host, its net'),
    (ended, 'stepping', 3, 'process 0 ended: no text$'),
    (silent_at(0.0), JOINING, 4, 'process 2 of 3 never came within 9 s; is'),
    # It is heard of until the end.
    (silent_at(-SILENCE), 'stepping', 4, r'process 1 \(pid 40 on there\) '
     'aborted, last seen stepping, and no other host says why$'),
  ],
)  # fmt: skip
def test_why_a_process_was_aborted_is_found_elsewhere(
  tmp_path, clock, others, doing, code, words
):
  others(tmp_path)
  stands(tmp_path, 1, doing, age=25.0)
  watch = _Watch([host(tmp_path, 1, -6, GLOO)], 60)
  watch._began = 900.0
  assert watch.over()
  found = watch.conclude()
  assert found.code == code and re.match(words, found.words)


def test_a_stuck_process_is_named_asked_where_it_is_and_ended(
  tmp_path, clock, capsys
):
  both = [host(tmp_path, number) for number in range(2)]
  watch = _Watch(both, 60)
  stands(tmp_path, 0, quiet=59)
  stands(tmp_path, 1, 'reading', ticks=8, quiet=59)
  assert not watch.over() and both[1].child.heard == []
  stands(tmp_path, 0, quiet=60)
  stands(tmp_path, 1, 'reading', ticks=8, quiet=61)
  assert not watch.over()
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(
    'error: stuck: process 1 (pid 40 on there), reading for 61 s, while '
    'process 0 (pid 40 on there) is stepping; --stuck_seconds is 60; where '
  )
  assert [one.child.heard for one in both] == [[], [signal.SIGUSR1]]
  clock.time += supervisor._STACKS + 1
  assert not watch.over()
  assert both[1].child.heard == [signal.SIGUSR1, signal.SIGKILL]
  both[0].child.code = -6
  both[0].output.crash += GLOO
  assert watch.over()
  code, words = watch.conclude()
  assert code == 4 and words.startswith('stuck: process 1')
  assert capsys.readouterr().err == ''


def test_who_does_not_even_write_is_not_heard_of(tmp_path, clock, capsys):
  """Stopped, or starved: it cannot say where its threads are either."""
  watch = _Watch([host(tmp_path, number) for number in range(2)], 60)
  watch._began = 800.0
  stands(tmp_path, 0)
  stands(tmp_path, 1, age=61 + SILENCE)
  assert not watch.over()
  (line,) = capsys.readouterr().err.splitlines()
  assert 'process 1 (pid 40 on there) has not been heard of for 76 s' in line
  assert 'all that was printed: ' in line


def test_the_first_signal_is_passed_on_and_the_second_ends(tmp_path):
  one, over = host(tmp_path, 0), host(tmp_path, 1, 0)
  watch = _Watch([one, over], 60)
  watch.receive(signal.SIGINT)
  watch.receive(signal.SIGINT)
  assert one.child.heard == [signal.SIGTERM, signal.SIGKILL]
  assert over.child.heard == []
  # Ended by us, it was told to stop.
  assert watch.over() and watch.conclude() == (75, '')


def test_after_a_failure_the_others_have_a_while_to_notice(tmp_path, clock):
  watch = _Watch([host(tmp_path, 0), host(tmp_path, 1, -9)], 60)
  assert not watch.over()
  clock.time += 10 + SILENCE + 1
  assert watch.over()
  assert watch.conclude().words.endswith('out of memory?), before it began')


def test_the_log_has_all_and_the_terminal_no_noise_and_no_crash(
  tmp_path, capfd
):
  said = (
    'step 1\nI0101 00:00:00 noise\n[Gloo] noise\nerror: no text\n'
    'Traceback (most recent call last):\n  a line of it\n'
  )
  for shown in (True, False):
    child = subprocess.Popen(
      ['printf', '%s', said], encoding='utf-8', stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )  # fmt: skip
    child.wait()
    log = tmp_path / f'{shown}.log'
    output = Output(child, log, shown)
    output.finish()
    assert log.read_text('utf-8') == said
    assert output.sentence == 'error: no text'
    assert ''.join(output.crash) == said[said.index('Traceback') :]
    out = capfd.readouterr().out
    assert out == ('step 1\nerror: no text\n' if shown else '')
