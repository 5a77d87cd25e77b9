"""Sweeps of a stand-in for a run: retries, signals, kill -9 at any moment."""

import contextlib
import json
import os
import random
import signal
import sys
import time

import pytest

from pdl_jax import process
from pdl_jax.errors import ConfigError
from pdl_jax.sweep import claims, local
from pdl_jax.sweep.status import format_status, status
from tests.sweep.stand_in import (
  alive_runs,
  assert_finished_once,
  begin,
  begun,
  cell,
  cells,
  codes,
  command,
  hasten,
  results,
  sweep,
  wait_for,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  hasten(monkeypatch.setattr)


@pytest.fixture
def held(tmp_path):
  """Runs save once and do not go on before this file is removed."""
  path = tmp_path / 'hold'
  path.touch()
  return path


def log(root, cell):
  return (root / cell.run_id / 'log.txt').read_text('utf-8')


def test_every_cell_runs_once_and_later_calls_run_what_is_new(tmp_path, capsys):
  """With one worker the second run begins when the first has ended."""
  outcome = sweep(tmp_path, cells(3), workers=1)
  assert outcome == local.Outcome(done=3, failed={}, left=0)
  assert '[3/3] value=' in capsys.readouterr().out
  moments = []
  for wanted in cells(3):
    run = tmp_path / wanted.run_id
    moments.append(float((run / 'begun').read_text('utf-8')))
    moments.append((run / 'results.json').stat().st_mtime)
  assert moments == sorted(moments)
  assert sweep(tmp_path, cells(5)).done == 5
  assert_finished_once(tmp_path, cells(5))
  assert [begun(tmp_path, cell) for cell in cells(5)] == [1] * 5


@pytest.mark.parametrize(
  ('ends', 'retries', 'error', 'found'),
  [
    ([5, 3], 2, '', [5, 3, 0]),
    ([5, 3, 4], 1, 'error: attempt 1 was to fail', [5, 3]),
    # A bad configuration is not tried again; what was preempted did not fail.
    ([2], 9, 'error: attempt 0 was to fail', [2]),
    ([75, 75, 5], 1, '', [75, 75, 5, 0]),
  ],
)
def test_failures_are_tried_again_so_often(
  tmp_path, capsys, monkeypatch, ends, retries, error, found
):
  """A later call tries again; the log has what was printed, in its order."""
  monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)
  odd, good = cell('odd', codes=ends), cells(1)
  outcome = sweep(tmp_path, [odd, *good], workers=1, retries=retries)
  failed = {odd.run_id: error} if error else {}
  assert outcome == local.Outcome(2 - len(failed), failed, 0)
  assert codes(tmp_path, odd) == found
  printed = capsys.readouterr().out
  assert (f'{odd.run_id} failed: {error}' in printed) == (error != '')
  assert log(tmp_path, odd).splitlines() == [
    line for number in range(len(found) - (0 in found)) for line in (
      'on the way to an end', f'error: attempt {number} was to fail',
      'a last word',
    )
  ]  # fmt: skip
  if error:
    assert sweep(tmp_path, [odd], retries=retries).done == 1
    assert codes(tmp_path, odd) == [*ends, 0]
  assert_finished_once(tmp_path, [odd, *good])


def test_an_end_without_results_and_a_missing_program_are_failures(tmp_path):
  wanted = cell(1, no_results=True)
  outcome = sweep(tmp_path, [wanted])
  assert 'without results.json' in outcome.failed[wanted.run_id]
  missing = lambda cell, run: [str(tmp_path / 'no_such_program')]
  outcome = sweep(tmp_path, [cell(2)], command=missing)
  assert 'no_such_program' in outcome.failed[cell(2).run_id]


def test_fail_fast_stops_the_others_which_save(tmp_path, held):
  slow = cell('slow')
  bad, never = cell('bad', codes=[5]), cell('never')
  outcome = sweep(tmp_path, [slow, bad, never], workers=2, fail_fast=True)
  assert list(outcome.failed) == [bad.run_id]
  assert (outcome.done, outcome.left) == (0, 2)
  assert codes(tmp_path, slow) == [75]
  assert begun(tmp_path, never) == 0


@pytest.mark.parametrize(('workers', 'retries'), [(0, 0), (1, -1)])
def test_counts_out_of_range_are_refused(tmp_path, workers, retries):
  with pytest.raises(ConfigError, match=f'{workers} and {retries}'):
    sweep(tmp_path, cells(1), workers, retries)


def test_sigterm_saves_and_the_same_command_finishes(tmp_path, held):
  wanted = cells(3)
  sweeper = begin(tmp_path, wanted)
  wait_for(lambda: len(list(tmp_path.glob('*/saved.json'))) == 2)
  sweeper.terminate()
  sweeper.join()
  assert sweeper.exitcode == 75
  assert [codes(tmp_path, c) for c in wanted] == [[75], [75], []]
  # The cell that was not begun is counted too.
  told = format_status(status(tmp_path)).splitlines()
  assert told[-1] == '3 cells: 3 queued; time left: unknown'
  held.unlink()
  before = signal.getsignal(signal.SIGTERM)
  assert sweep(tmp_path, wanted).done == 3
  assert signal.getsignal(signal.SIGTERM) is before
  assert_finished_once(tmp_path, wanted)
  assert [begun(tmp_path, c) for c in wanted] == [2, 2, 1]


def test_a_second_signal_ends_runs_that_do_not_listen(tmp_path, held):
  wanted = cell(1, deaf=True)
  sweeper = begin(tmp_path, [wanted])
  wait_for((tmp_path / wanted.run_id / 'saved.json').exists)
  sweeper.terminate()
  wait_for((tmp_path / wanted.run_id / 'told').exists)
  os.kill(sweeper.pid, signal.SIGINT)
  sweeper.join()
  assert sweeper.exitcode == 75
  assert codes(tmp_path, wanted) == [75]


def test_ctrl_c_on_a_terminal_reaches_the_sweeper_alone(tmp_path):
  """It goes to the group in front; runs that hear it twice would not save."""
  code = 'import os; print(os.getpgid(0) == os.getpid())'
  alone = lambda cell, run: [sys.executable, '-S', '-c', code]
  sweep(tmp_path, [cell(1)], command=alone)
  assert log(tmp_path, cell(1)) == 'True\n'


def test_two_sweepers_share_the_cells(tmp_path):
  wanted = cells(8)
  both = [begin(tmp_path, wanted, workers=1) for _ in range(2)]
  for sweeper in both:
    sweeper.join()
  assert [sweeper.exitcode for sweeper in both] == [0, 0]
  assert_finished_once(tmp_path, wanted)
  assert [begun(tmp_path, c) for c in wanted] == [1] * 8


def test_a_cell_finished_since_it_was_looked_at_is_not_run(
  tmp_path, monkeypatch
):
  """Another sweeper had claimed it, finished it and given it back."""
  wanted = cell(1)
  sweep(tmp_path, [wanted])
  looks, now = [], claims.run_folders

  def stale_at_first(root):
    looks.append(root)
    return {} if len(looks) == 1 else now(root)

  monkeypatch.setattr(claims, 'run_folders', stale_at_first)
  assert sweep(tmp_path, [wanted]).done == 1
  assert_finished_once(tmp_path, [wanted])
  assert begun(tmp_path, wanted) == 1


def test_a_run_that_outlives_its_sweeper_is_waited_for(tmp_path, held):
  """Told by the kernel to stop, it is deaf, and goes on to its end."""
  wanted = cell(1, deaf=True)
  sweeper = begin(tmp_path, [wanted])
  wait_for((tmp_path / wanted.run_id / 'saved.json').exists)
  sweeper.kill()
  sweeper.join()
  wait_for((tmp_path / wanted.run_id / 'told').exists)
  assert alive_runs(tmp_path)
  held.unlink()
  assert sweep(tmp_path, [wanted]).done == 1
  assert_finished_once(tmp_path, [wanted])
  assert begun(tmp_path, wanted) == 1


def test_a_sweeper_whose_cell_was_taken_over_lets_go(
  tmp_path, held, monkeypatch
):
  """As after a sleep that another machine took for death."""
  monkeypatch.setattr(process, 'HEARTBEAT', 0.1)
  wanted = cell(1)
  theirs = claims.Attempt(tmp_path / 'sweep', wanted.digest, 2).path('claim')

  def taken(cell, run):
    if theirs.exists():
      held.unlink()
    else:
      theirs.write_text(json.dumps({'machine': 'another', 'pid': 1}), 'utf-8')
      os.utime(theirs, (0, time.time() - claims.STALE + 1))
    return command(cell, run)

  outcome = sweep(tmp_path, [wanted], workers=1, retries=1, command=taken)
  assert outcome.done == 1
  assert codes(tmp_path, wanted) == [-signal.SIGKILL, None, 0]
  assert_finished_once(tmp_path, [wanted])


@pytest.mark.slow
def test_kill_9_ten_times_and_the_end_is_that_of_an_undisturbed_sweep(
  tmp_path,
):
  wanted = cells(12, steps=30)
  undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
  sweep(undisturbed, wanted, workers=4)
  chance = random.Random(0)
  victims = ['run', 'sweeper'] * 5
  chance.shuffle(victims)
  sweepers = [begin(killed, wanted, retries=20) for _ in range(2)]
  for victim in victims:
    time.sleep(chance.uniform(0, 0.2))
    if victim == 'run':
      # Of those that are training; perhaps all have just finished.
      wait_for(lambda: alive_runs(killed) or len(results(killed)) == 12)
      for pid in alive_runs(killed)[:1]:
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
    else:
      sweeper = sweepers.pop(chance.randrange(2))
      sweeper.kill()
      sweeper.join()
      sweepers.append(begin(killed, wanted, retries=20))
  for sweeper in sweepers:
    sweeper.join()
    assert sweeper.exitcode == 0
  assert results(killed) == results(undisturbed)
  assert_finished_once(killed, wanted)
