"""Is a run of several processes the run of one, also when it is interrupted?

  python -m benchmarks.several_hosts
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import harness
from benchmarks.harness import ROOT, Record

STEPS, EVERY = 60, 20
CONFIG = (
  '--config=configs/summarize.py:tiny', f'--config.train.steps={STEPS}',
  f'--config.train.checkpoint_every={EVERY}', '--config.train.log_every=1',
)  # fmt: skip


class Case(NamedTuple):
  """A run, in one or two calls.

  Attributes:
    processes: of the first call, and of one that continues it.
    sent: goes to the last process of the first call, after a checkpoint.
  """

  name: str
  processes: tuple[int, ...]
  sent: signal.Signals | None


CASES = (
  Case('one process', (1,), None),
  Case('two processes', (2,), None),
  Case('four processes', (4,), None),
  Case('SIGTERM on one of two, then four', (2, 4), signal.SIGTERM),
  Case('kill -9 of one of four, then one', (4, 1), signal.SIGKILL),
)


def measure(options: harness.Options) -> list[Record]:
  """Measures each run; a tiny benchmark only the first two."""
  place = ROOT / 'runs' / 'several_hosts'
  shutil.rmtree(place, ignore_errors=True)
  cases = CASES[:2] if options.tiny else CASES
  return [_run(case, place / str(number)) for number, case in enumerate(cases)]


def _run(case: Case, workdir: Path) -> Record:
  calls = [
    _call(processes, workdir, case.sent if number == 0 else None)
    for number, processes in enumerate(case.processes)
  ]
  lines = (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
  rows = [json.loads(line) for line in lines]
  return {
    'case': case.name,
    'calls': calls,
    'losses': [row['loss'] for row in rows if 'loss' in row],
    'validation': [
      row['validation_nats'] for row in rows if 'validation_nats' in row
    ],
  }


def _call(processes: int, workdir: Path, sent: signal.Signals | None) -> Record:
  began = time.monotonic()
  several = [f'--processes={processes}'] if processes > 1 else []
  child = subprocess.Popen(
    [sys.executable, 'launch.py', *CONFIG, *several, f'--workdir={workdir}'],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    encoding='utf-8',
  )  # fmt: skip
  if sent is not None:
    _send(sent, workdir, processes - 1, child)
  out, _ = child.communicate()
  words = [
    line for line in out.splitlines()
    if line.startswith(('error: ', 'stopped: ', 'resumed '))
  ]  # fmt: skip
  return {
    'processes': processes,
    'code': child.returncode,
    'seconds': round(time.monotonic() - began, 1),
    'words': [line.partition('; all that')[0] for line in words],
  }


def _send(
  sent: signal.Signals, workdir: Path, process: int, child: subprocess.Popen
) -> None:
  """Signals one of the processes a few steps after the first checkpoint."""
  metrics = workdir / 'metrics.jsonl'
  while child.poll() is None:
    time.sleep(0.05)
    text = metrics.read_text('utf-8') if metrics.exists() else ''
    if f'"step": {EVERY + 5},' in text:
      standing = workdir / 'hosts' / f'{process}.json'
      os.kill(json.loads(standing.read_text('utf-8'))['pid'], sent)
      return


def table(records: list[Record]) -> str:
  """Formats the records as Markdown."""

  def calls(record: Record, key: str) -> str:
    return ', then '.join(str(call[key]) for call in record['calls'])

  def largest(record: Record, key: str) -> str:
    pairs = zip(record[key], records[0][key], strict=True)
    return f'{max(abs(a - b) for a, b in pairs):.1e}'

  made = harness.listed(records, {
    'run': lambda r: r['case'],
    'processes': lambda r: calls(r, 'processes'),
    'exit codes': lambda r: calls(r, 'code'),
    'largest difference of a loss (nats)': lambda r: largest(r, 'losses'),
    'of validation': lambda r: largest(r, 'validation'),
  }, 'lllrr')  # fmt: skip
  words = [
    f'- {record["case"]}: {words}\n'
    for record in records for call in record['calls']
    for words in call['words']
  ]  # fmt: skip
  return f'{made}\nWhat they said:\n\n{"".join(words)}'


if __name__ == '__main__':
  harness.main(__file__, measure, table)
