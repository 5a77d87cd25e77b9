"""Several real processes: what they share, how they stop and are stopped."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import summarize
from pdl_jax import process
from pdl_jax.cluster import supervisor
from pdl_jax.cluster.multihost import Place
from pdl_jax.config import flatten
from pdl_jax.mesh import make_mesh
from pdl_jax.train.checkpoint import Checkpointer
from tests import small
from tests.cluster import host_state

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
    return supervisor.supervise(hosts, 600)


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
  steps = {x for log in logs for x in log if x.startswith('all at step')}
  assert len(steps) == 1
  mesh = make_mesh((1, 1, 8))
  placed = NamedSharding(mesh, P(None, 'tensor'))
  target = {'rows': jax.ShapeDtypeStruct((4, 8), np.float32, sharding=placed)}
  batches, straight = host_state.iterator(0, 1), host_state.iterator(0, 1)
  with Checkpointer(tmp_path) as checkpoints:
    restored = checkpoints.restore_latest(target, batches)
  assert restored is not None
  np.testing.assert_array_equal(restored[1]['rows'], host_state.ROWS)
  expected = [next(straight) for _ in range(host_state.TAKEN + 2)]
  np.testing.assert_array_equal(
    [next(batches) for _ in range(2)], expected[host_state.TAKEN :]
  )


def command(*arguments):
  return [sys.executable, 'launch.py', '--config=configs/summarize.py:tiny',
          *arguments]  # fmt: skip


def environment():
  """One device a process, as where no one sets another number."""
  clean = {k: v for k, v in os.environ.items() if k != 'NPROC'}
  return {**clean, 'JAX_PLATFORMS': 'cpu'}


def test_hosts_that_differ_end_before_they_begin(tmp_path):
  """Two configurations, and folders that are not one, on the command line."""
  where = f'--coordinator=localhost:{free_port()}'
  both = [
    subprocess.Popen(
      command(
        '--multihost', where, '--num_processes=2', f'--process_id={number}',
        f'--workdir={tmp_path}/{number}', f'--config.loss.alpha={alpha}',
      ),
      cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, encoding='utf-8',
    )
    for number, alpha in enumerate((0.25, 0.5))
  ]  # fmt: skip
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
  done = subprocess.run(
    command('--processes=2', f'--workdir={tmp_path}/two', *told), cwd=ROOT,
    env={**environment(), 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    capture_output=True, encoding='utf-8', check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'PASS  memory of a device' in done.stdout
  one, two = (
    [
      json.loads(line)
      for line in (tmp_path / name / 'metrics.jsonl').open(encoding='utf-8')
    ]
    for name in ('one', 'two')
  )
  for a, b in zip(one, two, strict=True):
    for key in {'loss', 'plain_loss', 'validation_nats'} & a.keys():
      assert abs(a[key] - b[key]) < 1e-5, (a['step'], key)
  texts = [
    (tmp_path / name / 'predictions' / 'after.jsonl')
    .read_text('utf-8')
    .splitlines()
    for name in ('one', 'two')
  ]
  assert [json.loads(x)['id'] for x in texts[0]] == [
    json.loads(x)['id'] for x in texts[1]
  ]


def test_a_parent_that_is_killed_leaves_none_of_its_processes(tmp_path):
  """Not even those that are yet importing their modules."""
  parent_of_two = (
    'import sys, time\n'
    'from pdl_jax.cluster import supervisor\n'
    'from pdl_jax.cluster.multihost import Place\n'
    'places = [\n'
    '  Place(sys.argv[1], str(n), "localhost:1", 2, n, 60, 10)\n'
    '  for n in range(2)\n'
    ']\n'
    'supervisor.start(places, ["sleep", "600"])\n'
    'time.sleep(600)\n'
  )
  killed = subprocess.Popen(
    [sys.executable, '-c', parent_of_two, str(tmp_path)], cwd=ROOT
  )
  names = [tmp_path / f'{number}.worker' for number in range(2)]
  while not all(name.exists() for name in names):
    time.sleep(0.05)
  children = [json.loads(name.read_text('utf-8')) for name in names]
  assert all(map(process.alive, children))
  killed.kill()
  killed.wait()
  while any(map(process.alive, children)):
    time.sleep(0.05)
