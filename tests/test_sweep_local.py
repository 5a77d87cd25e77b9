"""Sweeps of a stand-in for a run: retries, signals, kill -9 at any moment."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from pdl_jax.errors import ConfigError, PreemptedError
from pdl_jax.process import start_time
from pdl_jax.sweep import claims, local
from pdl_jax.sweep.cell import Cell

STAND_IN = Path(__file__).parent / 'stand_in_run.py'
# Forks of a process that has imported everything once, and no threads.
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['tests.test_sweep_local'])
PATIENCE = 300  # seconds, on a busy machine


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  hasten(monkeypatch.setattr)


def hasten(setattr_):
  setattr_(local, '_LOOK', 0.05)
  setattr_(local, 'POLL', 0.02)


def cell(value, steps=4, sleep=0.02, **options):
  """A cell whose configuration is what its stand-in does."""
  digest = hashlib.sha256(str(value).encode()).hexdigest()[:8]
  config = {'value': value, 'steps': steps, 'sleep': sleep, **options}
  return Cell(
    (f'value={value}',), {'value': value}, config, f'value={value}-{digest}',
    digest,
  )  # fmt: skip


def cells(count, **options):
  return [cell(value, **options) for value in range(count)]


def command(cell, run):
  return [
    sys.executable, '-S', str(STAND_IN), str(run),
    json.dumps(cell.config),
  ]  # fmt: skip


def sweep(root, cells, workers=2, retries=0, fail_fast=False):
  return local.run(cells, root, workers, retries, fail_fast, command)


def sweeper(root, cells, workers, retries):
  """What a process of its own runs; ends as launch.py would."""
  hasten(setattr)
  try:
    outcome = sweep(root, cells, workers, retries)
  except PreemptedError as error:
    sys.exit(error.exit_code)
  sys.exit(1 if outcome.failed else 0)


def begin(root, cells, workers=2, retries=0):
  process = SERVER.Process(target=sweeper, args=(root, cells, workers, retries))
  process.start()
  return process


def wait_for(condition):
  give_up = time.monotonic() + PATIENCE
  while not condition():
    assert time.monotonic() < give_up, 'never came true'
    time.sleep(0.01)


def results(root):
  return {
    path.parent.name: json.loads(path.read_text('utf-8'))
    for path in root.glob('*/results.json')
  }


def expected(cells):
  """The result of each, computed here."""
  found = {}
  for cell in cells:
    value = str(cell.config['value'])
    for _ in range(cell.config['steps']):
      value = hashlib.sha256(value.encode()).hexdigest()
    found[cell.run_id] = {'value': value}
  return found


def begun(root, cell):
  path = root / cell.run_id / 'begun'
  return len(path.read_text('utf-8').splitlines()) if path.exists() else 0


def codes(root, cell):
  ends = [a.end for a in claims.attempts(root).get(cell.digest, [])]
  return [None if end is None else end.code for end in ends]


def assert_finished_once(root, cells):
  assert results(root) == expected(cells)
  assert list(root.glob('*/violations')) == []
  for cell in cells:
    assert codes(root, cell).count(0) <= 1


def test_every_cell_runs_once_and_a_second_call_runs_none(tmp_path, capsys):
  wanted = cells(5)
  outcome = sweep(tmp_path, wanted)
  assert outcome == local.Outcome(done=5, failed={}, left=0)
  assert_finished_once(tmp_path, wanted)
  assert '[5/5] value=' in capsys.readouterr().out
  assert sweep(tmp_path, wanted).done == 5
  assert [begun(tmp_path, cell) for cell in wanted] == [1] * 5


def test_a_value_added_later_runs_the_new_cells_alone(tmp_path):
  sweep(tmp_path, cells(2))
  sweep(tmp_path, cells(4))
  assert [begun(tmp_path, cell) for cell in cells(4)] == [1] * 4


def test_a_run_is_known_by_its_hash_whatever_its_folder_is_called(tmp_path):
  wanted = cell(1)
  by_hand = tmp_path / f'seed=0,value=1-{wanted.digest}'
  by_hand.mkdir()
  sweep(tmp_path, [wanted])
  assert list(results(tmp_path)) == [by_hand.name]


def test_as_many_workers_as_told(tmp_path):
  """With one worker the second run begins when the first has ended."""
  wanted = cells(3)
  sweep(tmp_path, wanted, workers=1)
  times = [
    (
      float((tmp_path / c.run_id / 'begun').read_text('utf-8')),
      (tmp_path / c.run_id / 'results.json').stat().st_mtime,
    )
    for c in wanted
  ]
  flat = [moment for pair in times for moment in pair]
  assert flat == sorted(flat)


def test_output_goes_to_the_log_in_its_order(tmp_path, monkeypatch):
  monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)
  wanted = cell(1, codes=[5])
  sweep(tmp_path, [wanted], retries=1)
  log = (tmp_path / wanted.run_id / 'log.txt').read_text('utf-8')
  assert log.splitlines() == [
    'on the way to an end', 'error: attempt 0 was to fail', 'a last word',
  ]  # fmt: skip


def test_failures_are_tried_again_so_often(tmp_path):
  wanted = cell(1, codes=[5, 3])
  assert sweep(tmp_path, [wanted], retries=2).done == 1
  assert codes(tmp_path, wanted) == [5, 3, 0]
  assert_finished_once(tmp_path, [wanted])


def test_a_cell_given_up_has_its_error_and_the_others_go_on(tmp_path, capsys):
  bad, good = cell('bad', codes=[5, 3, 4]), cells(3)
  outcome = sweep(tmp_path, [bad, *good], workers=1, retries=1)
  error = 'error: attempt 1 was to fail'
  assert outcome == local.Outcome(3, {bad.run_id: error}, 0)
  assert f'{bad.run_id} failed: {error}' in capsys.readouterr().out
  assert codes(tmp_path, bad) == [5, 3]
  assert_finished_once(tmp_path, good)


def test_a_new_call_tries_again_what_an_earlier_one_gave_up(tmp_path):
  wanted = cell(1, codes=[5, 5, 5])
  for _ in range(3):
    assert sweep(tmp_path, [wanted]).failed
  assert sweep(tmp_path, [wanted]).done == 1
  assert codes(tmp_path, wanted) == [5, 5, 5, 0]


def test_a_bad_configuration_is_not_tried_again(tmp_path):
  wanted = cell(1, codes=[2])
  assert list(sweep(tmp_path, [wanted], retries=9).failed) == [wanted.run_id]
  assert codes(tmp_path, wanted) == [2]


def test_preempted_runs_continue_without_counting(tmp_path):
  wanted = cell(1, codes=[75, 75, 5])
  assert sweep(tmp_path, [wanted], retries=1).done == 1
  assert codes(tmp_path, wanted) == [75, 75, 5, 0]


def test_an_end_without_results_is_a_failure(tmp_path):
  wanted = cell(1, no_results=True)
  outcome = sweep(tmp_path, [wanted])
  assert 'without results.json' in outcome.failed[wanted.run_id]


def test_a_command_that_is_not_there_is_a_failure(tmp_path):
  missing = lambda cell, run: [str(tmp_path / 'no_such_program')]
  outcome = local.run([cell(1)], tmp_path, 1, 0, False, missing)
  assert 'no_such_program' in outcome.failed[cell(1).run_id]


def test_fail_fast_stops_the_others_which_save(tmp_path):
  slow = cell('slow', steps=500)
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


def test_sigterm_saves_and_the_same_command_finishes(tmp_path):
  wanted = cells(3, steps=30)
  process = begin(tmp_path, wanted)
  wait_for(lambda: len(list(tmp_path.glob('*/saved.json'))) == 2)
  process.terminate()
  process.join(PATIENCE)
  assert process.exitcode == 75
  assert [codes(tmp_path, c) for c in wanted] == [[75], [75], []]
  assert sweep(tmp_path, wanted).done == 3
  assert_finished_once(tmp_path, wanted)
  assert [begun(tmp_path, c) for c in wanted] == [2, 2, 1]


def test_a_second_signal_ends_runs_that_do_not_listen(tmp_path):
  wanted = cell(1, steps=3000, deaf=True)
  process = begin(tmp_path, [wanted])
  wait_for(lambda: (tmp_path / wanted.run_id / 'saved.json').exists())
  process.terminate()
  wait_for((tmp_path / wanted.run_id / 'told').exists)
  os.kill(process.pid, signal.SIGINT)
  process.join(PATIENCE)
  assert process.exitcode == 75
  assert codes(tmp_path, wanted) == [75]


def test_ctrl_c_on_a_terminal_reaches_the_sweeper_alone(tmp_path):
  """It goes to the group in front; runs that hear it twice would not save."""
  code = 'import os; print(os.getpgid(0) == os.getpid())'
  alone = lambda cell, run: [sys.executable, '-S', '-c', code]
  local.run([cell(1)], tmp_path, 1, 0, False, alone)
  assert (tmp_path / cell(1).run_id / 'log.txt').read_text('utf-8') == 'True\n'


def test_handlers_are_given_back(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  sweep(tmp_path, cells(1))
  assert signal.getsignal(signal.SIGTERM) is before


def test_two_sweepers_share_the_cells(tmp_path):
  wanted = cells(16)
  both = [begin(tmp_path, wanted) for _ in range(2)]
  for process in both:
    process.join(PATIENCE)
  assert [process.exitcode for process in both] == [0, 0]
  assert_finished_once(tmp_path, wanted)
  assert [begun(tmp_path, c) for c in wanted] == [1] * 16
  owners = {
    json.loads(path.read_text('utf-8'))['pid']
    for path in (tmp_path / 'sweep').glob('*.claim')
  }
  assert len(owners) == 2


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


def test_a_run_that_outlives_its_sweeper_is_waited_for(tmp_path):
  """Told by the kernel to stop, it is deaf, and goes on to its end."""
  wanted = cell(1, steps=60, deaf=True)
  process = begin(tmp_path, [wanted])
  wait_for(lambda: (tmp_path / wanted.run_id / 'saved.json').exists())
  process.kill()
  process.join(PATIENCE)
  assert sweep(tmp_path, [wanted]).done == 1
  assert_finished_once(tmp_path, [wanted])
  assert begun(tmp_path, wanted) == 1


def test_a_sweeper_whose_cell_was_taken_over_lets_go(tmp_path, monkeypatch):
  """As after a sleep that another machine took for death."""
  monkeypatch.setattr(claims, 'HEARTBEAT', 0.1)
  wanted = cell(1, steps=20, sleep=0.05)
  theirs = claims.Attempt(tmp_path / 'sweep', wanted.digest, 2).path('claim')

  def taken(cell, run):
    if not theirs.exists():
      theirs.write_text(json.dumps({'machine': 'another', 'pid': 1}), 'utf-8')
      os.utime(theirs, (0, time.time() - claims.STALE + 1))
    return command(cell, run)

  outcome = local.run([wanted], tmp_path, 1, 1, False, taken)
  assert outcome.done == 1
  assert codes(tmp_path, wanted) == [-signal.SIGKILL, None, 0]
  assert_finished_once(tmp_path, [wanted])


def kill_a_run(root, chance):
  """kill -9 of a process that is training, as soon as there is one."""
  wait_for(lambda: alive_runs(root))
  os.kill(chance.choice(alive_runs(root)), signal.SIGKILL)


def alive_runs(root):
  runs = [
    json.loads(p.read_text('utf-8')) for p in (root / 'sweep').glob('*.worker')
  ]
  return [r['pid'] for r in runs if start_time(r['pid']) == r['started']]


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
      kill_a_run(killed, chance)
    else:
      process = sweepers.pop(chance.randrange(2))
      process.kill()
      process.join(PATIENCE)
      assert process.exitcode == -signal.SIGKILL
      sweepers.append(begin(killed, wanted, retries=20))
  for process in sweepers:
    process.join(PATIENCE)
    assert process.exitcode == 0
  assert results(killed) == results(undisturbed)
  assert_finished_once(killed, wanted)
