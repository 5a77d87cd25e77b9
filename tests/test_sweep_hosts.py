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
from pdl_jax.sweep import claims, gang, local, placement, ray_engine
from pdl_jax.sweep.placement import Wanted
from pdl_jax.sweep.ray_engine import run_on_ray
from pdl_jax.sweep.status import format_status, status
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


class RayError(Exception):
  """As Ray's own, which can be imported only where a cluster is."""


class StandInRay:
  """Asks machines for nothing; tasks are their names, in their order.

  Attributes:
    asked: those on the other machines.
    slow: those that end only when they are cancelled.
    lost: those whose machines are.
  """

  exceptions = types.SimpleNamespace(
    RayError=RayError, RayTaskError=type('RayTaskError', (RayError,), {})
  )
  util = types.SimpleNamespace(get_node_ip_address=lambda: 'here')

  def __init__(self, slow=(), lost=()):
    self.asked, self.slow, self.lost = [], list(slow), lost

  def remote(self, task):
    def ask(*_):
      self.asked.append(task.__name__)
      return f'{task.__name__} {len(self.asked)}'

    asking = types.SimpleNamespace(remote=ask)
    return types.SimpleNamespace(options=lambda **_: asking)

  def get(self, task):
    assert task not in self.slow
    if task in self.lost:
      raise RayError

  def wait(self, tasks, **_):
    return (
      [task for task in tasks if task not in self.slow],
      [task for task in tasks if task in self.slow],
    )

  def cancel(self, task):
    self.slow.remove(task)


HERE = Path.cwd(), {}


def led(root, monkeypatch, stand_in, wanted):
  """A cell on three machines, of which one is there."""
  monkeypatch.setitem(sys.modules, 'ray', stand_in)
  claims.open_folder(root)
  line = ['sh', '-c', f'exit {wanted.config["code"]}']
  run = root / wanted.run_id
  gang.lead(wanted, root, run, [], line, HERE, [{}, {}])
  return codes(root, wanted)


def test_other_machines_are_asked_for_processes_after_the_claim(
  tmp_path, monkeypatch
):
  stand_in = StandInRay()
  assert led(tmp_path, monkeypatch, stand_in, cell(1, code=75)) == [75]
  assert stand_in.asked == ['enter', 'enter', 'follow', 'follow']
  again = StandInRay()
  assert led(tmp_path, monkeypatch, again, cell(1, code=75)) == [75]
  assert again.asked == ['enter', 'enter']


def test_without_one_of_its_machines_a_cell_is_not_claimed(
  tmp_path, monkeypatch
):
  stand_in = StandInRay(lost=['enter 2'])
  assert led(tmp_path, monkeypatch, stand_in, cell(1, code=0)) == []


@pytest.mark.parametrize(
  ('code', 'slow', 'lost', 'end'),
  [
    (4, [], [], 4),
    (4, [], ['follow 4'], 75),
    (4, ['follow 3'], ['follow 4'], 75),
    (4, ['follow 3'], [], 4),
    (5, [], ['follow 4'], 5),
  ],
)
def test_an_attempt_that_lost_a_machine_did_not_fail(
  tmp_path, monkeypatch, code, slow, lost, end
):
  stand_in = StandInRay(slow, lost)
  assert led(tmp_path, monkeypatch, stand_in, cell(1, code=code)) == [end]
  assert stand_in.slow == []


def test_what_is_left_of_a_gang_is_ended(tmp_path):
  """A process that waits for others that will never come."""
  log, name = tmp_path / 'log.1.txt', tmp_path / 'worker'
  deaf = ['sh', '-c', 'trap "" TERM; echo begun; exec sleep 60']
  # As Ray cancels a task.
  end = lambda: os.kill(os.getpid(), signal.SIGINT)
  with (
    pytest.raises(KeyboardInterrupt),
    meanwhile(lambda: log.exists() and log.read_text('utf-8'), end),
  ):
    gang.follow(name, log, deaf, HERE)
  assert gone(json.loads(name.read_text('utf-8'))['pid'])


def refused(ray, resources, hosts):
  with pytest.raises(HostError) as error:
    placement.check_fits(ray, Wanted(resources, hosts))
  return str(error.value)


@contextlib.contextmanager
def driver(cluster):
  """Ray, connected to a cluster."""
  import ray

  ray.init(cluster.address, log_to_driver=False)
  try:
    yield ray
  finally:
    ray.shutdown()


def test_more_machines_than_there_are(cluster):
  with driver(cluster) as ray:
    line = refused(ray, ONE_CPU, 5)
    assert 'the Ray cluster does not have 5 x CPU=1, which a cell' in line
    assert line.endswith('; there are 4 x CPU=1')
    line = refused(ray, TPU, 4)
    assert 'the Ray cluster has no TPU slice of 4 x CPU=1 TPU=4' in line
    assert line.endswith('there are a: 2 x CPU=1 TPU=4; b: 2 x CPU=1 TPU=4')
    # Chips that would be left over.
    some = {'CPU': 1.0, 'TPU': 2.0}
    assert 'slice of 2 x CPU=1 TPU=2' in refused(ray, some, 2)
    # A group of these would never be ready.
    more = {'CPU': 2.0, 'TPU': 4.0}
    assert 'slice of 2 x CPU=2 TPU=4' in refused(ray, more, 2)
    assert sorted(placement.check_fits(ray, Wanted(TPU, 2))) == ['a', 'b']


def test_machines_without_a_slice_are_none():
  machine = {
    'Alive': True, 'Labels': {}, 'NodeID': '1', 'Resources': TPU,
  }  # fmt: skip
  two = types.SimpleNamespace(nodes=lambda: [machine, machine])
  with pytest.raises(HostError, match='no TPU slice of 2 .* there are none'):
    placement.check_fits(two, Wanted(TPU, 2))


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


@pytest.mark.parametrize(('busy', 'patience'), [('a', 2.0), ('b', 60.0)])
def test_a_slice_that_is_not_ready_is_given_back_and_another_is_tried(
  tmp_path, cluster, monkeypatch, capsys, busy, patience
):
  """Slices are asked for by name: the first looks free, its chips are not."""
  monkeypatch.setattr(placement, '_PATIENCE', patience)
  free = 'b' if busy == 'a' else 'a'
  wanted = cell(1)
  # The sweep and who takes the chips are one driver of Ray.
  with (
    driver(cluster) as ray, taken(busy), monkeypatch.context() as patch
  ):  # fmt: skip
    patch.setattr(ray_engine, '_connect', lambda: ray)
    patch.setattr(ray, 'shutdown', lambda: None)
    outcome = sweep_on_ray(tmp_path, [wanted], TPU)
  assert outcome == local.Outcome(1, {}, 0)
  assert host(tmp_path / wanted.run_id, 1) == [free, '1']
  said = 'slice a was not ready in 2 s' in capsys.readouterr().out
  assert said == (busy == 'a')


def test_slices_are_asked_for_in_turns_until_one_is_free(
  cluster, monkeypatch, capsys
):
  monkeypatch.setattr(placement, '_PATIENCE', 0.0)
  with driver(cluster) as ray:
    room = placement.Room(ray, Wanted(TPU, 2))
    look = lambda: setattr(room, '_next_look', 0.0) or room.place()
    with taken('a', 'b'):
      assert [look() for _ in range(3)] == [None] * 3
      said = capsys.readouterr().out.splitlines()
      assert [line.split()[2] for line in said] == ['a', 'b', 'a']
    monkeypatch.setattr(placement, '_PATIENCE', 60.0)
    first, second = [], []
    wait_for(lambda: first.append(look()) or first[-1])
    wait_for(lambda: second.append(look()) or second[-1])
    assert {first[-1].of_slice, second[-1].of_slice} == {'a', 'b'}
    assert look() is None
    assert room._asked is None  # There is none that looks free.
    first[-1].release()
    wait_for(lambda: second.append(look()) or second[-1])
    assert second[-1].of_slice == first[-1].of_slice


def test_machines_for_which_no_cell_comes_are_given_back(cluster, monkeypatch):
  with driver(cluster) as ray:
    room = placement.Room(ray, Wanted(ONE_CPU, 4))
    held = []
    wait_for(lambda: held.append(room.place()) or held[-1])
    assert room.place() is None
    room.rest()
    assert room._asked is not None
    monkeypatch.setattr(placement, '_PATIENCE', -2.0)
    room.rest()
    assert room._asked is None


@pytest.mark.parametrize('lost', ['a', 'b'])
def test_a_slice_that_loses_a_host_is_left_for_another(
  tmp_path, cluster, monkeypatch, lost
):
  """All of the host's processes at once, and the host does not come back.

  The slice that is left is the second that is asked for, and the first.
  """
  monkeypatch.setattr(placement, '_PATIENCE', 5.0)
  whole = placement.check_fits
  wanted = cell(2, steps=40, sleep=0.05)
  run = tmp_path / wanted.run_id

  def only_the_lost_at_first(*args):
    found = whole(*args)
    return found if begun(run, 0) else {lost: found[lost]}

  monkeypatch.setattr(placement, 'check_fits', only_the_lost_at_first)

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
  machine = {
    'Alive': True, 'Resources': {'CPU': 4.0}, 'Labels': {}, 'NodeID': '1',
  }  # fmt: skip
  group = types.SimpleNamespace(wait=lambda _: False)
  util = types.SimpleNamespace(placement_group=lambda *_, **__: group)
  stand_in = types.SimpleNamespace(nodes=lambda: [machine], util=util)
  room = placement.Room(stand_in, Wanted({'CPU': 2.0}))
  look = lambda: setattr(room, '_next_look', 0.0) or room.place()
  assert look() is None
  machine['Alive'] = False
  assert [look(), look()] == [None, None]
  out = capsys.readouterr().out
  assert out == (
    'waiting for lost machines: the Ray cluster does not have 1 x CPU=2, '
    'which a cell takes by --hosts_per_cell and --resources; there are none\n'
  )
  machine['Alive'] = True
  assert look() is None
  machine['Alive'] = False
  assert look() is None
  monkeypatch.setattr(placement, '_RETURN', 0.0)
  with pytest.raises(HostError, match='in 0 s: the Ray cluster .* continues'):
    look()


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
