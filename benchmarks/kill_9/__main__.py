"""Does an experiment that is killed ten times end as one left in peace?

  python -m benchmarks.kill_9

The four runs that drill/experiment.py declares are made twice by the command
that users run: once undisturbed; once with kill -9 of the sweep or of a run,
ten times at random moments, the sweep started again each time that it died.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness
from pdl_jax.process import start_time
from pdl_jax.report.carry_out import RECORDS
from pdl_jax.storage import files
from pdl_jax.sweep import claims

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
DRILL = Path('benchmarks/kill_9/drill')
KILLS, LONGEST = 10, 90.0
# Of a record: when and from which files the run was made, not what came of it.
CIRCUMSTANCES = ('seconds', 'commit', 'dirty')


def main() -> None:
  """Measures, and leaves records.jsonl, env.json and table.md."""
  peace, killed = _place('undisturbed'), _place('killed')
  began = time.monotonic()
  assert _sweep(peace).wait() == 0
  seconds = time.monotonic() - began
  began, kills = time.monotonic(), []
  sweeper, chance = _sweep(killed), random.Random(0)
  for number in range(KILLS):
    time.sleep(chance.uniform(1, LONGEST))
    victim = ('sweep', 'run')[number % 2]
    alive = dict(_alive(killed))
    step = max(alive.values(), default=0)
    if victim == 'sweep':
      sweeper.kill()
      sweeper.wait()
      sweeper = _sweep(killed)
    elif alive:
      os.kill(chance.choice(list(alive)), signal.SIGKILL)
    else:
      victim = 'none alive'
    kills.append({
      'victim': victim, 'second': round(time.monotonic() - began, 1),
      'step': step,
    })  # fmt: skip
  assert sweeper.wait() == 0
  for place in (peace, killed):
    shutil.copy(place / DRILL / RECORDS, FOLDER / f'{place.name}.jsonl')
  record = {
    'seconds': round(seconds, 1),
    'seconds_killed': round(time.monotonic() - began, 1),
    'kills': kills,
    'begun': sum(map(len, _attempts(killed).values())),
    'finished_twice': _finished_twice(killed),
  }
  harness.keep(FOLDER, [record], report_files)


def _place(name: str) -> Path:
  """An empty folder in which launch.py works as in the project's."""
  place = ROOT / 'runs' / 'kill_9' / name
  shutil.rmtree(place, ignore_errors=True)
  (place / DRILL).mkdir(parents=True)
  for path in (Path('launch.py'), Path('configs'), DRILL / 'experiment.py'):
    (place / path).symlink_to(ROOT / path)
  return place


def _sweep(place: Path) -> subprocess.Popen[bytes]:
  return subprocess.Popen(
    [
      sys.executable, 'launch.py', f'--sweep={DRILL}', '--workers=2',
      f'--retries={KILLS}',
    ],
    cwd=place,
  )  # fmt: skip


def _root(place: Path) -> Path:
  return place / 'runs' / 'summarize-tiny'


def _attempts(place: Path) -> dict[str, list[claims.Attempt]]:
  return claims.attempts(_root(place))


def _alive(place: Path) -> Iterator[tuple[int, int]]:
  """Process and last saved step of each run that is under way."""
  for path in (_root(place) / 'sweep').glob('*.worker'):
    worker = json.loads(path.read_text('utf-8'))
    if start_time(worker['pid']) == worker['started']:
      yield worker['pid'], _saved(place, path.name.partition('.')[0])


def _saved(place: Path, digest: str) -> int:
  steps = _root(place).glob(f'*-{digest}/checkpoints/[0-9]*')
  return max((int(s.name) for s in steps if s.name.isdigit()), default=0)


def _finished_twice(place: Path) -> int:
  ends = [
    sum(a.end is not None and a.end.code == 0 for a in tries)
    for tries in _attempts(place).values()
  ]
  return sum(count > 1 for count in ends)


def _kept(name: str) -> dict[tuple[str, int], Any]:
  """What came of each run of a sweep, as it is kept here."""
  return {
    (record['row'], record['seed']): {
      key: value for key, value in record.items() if key not in CIRCUMSTANCES
    }
    for record in files.read_lines(FOLDER / f'{name}.jsonl')
  }


def table(record: dict[str, Any]) -> str:
  """The record as Markdown."""
  kills = record['kills']
  peace, killed = _kept('undisturbed'), _kept('killed')
  equal = sum(killed.get(who) == run for who, run in peace.items())
  rows = [
    ('kill -9 of the sweep', sum(k['victim'] == 'sweep' for k in kills)),
    ('kill -9 of a run', sum(k['victim'] == 'run' for k in kills)),
    ('times a run was begun, of 4 runs', record['begun']),
    ('runs that came to their end twice', record['finished_twice']),
    ('records of the undisturbed sweep', len(peace)),
    ('records of the killed sweep', len(killed)),
    ('of them equal, in every digit', equal),
    ('seconds undisturbed', record['seconds']),
    ('seconds with the kills', record['seconds_killed']),
  ]
  lines = ['| | |', '| --- | ---: |', *(f'| {a} | {b} |' for a, b in rows), '']
  lines += [
    '| kill | of | at second | last saved step |',
    '| ---: | --- | ---: | ---: |',
    *(f'| {n} | {k["victim"]} | {k["second"]} | {k["step"]} |'
      for n, k in enumerate(kills, 1)),
  ]  # fmt: skip
  return '\n'.join(lines) + '\n'


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  (record,) = harness.read(FOLDER)
  return {'table.md': table(record)}


if __name__ == '__main__':
  main()
