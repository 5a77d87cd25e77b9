"""Sweeps on a real Ray cluster: of single machines, and of a gang."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pdl_jax import process
from pdl_jax.errors import HostError, PreemptedError
from pdl_jax.sweep import local
from pdl_jax.sweep.placement import Wanted
from pdl_jax.sweep.ray_engine import engine
from pdl_jax.sweep.status import format_status, status
from tests.sweep.ray_cluster import cluster_of
from tests.sweep.stand_in import (
  assert_finished_once,
  begun,
  cell,
  cells,
  codes,
  command,
  hasten,
  meanwhile,
  results,
  sweep,
)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  hasten(monkeypatch.setattr)
  # Fewer threads to start; the stand-ins compute nothing.
  monkeypatch.setenv('NPROC', '2')


def host_of(name, worker):
  """What makes a machine a host of a TPU slice."""
  return {
    'num_cpus': 2,
    'env_vars': {'TPU_NAME': name, 'TPU_WORKER_ID': str(worker)},
    'resources': {'TPU': 4},
    'labels': {
      'ray.io/tpu-slice-name': name, 'ray.io/tpu-worker-id': str(worker),
    },
  }  # fmt: skip


@pytest.fixture(scope='module')
def cluster():
  """A slice of two hosts, both of them this machine."""
  with cluster_of(host_of('a', 1), host_of('a', 0)):
    yield


def sweep_on_ray(
  root, cells, workers=3, retries=0, command=command, wanted=None
):
  with engine(root, command, wanted or Wanted({'CPU': 1.0})) as start:
    return local.run(cells, root, workers, retries, False, start)


def owner(root, cell):
  """The process of Ray that claimed a cell first."""
  path = root / 'sweep' / f'{cell.digest}.1.claim'
  return json.loads(path.read_text('utf-8'))['pid']


def test_ends_and_records_are_those_of_the_local_engine(
  tmp_path, cluster, capsys
):
  """Also where the process of Ray that looks after a run is killed."""
  mended = [*cells(3), cell(3, codes=[75]), cell(4, codes=[5])]
  bad, wrong = cell('bad', codes=[5, 3, 4]), cell('wrong', codes=[2, 2])
  wanted = [*mended, bad, wrong]
  here, there = tmp_path / 'here', tmp_path / 'there'
  expected = sweep(here, wanted, retries=1)
  there.mkdir()
  (there / 'hold').touch()

  def kill():
    os.kill(owner(there, wanted[0]), signal.SIGKILL)
    (there / 'hold').unlink()

  saved = there / wanted[0].run_id / 'saved.json'
  with meanwhile(saved.exists, kill):
    assert sweep_on_ray(there, wanted, retries=1) == expected
  assert expected.failed == {
    bad.run_id: 'error: attempt 1 was to fail',
    wrong.run_id: 'error: attempt 0 was to fail',
  }
  printed = capsys.readouterr().out
  assert '[7/7] value=' in printed
  assert f'{wanted[0].run_id} lost its process' in printed
  assert_finished_once(there, mended)
  assert results(there) == results(here)
  assert [codes(there, c) for c in wanted] == [
    [None, 0], [0], [0], [75, 0], [5, 0], [5, 3], [2],
  ]  # fmt: skip
  assert begun(there, wanted[0]) == 2
  logs = [
    (root / bad.run_id / 'log.txt').read_text('utf-8') for root in (here, there)
  ]
  assert logs[0] == logs[1]


def of_two(cell, run):
  return [
    sys.executable, '-m', 'tests.sweep.stand_in_job', str(run),
    json.dumps(cell.config),
  ]  # fmt: skip


def starts(run, number):
  """(process, parent, slice, host) of each start of a process."""
  lines = (run / f'{number}.begun').read_text('utf-8').splitlines()
  return [line.split() for line in lines]


def gone(pid):
  return process.start_time(int(pid)) is None


def test_a_gang_on_a_slice_fails_is_stopped_and_finishes(tmp_path, cluster):
  wanted = cell(1, steps=1000, sleep=0.05, failures=1)
  run, seen = tmp_path / wanted.run_id, []
  slice_of_two = Wanted({'CPU': 1.0, 'TPU': 4.0}, 2)

  def again():
    return sweep_on_ray(tmp_path, [wanted], 1, 1, of_two, slice_of_two)

  def stop():
    seen.extend(status(tmp_path, [wanted]))
    os.kill(os.getpid(), signal.SIGINT)

  with (
    meanwhile((run / 'saved.json').exists, stop), pytest.raises(PreemptedError)
  ):  # fmt: skip
    again()
  (row,) = seen
  assert row.state == 'running'
  assert f'step {row.step}/1000' in format_status(seen)
  assert codes(tmp_path, wanted) == [3, 75]
  both = [starts(run, number) for number in range(2)]
  assert [[each[2:] for each in one] for one in both] == [
    [['a', '0']] * 2, [['a', '1']] * 2,
  ]  # fmt: skip
  assert all(gone(each[0]) for one in both for each in one)
  # Process 1 was told by process 0: it has a parent of its own.
  assert 'stopped: the same command' in (run / 'log.1.txt').read_text('utf-8')
  (run / 'fast').touch()
  assert again() == local.Outcome(1, {}, 0)
  assert_finished_once(tmp_path, [wanted])
  assert codes(tmp_path, wanted) == [3, 75, 0]


def test_a_machine_without_the_shared_folder(tmp_path, cluster, monkeypatch):
  monkeypatch.setattr(Path, 'cwd', lambda: tmp_path / 'not_there')
  with pytest.raises(HostError, match='cannot run cells: .*not_there'):
    sweep_on_ray(tmp_path, cells(1))


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
    cwd=ROOT, capture_output=True, encoding='utf-8', check=False,
  )  # fmt: skip
  assert ended.returncode == HostError.exit_code
  assert 'cannot be used: it has forked' in ended.stderr
  assert 'os.fork() was called' not in ended.stderr
