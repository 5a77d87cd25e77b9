"""Several real processes: which never came, died, is stuck; how all stop."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import summarize
from pdl_jax import process
from pdl_jax.cluster import heartbeat, supervisor
from pdl_jax.cluster.multihost import Place
from pdl_jax.config import flatten
from pdl_jax.mesh import make_mesh
from pdl_jax.train.checkpoint import Checkpointer
from tests import host_state, small

ROOT = Path(__file__).parent.parent
HEARTBEAT = 10
WHO = r'process {} \(pid \d+ on .*\)'


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def run(folder, *arguments, processes=2, stuck=60, started=None, join=60):
  """(exit code, seconds) of stand-ins under a parent."""
  port = free_port()
  places = [
    Place(
      str(folder), str(number), f'localhost:{port}', processes, number, join,
      HEARTBEAT,
    )
    for number in range(processes if started is None else started)
  ]  # fmt: skip
  began = time.monotonic()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', str(ROOT))
    command = [sys.executable, '-m', 'tests.stand_in_host', *arguments]
    hosts = supervisor.start(places, command)
    ended = supervisor.supervise(hosts, stuck)
  return ended, time.monotonic() - began


@pytest.mark.parametrize(
  ('what', 'code', 'words'),
  [
    ('kill', 4, r'was killed by SIGKILL .*, last seen'),
    ('data', 3, r'ended: record 7 has no text'),
    ('bug', 1, r'crashed, last seen'),
    ('freeze', 4, r'has not been heard of for \d+ s \(last seen'),
  ],
)
def test_a_host_that_is_gone_is_named(tmp_path, capfd, what, code, words):
  ended, _ = run(tmp_path, what)
  printed = capfd.readouterr()
  assert ended.code == code
  (line,) = [x for x in printed.err.splitlines() if x.startswith('error: ')]
  assert re.match(rf'error: {WHO.format(1)} {words}', line), line
  assert ('ZeroDivisionError' in printed.err) == (what == 'bug')
  assert 'Check failure stack trace' not in printed.err


def test_a_stuck_host_is_named_and_where_it_stands(tmp_path, capfd):
  ended, seconds = run(tmp_path, 'stuck', stuck=4)
  assert ended.code == 4
  # 4 s, and the start of the processes.
  assert seconds < 60
  (line,) = capfd.readouterr().err.splitlines()
  assert re.match(
    rf'error: stuck: {WHO.format(1)}, reading the batch of step 3 for \d+ s, '
    rf'while {WHO.format(0)} is stepping; --stuck_seconds is 4; where each ',
    line,
  )
  stacks = (tmp_path / '1.stacks').read_text('utf-8')
  assert 'in misbehave' in stacks and 'in misbehave' not in (
    tmp_path / '0.stacks'
  ).read_text('utf-8')


def test_a_host_that_never_comes_is_named(tmp_path, capfd):
  ended, seconds = run(tmp_path, 'steps', processes=3, started=2, join=3)
  assert ended.code == 4
  assert seconds < 60
  (line,) = capfd.readouterr().err.splitlines()
  assert line.startswith(
    'error: process 2 of 3 never came within 3 s; is the command running there'
  )


def test_a_parent_blames_a_silent_host_and_not_its_own_aborted_one(tmp_path):
  """Which may have been the first to fall silent."""
  now = time.time()
  for number, age in ((0, 20.0), (1, 25.0)):
    standing = heartbeat.Standing(
      str(number), 'there', 40, number, 'stepping', 3, 0.0, now - age
    )
    text = json.dumps(dataclasses.asdict(standing))
    (tmp_path / f'{number}.json').write_text(text, 'utf-8')
  place = Place(str(tmp_path), '1', 'there:1', 2, 1, 60, HEARTBEAT)
  last = 'aborted, last seen stepping'
  end = heartbeat.End('1', 'process 1', None, last, now)
  unused = cast(Any, None)
  watch = supervisor._Watch([supervisor.Host(place, unused, unused, end)], 60)
  watch._began = now - 60
  code, words = watch._of_others(end)
  assert code == 4
  assert words.startswith('process 0 (pid 40 on there) has not been heard of')
  assert 'process 1' not in words


def test_sigterm_on_one_host_stops_all_at_one_step(tmp_path, capfd):
  ended, _ = run(tmp_path, 'term')
  assert ended == (75, '')
  steps = {
    line
    for number in range(2)
    for line in (tmp_path / f'{number}.log').read_text('utf-8').splitlines()
    if line.startswith('all at step')
  }
  assert len(steps) == 1
  assert 'stopped: by a signal while stepping' in capfd.readouterr().err


def test_shares_of_a_batch_and_what_processes_tell_each_other(tmp_path, capfd):
  ended, _ = run(tmp_path, 'shares')
  assert ended == (0, ''), capfd.readouterr().err


def test_two_processes_to_one_bit_for_bit(tmp_path, capfd):
  """State and position of the data; then one process reads the rest."""
  ended, _ = run(tmp_path / 'hosts', 'save', str(tmp_path))
  assert ended == (0, ''), capfd.readouterr().err
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
    out, err = one.communicate(timeout=300)
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
  give_up = time.monotonic() + 60
  while any(map(process.alive, children)):
    assert time.monotonic() < give_up, 'they live on'
    time.sleep(0.05)
