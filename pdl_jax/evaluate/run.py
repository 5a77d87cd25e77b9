"""Every metric of one set of predictions, and the tables that compare sets."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate import diversity, overlap, perplexity, rare
from pdl_jax.evaluate.inputs import Record, check_counts, validate_records
from pdl_jax.evaluate.metric import Metric

RARE_PERCENTS = (1, 5, 10)
MISSING = 'missing'
NOT_APPLICABLE = '-'

Result = Mapping[str, Any]
_T = TypeVar('_T')


def evaluate(
  records: Sequence[Record],
  counts_V: np.ndarray,
  neutral_ids: Sequence[int],
) -> dict[str, Any]:
  """All metrics of one system's predictions, as plain JSON types.

  Args:
    records: one object an evaluated example, as in predictions.jsonl.
    counts_V: integers [V], tokens of each type in the training split's targets.
    neutral_ids: special tokens, the stop token among them; the rare-token
      metrics leave them out.

  Returns:
    `examples`, the number of records; `perplexity_by_frequency`, see there;
    and for every other key {value, n, unit, definition[, signature]}: a value
    is None where it is undefined.

  Raises:
    DataError: records, counts or token ids that no metric can be trusted on.
    ConfigError: a neutral id outside [0, V).
  """
  validate_records(records)
  counts_V = check_counts(counts_V)
  metrics: dict[str, Metric] = {
    'perplexity': perplexity.perplexity(records),
    'nats_per_token': perplexity.nats_per_token(records),
    'bits_per_byte': perplexity.bits_per_byte(records),
    **overlap.rouge(records),
  }
  for n in (1, 2):
    metrics[f'distinct_{n}'] = diversity.output_distinct_n(records, n)
    metrics[f'reference_distinct_{n}'] = diversity.reference_distinct_n(
      records, n
    )
  for percent in RARE_PERCENTS:
    found = rare.rare_metrics(records, counts_V, percent, neutral_ids)
    metrics |= {f'{key}_{percent}': metric for key, metric in found.items()}
  metrics['length_ratio'] = diversity.length_ratio(records)
  metrics['finish_rate'] = diversity.finish_rate(records)
  metrics['empty_rate'] = diversity.empty_rate(records)
  return {
    'examples': len(records),
    **{key: metric.to_json() for key, metric in metrics.items()},
    'perplexity_by_frequency': perplexity.perplexity_by_frequency(
      records, counts_V
    ),
  }


class _Row(NamedTuple):
  label: str
  key: str
  best: str
  spec: str
  scale: float = 1.0
  reference_key: str | None = None
  with_n: bool = False  # the value means little without its length


_HUMAN = 'closest to references'
_ROWS = (
  _Row('Target perplexity', 'perplexity', 'lower', '.2f'),
  _Row('Bits per byte', 'bits_per_byte', 'lower', '.3f'),
  _Row('ROUGE-1 (F x100)', 'rouge1', 'higher', '.2f', 100),
  _Row('ROUGE-2 (F x100)', 'rouge2', 'higher', '.2f', 100),
  _Row('ROUGE-L (F x100)', 'rougeL', 'higher', '.2f', 100),
  _Row(
    'Distinct-1 (of words)',
    'distinct_1',
    _HUMAN,
    '.3f',
    reference_key='reference_distinct_1',
    with_n=True,
  ),
  _Row(
    'Distinct-2 (of bigrams)',
    'distinct_2',
    _HUMAN,
    '.3f',
    reference_key='reference_distinct_2',
    with_n=True,
  ),
  _Row('Rare-token precision (%)', 'rare_precision_10', 'higher', '.1f', 100),
  _Row('Rare-token recall (%)', 'rare_recall_10', 'higher', '.1f', 100),
  _Row('Rare-token F1 (x100)', 'rare_f1_10', 'higher', '.1f', 100),
  _Row(
    'Rare mass (% of tokens)',
    'rare_mass_10',
    _HUMAN,
    '.1f',
    100,
    reference_key='reference_rare_mass_10',
  ),
  _Row('Length ratio', 'length_ratio', 'closest to 1', '.2f'),
  _Row('Finish rate (%)', 'finish_rate', 'higher', '.1f', 100),
)


def format_table(columns: Mapping[str, Result]) -> str:
  """One row a metric, one column a system, and the references' own numbers.

  Rare means the rarest 10 % of running training tokens. Distinct-n stands with
  the number of n-grams it was taken at. A value that is absent or undefined
  prints as 'missing'; '-' where a row has no reference value.

  Args:
    columns: system name -> result of `evaluate`, in the order to print.

  Returns:
    An aligned Markdown table, ending in a newline.

  Raises:
    ConfigError: no columns.
    DataError: systems whose references differ: not the same examples.
  """
  _check_columns(columns)
  header = ['Metric (rare: rarest 10 %)', 'Better']
  header += [_heading(name, result) for name, result in columns.items()]
  rows = [[*header, 'References']]
  for row in _ROWS:
    cells = [_cell(r, row.key, row) or MISSING for r in columns.values()]
    rows.append([row.label, row.best, *cells, _reference_cell(columns, row)])
  return _markdown(rows, text_columns=2)


def format_frequency_table(columns: Mapping[str, Result]) -> str:
  """Perplexity of the target tokens by training count, one column a system.

  A bucket without target tokens prints '-', an absent or overflown value
  'missing'.

  Args:
    columns: system name -> result of `evaluate`, in the order to print.

  Returns:
    An aligned Markdown table, ending in a newline.

  Raises:
    ConfigError: no columns.
    DataError: systems whose buckets hold different numbers of tokens.
  """
  _check_columns(columns)
  header = ['Count in training', 'Target tokens']
  header += [_heading(name, result) for name, result in columns.items()]
  rows = [header]
  for bucket in perplexity.BUCKETS:
    found = {
      name: result.get('perplexity_by_frequency', {})
      .get('buckets', {})
      .get(bucket, {})
      for name, result in columns.items()
    }
    tokens = _agreed(
      f'target tokens of count {bucket}',
      {name: cells.get('tokens') for name, cells in found.items()},
    )
    rows.append([bucket, MISSING if tokens is None else f'{tokens:,}'])
    rows[-1] += [_bucket_cell(cells) for cells in found.values()]
  return _markdown(rows, text_columns=1)


def _check_columns(columns: Mapping[str, Result]) -> None:
  if not columns:
    raise ConfigError('a table needs the results of at least one system')
  _agreed('examples', {name: r.get('examples') for name, r in columns.items()})


def _agreed(what: str, values: Mapping[str, _T | None]) -> _T | None:
  """The value that all systems which have one agree on; None if none has."""
  present = {name: value for name, value in values.items() if value is not None}
  if len(set(present.values())) > 1:
    listed = ', '.join(f'{name} {value}' for name, value in present.items())
    raise DataError(
      f'systems differ in {what}: {listed}; evaluate all on the same examples '
      'with the same frequency table'
    )
  return next(iter(present.values()), None)


def _heading(name: str, result: Result) -> str:
  return f'{name} (n={result.get("examples", MISSING)})'


def _cell(result: Result, key: str, row: _Row) -> str | None:
  """The printed value at `key`; None where it is absent or undefined."""
  metric = result.get(key, {})
  if metric.get('value') is None:
    return None
  number = format(metric['value'] * row.scale, row.spec)
  return f'{number} ({metric["n"]:,})' if row.with_n else number


def _reference_cell(columns: Mapping[str, Result], row: _Row) -> str:
  key = row.reference_key
  if key is None:
    return NOT_APPLICABLE
  values = {name: r.get(key, {}).get('value') for name, r in columns.items()}
  _agreed(f'the references of {row.label}', values)
  cells = [_cell(result, key, row) for result in columns.values()]
  return next((cell for cell in cells if cell is not None), MISSING)


def _bucket_cell(cells: Mapping[str, Any]) -> str:
  if cells.get('tokens') == 0:
    return NOT_APPLICABLE
  value = cells.get('perplexity')
  return MISSING if value is None else f'{value:.2f}'


def _markdown(rows: Sequence[Sequence[str]], text_columns: int) -> str:
  """Aligns cells; all columns after the first `text_columns` to the right."""
  # A bar inside a cell would start another column.
  rows = [[cell.replace('|', r'\|') for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  is_text = [index < text_columns for index in range(len(widths))]
  lines = [
    [
      cell.ljust(width) if text else cell.rjust(width)
      for cell, width, text in zip(row, widths, is_text, strict=True)
    ]
    for row in rows
  ]
  rule = [
    '-' * width if text else '-' * (width - 1) + ':'
    for width, text in zip(widths, is_text, strict=True)
  ]
  lines.insert(1, rule)
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)
