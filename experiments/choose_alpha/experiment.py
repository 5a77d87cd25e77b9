"""Which alpha and epsilon should configs/summarize.py have? On validation.

Measured once, at an earlier commit, each run by

  python launch.py --config=configs/summarize.py --config.loss.alpha=ALPHA \\
    --config.evaluate.split=validation --config.evaluate.examples=192
"""

from pathlib import Path
from typing import Any

from pdl_jax.evaluate.side_by_side import format_frequency_table, format_table
from pdl_jax.storage import files

FOLDER = Path(__file__).parent


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  columns: dict[str, Any] = {}
  for record in files.read_lines(FOLDER / 'records.jsonl'):
    before, after = record['results']['columns'].values()
    columns.setdefault('Pretrained', before)
    columns[record['cell']] = after
  table = format_table(columns)
  by_count = format_frequency_table(columns)
  return {'table.md': f'{table}\n{by_count}'}
