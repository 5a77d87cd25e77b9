"""Writes the files of a report from the records of an experiment alone."""

import csv
from itertools import zip_longest
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from pdl_jax.errors import DataError, PdlError
from pdl_jax.report import carry_out, compare, figures, plan, tables
from pdl_jax.storage.files import read_lines

CSV = 'table.csv'


def files(folder: Path) -> dict[str, str]:
  """Makes every file that an experiment's records give: name -> text."""
  code: Any = plan.module(folder)
  if not hasattr(code, 'EXPERIMENT') and (
    hasattr(code, 'report_files') or hasattr(code, 'table')
  ):
    # A measurement rather than a sweep of runs makes its own table.
    try:
      if hasattr(code, 'report_files'):
        return code.report_files(folder)
      return {'table.md': code.table(read_lines(folder / carry_out.RECORDS))}
    except PdlError:
      raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
      raise DataError(
        f'{folder / carry_out.RECORDS} is not what '
        f'{folder / plan.code(folder)[0]} reads ({type(error).__name__}: '
        f'{error}); git checkout brings it back'
      ) from error
  report = compare.make_report(
    folder.name, f'python launch.py --sweep={folder}', plan.load(folder),
    carry_out.read(folder), carry_out.read_definitions(folder),
  )  # fmt: skip
  drawn = figures.draw(report)
  return {
    'table.md': tables.markdown(report),
    'table.tex': tables.latex(report),
    CSV: tables.csv(report),
    **{name: svg for of in drawn.values() for name, svg in of.items()},
    'report.html': tables.html(report, drawn),
  }


def write(folder: Path) -> list[Path]:
  """Writes the files beside the records, and returns their paths.

  Removes figures that the records no longer give.
  """
  # The products are small: one thread is several times faster than many.
  with threadpool_limits(1):
    made = files(folder)
  for old in _figures(folder):
    if old.name not in made:
      old.unlink()
  for name, text in made.items():
    (folder / name).write_text(text, 'utf-8')
  return [folder / name for name in made]


def check(folder: Path) -> int:
  """Compares the files byte for byte with what the records give.

  Files that are made but not kept (report.html) may be absent. Returns how many
  files are the same. DataError names the first file that differs, is missing or
  no longer follows from the records, or the run whose record is gone.
  """
  with threadpool_limits(1):
    made = files(folder)
  again = f'python launch.py report {folder} writes it anew'
  for name, text in sorted(made.items(), key=lambda item: item[0] != CSV):
    path = folder / name
    if not path.exists():
      if name == 'report.html':
        continue
      raise DataError(f'{path} is missing; {again}')
    kept = path.read_text('utf-8', 'replace')
    if kept != text:
      where = _cells(kept, text) if name == CSV else _line(kept, text)
      raise DataError(
        f'{path} does not follow from the records: {where}; {again}'
      )
  for path in _figures(folder):
    if path.name not in made:
      raise DataError(f'{path} follows from no record; {again}')
  return sum((folder / name).exists() for name in made)


def _figures(folder: Path) -> list[Path]:
  """Lists the figures of a folder; a measurement manages its own."""
  declared = hasattr(plan.module(folder), 'EXPERIMENT')
  return sorted(folder.glob('*.svg')) if declared else []


def _line(kept: str, made: str) -> str:
  numbered = enumerate(zip_longest(kept.splitlines(), made.splitlines()), 1)
  for number, (old, new) in numbered:
    if old != new:
      return f'line {number} is {old!r}, and should be {new!r}'
  return 'the end of the last line differs'


def _cells(kept: str, made: str) -> str:
  """Names the first run that only one side has, or the first other number."""
  old, new = (_runs(text) for text in (kept, made))
  if gone := [run for run in old if run not in new]:
    return (
      f'there is no record any more of {gone[0]} ({len(gone)} such); bring '
      'records.jsonl back, or, if they are to go'
    )
  if added := [run for run in new if run not in old]:
    return f'it has not {added[0]} ({len(added)} such)'
  return _line(kept, made)


def _runs(text: str) -> list[str]:
  rows = list(csv.reader(text.splitlines()))[1:]
  return list(dict.fromkeys(
    f'study {study}, row {row!r}, seed {seed}'
    for study, row, seed, _, value in rows
    if value
  ))  # fmt: skip
