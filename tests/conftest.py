"""Eight CPU devices and a strict runtime, before JAX starts."""

import importlib
import os
from pathlib import Path

# Runs of the job compile the same programs again and again; so do the commands
# that tests start. A folder for each process of pytest-xdist: JAX writes its
# files in place.
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(
  Path(__file__).parent.parent / '.pytest_cache' / 'jax'
  / os.environ.get('PYTEST_XDIST_WORKER', 'main')
)
# Surveys and tokenizers are not kept among the user's own.
os.environ['XDG_CACHE_HOME'] = str(
  Path(__file__).parent.parent / '.pytest_cache' / 'user'
  / os.environ.get('PYTEST_XDIST_WORKER', 'main')
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Several CPU devices in one process can deadlock on jax 0.10.2 with fewer
# threads than this.
os.environ['NPROC'] = '16'
os.environ['JAX_PLATFORMS'] = 'cpu'

import signal
import socket
import sys

import hypothesis
import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from pdl_jax import process

# No test fails for being slow on a busy machine.
hypothesis.settings.register_profile('pdl_jax', deadline=None)
hypothesis.settings.load_profile('pdl_jax')
process.set_xla_flags()
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module')
def quick_compile():
  """XLA's costly passes left out: where compiling takes most of the time."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  # Other modules are not to find what was compiled so.
  jax.clear_caches()


@pytest.fixture
def full_compile(quick_compile):
  """All passes, in such a module: for a test of what they make of a program."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


def _no_network(*_):
  raise AssertionError('a data set touched the network')


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """Where the real data set is prepared once, without a network (10 s)."""
  from pdl_jax.data import sources

  folder = tmp_path_factory.mktemp('tfds')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(socket.socket, 'connect', _no_network)
    patch.setattr(socket, 'getaddrinfo', _no_network)
    sources.load('botocore', 'test', str(folder))
  return folder


# Not those of this process: a shell lets what it starts by & ignore SIGINT.
_HANDLERS = {
  signal.SIGTERM: signal.SIG_DFL,
  signal.SIGINT: signal.default_int_handler,
  signal.SIGHUP: signal.SIG_DFL,
}


@pytest.fixture(autouse=True)
def handlers():
  """A test begins with a new process's handlers: a job leaves its own."""
  for number, handler in _HANDLERS.items():
    signal.signal(number, handler)


@pytest.fixture
def stop():
  """A request to stop that a signal can make."""
  from pdl_jax.train import loop

  return loop.StopRequest()


@pytest.fixture
def main(monkeypatch, capfd):
  """Calls launch.main; gives the exit code and what it printed."""
  import launch

  # It defines flags of its own, which are not to be forgotten with a command's.
  importlib.import_module('pdl_jax.run.finetune')

  def call(*arguments):
    line = ['launch.py', *arguments]
    # A new process has loaded no config file yet.
    monkeypatch.delitem(sys.modules, 'config_config', raising=False)
    monkeypatch.setattr('sys.argv', line)
    with flagsaver.flagsaver():
      # As in a new process, whatever a test before has given.
      for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
      code = launch.main(line)
    out, err = capfd.readouterr()
    return code, out, err

  return call
