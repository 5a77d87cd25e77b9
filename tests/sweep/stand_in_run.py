"""Stands in for launch.py in tests of sweeps: python stand_in_run.py DIR.

What it does is in DIR/config.json. It trains a number: so many steps, each of
which hashes the one before, saved after every second one. Like a run it
continues from what is saved, saves and ends with 75 when told to stop, and
writes its results last. While there is a file `hold` beside DIR it does not go
beyond what it saves first. What must never be is noted in DIR/violations: two
at once, or one after the results.
"""

import fcntl
import hashlib
import json
import signal
import sys
import time
from pathlib import Path

run = Path(sys.argv[1])
options = json.loads((run / 'config.json').read_text('utf-8'))
steps = options['train']['steps']
stopped = []


def write(name, value):
  (run / f'{name}.partial').write_text(json.dumps(value), 'utf-8')
  (run / f'{name}.partial').replace(run / name)


def violation(word):
  with (run / 'violations').open('a', encoding='utf-8') as file:
    file.write(f'{word}\n')


def receive(number, _):
  stopped.append(number)
  signal.signal(number, signal.SIG_DFL)
  (run / 'told').touch()


def status(state, step):
  write(
    'status.json',
    {'state': state, 'step': step, 'error': '', 'heartbeat': time.time()},
  )


signal.signal(signal.SIGTERM, receive)
with (
  (run / 'running').open('a', encoding='utf-8') as lock,
  (run / 'begun').open('a+', encoding='utf-8') as begun,
):
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    violation('two at once')
  if (run / 'results.json').exists():
    violation('again after the results')
  begun.seek(0)
  number = len(begun.readlines())
  begun.write(f'{time.time()}\n')
  begun.flush()
  step, value = 0, str(options['value'])
  if (run / 'saved.json').exists():
    step, value = json.loads((run / 'saved.json').read_text('utf-8'))
  # The exit codes of the first few attempts, before a step is taken.
  codes = options.get('codes', [])
  if number < len(codes):
    print('on the way to an end')
    print(f'error: attempt {number} was to fail', file=sys.stderr)
    print('a last word')
    sys.exit(codes[number])
  status('running', step)
  while step < steps:
    time.sleep(options['sleep'])
    step, value = step + 1, hashlib.sha256(value.encode()).hexdigest()
    status('running', step)
    if stopped or step % 2 == 0:
      write('saved.json', [step, value])
    while (run.parent / 'hold').exists() and step > 1:
      if stopped and not options.get('deaf'):
        break
      time.sleep(0.01)
    if stopped and not options.get('deaf'):
      print('stopped: the same command continues', file=sys.stderr)
      sys.exit(75)
  if not options.get('no_results'):
    write('results.json', {'value': value})
