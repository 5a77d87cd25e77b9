"""What Ray is asked for, and what becomes of an attempt, without a cluster."""

import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from pdl_jax import process
from pdl_jax.cluster import options
from pdl_jax.errors import ConfigError, HostError
from pdl_jax.sweep import claims, gang, placement, ray_engine
from pdl_jax.sweep.placement import Wanted
from pdl_jax.sweep.ray_engine import Engine, parse_resources, run_on_ray
from pdl_jax.sweep.status import status
from tests.sweep.stand_in import cell, codes, command, meanwhile

HERE = Path.cwd(), {}
TPU = {'CPU': 1.0, 'TPU': 4.0}


class RayError(Exception):
  """As Ray's own, which can be imported only where a cluster is."""


class TaskError(RayError):
  """An error that a task has raised."""


class StandInRay:
  """Asks machines for nothing; tasks are their names, in their order.

  Attributes:
    asked: tasks.
    groups: slices that machines were reserved on.
    slow: tasks that end only when they are cancelled.
    lost: tasks whose machines are lost.
  """

  exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=TaskError)

  def __init__(self, slow=(), lost=(), nodes=()):
    self.asked, self.groups, self.told = [], [], []
    self.slow, self.lost, self.nodes = list(slow), lost, lambda: nodes
    strategy = types.SimpleNamespace(
      PlacementGroupSchedulingStrategy=lambda group, number: (group, number)
    )
    self.util = types.SimpleNamespace(
      get_node_ip_address=lambda: 'here', scheduling_strategies=strategy,
      placement_group=self.reserve, remove_placement_group=lambda group: None,
    )  # fmt: skip

  def reserve(self, machines, strategy, bundle_label_selector):
    assert strategy == 'STRICT_SPREAD'
    names = [each['ray.io/tpu-slice-name'] for each in bundle_label_selector]
    assert len(set(names)) == 1 and len(machines) == len(names)
    self.groups.append(names[0])

  def remote(self, task):
    def ask(*_):
      self.asked.append(f'{task.__name__} {len(self.asked) + 1}')
      return self.asked[-1]

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

  def cancel(self, task, recursive=True):
    self.told.append(task)
    self.slow.remove(task)


def led(root, monkeypatch, stand_in, wanted):
  """A cell on three machines, of which one is there."""
  monkeypatch.setitem(sys.modules, 'ray', stand_in)
  claims.open_folder(root)
  line = ['sh', '-c', f'exit {wanted.config["code"]}']
  gang.lead(wanted, root, [], line, HERE, [{}, {}])
  return codes(root, wanted)


def test_other_machines_are_asked_for_processes_after_the_claim(
  tmp_path, monkeypatch
):
  first = ['enter 1', 'enter 2']
  stand_in = StandInRay(lost=['enter 2'])
  assert led(tmp_path, monkeypatch, stand_in, cell(1, code=75)) == []
  assert stand_in.asked == first
  stand_in = StandInRay()
  assert led(tmp_path, monkeypatch, stand_in, cell(1, code=75)) == [75]
  assert stand_in.asked == [*first, 'follow 3', 'follow 4']
  # Another sweeper has had the cell in the meantime.
  again = StandInRay()
  assert led(tmp_path, monkeypatch, again, cell(1, code=75)) == [75]
  assert again.asked == first


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
  deaf = ['sh', '-c', 'trap "" TERM; echo begun; exec sleep 600']
  # As Ray cancels a task.
  end = lambda: os.kill(os.getpid(), signal.SIGINT)
  with (
    pytest.raises(KeyboardInterrupt),
    meanwhile(lambda: log.exists() and log.read_text('utf-8'), end),
  ):
    gang.follow(name, log, deaf, HERE)
  pid = json.loads(name.read_text('utf-8'))['pid']
  assert process.start_time(pid) is None


def node(name, **resources):
  labels = {'ray.io/tpu-slice-name': name} if name else {}
  return {'Alive': True, 'Labels': labels, 'Resources': resources}


SLICES = [node(name, **TPU) for name in 'abab'] + [node('', CPU=3.0, TPU=4.0)]


@pytest.mark.parametrize(
  ('wanted', 'words'),
  [
    (Wanted({'CPU': 1.0}, 6), 'does not have 6 x CPU=1, which a cell'),
    (Wanted({'CPU': 1.0}, 6), 'there are 4 x CPU=1, 1 x CPU=3$'),
    (Wanted({'CPU': 1.0, 'GPU': 8.0}), 'have 1 x CPU=1 GPU=8.* CPU=3 GPU=0'),
    (Wanted(TPU, 4), 'no TPU slice of 4 x CPU=1 TPU=4'),
    (Wanted(TPU, 4), 'are a: 2 x CPU=1 TPU=4; b: 2 x CPU=1 TPU=4$'),
    # Chips that would be left over, and a group that would never be ready.
    (Wanted({'CPU': 1.0, 'TPU': 2.0}, 2), 'slice of 2 x CPU=1 TPU=2'),
    (Wanted({'CPU': 2.0, 'TPU': 4.0}, 2), 'slice of 2 x CPU=2 TPU=4'),
  ],
)
def test_more_machines_than_there_are(wanted, words):
  ray = StandInRay(nodes=SLICES)
  with pytest.raises(HostError, match=words):
    placement.slices(ray, wanted)
  dead = [{**each, 'Alive': False} for each in SLICES]
  with pytest.raises(HostError, match='there are none'):
    placement.slices(StandInRay(nodes=dead), wanted)


def test_what_fits():
  ray = StandInRay(nodes=SLICES)
  assert placement.slices(ray, Wanted(TPU, 2)) == ['a', 'b']
  assert placement.slices(ray, Wanted(TPU)) == ['']
  assert placement.slices(ray, Wanted({'CPU': 1.0}, 5)) == ['']


@pytest.fixture
def engine(tmp_path):
  """Two slices on which no task ends before it is cancelled."""
  names = [f'lead {number}' for number in range(1, 9)]
  ray = StandInRay(slow=names, nodes=SLICES)
  claims.open_folder(tmp_path)
  return Engine(ray, tmp_path, command, Wanted(TPU, 2)), ray


def test_a_slice_that_is_late_is_given_back_and_another_is_tried(
  engine, monkeypatch, capsys
):
  made, ray = engine
  first = made.start(cell(1), [])
  made.start(cell(2), [])
  assert ray.groups == ['a', 'b']
  first.beat()
  assert first.poll() is None and ray.told == []
  later = time.monotonic() + ray_engine._LATE
  monkeypatch.setattr(time, 'monotonic', lambda: later)
  first.beat()
  assert ray.told == [first.reference] and first.poll() == 75
  assert capsys.readouterr().out == (
    'value=1 waits for 2 x CPU=1 TPU=4 of slice a\n'
  )
  # The other one is in use by this sweep.
  third = made.start(cell(1), [])
  assert ray.groups == ['a', 'b', 'a']
  ray.slow.remove(third.reference)
  assert third.poll() == 75
  ray.slow.remove('lead 2')
  made._tasks[0].poll()
  made.start(cell(3), [])
  assert ray.groups[3] == 'b'  # It was asked for longer ago.


def test_a_task_is_told_until_it_listens_and_then_once_a_signal(
  tmp_path, monkeypatch
):
  """Ray may lose what it is told before that."""
  names = [f'lead {number}' for number in range(1, 9)]
  ray = StandInRay(slow=names, nodes=SLICES)
  claims.open_folder(tmp_path)
  task = Engine(ray, tmp_path, command, Wanted(TPU, 2)).start(cell(1), [])
  monkeypatch.setattr(ray, 'cancel', lambda name, recursive: told.append(name))
  told = []
  for signals, count in [(1, 1), (1, 2)]:
    task.stop(signals)
    assert told == [task.reference] * count
  assert claims.claim(tmp_path, task.cell.digest, []) == task.attempt
  for signals, count in [(1, 3), (1, 3), (2, 4), (2, 4)]:
    task.stop(signals)
    assert told == [task.reference] * count


def refused(root):
  with pytest.raises(HostError) as error:
    run_on_ray([cell(1)], root, 1, 0, False, command, Wanted({'CPU': 1.0}))
  assert '\n' not in str(error.value)
  assert list(root.iterdir()) == []
  return str(error.value)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'ray', None)
  assert 'the package ray, which is not installed' in refused(tmp_path)


@pytest.mark.parametrize(
  ('address', 'error', 'reason'),
  [
    ('127.0.0.1:1', None, 'refused'),
    ('nonsense', ValueError('Invalid address'), 'Invalid address'),
    ('auto', RayError('no token'), 'no token'),
  ],
)
def test_a_cluster_that_does_not_answer(
  tmp_path, monkeypatch, address, error, reason
):
  def init(*_, **__):
    raise error

  stand_in = types.ModuleType('ray')
  stand_in.init = init
  monkeypatch.setitem(sys.modules, 'ray', stand_in)
  exceptions = types.ModuleType('ray.exceptions')
  exceptions.RayError = RayError
  monkeypatch.setitem(sys.modules, 'ray.exceptions', exceptions)
  monkeypatch.setenv('RAY_ADDRESS', address)
  line = refused(tmp_path)
  assert f'RAY_ADDRESS={address} cannot be used: ' in line
  assert reason in line


def test_resources_are_read():
  assert parse_resources([]) == {'CPU': 1.0}
  assert parse_resources(['GPU=0.5', 'CPU=8']) == {'CPU': 8.0, 'GPU': 0.5}
  for entry, words in (
    ('tpu=4', "'tpu'; did you mean 'TPU'"), ('TPU', 'TPU is not NAME=NUMBER'),
    ('TPU=nan', 'TPU=nan is not NAME=NUMBER'),
  ):  # fmt: skip
    with pytest.raises(ConfigError, match=words):
      parse_resources([entry])


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
