"""Runs the cells of an experiment and collects what they left behind.

A cell is one call of launch.py with overrides; its run folder is kept under
runs/, its result in the experiment's records.jsonl. Finished cells are not run
again, stopped ones continue.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdl_jax.evaluate import run as evaluation
from pdl_jax.records import numbers

ROOT = Path(__file__).parent.parent

Cells = Mapping[str, Sequence[str]]
AGAINST_CROSS_ENTROPY: Cells = {
  'PDL': (),
  'Cross-entropy': ('--config.loss.name=cross_entropy',),
}


def run(name: str, config: str, cells: Cells) -> None:
  """Runs every cell, one after the other, in the order declared.

  Args:
    name: folder of the experiment.
    config: file and mode, as --config wants it.
    cells: label of a cell -> its overrides.
  """
  for label, overrides in cells.items():
    workdir = ROOT / 'runs' / name / label
    print(f'== {label}', flush=True)
    subprocess.run(
      [
        sys.executable, 'launch.py', f'--config={config}',
        f'--workdir={workdir}', *overrides,
      ],
      cwd=ROOT,
      check=True,
    )  # fmt: skip


def collect(name: str, cells: Cells) -> None:
  """Writes records.jsonl: one line a finished cell."""
  records = []
  for label in cells:
    workdir = ROOT / 'runs' / name / label
    if (workdir / 'results.json').exists():
      read = lambda file, at=workdir: json.loads((at / file).read_text())  # noqa: E731
      config, results = read('config.json'), read('results.json')
      digest = config.pop('hash')
      del results['examples']  # text of the data set is never committed
      records.append({
        'cell': label,
        'hash': digest,
        'config': numbers(config),
        'environment': read('env.json'),
        'results': results,
      })
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (ROOT / 'experiments' / name / 'records.jsonl').write_text(lines)


def table(name: str) -> str:
  """The tables of an experiment, from its records.jsonl alone."""
  path = ROOT / 'experiments' / name / 'records.jsonl'
  records = [json.loads(line) for line in path.read_text().splitlines()]
  columns: dict[str, Any] = {}
  for record in records:
    before, after = record['results']['columns'].values()
    columns.setdefault('Pretrained', before)
    columns[record['cell']] = after
  return (
    f'{evaluation.format_table(columns)}\n'
    f'{evaluation.format_frequency_table(columns)}'
  )


def main(name: str, config: str, cells: Cells) -> None:
  """Runs what is missing, collects, writes and prints the table.

  With --report on the command line nothing is run: the table is written from
  the committed records.
  """
  if '--report' not in sys.argv:
    run(name, config, cells)
    collect(name, cells)
  text = table(name)
  (ROOT / 'experiments' / name / 'table.md').write_text(text)
  print(text)
