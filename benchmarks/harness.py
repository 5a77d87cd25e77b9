"""What an experiment that measures in one go leaves behind.

Importing it sets the project's flag of XLA: before anything is measured.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pdl_jax import process
from pdl_jax.report.carry_out import RECORDS
from pdl_jax.run_folder import CODE, environment
from pdl_jax.storage.files import read_lines

process.set_xla_flags()


def keep(
  folder: Path,
  records: Iterable[Mapping[str, Any]],
  report_files: Callable[[], Mapping[str, str]],
) -> None:
  """Writes the records, what they were measured with, and what follows.

  Args:
    folder: of the experiment.
    records: of one measurement, in place of those that are there.
    report_files: reads the records back; its table.md is printed.
  """
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (folder / RECORDS).write_text(lines, 'utf-8')
  found = environment({}, (*CODE, 'benchmarks/*.py', 'experiments/*.py'))
  text = json.dumps(found, indent=2)
  (folder / 'env.json').write_text(text + '\n', 'utf-8')
  files = report_files()
  for name, content in files.items():
    (folder / name).write_text(content, 'utf-8')
  print(files['table.md'])


def read(folder: Path) -> list[dict[str, Any]]:
  """The records of an experiment."""
  return read_lines(folder / RECORDS)
