"""Cells whose runs are stand_in_run.py, and what became of them."""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import sys
import threading
import time
from pathlib import Path

from pdl_jax.errors import PreemptedError
from pdl_jax.process import start_time
from pdl_jax.sweep import child, claims, local
from pdl_jax.sweep.claims import Cell

STAND_IN = Path(__file__).parent / 'stand_in_run.py'
# Forks of a process that has imported everything once, and no threads.
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['tests.sweep.stand_in'])


def hasten(setattr_):
  setattr_(local, '_LOOK', 0.05)
  setattr_(local, 'POLL', 0.02)


def cell(value, steps=4, sleep=0.02, **options):
  """A cell whose configuration is what its stand-in does."""
  digest = hashlib.sha256(str(value).encode()).hexdigest()[:8]
  config = {
    'value': value, 'train': {'steps': steps}, 'sleep': sleep, **options
  }  # fmt: skip
  name = f'value={value}'
  return Cell((name,), {'value': value}, config, name, digest)


def cells(count, **options):
  return [cell(value, **options) for value in range(count)]


def command(_, run):
  return [sys.executable, '-S', str(STAND_IN), str(run)]


def sweep(root, cells, workers=2, retries=0, fail_fast=False, command=command):
  start = functools.partial(child.start, root, command)
  return local.run(cells, root, workers, retries, fail_fast, start)


def _sweeper(root, cells, workers, retries):
  """What a process of its own runs; ends as launch.py would."""
  hasten(setattr)
  try:
    outcome = sweep(root, cells, workers, retries)
  except PreemptedError as error:
    sys.exit(error.exit_code)
  sys.exit(1 if outcome.failed else 0)


def begin(root, cells, workers=2, retries=0):
  process = SERVER.Process(
    target=_sweeper, args=(root, cells, workers, retries)
  )
  process.start()
  return process


def wait_for(condition):
  """Without a limit of its own: a test that hangs is ended from outside."""
  while not condition():
    time.sleep(0.01)


@contextlib.contextmanager
def meanwhile(condition, action):
  """Does something as soon as a condition is true, beside the main thread."""
  over = threading.Event()

  def wait_and_act():
    while not condition():
      if over.wait(0.01):
        return
    action()

  thread = threading.Thread(target=wait_and_act)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()


def results(root):
  return {
    path.parent.name: json.loads(path.read_text('utf-8'))
    for path in root.glob('*/results.json')
  }


def _expected(cells):
  """The result of each, computed here."""
  found = {}
  for cell in cells:
    value = str(cell.config['value'])
    for _ in range(cell.config['train']['steps']):
      value = hashlib.sha256(value.encode()).hexdigest()
    found[cell.run_id] = {'value': value}
  return found


def begun(root, cell):
  """How often its run was started."""
  path = root / cell.run_id / 'begun'
  return len(path.read_text('utf-8').splitlines()) if path.exists() else 0


def codes(root, cell):
  ends = [a.end for a in claims.attempts(root).get(cell.digest, [])]
  return [None if end is None else end.code for end in ends]


def assert_finished_once(root, cells):
  assert results(root) == _expected(cells)
  assert list(root.glob('*/violations')) == []
  for cell in cells:
    assert codes(root, cell).count(0) <= 1


def alive_runs(root):
  runs = [
    json.loads(p.read_text('utf-8')) for p in (root / 'sweep').glob('*.worker')
  ]
  return [r['pid'] for r in runs if start_time(r['pid']) == r['started']]
