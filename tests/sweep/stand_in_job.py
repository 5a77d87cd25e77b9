"""Stands in for launch.py where a run may be one of several processes.

  python -m tests.sweep.stand_in_job DIR JSON [--processes=N | --multihost ...]

Its parent is the real one. The processes train a number as stand_in_run.py
does, in step with each other; process 0 writes what a run leaves. What must
never be is noted in DIR/violations: a number of a process taken twice at once.
"""

import fcntl
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from pdl_jax.cluster import heartbeat, multihost, options, supervisor
from pdl_jax.cluster.multihost import Place
from pdl_jax.errors import DataError, PreemptedError
from pdl_jax.storage import files

_HOST = ('NAME', 'WORKER_ID')  # of a TPU slice


def train(run, config, stop, fails):
  """Process 0 decides from where, and all hear of it."""
  first, saved = jax.process_index() == 0, run / 'saved.json'
  step, value = 0, str(config['value'])

  def write(name, value):
    if first:
      files.write_whole(run / name, json.dumps(value))

  def status():
    now = time.time()
    found = {'state': 'running', 'step': step, 'error': '', 'heartbeat': now}
    write('status.json', found)

  if first and saved.exists():
    step, value = json.loads(saved.read_text('utf-8'))
  status()
  step = int(multihost_utils.broadcast_one_to_all(np.asarray(step)))
  while step < config['train']['steps']:
    # Until it has been stopped once.
    time.sleep(0 if (run / 'fast').exists() else config['sleep'])
    step, value = step + 1, hashlib.sha256(value.encode()).hexdigest()
    multihost_utils.process_allgather(np.asarray(step))
    if fails:
      raise DataError(f'step {step} was to fail')
    stopped = stop.reached(f'in step {step}')
    status()
    if stopped or step % 2 == 0:
      write('saved.json', [step, value])
    if stopped:
      raise PreemptedError('the same command continues')
  write('results.json', {'value': value})


def work(run, config):
  """As launch.main: joins, works, says how it ended by its code."""
  os.environ.setdefault('NPROC', '16')
  try:
    stop = multihost.join(Place.here())
    number = jax.process_index()
    with (run / f'{number}.running').open('a', encoding='utf-8') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        (run / 'violations').write_text(f'process {number} twice', 'utf-8')
      with (run / f'{number}.begun').open('a+', encoding='utf-8') as begun:
        begun.seek(0)
        attempt = len(begun.readlines())
        host = [os.environ.get(f'TPU_{key}', '-') for key in _HOST]
        begun.write(f'{os.getpid()} {os.getppid()} {" ".join(host)}\n')
      fails = number == 1 and attempt < config.get('failures', 0)
      train(run, config, stop, fails)
  except (DataError, PreemptedError) as error:
    word = 'stopped' if error.exit_code == 75 else 'error'
    print(f'{word}: {error}', file=sys.stderr)
    return error.exit_code
  return 0


def main():
  _, run, config = flags.FLAGS(sys.argv)
  # Seconds until a host that says nothing is lost; tests wait for it.
  heartbeat.SILENCE = 8.0
  if Place.here() is not None:
    multihost.leave(lambda: work(Path(run), json.loads(config)))
  command = [sys.executable, '-m', 'tests.sweep.stand_in_job', *sys.argv[1:]]
  hosts = supervisor.start(options.places(Path(run)), command)
  sys.exit(supervisor.supervise(hosts, options.STUCK_SECONDS.value).code)


if __name__ == '__main__':
  main()
