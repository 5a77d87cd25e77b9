"""Shares among benchmarks: the command, turns, processes, records, tables.

Importing it sets the project's XLA flag before anything is measured.
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
from pdl_jax.report.statistics import half_interval
from pdl_jax.run_folder import CODE, environment
from pdl_jax.storage.files import read_lines

process.set_xla_flags()

ROOT = Path(__file__).parent.parent
RECORDS = 'records.jsonl'

Record = dict[str, Any]
# What follows from records: the text of table.md; or of a folder with records,
# file name -> text, table.md among them.
Table = Callable[[list[Record]], str]
ReportFiles = Callable[[Path], Mapping[str, str]]
Cell = Callable[[Any], str]


class Options(NamedTuple):
  """What the command line says; `tiny` only checks that everything works.

  `only` is a text that a case must contain to be measured.
  """

  tiny: bool
  place: Path
  only: str

  def rounds(self, count: int) -> int:
    """Returns the number of rounds, which is 1 if tiny."""
    return 1 if self.tiny else count


def main(
  file: str,
  measure: Callable[[Options], Iterable[Record]],
  table: Table | None = None,
  measure_case: Callable[[Any], Record] | None = None,
  report_files: ReportFiles | None = None,
) -> None:
  """Runs the command `python -m benchmarks.NAME` of a module's `__file__`.

  For `table` and `report_files` see `keep`. `alone` calls `measure_case` in a
  process of its own.
  """
  folder = Path(file).parent
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
  keep(place, records, table, report_files)


# --- records ------------------------------------------------------------------


def keep(
  folder: Path,
  records: Iterable[Record],
  table: Table | None,
  report_files: ReportFiles | None = None,
) -> None:
  """Replaces records, environment and what is made of them; prints the table.

  A benchmark has a function `table`, or `report_files` if that is not all; the
  report finds them by these names.
  """
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (folder / RECORDS).write_text(lines, 'utf-8')
  found = environment({}, (*CODE, 'benchmarks/*.py', 'experiments/*.py'))
  text = json.dumps(found, indent=2)
  (folder / 'env.json').write_text(text + '\n', 'utf-8')
  if table is not None:
    files = {'table.md': table(read(folder))}
  else:
    files = report_files(folder)
  for name, content in files.items():
    (folder / name).write_text(content, 'utf-8')
  print(files['table.md'])


def read(folder: Path) -> list[Record]:
  """Reads the records in a folder."""
  return read_lines(folder / RECORDS)


def read_cases(folder: Path) -> list[Record]:
  """Reads the records of the cases measured so far, if any."""
  return read(folder) if (folder / RECORDS).exists() else []


def by_case(
  options: Options,
  cases: Iterable[Record],
  measure: Callable[[Record], Record],
) -> list[Record]:
  """Measures the cases that have no record yet; returns all records.

  Each record is appended at once, so a stopped benchmark can continue.
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
  """Names a case, whatever is timed in it and how often."""
  kept = {k: v for k, v in case.items() if k not in ('rounds', 'contenders')}
  return json.dumps(kept)


def measured_on(packages: Iterable[str]) -> dict[str, Any]:
  """Returns versions, machine, date and load, for the record of a case."""
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
  *cases: Any, env: Mapping[str, str | None] | None = None
) -> list[Record]:
  """Measures each case by the same command, all at the same time.

  `env` has variables that differ from this process's; None removes one.
  """
  given = {**os.environ, **(env or {})}
  children = [
    subprocess.Popen(
      [sys.executable, '-m', str(sys.modules['__main__'].__package__),
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
  """Yields each name once per round, in an order that rotates by one."""
  for number in range(rounds):
    shift = number % len(names)
    yield from (*names[shift:], *names[:shift])


def take_turns(
  calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Measures the seconds of each call in each round."""
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
  """Formats median and quartiles, as in 0.71 (0.64 to 0.77)."""
  low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
  return f'{middle:.{digits}f} ({low:.{digits}f}{to}{high:.{digits}f})'


def mean_interval(values: Sequence[float] | np.ndarray) -> str:
  """Formats the mean over seeds and its 95 % t interval."""
  mean, half = np.mean(values), half_interval(values)
  return f'{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})'


def markdown(
  headings: Sequence[str], rows: Iterable[Sequence[str]], align: str = ''
) -> str:
  """Formats a table in Markdown.

  `align` has l or r per column; by default all but the first are numbers.
  """
  align = align or 'l' + 'r' * (len(headings) - 1)
  rule = [{'l': '---', 'r': '---:'}[letter] for letter in align]
  lines = (headings, rule, *rows)
  return ''.join(
    '|' + ''.join(f' {cell} |' if cell else ' |' for cell in line) + '\n'
    for line in lines
  )


def listed(
  records: Iterable[Any], columns: Mapping[str, Cell], align: str = ''
) -> str:
  """Formats a table with a row per record: heading -> its cell."""
  rows = [[cell(record) for cell in columns.values()] for record in records]
  return markdown([*columns], rows, align)


def section(heading: str, note: str, table: str) -> str:
  """Formats a heading, a note (may be '') and a table."""
  return '\n\n'.join(filter(None, (f'## {heading}', note, table)))
