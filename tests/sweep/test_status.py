"""What is said of a sweep: states, steps, errors, the time that is left."""

import json
import os
import time

import pytest

from pdl_jax import process
from pdl_jax.sweep import claims
from pdl_jax.sweep.claims import Cell, End
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
  (root / 'sweep').mkdir(exist_ok=True)
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
  )  # fmt: skip
  return run


def finish(root, cell, seconds=10.0):
  attempt(root, cell, 0, seconds)
  (folder(root, cell, 60) / 'results.json').write_text('{}', 'utf-8')


def rewrite(path, **changes):
  found = json.loads(path.read_text('utf-8'))
  path.write_text(json.dumps(found | changes), 'utf-8')


@pytest.fixture
def mixed(tmp_path):
  """A cell in each state there is."""
  made = [cell(number) for number in range(8)]
  done, running, failed, stopped, killed, by_hand, _, again = made
  attempt(tmp_path, done, 75, 5.0)
  finish(tmp_path, done, 15.0)
  attempt(tmp_path, running)
  folder(tmp_path, running, step=15, age=40)
  attempt(tmp_path, failed, 5, error='error: old')
  attempt(tmp_path, failed, -9, error='killed by SIGKILL')
  folder(tmp_path, failed, step=7)
  attempt(tmp_path, stopped, 75)
  folder(tmp_path, stopped, step=30, state='stopped', error='by a signal')
  rewrite(attempt(tmp_path, killed).path('claim'), started=1)
  folder(tmp_path, by_hand, step=3, state='error', error='a full disk')
  attempt(tmp_path, again, 5, error='error: old')
  attempt(tmp_path, again)
  return tmp_path, made


def test_states_of_cells(mixed):
  root, made = mixed
  rows = status(root, made)
  assert [row.name for row in rows] == [cell.run_id for cell in made]
  assert [row.state for row in rows] == [
    'done', 'running', 'failed', 'queued', 'queued', 'failed', 'queued',
    'running',
  ]  # fmt: skip
  done, running, failed, stopped, killed, by_hand, never, again = rows
  assert (done.seconds, done.attempts) == (20.0, 2)
  assert (running.step, running.steps) == (15, 60)
  assert running.age == pytest.approx(40, abs=20)
  assert (failed.error, failed.attempts) == ('killed by SIGKILL', 2)
  assert (stopped.step, stopped.error, killed.step) == (30, '', 0)
  assert by_hand.error == 'a full disk'
  assert (never.attempts, never.age) == (0, None)
  assert (again.attempts, again.error) == (2, '')


def test_without_cells_every_run_that_is_there_and_nothing_is_written(
  mixed, tmp_path
):
  root, made = mixed
  before = sorted(root.rglob('*'))
  found = {row.name: row.state for row in status(root)}
  wanted = {row.name: row.state for row in status(root, made)}
  begun = {path.name for path in root.iterdir()} - {'sweep'}
  assert found == {name: wanted[name] for name in begun}
  assert len(found) == 5
  assert sorted(root.rglob('*')) == before
  nowhere = tmp_path / 'nowhere'
  assert status(nowhere) == []
  assert [row.state for row in status(nowhere, made)] == ['queued'] * 8
  assert not nowhere.exists()


def test_cells_that_a_stopped_sweep_has_not_begun_are_counted(mixed):
  root, made = mixed
  for _ in range(2):
    claims.open_folder(root, made)
  claims.open_folder(root, made[:1])
  for found in (status(root), status(root, made)):
    last = format_status(found).splitlines()[-1]
    assert last.startswith('8 cells: 1 done, 2 running, 2 failed, 3 queued')
  # A torn folder is known by its name alone, and is not counted twice.
  (root / made[1].run_id / 'config.json').write_text('{', 'utf-8')
  assert len(status(root)) == 8
  (path, _) = (root / 'sweep').glob('*.cells')
  path.write_text('{', 'utf-8')
  (row,) = [row for row in status(root) if row.name == path.name]
  assert row.state == 'broken' and f'{path} is torn' in row.error


CONTINUES = 'by a signal while training; the same command continues'


@pytest.mark.parametrize(
  ('state', 'error', 'claim', 'age', 'found', 'why'),
  [
    ('stopped', CONTINUES, None, 0, 'stopped', CONTINUES),
    ('running', '', {}, 0, 'running', ''),
    ('error', 'of old', {}, 0, 'running', ''),
    ('running', '', {'started': 1}, 0, 'stopped', 'the same command continues'),
    ('starting', '', {'started': 1}, 0, 'stopped', 'the same command cont'),
    ('error', 'diverged', {'started': 1}, 0, 'failed', 'diverged'),
    # Where there are no claims.
    ('running', '', None, 9, 'running', ''),
    ('running', '', None, claims.STALE + 9, 'stopped', 'the same command con'),
  ],
)
def test_a_run_that_no_sweep_has(
  tmp_path, state, error, claim, age, found, why
):
  run = folder(tmp_path, cell(1), 30, state, age, error)
  if claim is not None:
    path = run / 'run.1.claim'
    process.claim(path)
    rewrite(path, **claim)
  before = sorted(tmp_path.rglob('*'))
  (row,) = status(tmp_path)
  assert (row.state, row.step) == (found, 30)
  assert why in row.error and bool(row.error) == bool(why)
  assert sorted(tmp_path.rglob('*')) == before
  text = format_status([row])
  if found == 'stopped':
    assert text == (
      f'stopped  {row.name} step 30/60, {row.error}\n1 cells: 1 stopped'
    )
  # A sweep would go on with it.
  lines = format_dry_run([('', tmp_path, [cell(1)])], 1, {}).splitlines()
  assert lines[-1].endswith('0 done; estimated time with 1 workers: unknown')


@pytest.mark.parametrize('linux', [True, False])
def test_of_another_machine_its_heart_decides(tmp_path, monkeypatch, linux):
  """Also where this one has no /proc, and knows nothing of processes."""
  path = attempt(tmp_path, cell(1)).path('claim')
  path.write_text(json.dumps({'machine': 'another'}), 'utf-8')
  if not linux:
    monkeypatch.setattr(process.Path, 'is_symlink', lambda _: False)
    assert process.machine() == ''
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
  return Row('', state, step, 60, attempts=1, seconds=seconds)


def test_time_left_is_the_median_for_what_is_left():
  assert remaining_seconds([row('done', 60), row('queued')], 1) is None
  rows = [row('done', 60, seconds) for seconds in (10.0, 30.0, 20.0)]
  assert remaining_seconds(rows, 1) == 0
  rows += [row('queued'), row('running', 45), row('failed', 9), row('stopped')]
  assert remaining_seconds(rows, 1) == pytest.approx(20 * 1.25)
  assert remaining_seconds(rows, 2) == pytest.approx(10 * 1.25)


def test_the_table(mixed, tmp_path):
  text = format_status(status(*mixed))
  lines = text.splitlines()
  assert lines[0].split(maxsplit=2) == [
    'done', 'n=0-00000000', '20 s, 2 attempts',
  ]  # fmt: skip
  assert 'step 15/60, heartbeat 4' in lines[1]
  assert lines[2].endswith('step 7/60, 2 attempts, killed by SIGKILL')
  assert lines[6].split() == ['queued', 'n=6-00000006']
  # A median of 20 s; 45 of 60 steps, 30 of 60, and three whole runs, by two.
  assert lines[8] == (
    '8 cells: 1 done, 2 running, 2 failed, 3 queued; time left: 42 s'
  )
  assert format_status([row('done'), row('failed')]).endswith(
    '\n2 cells: 1 done, 1 failed'
  )
  assert format_status([]) == '0 cells: none'


def test_a_dry_run_names_every_point_and_sums_up_once(tmp_path):
  made = [cell(1, 'alpha=0', 'name=cross_entropy'), cell(2), cell(3)]
  said = lambda groups, workers, known: format_dry_run(
    groups, workers, known
  ).splitlines()
  lines = said([('', tmp_path, made)], 2, {})
  assert lines[0] == 'queued   n=1-00000001  <- alpha=0 | name=cross_entropy'
  assert lines[-1] == (
    '3 cells from 4 points, 0 done; estimated time with 2 workers: unknown'
  )
  finish(tmp_path, made[0], 7200.0)
  attempt(tmp_path, made[1], 5, error='error: diverged')
  lines = said([('', tmp_path, made)], 1, {})
  assert lines[0].startswith('done ')
  # What failed would be tried again.
  assert lines[-1].endswith('1 done; estimated time with 1 workers: 4.0 h')
  groups = [('one:', tmp_path, made[:2]), ('two:', tmp_path, made)]
  lines = said(groups, 2, {made[1].digest: 7200.0})  # recorded elsewhere
  assert [lines[0], lines[3]] == ['one:', 'two:']
  assert [line.split()[0] for line in lines[4:7]] == ['done', 'done', 'queued']
  assert lines[-1] == (
    '3 cells from 4 points, 2 done; estimated time with 2 workers: 60 min'
  )
