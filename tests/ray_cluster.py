"""A Ray cluster of several machines, all this one, below a process of its own.

Ray forks to start its daemons, which must not be done where JAX has threads.
"""

import contextlib
import os
import types

import pytest

from tests.test_sweep_local import SERVER

# As on a cluster that others can reach; read when Ray is imported.
_TOKEN = {'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': 'of-this-test'}


def _serve(pipe, machines):
  os.environ.update(_TOKEN)
  from ray.cluster_utils import Cluster

  head, *others = machines
  made = Cluster(
    initialize_head=True,
    head_node_args={
      'include_dashboard': False,
      # Of a lost machine it hears in 3 s instead of 15.
      '_system_config': {'health_check_period_ms': 500},
      **head,
    },
  )
  for machine in others:
    made.add_node(**machine)
  # Until the test has no more to add, or has died.
  with contextlib.suppress(EOFError):
    while True:
      pipe.send(made.address)
      made.add_node(**pipe.recv())
  made.shutdown()


@contextlib.contextmanager
def cluster_of(*machines):
  """Its address, and a way to add another machine, while it lasts."""
  pipe, theirs = SERVER.Pipe()
  process = SERVER.Process(target=_serve, args=(theirs, machines))
  process.start()
  theirs.close()

  def add(machine):
    pipe.send(machine)
    pipe.recv()

  with pytest.MonkeyPatch.context() as patch:
    for name, value in _TOKEN.items():
      patch.setenv(name, value)
    address = pipe.recv()
    patch.setenv('RAY_ADDRESS', address)
    yield types.SimpleNamespace(address=address, add=add)
  pipe.close()
  process.join()
