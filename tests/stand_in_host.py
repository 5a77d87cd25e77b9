"""A process of several that does little, or misbehaves as it is told.

  python stand_in_host.py WHAT [FOLDER]

It joins the others as the job does, and goes through steps with them.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pdl_jax.cluster import multihost
from pdl_jax.cluster.multihost import Place
from pdl_jax.errors import DataError, PdlError
from pdl_jax.mesh import batch_share, make_mesh, put, put_batch, put_whole_batch

AT = 3  # the step in which process 1 misbehaves


def misbehave(what, stop):
  if what == 'kill':
    os.kill(os.getpid(), signal.SIGKILL)
  if what == 'freeze':
    os.kill(os.getpid(), signal.SIGSTOP)
  if what == 'stuck':
    time.sleep(600)
  if what == 'data':
    raise DataError('record 7 has no text')
  if what == 'bug':
    raise ZeroDivisionError('a bug of ours')
  if what == 'term':
    os.kill(os.getpid(), signal.SIGTERM)


def steps(what, stop):
  for step in range(1, 500):
    stop.note(f'reading the batch of step {step}')
    if step == AT and jax.process_index() == 1:
      misbehave(what, stop)
    if stop.reached(f'in step {step}'):
      print(f'all at step {step}')
    stop.check('stepping')
    multihost_utils.process_allgather(np.arange(2))
    time.sleep(0.02)


def shares():
  """What `sharding.batch_share` says, and that batches follow it."""
  whole = np.arange(8, dtype=np.int32)[:, None]
  for shape, count in (((4, 1, 1), 2), ((2, 1, 2), 2), ((1, 1, 4), 1)):
    mesh = make_mesh(shape)
    share, shares = batch_share(mesh)
    assert shares == count, (shape, shares)
    assert share == (jax.process_index() if count > 1 else 0)
    own = np.split(whole, shares)[share]
    for batch in (
      put_batch({'x': own}, mesh),
      put_whole_batch({'x': whole}, mesh),
    ):
      found = multihost_utils.process_allgather(batch['x'], tiled=True)
      np.testing.assert_array_equal(found, whole)


def tell():
  """That texts of different lengths arrive whole."""
  from pdl_jax.cluster import preflight

  text = 'x' * (1 + 5 * jax.process_index())
  assert preflight.gather(text) == ['x', 'xxxxxx']


def save(folder):
  """A state over all devices, and the position of the data."""
  # Other tests need not wait for what these import.
  from pdl_jax.train.checkpoint import Checkpointer
  from tests import host_state

  mesh = make_mesh((2, 1, 2))
  placed = NamedSharding(mesh, P('data', 'tensor'))
  batches = host_state.iterator(*batch_share(mesh))
  for _ in range(host_state.TAKEN):
    next(batches)
  state = {'rows': put(host_state.ROWS, placed)}
  with Checkpointer(folder) as checkpoints:
    checkpoints.save(host_state.TAKEN, state, batches)


def main():
  jax.config.update('jax_num_cpu_devices', 2)
  try:
    stop = multihost.join(Place.here())
    what = sys.argv[1]
    if what == 'shares':
      shares()
      tell()
    elif what == 'save':
      save(Path(sys.argv[2]))
    else:
      steps(what, stop)
  except PdlError as error:
    word = 'stopped' if error.exit_code == 75 else 'error'
    print(f'{word}: {error}', file=sys.stderr)
    return error.exit_code
  return 0


if __name__ == '__main__':
  multihost.leave(main)
