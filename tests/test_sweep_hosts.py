"""Sweeps whose cells are runs of several processes, here and on a cluster."""

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from pdl_jax import process
from pdl_jax.cluster import options
from pdl_jax.errors import ConfigError, HostError, PreemptedError
from pdl_jax.sweep import (
  Wanted,
  claims,
  format_status,
  gang,
  local,
  placement,
  ray_engine,
  status,
)
from pdl_jax.sweep.ray_engine import run_on_ray
from tests.ray_cluster import cluster_of
from tests.test_sweep_local import (
  assert_finished_once,
  cell,
  codes,
  hasten,
  wait_for,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  hasten(monkeypatch.setattr)
  # Fewer threads to start; the stand-ins compute nothing.
  monkeypatch.setenv('NPROC', '2')


def command(cell, run):
  return [
    sys.executable, '-m', 'tests.stand_in_job', str(run),
    json.dumps(cell.config),
  ]  # fmt: skip


def rehearsed(cell, run):
  return [*command(cell, run), '--processes=2', '--join_seconds=60']


def begun(run, number):
  """(process, parent) of each start of a process."""
  path = run / f'{number}.begun'
  lines = path.read_text('utf-8').splitlines() if path.exists() else []
  return [tuple(map(int, line.split()[:2])) for line in lines]


def host(run, number):
  """Slice and number of the host on which a process was last started."""
  return (
    (run / f'{number}.begun').read_text('utf-8').splitlines()[-1].split()[2:]
  )


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


def gone(pid):
  return process.start_time(pid) is None


def test_a_cell_of_two_processes_survives_kill_9_of_its_parent(tmp_path):
  """Whose processes end with it: else they would write beside the next."""
  wanted = cell(1, steps=40, sleep=0.05)
  run = tmp_path / wanted.run_id
  seen = []

  def kill():
    ((first, parent),) = begun(run, 0)
    ((second, _),) = begun(run, 1)
    (row,) = status(tmp_path, [wanted])
    seen.append(row)
    os.kill(parent, signal.SIGKILL)
    wait_for(lambda: gone(first) and gone(second))
    seen.append((run / 'results.json').exists())

  with meanwhile((run / 'saved.json').exists, kill):
    outcome = local.run([wanted], tmp_path, 1, 1, False, rehearsed)
  assert outcome == local.Outcome(1, {}, 0)
  assert_finished_once(tmp_path, [wanted])
  assert codes(tmp_path, wanted) == [-signal.SIGKILL, 0]
  assert [len(begun(run, number)) for number in range(2)] == [2, 2]
  row, went_on = seen
  assert not went_on
  assert row.state == 'running' and 0 < row.step < 40
  assert f'step {row.step}/40' in format_status([row])


ONE_CPU = {'CPU': 1.0}
TPU = {'CPU': 1.0, 'TPU': 4.0}


def host_of(name, worker):
  """What makes a machine a host of a TPU slice."""
  head = {'TPU-v6e-8-head': 1} if worker == 0 else {}
  return {
    'num_cpus': 1,
    'env_vars': {'TPU_NAME': name, 'TPU_WORKER_ID': str(worker)},
    'resources': {'TPU': 4, **head},
    'labels': {
      'ray.io/tpu-slice-name': name,
      'ray.io/tpu-worker-id': str(worker),
      'ray.io/tpu-pod-type': 'v6e-8',
      'ray.io/tpu-topology': '2x4',
      'ray.io/accelerator-type': 'TPU-V6E',
    },
  }


@pytest.fixture(scope='module')
def cluster():
  """Two slices of two hosts, all of them this machine."""
  hosts = [host_of(name, worker) for name in 'ab' for worker in (0, 1)]
  with cluster_of(*hosts) as made:
    yield made


def sweep_on_ray(root, cells, resources, workers=1, retries=0):
  return run_on_ray(
    cells, root, workers, retries, False, command, Wanted(resources, 2)
  )


def test_a_gang_fails_is_preempted_comes_back_and_finishes(tmp_path, cluster):
  wanted = cell(1, steps=40, sleep=0.05, failures=1)
  run, seen = tmp_path / wanted.run_id, []

  def preempt():
    seen.extend(status(tmp_path, [wanted]))
    os.kill(begun(run, 1)[-1][1], signal.SIGTERM)

  with meanwhile((run / 'saved.json').exists, preempt):
    outcome = sweep_on_ray(tmp_path, [wanted], ONE_CPU, retries=1)
  assert outcome == local.Outcome(1, {}, 0)
  assert_finished_once(tmp_path, [wanted])
  assert codes(tmp_path, wanted) == [3, 75, 0]
  assert [len(begun(run, number)) for number in range(2)] == [3, 3]
  assert seen[0].state == 'running' and 0 < seen[0].step < 40


def test_ctrl_c_stops_two_gangs_on_two_slices(tmp_path, cluster):
  wanted = [cell(value, steps=2000, sleep=0.05) for value in (2, 3)]
  both = lambda: len(list(tmp_path.glob('*/saved.json'))) == 2
  stop = lambda: os.kill(os.getpid(), signal.SIGINT)
  with meanwhile(both, stop), pytest.raises(PreemptedError):
    sweep_on_ray(tmp_path, wanted, TPU, workers=2)
  assert [codes(tmp_path, each) for each in wanted] == [[75], [75]]
  runs = [tmp_path / each.run_id for each in wanted]
  assert all(
    gone(pid) for run in runs for number in range(2)
    for pid in begun(run, number)[0]
  )  # fmt: skip
  hosts = [host(run, number) for run in runs for number in range(2)]
  first = hosts[0][0]
  other = 'b' if first == 'a' else 'a'
  assert hosts == [[first, '0'], [first, '1'], [other, '0'], [other, '1']]
  # Process 1 was told by process 0: it has a parent of its own.
  for run in runs:
    assert 'stopped: the same command' in (run / 'log.1.txt').read_text('utf-8')


@pytest.mark.parametrize('claimed', [True, False])
def test_a_gang_whose_leader_left_the_cell_to_others_is_let_go(
  tmp_path, claimed
):
  """Its other members would wait for a meeting for ever."""
  ended, cancelled, released = ['leader'], [], []
  ray = types.SimpleNamespace(
    wait=lambda references, **_: (
      [r for r in references if r in ended],
      [r for r in references if r not in ended],
    ),
    get=lambda _: None,
    cancel=cancelled.append,
  )
  meeting = tmp_path / 'meeting'
  if claimed:
    meeting.touch()
  task = ray_engine._Task(
    ray, cell(1), tmp_path, claims.Attempt(tmp_path, 'hash', 1), meeting,
    ['leader', 'other'], placement.Placed([], lambda: released.append(1)), None,
  )  # fmt: skip
  assert task.poll() is None
  assert cancelled == ([] if claimed else ['other'])
  # With a meeting too, if one was lost before it was there.
  task.last -= ray_engine._LAST
  assert task.poll() is None
  assert cancelled[-1:] == ['other']
  assert released == []
  ended.append('other')
  assert task.poll() == claims.PREEMPTED
  assert released == [1]


def test_what_is_left_of_a_gang_is_ended(tmp_path, monkeypatch):
  """A process that waits for others that will never come."""
  monkeypatch.setattr(gang, '_GRACE', 0.1)
  monkeypatch.setattr(gang, '_LOOK', 0.02)
  wanted = cell(1)
  claims.open_folder(tmp_path)
  attempt = claims.claim(tmp_path, wanted.digest, [])
  meeting = tmp_path / 'meeting'
  meeting.write_text('{"number": 1, "coordinator": "here:1"}', 'utf-8')
  deaf = ['sh', '-c', 'trap "" TERM; echo $@; exec sleep 60', '-']
  member = gang.Member(meeting, 2, 1, of_slice=False)
  log, began = tmp_path / 'log.1.txt', time.monotonic()
  told = []

  def end():
    # By Ray, which is for process 0.
    os.kill(os.getpid(), signal.SIGINT)
    attempt.write_end(claims.End(4, 1.0, 'never came'))

  before = signal.signal(signal.SIGINT, lambda *_: told.append(1))
  with meanwhile(lambda: log.exists() and log.read_text('utf-8'), end):
    gang.follow(member, wanted, tmp_path, tmp_path, deaf)
  signal.signal(signal.SIGINT, before)
  assert told == []
  assert log.read_text('utf-8') == (
    '--multihost --coordinator=here:1 --num_processes=2 --process_id=1\n'
  )
  name = json.loads(attempt.path('1.worker').read_text('utf-8'))
  assert gone(name['pid'])
  assert time.monotonic() < began + 15


def test_who_is_not_told_of_a_meeting_does_not_wait_for_ever(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(gang, '_MEET', 0.0)
  member = gang.Member(tmp_path / 'meeting', 2, 1, of_slice=False)
  with pytest.raises(HostError, match='process 1 of 2 was not told in 0 s'):
    gang.follow(member, cell(1), tmp_path, tmp_path, [])


def refused(resources, hosts):
  import ray

  with pytest.raises(HostError) as error:
    placement.check_fits(ray, Wanted(resources, hosts))
  return str(error.value)


def test_more_machines_than_there_are(cluster):
  import ray

  ray.init(cluster.address, log_to_driver=False)
  try:
    assert 'of the 4 machines' in refused(ONE_CPU, 5)
    assert 'have CPU=1, which --resources asks for a cell, and ' in refused(
      ONE_CPU, 5
    )
    line = refused(TPU, 4)
    assert 'no TPU slice of the Ray cluster has 4 hosts of CPU=1 TPU=4' in line
    assert 'there are a: 2 of CPU=1 TPU=4, b: 2 of CPU=1 TPU=4' in line
    assert '2 hosts of CPU=1 TPU=8' in refused({'CPU': 1.0, 'TPU': 8.0}, 2)
    # A group of these would never be ready.
    assert '2 hosts of CPU=2 TPU=4' in refused({'CPU': 2.0, 'TPU': 4.0}, 2)
    placement.check_fits(ray, Wanted(TPU, 2))
  finally:
    ray.shutdown()


def worker_and_machine(parent):
  """Ray's processes above the one that looks after a process of a run."""
  above = []
  for _ in range(2):
    text = Path(f'/proc/{parent}/stat').read_text('utf-8')
    parent = int(text[text.rindex(')') + 2 :].split()[1])
    above.append(parent)
  return above


@contextlib.contextmanager
def taken(*names):
  """All chips of the second host of slices, by tasks that ask for no group."""
  import ray

  @ray.remote(num_cpus=0, resources={'TPU': 4}, max_retries=0)
  def hold(path):
    Path(path).touch()
    while Path(path).exists():
      time.sleep(0.02)

  with tempfile.TemporaryDirectory() as folder:
    paths = [Path(folder) / name for name in names]
    held = [
      hold.options(
        label_selector={
          'ray.io/tpu-slice-name': path.name,
          'ray.io/tpu-worker-id': '1',
        }
      ).remote(str(path))
      for path in paths
    ]
    wait_for(lambda: all(path.exists() for path in paths))
    yield
    for path in paths:
      path.unlink()
    ray.get(held)


@pytest.mark.parametrize(('busy', 'lines'), [('a', 1), ('b', 0)])
def test_a_slice_that_is_not_ready_is_given_back_and_another_is_tried(
  tmp_path, cluster, monkeypatch, capsys, busy, lines
):
  """Slices are asked for by name: the first looks free, but for its chips."""
  import ray

  monkeypatch.setattr(placement, '_PATIENCE', 2.0)
  free = 'b' if busy == 'a' else 'a'
  wanted = cell(1)
  ray.init(cluster.address, log_to_driver=False)
  try:
    # The sweep and who takes the chips are one driver of Ray.
    with taken(busy), monkeypatch.context() as patch:
      patch.setattr(ray_engine, '_connect', lambda: ray)
      patch.setattr(ray, 'shutdown', lambda: None)
      outcome = sweep_on_ray(tmp_path, [wanted], TPU)
  finally:
    ray.shutdown()
  assert outcome == local.Outcome(1, {}, 0)
  assert host(tmp_path / wanted.run_id, 1) == [free, '1']
  out = capsys.readouterr().out
  assert out.count('is placed again: TPU slice a was not ready in 2 s') == lines


def test_slices_are_asked_for_once_at_a_time(cluster, monkeypatch):
  """And again after a pause, where they were not ready."""
  import ray

  monkeypatch.setattr(placement, '_PATIENCE', 0.0)
  ray.init(cluster.address, log_to_driver=False)
  try:
    room = placement.Room(ray, Wanted(TPU, 2))
    look = lambda: setattr(room, '_next_look', 0.0) or room.place()
    with taken('a', 'b'):
      first, second = look(), look()
      assert look() is None
      assert 'TPU slice a was not ready' in first.late()
      assert 'TPU slice b was not ready' in second.late()
      first.release()
      assert look() is None
      monkeypatch.setattr(placement, '_PAUSE', 0.0)
      second.release()
      third = look()
      assert 'TPU slice b was not ready' in third.late()
    wait_for(lambda: third.late() == '')
    third.release()
  finally:
    ray.shutdown()


@pytest.mark.parametrize('lost', ['a', 'b'])
def test_a_slice_that_loses_a_host_is_left_for_another(
  tmp_path, cluster, monkeypatch, lost
):
  """All of the host's processes at once, and the host does not come back.

  The slice that is left is the second that is asked for, and the first.
  """
  monkeypatch.setattr(placement, '_PATIENCE', 5.0)
  whole = placement._whole_slices
  wanted = cell(2, steps=40, sleep=0.05)
  run = tmp_path / wanted.run_id

  def only_the_lost_at_first(*args):
    found = whole(*args)
    return found if begun(run, 0) else {lost: found[lost]}

  monkeypatch.setattr(placement, '_whole_slices', only_the_lost_at_first)

  def lose():
    ((first, parent),) = begun(run, 1)
    for each in (*worker_and_machine(parent), parent, first):
      with contextlib.suppress(ProcessLookupError):
        os.kill(each, signal.SIGKILL)

  with meanwhile((run / 'saved.json').exists, lose):
    outcome = sweep_on_ray(tmp_path, [wanted], TPU)
  cluster.add(host_of(lost, 1))
  # Not one of the failures, of which there may be none.
  assert outcome == local.Outcome(1, {}, 0)
  assert_finished_once(tmp_path, [wanted])
  assert codes(tmp_path, wanted) == [75, 0]
  assert [len(begun(run, number)) for number in range(2)] == [2, 2]
  lines = (run / '1.begun').read_text('utf-8').splitlines()
  assert [line.split()[2] for line in lines] == [lost, 'ab'.replace(lost, '')]


def test_machines_that_do_not_come_back_end_in_a_line(monkeypatch, capsys):
  machine = {'Alive': True, 'Resources': {'CPU': 4.0}, 'Labels': {}}
  ray = types.SimpleNamespace(nodes=lambda: [machine], util=None)
  room = placement.Room(ray, Wanted({'CPU': 2.0}))
  task = ray_engine._Task(
    ray, cell(1), Path(), claims.Attempt(Path(), 'hash', 1), Path('not there'),
    ['it waits'], room.place(), room,
  )  # fmt: skip
  task.beat()
  machine['Alive'] = False
  task.beat()
  assert room.place() is None
  out = capsys.readouterr().out
  assert out == (
    'waiting for lost machines: none of the 0 machines of the Ray cluster has '
    'CPU=2, which --resources asks for a cell\n'
  )
  machine['Alive'] = True
  task.beat()
  machine['Alive'] = False
  task.beat()
  monkeypatch.setattr(placement, '_RETURN', 0.0)
  with pytest.raises(HostError, match='in 0 s: none of the 0 machines .* cont'):
    task.beat()


def test_cells_are_told_of_their_processes(monkeypatch):
  monkeypatch.setitem(vars(flags.FLAGS), '__flags_parsed', True)
  with flagsaver.as_parsed(processes='2', backend='cpu'):
    assert options.of_cells(1) == ['--processes=2', '--backend=cpu']
    with pytest.raises(ConfigError, match='--hosts_per_cell=2'):
      options.of_cells(2)
  with flagsaver.as_parsed(join_seconds='9', stuck_seconds='8'):
    assert options.of_cells(2) == ['--join_seconds=9', '--stuck_seconds=8']
  with (
    flagsaver.as_parsed(multihost='true'),
    pytest.raises(ConfigError, match='not of a sweep'),
  ):
    options.of_cells(1)


def test_a_gang_is_seen_to_run_from_another_machine(tmp_path, monkeypatch):
  """Even one without /proc, by the age of the claim alone."""
  wanted = cell(1)
  claims.open_folder(tmp_path)
  attempt = claims.claim(tmp_path, wanted.digest, [])
  monkeypatch.setattr(process.Path, 'is_symlink', lambda _: False)
  assert process.machine() == ''
  assert [row.state for row in status(tmp_path, [wanted])] == ['running']
  os.utime(attempt.path('claim'), (0, time.time() - claims.STALE - 1))
  assert [row.state for row in status(tmp_path, [wanted])] == ['queued']
