"""Does an experiment that is killed ten times end as one left in peace?

  python -m benchmarks.kill_9
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

from benchmarks import harness
from benchmarks.harness import RECORDS, ROOT, Record
from pdl_jax.process import start_time
from pdl_jax.storage import files
from pdl_jax.sweep import claims

DRILL = Path('benchmarks/kill_9/drill')
KILLS, LONGEST = 10, 90.0
# Fields about when and from which files a run was made, not its result.
CIRCUMSTANCES = ('seconds', 'commit', 'dirty')


def measure(options: harness.Options) -> list[Record]:
  """Measures one record, and keeps both sweeps'; tiny is killed twice."""
  count = 2 if options.tiny else KILLS
  peace, killed = _place('undisturbed'), _place('killed')
  began = time.monotonic()
  assert _sweep(peace).wait() == 0
  seconds = time.monotonic() - began
  began = time.monotonic()
  kills = _kill(killed, count, began)
  for place in (peace, killed):
    shutil.copy(place / DRILL / RECORDS, options.place / f'{place.name}.jsonl')
  attempts = claims.attempts(_root(killed)).values()
  ends = [
    sum(a.end is not None and a.end.code == 0 for a in tries)
    for tries in attempts
  ]
  return [{
    'seconds': round(seconds, 1),
    'seconds_killed': round(time.monotonic() - began, 1),
    'kills': kills,
    'begun': sum(map(len, attempts)),
    'finished_twice': sum(finished > 1 for finished in ends),
  }]


def _kill(place: Path, count: int, began: float) -> list[Record]:
  """Sweeps until all is done, with `count` kills on the way."""
  kills = []
  sweeper, chance = _sweep(place), random.Random(0)
  for number in range(count):
    time.sleep(chance.uniform(1, LONGEST))
    victim = ('sweep', 'run')[number % 2]
    alive = dict(_alive(place))
    step = max(alive.values(), default=0)
    if victim == 'sweep':
      sweeper.kill()
      sweeper.wait()
      sweeper = _sweep(place)
    elif alive:
      os.kill(chance.choice(list(alive)), signal.SIGKILL)
    else:
      victim = 'none alive'
    second = round(time.monotonic() - began, 1)
    kills.append({'victim': victim, 'second': second, 'step': step})
  assert sweeper.wait() == 0
  return kills


def _place(name: str) -> Path:
  """Makes an empty folder in which launch.py works as in the project's."""
  place = ROOT / 'runs' / 'kill_9' / name
  shutil.rmtree(place, ignore_errors=True)
  (place / DRILL).mkdir(parents=True)
  for path in (Path('launch.py'), Path('configs'), DRILL / 'experiment.py'):
    (place / path).symlink_to(ROOT / path)
  return place


def _sweep(place: Path) -> subprocess.Popen[bytes]:
  command = ('launch.py', f'--sweep={DRILL}', '--workers=2')
  return subprocess.Popen(
    [sys.executable, *command, f'--retries={KILLS}'], cwd=place
  )


def _root(place: Path) -> Path:
  return place / 'runs' / 'summarize-tiny'


def _alive(place: Path) -> Iterator[tuple[int, int]]:
  for path in (_root(place) / 'sweep').glob('*.worker'):
    worker = json.loads(path.read_text('utf-8'))
    if start_time(worker['pid']) == worker['started']:
      yield worker['pid'], _saved(place, path.name.partition('.')[0])


def _saved(place: Path, digest: str) -> int:
  run = claims.run_folders(_root(place)).get(digest)
  steps = run.glob('checkpoints/[0-9]*') if run else ()
  return max((int(s.name) for s in steps if s.name.isdigit()), default=0)


def _results(path: Path) -> dict[tuple[str, int], Record]:
  return {
    (record['row'], record['seed']): {
      key: value for key, value in record.items() if key not in CIRCUMSTANCES
    }
    for record in files.read_lines(path)
  }


def table(record: Record, peace: dict, killed: dict) -> str:
  """Formats the record and the results of both sweeps."""
  kills = record['kills']
  rows = [
    ('kill -9 of the sweep', sum(k['victim'] == 'sweep' for k in kills)),
    ('kill -9 of a run', sum(k['victim'] == 'run' for k in kills)),
    ('times a run was begun, of 4 runs', record['begun']),
    ('runs that came to their end twice', record['finished_twice']),
    ('records of the undisturbed sweep', len(peace)),
    ('records of the killed sweep', len(killed)),
    ('of them equal, in every digit',
     sum(killed.get(who) == run for who, run in peace.items())),
    ('seconds undisturbed', record['seconds']),
    ('seconds with the kills', record['seconds_killed']),
  ]  # fmt: skip
  counts = harness.markdown(('', ''), [(a, str(b)) for a, b in rows])
  moments = harness.markdown(
    ('kill', 'of', 'at second', 'last saved step'),
    [
      (str(number), k['victim'], str(k['second']), str(k['step']))
      for number, k in enumerate(kills, 1)
    ],
    'rlrr',
  )
  return f'{counts}\n{moments}'


def report_files(folder: Path) -> dict[str, str]:
  """Returns what follows from the records: name -> text."""
  (record,) = harness.read(folder)
  sweeps = (folder / 'undisturbed.jsonl', folder / 'killed.jsonl')
  return {'table.md': table(record, *map(_results, sweeps))}


if __name__ == '__main__':
  harness.main(__file__, measure, report_files=report_files)
