"""A Ray cluster of several machines, all this one, below a process of its own.

Ray forks to start its daemons, which must not be done where JAX has threads.
"""

import contextlib
import os
import time
import types
import unittest.mock

import pytest

from tests.sweep.stand_in import SERVER

# As on a cluster that others can reach; read when Ray is imported.
_TOKEN = {'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': 'of-this-test'}


def _serve(pipe, machines):
  os.environ.update(_TOKEN)
  from ray._private import node
  from ray.cluster_utils import Cluster

  head, *others = machines
  # Ray gives a machine 30 s to start, however busy this one is.
  patient = types.SimpleNamespace(sleep=time.sleep, monotonic=lambda: 0.0)
  with unittest.mock.patch.object(node, 'time', patient):
    made = Cluster(
      initialize_head=True,
      head_node_args={'include_dashboard': False, **head},
    )
    for machine in others:
      made.add_node(**machine, wait=False)
    made.wait_for_nodes(timeout=600)
  pipe.send(made.address)
  # Until the tests are over, or have died.
  with contextlib.suppress(EOFError):
    pipe.recv()
  made.shutdown()


@contextlib.contextmanager
def cluster_of(*machines):
  """Has RAY_ADDRESS name it while it lasts."""
  pipe, theirs = SERVER.Pipe()
  process = SERVER.Process(target=_serve, args=(theirs, machines))
  process.start()
  theirs.close()
  with pytest.MonkeyPatch.context() as patch:
    for name, value in _TOKEN.items():
      patch.setenv(name, value)
    patch.setenv('RAY_ADDRESS', pipe.recv())
    yield
  pipe.close()
  process.join()
