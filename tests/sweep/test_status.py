"""What is said of a sweep: states, steps, errors, the time that is left."""

import json
import os
import time

import pytest

from pdl_jax.sweep import claims
from pdl_jax.sweep.cell import Cell
from pdl_jax.sweep.claims import End
from pdl_jax.sweep.status import (
  Row,
  format_dry_run,
  format_status,
  remaining_seconds,
  status,
)


def cell(number, *labels):
  digest = f'{number:08x}'
  return Cell(
    labels or (f'n={number}',), {'n': number}, {}, f'n={number}-{digest}',
    digest,
  )  # fmt: skip


def attempt(root, cell, code=None, seconds=10.0, error=''):
  claims.open_folder(root)
  before = claims.attempts(root).get(cell.digest, [])
  made = claims.claim(root, cell.digest, before)
  if code is not None:
    made.write_end(End(code, seconds, error))
  return made


def folder(root, cell, step=0, state='running', age=0.0, error=''):
  run = root / cell.run_id
  run.mkdir(parents=True, exist_ok=True)
  (run / 'config.json').write_text('{"train": {"steps": 60}}', 'utf-8')
  (run / 'status.json').write_text(
    json.dumps({
      'state': state, 'step': step, 'error': error,
      'heartbeat': time.time() - age,
    }), 'utf-8'
  )
  return run


def finish(root, cell, seconds=10.0):
  attempt(root, cell, 0, seconds)
  (folder(root, cell, 60) / 'results.json').write_text('{}', 'utf-8')


@pytest.fixture
def mixed(tmp_path):
  """A cell in each state there is."""
  made = [cell(number) for number in range(7)]
  done, running, failed, stopped, killed, by_hand, _ = made
  attempt(tmp_path, done, 75, 5.0)
  finish(tmp_path, done, 15.0)
  attempt(tmp_path, running)
  folder(tmp_path, running, step=15, age=40)
  attempt(tmp_path, failed, 5, error='error: old')
  attempt(tmp_path, failed, 5, error='error: diverged')
  folder(tmp_path, failed, step=7)
  attempt(tmp_path, stopped, 75)
  folder(tmp_path, stopped, step=30)
  path = attempt(tmp_path, killed).path('claim')
  path.write_text(
    json.dumps({**json.loads(path.read_text('utf-8')), 'started': 1}), 'utf-8'
  )
  folder(tmp_path, by_hand, step=3, state='error', error='a full disk')
  return tmp_path, made


def test_states_of_cells(mixed):
  root, made = mixed
  rows = status(root, made)
  assert [row.name for row in rows] == [cell.run_id for cell in made]
  assert [row.state for row in rows] == [
    'done', 'running', 'failed', 'queued', 'queued', 'failed', 'queued',
  ]  # fmt: skip
  done, running, failed, stopped, killed, by_hand, never = rows
  assert (done.seconds, done.attempts) == (20.0, 2)
  assert (running.step, running.steps) == (15, 60)
  assert running.age == pytest.approx(40, abs=20)
  assert (failed.error, failed.attempts) == ('error: diverged', 2)
  assert (stopped.step, killed.step) == (30, 0)
  assert by_hand.error == 'a full disk'
  assert (never.attempts, never.age) == (0, None)


def test_without_cells_every_run_that_is_there(mixed):
  root, made = mixed
  found = {row.name: row.state for row in status(root)}
  wanted = {row.name: row.state for row in status(root, made)}
  begun = {path.name for path in root.iterdir()} - {'sweep'}
  assert found == {name: wanted[name] for name in begun}
  assert len(found) == 5


def test_nothing_is_written_and_no_folder_is_needed(mixed, tmp_path):
  root, made = mixed
  before = sorted(root.rglob('*'))
  status(root, made)
  assert sorted(root.rglob('*')) == before
  nowhere = tmp_path / 'nowhere'
  assert status(nowhere) == []
  assert [row.state for row in status(nowhere, made)] == ['queued'] * 7
  assert not nowhere.exists()


def test_a_failed_cell_that_is_tried_again_is_running(tmp_path):
  attempt(tmp_path, cell(1), 5, error='error: old')
  attempt(tmp_path, cell(1))
  (row,) = status(tmp_path, [cell(1)])
  assert (row.state, row.error) == ('running', '')


def test_a_run_of_another_machine_runs_while_its_heart_beats(tmp_path):
  path = attempt(tmp_path, cell(1)).path('claim')
  path.write_text(json.dumps({'machine': 'another'}), 'utf-8')
  assert status(tmp_path, [cell(1)])[0].state == 'running'
  long_ago = time.time() - 2 * claims.STALE
  os.utime(path, (long_ago, long_ago))
  assert status(tmp_path, [cell(1)])[0].state == 'queued'


def test_a_finished_run_is_named_as_its_folder(tmp_path):
  by_hand = tmp_path / f'seed=0,n=1-{cell(1).digest}'
  by_hand.mkdir()
  (by_hand / 'results.json').write_text('{}', 'utf-8')
  (row,) = status(tmp_path, [cell(1)])
  assert (row.name, row.state, row.seconds) == (by_hand.name, 'done', None)


def row(state, step=0, seconds=None):
  return Row('', state, step, 60, None, '', 1, seconds)


def test_time_left_is_the_median_for_what_is_left():
  rows = [row('done', 60, seconds) for seconds in (10.0, 30.0, 20.0)]
  assert remaining_seconds(rows, 1) == 0
  rows += [row('queued'), row('running', 45), row('failed', 9)]
  assert remaining_seconds(rows, 1) == pytest.approx(20 * 1.25)
  assert remaining_seconds(rows, 2) == pytest.approx(10 * 1.25)


def test_time_left_is_unknown_before_the_first_has_finished():
  assert remaining_seconds([row('queued')], 1) is None
  assert remaining_seconds([row('done', 60), row('queued')], 1) is None


def test_the_table(mixed):
  text = format_status(status(*mixed))
  lines = text.splitlines()
  assert lines[0].split(maxsplit=2) == [
    'done', 'n=0-00000000', '20 s, 2 attempts',
  ]  # fmt: skip
  assert 'step 15/60, heartbeat 4' in lines[1]
  assert lines[2].endswith('step 7/60, 2 attempts, error: diverged')
  assert lines[6].split() == ['queued', 'n=6-00000006']
  # A median of 20 s; 45 of 60 steps, 30 of 60, and two whole runs.
  assert lines[7] == (
    '7 cells: 1 done, 1 running, 2 failed, 3 queued; time left: 65 s'
  )


def test_the_table_of_a_sweep_that_is_over(tmp_path):
  finish(tmp_path, cell(1))
  text = format_status(status(tmp_path))
  assert text.splitlines()[-1] == '1 cells: 1 done'
  assert format_status([]) == '0 cells: none'


def test_a_dry_run_names_every_point(tmp_path):
  made = [cell(1, 'alpha=0', 'name=cross_entropy'), cell(2), cell(3)]
  lines = format_dry_run([('', tmp_path, made)], 2, {}).splitlines()
  assert lines[0] == 'queued   n=1-00000001  <- alpha=0 | name=cross_entropy'
  assert lines[-1] == (
    '3 cells from 4 points, 0 done; estimated time with 2 workers: unknown'
  )
  finish(tmp_path, made[0], 7200.0)
  attempt(tmp_path, made[1], 5, error='error: diverged')
  lines = format_dry_run([('', tmp_path, made)], 1, {}).splitlines()
  assert lines[0].startswith('done ')
  # What failed would be tried again.
  assert lines[-1] == (
    '3 cells from 4 points, 1 done; estimated time with 1 workers: 4.0 h'
  )


def test_a_dry_run_of_several_sweeps_names_each_and_sums_up_once(tmp_path):
  made = [cell(1), cell(2), cell(3)]
  finish(tmp_path, made[0], 3600.0)
  groups = [('one:', tmp_path, made[:2]), ('two:', tmp_path, made)]
  lines = format_dry_run(groups, 2, {}).splitlines()
  assert [lines[0], lines[3]] == ['one:', 'two:']
  assert lines[-1] == (
    '3 cells from 3 points, 1 done; estimated time with 2 workers: 60 min'
  )


def test_a_dry_run_counts_what_is_recorded_elsewhere(tmp_path):
  made = [cell(1), cell(2)]
  lines = format_dry_run(
    [('', tmp_path, made)], 1, {made[0].digest: 120.0}
  ).splitlines()
  assert [line.split()[0] for line in lines[:2]] == ['done', 'queued']
  assert lines[-1] == (
    '2 cells from 2 points, 1 done; estimated time with 1 workers: 2 min'
  )
