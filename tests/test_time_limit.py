"""A test that hangs ends, with the stacks of all threads, and others go on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HANGS = """
import ctypes, threading, time

def test_first():
  pass

def test_waits():
  # It must not end while the stacks are written: that cuts them short.
  threading.Thread(
    target=lambda: time.sleep(60), name='beside', daemon=True
  ).start()
  threading.Event().wait()

def test_next():
  pass

def test_native():
  # In a native call, which goes on after a signal: the process ends.
  lock = ctypes.create_string_buffer(64)
  [ctypes.CDLL(None).pthread_mutex_lock(lock) for _ in range(2)]

def test_last():
  pass
"""


def test_a_test_that_hangs_ends_with_stacks(tmp_path):
  """With the settings of the suite and the command of the Makefile."""
  module = tmp_path / 'test_it.py'
  module.write_text(HANGS, 'utf-8')
  (command,) = [
    line.partition(' := ')[2].split()[1:]
    for line in (ROOT / 'Makefile').read_text('utf-8').splitlines()
    if line.startswith('PYTEST := ')
  ]
  ended = subprocess.run(
    [
      sys.executable, *command, '-c', ROOT / 'pyproject.toml',
      '-o', 'timeout=1', '-o', 'faulthandler_timeout=3',
      '-p', 'no:cacheprovider', module,
    ],
    cwd=tmp_path, capture_output=True, encoding='utf-8', check=False,
    timeout=600,
  )  # fmt: skip
  out = ended.stdout + ended.stderr
  assert '2 failed, 2 passed' in out
  for words in (
    'Timeout (>1.0s)', 'Stack of beside', 'Timeout (0:00:03)', 'in test_native'
  ):  # fmt: skip
    assert words in out
