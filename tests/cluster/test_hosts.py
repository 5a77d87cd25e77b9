"""Several real processes: what they share, how they stop and are stopped."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import summarize
from pdl_jax.cluster import supervisor
from pdl_jax.cluster.multihost import Place
from pdl_jax.config import flatten
from pdl_jax.mesh import make_mesh
from pdl_jax.train.checkpoint import Checkpointer
from tests import small
from tests.cluster import stand_in_host as stand_in

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def run(folder, *arguments):
  """How two stand-ins under a parent ended."""
  port = free_port()
  places = [
    Place(str(folder), str(number), f'localhost:{port}', 2, number, 600, 10)
    for number in range(2)
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', str(ROOT))
    command = [sys.executable, '-m', 'tests.cluster.stand_in_host', *arguments]
    hosts = supervisor.start(places, command)
    ended = supervisor.supervise(hosts, 600)
  # They were tied to this process; test_claims.py has what that means.
  for one in hosts:
    name = json.loads(one.place.file('worker').read_text('utf-8'))
    assert name['pid'] == one.child.pid
  return ended


def test_a_killed_host_is_named(tmp_path, capfd):
  ended = run(tmp_path, 'kill')
  printed = capfd.readouterr().err
  assert ended.code == 4
  (line,) = [x for x in printed.splitlines() if x.startswith('error: ')]
  assert re.match(
    r'error: process 1 \(pid \d+ on .*\) was killed by SIGKILL .*, last seen',
    line,
  )
  assert 'Check failure stack trace' not in printed


def test_two_processes_share_save_and_stop_at_one_step(tmp_path, capfd):
  """State and position of the data are saved; then one process reads them."""
  ended = run(tmp_path / 'hosts', 'work', str(tmp_path))
  printed = capfd.readouterr().err
  assert ended == (75, ''), printed
  assert 'stopped: by a signal while stepping' in printed
  logs = [
    (tmp_path / 'hosts' / f'{number}.log').read_text('utf-8').splitlines()
    for number in range(2)
  ]
  assert all(
    'refused: mesh.slices 4, but the devices are in 2 processes, of 2, 2 '
    'devices; it must be their number, and all must be as large' in log
    for log in logs
  )
  steps = {x for log in logs for x in log if x.startswith('all at step')}
  assert len(steps) == 1
  mesh = make_mesh((1, 1, 8))
  placed = NamedSharding(mesh, P(None, 'tensor'))
  target = {'rows': jax.ShapeDtypeStruct((4, 8), np.float32, sharding=placed)}
  batches, straight = stand_in.iterator(0, 1), stand_in.iterator(0, 1)
  with Checkpointer(tmp_path) as checkpoints:
    restored = checkpoints.restore_latest(target, batches)
  assert restored is not None
  np.testing.assert_array_equal(restored[1]['rows'], stand_in.ROWS)
  expected = [next(straight) for _ in range(stand_in.TAKEN + 2)]
  np.testing.assert_array_equal(
    [next(batches) for _ in range(2)], expected[stand_in.TAKEN :]
  )


def launch(*arguments, **variables):
  """Starts the command, with one device a process, as nobody says otherwise."""
  line = [sys.executable, 'launch.py', '--config=configs/summarize.py:tiny']
  clean = {k: v for k, v in os.environ.items() if k != 'NPROC'}
  return subprocess.Popen(
    [*line, *arguments], cwd=ROOT, encoding='utf-8', stdout=subprocess.PIPE,
    stderr=subprocess.PIPE, env={**clean, 'JAX_PLATFORMS': 'cpu', **variables},
  )  # fmt: skip


def test_hosts_that_differ_end_before_they_begin(tmp_path):
  """Two configurations, and folders that are not one, on the command line."""
  where = f'--coordinator=localhost:{free_port()}'
  both = [
    launch(
      '--multihost', where, '--num_processes=2', f'--process_id={number}',
      f'--workdir={tmp_path}/{number}', f'--config.loss.alpha={alpha}',
    )
    for number, alpha in enumerate((0.25, 0.5))
  ]
  for number, one in enumerate(both):
    out, err = one.communicate()
    assert one.returncode == 4, err
    (line,) = err.splitlines()
    assert line.startswith('error: pre-flight: configuration: loss.alpha is ')
    assert 'is 0.5 in process 1' in line and 'and 0.25 in process 0' in line
    assert f'| shared run folder: it is {tmp_path}/1 in process 1' in line
    assert f'and {tmp_path}/0 in process 0' in line
    assert ('FAIL  configuration' in out) == (number == 0)
    assert ('PASS  all-reduce' in out) == (number == 0)
    assert not (tmp_path / str(number) / 'config.json').exists()


def test_the_whole_job_of_two_processes_is_that_of_one(
  tmp_path, data_dir, quick_compile
):
  """On the command line; the parts of the batch meet in other orders."""
  changes = {'train.steps': 4, 'evaluate.examples': 8}
  small.run_job(data_dir, tmp_path / 'one', **changes)
  config = small.job_config(data_dir, **changes)
  flat = flatten(config.to_dict())
  before = flatten(summarize.get_config('tiny').to_dict())
  told = [
    f'--config.{key}={value}'
    for key, value in flat.items()
    if value != before[key]
  ]
  done = launch(
    '--processes=2', f'--workdir={tmp_path}/two', *told,
    JAX_DISABLE_MOST_OPTIMIZATIONS='1',
  )  # fmt: skip
  out, err = done.communicate()
  assert done.returncode == 0, err
  assert 'PASS  memory of a device' in out

  def rows(name, file):
    return [
      json.loads(line)
      for line in (tmp_path / name / file).open(encoding='utf-8')
    ]

  one, two = (rows(name, 'metrics.jsonl') for name in ('one', 'two'))
  for a, b in zip(one, two, strict=True):
    for key in {'loss', 'plain_loss', 'validation_nats'} & a.keys():
      assert abs(a[key] - b[key]) < 1e-5, (a['step'], key)
  one, two = (rows(name, 'predictions/after.jsonl') for name in ('one', 'two'))
  assert [x['id'] for x in one] == [x['id'] for x in two]
