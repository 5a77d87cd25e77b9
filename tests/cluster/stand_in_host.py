"""A process of several that joins the others as the job does.

  python stand_in_host.py kill          process 1 kills itself in step 3
  python stand_in_host.py work FOLDER   they share a batch, save to FOLDER, and
                                        process 1 is told to stop in step 3
"""

import itertools
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
from pdl_jax.errors import ConfigError, PdlError
from pdl_jax.mesh import (
  MeshSettings,
  batch_share,
  make_mesh,
  put,
  put_batch,
  put_whole_batch,
)

TAKEN = 5  # batches
ROWS = np.arange(32, dtype=np.float32).reshape(4, 8) / 3


def iterator(share, shares):
  """Batches as `pipeline.train_iterator` makes them."""
  import grain  # Other tests need not wait for it.

  dataset = grain.MapDataset.range(64).seed(1).shuffle().repeat()
  dataset = dataset[share::shares].batch(8 // shares, drop_remainder=True)
  return iter(dataset.to_iter_dataset())


def steps(number, stop):
  """Steps of all until process 1 has sent itself a signal and they stop."""
  for step in itertools.count(1):
    stop.note(f'reading the batch of step {step}')
    if step == 3 and jax.process_index() == 1:
      os.kill(os.getpid(), number)
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


def slices():
  """That only the data axis goes over slices, which are the processes here."""
  mixed = jax.devices()[::2] + jax.devices()[1::2]
  for settings in (
    MeshSettings(2, 1, 2, slices=2),
    MeshSettings(4, slices=2),
    MeshSettings(-1, fsdp=2, slices=2),
  ):
    mesh = settings.make(mixed)
    owners = np.vectorize(lambda x: x.process_index)(mesh.devices)
    halves = np.split(owners, 2)
    assert [set(half.flat) for half in halves] == [{0}, {1}], owners
    rows = put(np.arange(8, dtype=np.int32), NamedSharding(mesh, P('data')))
    assert int(jax.jit(jax.numpy.sum)(rows)) == 28
  try:
    MeshSettings(4, slices=4).make()
  except ConfigError as error:
    print(f'refused: {error}')


def tell():
  """That texts of different lengths arrive whole."""
  from pdl_jax.cluster import preflight

  text = 'x' * (1 + 5 * jax.process_index())
  assert preflight.gather(text) == ['x', 'xxxxxx']


def save(folder):
  """A state over all devices, and the position of the data."""
  from pdl_jax.train.checkpoint import Checkpointer

  mesh = make_mesh((2, 1, 2))
  placed = NamedSharding(mesh, P('data', 'tensor'))
  batches = iterator(*batch_share(mesh))
  for _ in range(TAKEN):
    next(batches)
  state = {'rows': put(ROWS, placed)}
  with Checkpointer(folder) as checkpoints:
    checkpoints.save(TAKEN, state, batches)


def main():
  jax.config.update('jax_num_cpu_devices', 2)
  try:
    stop = multihost.join(Place.here())
    if sys.argv[1] == 'work':
      shares()
      slices()
      tell()
      save(Path(sys.argv[2]))
      steps(signal.SIGTERM, stop)
    steps(signal.SIGKILL, stop)
  except PdlError as error:
    word = 'stopped' if error.exit_code == 75 else 'error'
    print(f'{word}: {error}', file=sys.stderr)
    return error.exit_code
  return 0


if __name__ == '__main__':
  multihost.leave(main)
