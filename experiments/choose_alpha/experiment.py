"""Which alpha and epsilon should configs/summarize.py have? On validation.

Measured once, at an earlier commit, each run by

  python launch.py --config=configs/summarize.py --config.loss.alpha=ALPHA \\
    --config.evaluate.split=validation --config.evaluate.examples=192
"""

from typing import Any

from pdl_jax.evaluate.side_by_side import format_frequency_table, format_table


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown."""
  columns: dict[str, Any] = {}
  for record in records:
    before, after = record['results']['columns'].values()
    columns.setdefault('Pretrained', before)
    columns[record['cell']] = after
  return f'{format_table(columns)}\n{format_frequency_table(columns)}'
