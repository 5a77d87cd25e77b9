"""What the benchmarks share: the command, turns, processes, records, tables.

Importing it sets the project's flag of XLA: before anything is measured.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pdl_jax import process
from pdl_jax.run_folder import CODE, environment
from pdl_jax.storage.files import read_lines

process.set_xla_flags()

ROOT = Path(__file__).parent.parent
RECORDS = 'records.jsonl'

Record = dict[str, Any]
# Folder with records -> name -> text of what follows from them.
ReportFiles = Callable[[Path], Mapping[str, str]]


class Options(NamedTuple):
  """What the command line says.

  Attributes:
    tiny: small sizes, to see that everything works.
    place: folder of records and tables.
    only: a text that the cases to be measured have in common.
  """

  tiny: bool
  place: Path
  only: str

  def rounds(self, count: int) -> int:
    """How many: one, if it is tiny."""
    return 1 if self.tiny else count


def main(
  folder: Path,
  measure: Callable[[Options], Iterable[Record]],
  report_files: ReportFiles,
  measure_case: Callable[[Any], Record] | None = None,
) -> None:
  """The command `python -m benchmarks.NAME`.

  Args:
    folder: of the benchmark.
    measure: makes the records.
    report_files: what follows from them.
    measure_case: what `alone` calls in a process of its own.
  """
  parser = argparse.ArgumentParser(prog=f'python -m benchmarks.{folder.name}')
  parser.add_argument('--tiny', action='store_true', help='a small size, once')
  parser.add_argument('--folder', type=Path, help='of records and tables')
  parser.add_argument(
    '--only', default='', help='text in the cases that are measured'
  )
  parser.add_argument('--case', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.case and measure_case:
    print(json.dumps(measure_case(json.loads(args.case))))
    return
  tried = ROOT / 'runs' / 'benchmarks' / folder.name
  place = args.folder or (tried if args.tiny else folder)
  if place == tried:
    shutil.rmtree(tried, ignore_errors=True)
  place.mkdir(parents=True, exist_ok=True)
  records = measure(Options(args.tiny, place, args.only))
  keep(place, records, report_files)


# --- records ------------------------------------------------------------------


def keep(
  folder: Path, records: Iterable[Record], report_files: ReportFiles
) -> None:
  """Writes records, environment and what follows; prints table.md.

  The records replace those that are there.
  """
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (folder / RECORDS).write_text(lines, 'utf-8')
  found = environment({}, (*CODE, 'benchmarks/*.py', 'experiments/*.py'))
  text = json.dumps(found, indent=2)
  (folder / 'env.json').write_text(text + '\n', 'utf-8')
  files = report_files(folder)
  for name, content in files.items():
    (folder / name).write_text(content, 'utf-8')
  print(files['table.md'])


def read(folder: Path) -> list[Record]:
  """The records in a folder."""
  return read_lines(folder / RECORDS)


def table_alone(
  folder: Path, table: Callable[[list[Record]], str]
) -> Callable[..., dict[str, str]]:
  """A `report_files`, by default of `folder`, that makes table.md alone."""
  return lambda place=folder: {'table.md': table(read(place))}


def read_cases(folder: Path) -> list[Record]:
  """The records of the cases that have been measured; there may be none."""
  return read(folder) if (folder / RECORDS).exists() else []


def by_case(
  options: Options,
  cases: Iterable[Record],
  measure: Callable[[Record], Record],
) -> list[Record]:
  """Records of all cases; measured are those that have none yet.

  Each is appended at once, so that a benchmark that was stopped continues.
  """
  for case in cases:
    known = {case_key(record['case']) for record in read_cases(options.place)}
    if case_key(case) in known or options.only not in json.dumps(case):
      continue
    print(f'== {json.dumps(case)}', flush=True)
    line = json.dumps(measure(case)) + '\n'
    with (options.place / RECORDS).open('a', encoding='utf-8') as file:
      file.write(line)
  return read_cases(options.place)


def case_key(case: Record) -> str:
  """Names a case; how often and what is timed in it are not part of it."""
  kept = {k: v for k, v in case.items() if k not in ('rounds', 'contenders')}
  return json.dumps(kept)


def measured_on(packages: Iterable[str]) -> dict[str, Any]:
  """For a record of one case: versions, machine, date and load."""
  versions: dict[str, str | None] = {'python': platform.python_version()}
  for package in packages:
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      versions[package] = None
  return {
    'versions': versions,
    'machine': platform.machine(),
    'cpus': len(os.sched_getaffinity(0)),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'load_start': list(os.getloadavg()),
  }


# --- processes ----------------------------------------------------------------


def alone(
  folder: Path, *cases: Any, env: Mapping[str, str | None] | None = None
) -> list[Record]:
  """Records of cases, each measured in a process of its own, all at once.

  Args:
    folder: of the benchmark, whose `measure_case` is called.
    env: variables that differ from this process's; None takes one away.
  """
  given = {**os.environ, **(env or {})}
  children = [
    subprocess.Popen(
      [sys.executable, '-m', f'benchmarks.{folder.name}',
       f'--case={json.dumps(case)}'],
      cwd=ROOT, stdout=subprocess.PIPE, encoding='utf-8',
      env={name: value for name, value in given.items() if value is not None},
    )
    for case in cases
  ]  # fmt: skip
  texts = [child.communicate()[0] for child in children]
  for child in children:
    if child.returncode:
      raise subprocess.CalledProcessError(child.returncode, child.args)
  return [json.loads(text.splitlines()[-1]) for text in texts]


# --- times --------------------------------------------------------------------


def in_turns(names: Sequence[str], rounds: int) -> Iterator[str]:
  """Each name once a round, in an order that moves on by one."""
  for number in range(rounds):
    shift = number % len(names)
    yield from (*names[shift:], *names[:shift])


def take_turns(
  calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Seconds of each call in each round."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for name in in_turns(list(calls), rounds):
    began = time.perf_counter()
    result = jax.block_until_ready(calls[name]())
    seconds[name].append(time.perf_counter() - began)
    del result
  return seconds


# --- tables -------------------------------------------------------------------


def spread(
  values: Sequence[float] | np.ndarray, digits: int = 2, to: str = ' to '
) -> str:
  """Median and quartiles, as in 0.71 (0.64 to 0.77)."""
  low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
  return f'{middle:.{digits}f} ({low:.{digits}f}{to}{high:.{digits}f})'


def markdown(
  headings: Sequence[str], rows: Iterable[Sequence[str]], align: str = ''
) -> str:
  """A table in Markdown.

  Args:
    align: a letter per column, l or r; by default all but the first are
      numbers.
  """
  align = align or 'l' + 'r' * (len(headings) - 1)
  rule = [{'l': '---', 'r': '---:'}[letter] for letter in align]
  lines = (headings, rule, *rows)
  return ''.join(
    '|' + ''.join(f' {cell} |' if cell else ' |' for cell in line) + '\n'
    for line in lines
  )


def section(
  heading: str, note: str, headings: Sequence[str],
  rows: Iterable[Sequence[str]], align: str = '',
) -> str:  # fmt: skip
  """A heading, what there is to know, if anything, and a table."""
  table = markdown(headings, rows, align)
  return '\n\n'.join(filter(None, (f'## {heading}', note, table)))
