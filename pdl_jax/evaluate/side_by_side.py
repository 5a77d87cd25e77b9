"""Tables that compare several sets of predictions."""

from collections.abc import Mapping
from typing import Any, TypeVar

import pdl_jax.evaluate.run  # noqa: F401 (its modules fill METRICS)
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate import likelihood
from pdl_jax.evaluate.registry import METRICS, UNDEFINED, Metric
from pdl_jax.evaluate.table import Table, one_line

MISSING = 'missing'
NOT_APPLICABLE = '-'
WIDTH = 120  # characters of a line that is still read at a glance
BETTER = {
  'higher': 'higher', 'lower': 'lower', 'reference': 'closest to references',
  'none': NOT_APPLICABLE,
}  # fmt: skip

Result = Mapping[str, Any]
_T = TypeVar('_T')


def format_table(columns: Mapping[str, Result]) -> str:
  """Formats aligned Markdown: a row per metric, a column per system.

  The last column has the references, or '-' where a row has no such value.
  Rare means the rarest 10 % of training tokens. Distinct-n shows the number of
  n-grams that it was taken at. An absent or undefined value is 'missing'. Rows
  that not every task has appear only with a value, or a reason for its absence.

  Raises:
    DataError: the systems' references differ.
  """
  _check_columns(columns)
  header = ['Metric (rare: rarest 10 %)', 'Better']
  header += [_heading(name, result) for name, result in columns.items()]
  rows = []
  for metric in METRICS.values():
    cells = [_cell(r, metric.key, metric) for r in columns.values()]
    reference = _reference_cell(columns, metric)
    told = any(_reason(result, metric) for result in columns.values())
    has_none = {*cells, reference} <= {MISSING, NOT_APPLICABLE}
    if metric.rows == 'always' or (
      metric.rows == 'known' and (told or not has_none)
    ):
      rows.append([metric.label, BETTER[metric.better], *cells, reference])
  return Table.of([*header, 'References'], rows, texts=2).to_markdown()


def format_tables(columns: Mapping[str, Result], width: int = WIDTH) -> str:
  """Splits `format_table` at `width` characters; one system may be wider."""
  # The whole table comes first: it refuses systems that differ in any part.
  names, table = list(columns), format_table(columns)
  size = len(names)
  while size > 1 and table.index('\n') > width:
    size -= 1
    table = format_table({name: columns[name] for name in names[:size]})
  rest = {name: columns[name] for name in names[size:]}
  return f'{table}\n{format_tables(rest, width)}' if rest else table


def format_frequency_table(columns: Mapping[str, Result]) -> str:
  """Formats perplexity by training count, one column per system.

  A bucket without target tokens is '-', an absent or overflowed value
  'missing'. Buckets must hold the same number of tokens in every system.
  """
  _check_columns(columns)
  header = ['Count in training', 'Target tokens']
  header += [_heading(name, result) for name, result in columns.items()]
  rows = []
  for bucket in likelihood.BUCKETS:
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
  return Table.of(header, rows).to_markdown()


def format_reasons(columns: Mapping[str, Result]) -> str:
  """Says why metrics of `format_table` have no value, one per line."""
  told = {
    f'{metric.label}: {reason}': None
    for metric in METRICS.values()
    if metric.rows != 'never'
    for result in columns.values()
    if (reason := _reason(result, metric))
  }
  return ''.join(f'\n{line}\n' for line in told)


def _reason(result: Result, metric: Metric) -> str:
  told = result.get(metric.key, {}).get('definition', '')
  return told if told.startswith(UNDEFINED) else ''


def _check_columns(columns: Mapping[str, Result]) -> None:
  if not columns:
    raise ConfigError('a table needs the results of at least one system')
  _agreed('examples', {name: r.get('examples') for name, r in columns.items()})


def _agreed(what: str, values: Mapping[str, _T | None]) -> _T | None:
  """Returns the value that all systems share; None if no system has one."""
  present = {name: value for name, value in values.items() if value is not None}
  if len(set(present.values())) > 1:
    listed = ', '.join(f'{name} {value}' for name, value in present.items())
    raise DataError(
      f'systems differ in {what}: {listed}; evaluate all on the same examples '
      'with the same frequency table'
    )
  return next(iter(present.values()), None)


def _heading(name: str, result: Result) -> str:
  examples = result.get('examples', MISSING)
  outputs = result.get('outputs', examples)
  of_each = '' if outputs == examples else f', {outputs} outputs'
  return f'{one_line(name)} (n={examples}{of_each})'


def _cell(result: Result, key: str, metric: Metric) -> str:
  found = result.get(key, {})
  if found.get('value') is None:
    return MISSING
  number = f'{found["value"] * metric.scale:.{metric.digits}f}'
  return f'{number} ({found["n"]:,})' if metric.with_n else number


def _reference_cell(columns: Mapping[str, Result], metric: Metric) -> str:
  if metric.better != 'reference' and not metric.reference_sums:
    return NOT_APPLICABLE
  key = f'reference_{metric.key}'
  values = {name: r.get(key, {}).get('value') for name, r in columns.items()}
  _agreed(f'the references of {metric.label}', values)
  cells = [_cell(result, key, metric) for result in columns.values()]
  return next((cell for cell in cells if cell != MISSING), MISSING)


def _bucket_cell(cells: Mapping[str, Any]) -> str:
  if cells.get('tokens') == 0:
    return NOT_APPLICABLE
  value = cells.get('perplexity')
  return MISSING if value is None else f'{value:.2f}'
