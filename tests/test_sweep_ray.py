"""Sweeps of a stand-in on a Ray cluster of three machines, all this one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from pdl_jax.errors import ConfigError, HostError, PreemptedError
from pdl_jax.sweep import claims as attempts
from pdl_jax.sweep import gang, ray_engine
from pdl_jax.sweep.placement import Wanted
from pdl_jax.sweep.ray_engine import parse_resources, run_on_ray
from pdl_jax.sweep.status import status
from tests.ray_cluster import cluster_of
from tests.test_sweep_local import (
  PATIENCE,
  SERVER,
  STAND_IN,
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

ONE_CPU = {'CPU': 1.0}
# All that the second machine has, or the third.
TPU = {'CPU': 1.0, 'TPU': 4.0}


@pytest.fixture(scope='module')
def cluster():
  one = {'num_cpus': 1, 'resources': {'TPU': 4}}
  with cluster_of({'num_cpus': 3}, one, one) as made:
    yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  hasten(monkeypatch.setattr)


def sweep_on_ray(
  root, cells, workers=2, retries=0, fail_fast=False, resources=ONE_CPU
):
  return run_on_ray(
    cells, root, workers, retries, fail_fast, command, Wanted(resources)
  )


def sweeper_on_ray(root, cells):
  """What a process of its own runs, in a group as a shell would make it."""
  os.setpgid(0, 0)
  hasten(setattr)
  try:
    sweep_on_ray(root, cells)
  except PreemptedError as error:
    sys.exit(error.exit_code)


@contextlib.contextmanager
def meanwhile(condition, action):
  """Does something as soon as a condition is true, beside the main thread."""
  def wait_and_act():
    wait_for(condition)
    action()

  thread = threading.Thread(target=wait_and_act)
  thread.start()
  yield
  thread.join()


def claims(root):
  return {
    path.name: json.loads(path.read_text('utf-8'))
    for path in (root / 'sweep').glob('*.claim')
  }


def test_ends_and_records_are_those_of_the_local_engine(
  tmp_path, cluster, capsys
):
  mended = [*cells(3), cell(3, codes=[75]), cell(4, codes=[5])]
  bad, wrong = cell('bad', codes=[5, 3, 4]), cell('wrong', codes=[2, 2])
  wanted = [*mended, bad, wrong]
  here, there = tmp_path / 'here', tmp_path / 'there'
  expected = sweep(here, wanted, retries=1)
  assert sweep_on_ray(there, wanted, 3, retries=1) == expected
  assert expected.failed == {
    bad.run_id: 'error: attempt 1 was to fail',
    wrong.run_id: 'error: attempt 0 was to fail',
  }
  assert '[7/7] value=' in capsys.readouterr().out
  assert_finished_once(there, mended)
  assert results(there) == results(here)
  assert [codes(there, c) for c in wanted] == [
    [0], [0], [0], [75, 0], [5, 0], [5, 3], [2],
  ]  # fmt: skip
  states = [[row.state for row in status(r, wanted)] for r in (here, there)]
  assert states[0] == states[1]
  # By the tasks, not by this process.
  assert os.getpid() not in {c['pid'] for c in claims(there).values()}
  logs = [
    (root / bad.run_id / 'log.txt').read_text('utf-8') for root in (here, there)
  ]
  assert logs[0] == logs[1]


def test_fail_fast_stops_the_others_which_save(tmp_path, cluster):
  slow = cell('slow', steps=2000)
  bad, never = cell('bad', codes=[5]), cell('never')
  outcome = sweep_on_ray(tmp_path, [slow, bad, never], 2, fail_fast=True)
  assert list(outcome.failed) == [bad.run_id]
  assert outcome.left == 2
  assert codes(tmp_path, slow) in ([75], [])  # If it was told in time.
  assert begun(tmp_path, never) == 0


def owner(root, cell):
  """The process of Ray that claimed a cell first."""
  return claims(root)[f'{cell.digest}.1.claim']['pid']


def test_a_killed_process_of_ray_loses_nothing(tmp_path, cluster):
  wanted = cells(2, steps=60)
  # Not of both: on a busy machine the first could end before the other begins.
  saved = (tmp_path / wanted[0].run_id / 'saved.json').exists
  kill = lambda: os.kill(owner(tmp_path, wanted[0]), signal.SIGKILL)
  with meanwhile(saved, kill):
    assert sweep_on_ray(tmp_path, wanted).done == 2
  assert_finished_once(tmp_path, wanted)
  assert [codes(tmp_path, c) for c in wanted] == [[None, 0], [0]]
  assert [begun(tmp_path, c) for c in wanted] == [2, 1]


def test_a_lost_machine_is_replaced_by_another(tmp_path, cluster):
  """All that makes it a machine: Ray's daemon, and the process below it."""
  wanted = cell(1, steps=60)

  def lose():
    process = owner(tmp_path, wanted)
    status = Path(f'/proc/{process}/status').read_text('utf-8')
    (line,) = [x for x in status.splitlines() if x.startswith('PPid:')]
    os.kill(int(line.split()[1]), signal.SIGKILL)
    os.kill(process, signal.SIGKILL)

  with meanwhile((tmp_path / wanted.run_id / 'saved.json').exists, lose):
    assert sweep_on_ray(tmp_path, [wanted], 1, resources=TPU).done == 1
  assert_finished_once(tmp_path, [wanted])
  assert codes(tmp_path, wanted) == [None, 0]
  assert begun(tmp_path, wanted) == 2


def test_sweepers_of_both_engines_share_the_cells(tmp_path, cluster):
  wanted, other = cells(16, steps=20), []
  join = lambda: other.append(begin(tmp_path, wanted))
  with meanwhile(lambda: claims(tmp_path), join):
    assert sweep_on_ray(tmp_path, wanted).done == 16
  other[0].join(PATIENCE)
  assert other[0].exitcode == 0
  assert_finished_once(tmp_path, wanted)
  assert [begun(tmp_path, c) for c in wanted] == [1] * 16
  owners = {claim['pid'] for claim in claims(tmp_path).values()}
  assert other[0].pid in owners
  assert len(owners) > 1


def test_ctrl_c_saves_and_a_second_one_ends_at_once(tmp_path, monkeypatch):
  """On a cluster of its own, whose processes are in the group in front too."""
  monkeypatch.delenv('RAY_ADDRESS', raising=False)
  good, deaf = cell(1, steps=2000), cell(2, steps=2000, deaf=True)
  wanted = [good, deaf, cell(3)]
  process = SERVER.Process(target=sweeper_on_ray, args=(tmp_path, wanted))
  process.start()
  wait_for(lambda: len(list(tmp_path.glob('*/saved.json'))) == 2)
  os.killpg(process.pid, signal.SIGINT)
  wait_for(lambda: codes(tmp_path, good) == [75])
  wait_for((tmp_path / deaf.run_id / 'told').exists)
  status = tmp_path / deaf.run_id / 'status.json'
  step = lambda: json.loads(status.read_text('utf-8'))['step']
  then = step()
  # It goes on, for as long as it is not told again.
  wait_for(lambda: step() > then + 25 or codes(tmp_path, deaf) != [None])
  assert codes(tmp_path, deaf) == [None]
  os.killpg(process.pid, signal.SIGINT)
  process.join(PATIENCE)
  assert process.exitcode == 75
  assert [codes(tmp_path, c) for c in wanted] == [[75], [75], []]
  assert alive_runs(tmp_path) == []


@pytest.mark.parametrize('name', ['value=1', 'a=0,value=1'])
def test_a_task_leaves_a_cell_alone_that_another_has(tmp_path, name):
  """It was claimed, or got another folder, while the task was on its way."""
  wanted = cell(1)
  attempts.open_folder(tmp_path)
  (tmp_path / f'{name}-{wanted.digest}').mkdir()
  attempt = attempts.claim(tmp_path, wanted.digest, [])
  def turn(before):
    run = tmp_path / wanted.run_id
    line, origin = command(wanted, run), (Path.cwd(), {})
    gang.lead(wanted, tmp_path, run, before, line, origin, [])
  turn([])
  assert begun(tmp_path, wanted) == 0
  attempt.write_end(attempts.End(attempts.PREEMPTED, 0.0, ''))
  turn([attempt])
  found = codes(tmp_path, wanted)
  assert found == ([75, 0] if name == 'value=1' else [75])


def a_task(root, ray, ready=True):
  """Of a cell, on machines that are there or not."""
  wanted = cell(1)
  attempts.open_folder(root)
  reserved = types.SimpleNamespace(ready=lambda: ready)
  room = types.SimpleNamespace(rest=lambda: None)
  attempt = attempts.following(root, wanted.digest, [])
  return ray_engine._Task(
    ray, wanted, root, attempt, 'its name', reserved, room
  )


def test_a_task_is_told_until_it_listens_and_then_once_a_signal(tmp_path):
  """Ray may lose what it is told before that."""
  told = []
  ray = types.SimpleNamespace(cancel=lambda name, recursive: told.append(name))
  task = a_task(tmp_path, ray)
  for signals, count in [(1, 1), (1, 2)]:
    task.stop(signals)
    assert told == ['its name'] * count
  assert attempts.claim(tmp_path, task.cell.digest, []) == task.attempt
  for signals, count in [(1, 3), (1, 3), (2, 4), (2, 4)]:
    task.stop(signals)
    assert told == ['its name'] * count


def test_a_task_whose_machines_were_lost_before_it_began_is_given_up(tmp_path):
  """It would wait for them for ever."""
  told = []
  ray = types.SimpleNamespace(cancel=lambda name, recursive: told.append(name))
  a_task(tmp_path, ray).beat()
  assert told == []
  lost = a_task(tmp_path, ray, ready=False)
  lost.beat()
  assert told == ['its name']
  attempts.claim(tmp_path, lost.cell.digest, [])
  lost.beat()
  assert told == ['its name']


def refused(tmp_path, resources=ONE_CPU):
  with pytest.raises(HostError) as error:
    sweep_on_ray(tmp_path, cells(1), resources=resources)
  assert '\n' not in str(error.value)
  assert list(tmp_path.glob('*/log.txt')) == []
  return str(error.value)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'ray', None)
  assert 'the package ray, which is not installed' in refused(tmp_path)


@pytest.mark.parametrize(
  ('address', 'reason'),
  [('127.0.0.1:1', 'refused'), ('nonsense', 'Invalid address')],
)
def test_a_cluster_that_does_not_answer(
  tmp_path, monkeypatch, address, reason
):
  monkeypatch.setenv('RAY_ADDRESS', address)
  line = refused(tmp_path)
  assert f'RAY_ADDRESS={address} cannot be used: ' in line
  assert reason in line


def test_a_sweeper_has_not_started_jax_when_ray_forks(tmp_path):
  """The whole command, with a Ray that forks and gives up."""
  package = tmp_path / 'ray'
  package.mkdir()
  (package / '__init__.py').write_text(
    'import os\n'
    'def init(*_, **__):\n'
    '  os.fork() or os._exit(0)\n'
    '  raise RuntimeError("it has forked")\n',
    'utf-8',
  )
  (package / 'exceptions.py').write_text(
    'class RayError(Exception): pass\n', 'utf-8'
  )
  ended = subprocess.run(
    [
      sys.executable, 'launch.py', '--config=configs/summarize.py:tiny',
      '--sweep=alpha', '--engine=ray', f'--workdir={tmp_path}/runs',
    ],
    env={**os.environ, 'PYTHONPATH': str(tmp_path)},
    cwd=STAND_IN.parent.parent, capture_output=True, encoding='utf-8',
    check=False,
  )  # fmt: skip
  assert ended.returncode == HostError.exit_code
  assert 'cannot be used: it has forked' in ended.stderr
  assert 'os.fork() was called' not in ended.stderr


def test_a_cluster_whose_token_is_not_here(tmp_path, cluster, monkeypatch):
  import ray

  def no_token(*_, **__):
    raise ray.exceptions.AuthenticationError('no token')

  monkeypatch.setattr(ray, 'init', no_token)
  line = refused(tmp_path)
  assert f'RAY_ADDRESS={cluster.address} cannot be used: no token' in line


def test_resources_that_no_machine_has(tmp_path, cluster):
  line = refused(tmp_path, {'CPU': 1.0, 'GPU': 8.0})
  assert 'the Ray cluster does not have 1 x CPU=1 GPU=8' in line
  assert 'there are 1 x CPU=3 GPU=0, ' in line
  assert 'CPU=3 TPU=4' in refused(tmp_path, {'CPU': 3.0, 'TPU': 4.0})


def test_a_machine_without_the_shared_folder(tmp_path, cluster, monkeypatch):
  monkeypatch.setattr(Path, 'cwd', lambda: tmp_path / 'not_there')
  line = refused(tmp_path)
  assert 'cannot run cells: ' in line
  assert f'it needs {tmp_path}/not_there' in line


def test_resources_are_read():
  assert parse_resources([]) == ONE_CPU
  assert parse_resources(['TPU=4']) == TPU
  assert parse_resources(['GPU=0.5', 'CPU=8']) == {'CPU': 8.0, 'GPU': 0.5}


@pytest.mark.parametrize(
  ('entry', 'words'),
  [('tpu=4', "'tpu'; did you mean 'TPU'"), ('TPU', 'TPU is not NAME=NUMBER')],
)
def test_resources_that_are_not_understood_are_refused(entry, words):
  with pytest.raises(ConfigError, match=words):
    parse_resources([entry])
