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
from pdl_jax.sweep.ray_engine import Engine, parse_resources
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
  claims.open_folder(root, [wanted])
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
  claims.open_folder(tmp_path, [])
  ray = StandInRay(slow=names, nodes=SLICES)
  return Engine(ray, tmp_path, command, Wanted(TPU, 2))


def test_a_slice_that_is_late_is_given_back_and_another_is_tried(
  engine, monkeypatch, capsys
):
  ray = engine.ray
  first, second = (engine.start(cell(number), []) for number in (1, 2))
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
  third = engine.start(cell(1), [])
  assert ray.groups == ['a', 'b', 'a']
  for task in (third, second):
    ray.slow.remove(task.reference)
    assert task.poll() == 75
  engine.start(cell(3), [])
  assert ray.groups[3] == 'b'  # It was asked for longer ago.


def test_a_task_is_told_until_it_listens_and_then_once_a_signal(
  engine, tmp_path, monkeypatch
):
  """Ray may lose what it is told before that."""
  task, told = engine.start(cell(1), []), []
  cancel = lambda name, recursive: told.append(name)
  monkeypatch.setattr(engine.ray, 'cancel', cancel)
  for count in (1, 2):
    task.stop(1)
    assert told == [task.reference] * count
  assert claims.claim(tmp_path, task.cell.digest, []) == task.attempt
  for signals, count in [(1, 3), (1, 3), (2, 4), (2, 4)]:
    task.stop(signals)
    assert told == [task.reference] * count


@pytest.mark.parametrize(
  ('address', 'error', 'words'),
  [
    (None, None, 'the package ray, which is not installed: pip install ray'),
    ('127.0.0.1:1', None, 'RAY_ADDRESS=127.0.0.1:1 cannot be used: .*refused'),
    ('nonsense', ValueError('Invalid'), '=nonsense cannot be used: Invalid'),
    ('auto', RayError('no token'), '=auto cannot be used: no token'),
  ],
)
def test_a_cluster_that_does_not_answer(
  tmp_path, monkeypatch, address, error, words
):
  def init(*_, **__):
    raise error

  ray, exceptions = types.ModuleType('ray'), types.ModuleType('ray.exceptions')
  ray.init, exceptions.RayError = init, RayError
  monkeypatch.setitem(sys.modules, 'ray', address and ray)
  monkeypatch.setitem(sys.modules, 'ray.exceptions', exceptions)
  monkeypatch.setenv('RAY_ADDRESS', address or '')
  one = Wanted({'CPU': 1.0})
  with (
    pytest.raises(HostError, match=f'^[^\n]*{words}[^\n]*$'),
    ray_engine.engine(tmp_path, command, one),
  ):
    pass
  assert list(tmp_path.iterdir()) == []


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
