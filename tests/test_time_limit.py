"""A test that hangs ends, with the stacks of all threads, and others go on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HANGS = """
import ctypes, threading, time

def test_first():
  pass

def test_hangs():
  # It must not end while the stacks are written: that cuts them short.
  threading.Thread(
    target=lambda: time.sleep(60), name='beside', daemon=True
  ).start()
  {how}

def test_last():
  pass
"""
WAIT = 'threading.Event().wait()'
# In a native call, which goes on after a signal.
NATIVE = (
  'lock = ctypes.create_string_buffer(64); '
  '[ctypes.CDLL(None).pthread_mutex_lock(lock) for _ in range(2)]'
)


@pytest.mark.parametrize(
  ('how', 'counts', 'words'),
  [
    (WAIT, '1 failed, 2 passed', ['Timeout (>1.0s)', 'Stack of beside']),
    (NATIVE, '1 failed, 1 passed', ['Timeout (0:00:03)', 'in test_hangs']),
  ],
  ids=['waits', 'native'],
)
def test_a_test_that_hangs_ends_with_stacks(tmp_path, how, counts, words):
  """With the settings of the suite and the command of the Makefile."""
  module = tmp_path / 'test_it.py'
  module.write_text(HANGS.format(how=how), 'utf-8')
  (command,) = [
    line.partition(' := ')[2].split()[1:]
    for line in (ROOT / 'Makefile').read_text('utf-8').splitlines()
    if '-m pytest' in line
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
  assert counts in out
  assert all(word in out for word in words)
