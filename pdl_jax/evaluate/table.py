"""Tables that compare the results of several sets of predictions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pdl_jax.errors import ConfigError, DataError, printable
from pdl_jax.evaluate import likelihood

MISSING = 'missing'
# How the definition of a metric begins that says why it has no value.
UNDEFINED = 'undefined: '
# What acts in a cell of Markdown; _ does not within a word.
_SIGNS = re.compile(r'[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])')
NOT_APPLICABLE = '-'
WIDTH = 120  # characters of a line that is still read at a glance

Result = Mapping[str, Any]
_T = TypeVar('_T')


class _Row(NamedTuple):
  label: str
  key: str
  best: str
  spec: str
  scale: float = 1.0
  reference_key: str | None = None
  with_n: bool = False  # the value means little without its length
  optional: bool = False  # left out where no system and no reference has it


def _human(
  label: str,
  key: str,
  spec: str = '.3f',
  scale: float = 1.0,
  *,
  with_n: bool = False,
  optional: bool = True,
) -> _Row:
  """A row without a best value but the one of the references."""
  best, reference = 'closest to references', f'reference_{key}'
  return _Row(label, key, best, spec, scale, reference, with_n, optional)


_ROWS = (
  _Row('Target perplexity', 'perplexity', 'lower', '.2f'),
  _Row('Bits per byte', 'bits_per_byte', 'lower', '.3f'),
  _Row('ROUGE-1 (F x100)', 'rouge1', 'higher', '.2f', 100),
  _Row('ROUGE-2 (F x100)', 'rouge2', 'higher', '.2f', 100),
  _Row('ROUGE-L (F x100)', 'rougeL', 'higher', '.2f', 100),
  _Row('BLEU', 'bleu', 'higher', '.2f', optional=True),
  _Row('chrF', 'chrf', 'higher', '.2f', optional=True),
  _Row(
    'BERTScore (F1 x100)', 'bertscore_f1', 'higher', '.2f', 100, optional=True
  ),
  _Row('MAUVE', 'mauve', 'higher', '.3f', optional=True),
  _Row(
    'Right style (%)',
    'style_accuracy',
    'higher',
    '.1f',
    100,
    reference_key='reference_style_accuracy',
    optional=True,
  ),
  _Row(
    'Right style if copied (%)',
    'source_style_accuracy',
    '-',
    '.1f',
    100,
    optional=True,
  ),
  _Row(
    'Right style x chrF (x100)',
    'style_joint',
    'higher',
    '.2f',
    100,
    optional=True,
  ),
  _human('Distinct-1 (of words)', 'distinct_1', with_n=True, optional=False),
  _human('Distinct-2 (of bigrams)', 'distinct_2', with_n=True, optional=False),
  _human('Self-BLEU-4', 'self_bleu_4'),
  *(
    _Row(f'Per prompt: {label}', f'prompt_{key}', '-', '.3f', optional=True)
    for label, key in (
      ('distinct-1', 'distinct_1'),
      ('distinct-2', 'distinct_2'),
      ('self-BLEU-4', 'self_bleu_4'),
    )
  ),
  _human('Repeated 4-grams (%)', 'seq_rep_4', '.1f', 100),
  _human('Novel bigrams (%)', 'novel_share_2', '.1f', 100),
  _human('Distinct responses (%)', 'distinct_responses', '.1f', 100),
  _human('Commonest response (%)', 'top_response_share', '.1f', 100),
  _Row('Rare-token precision (%)', 'rare_precision_10', 'higher', '.1f', 100),
  _Row('Rare-token recall (%)', 'rare_recall_10', 'higher', '.1f', 100),
  _Row('Rare-token F1 (x100)', 'rare_f1_10', 'higher', '.1f', 100),
  _human(
    'Rare mass (% of tokens)', 'rare_mass_10', '.1f', 100, optional=False
  ),
  _Row('Length ratio', 'length_ratio', 'closest to 1', '.2f'),
  _Row(
    'Finish rate (%)', 'finish_rate', 'higher', '.1f', 100, optional=True
  ),
  _Row('Empty outputs (%)', 'empty_rate', 'lower', '.1f', 100, optional=True),
)


def format_table(columns: Mapping[str, Result]) -> str:
  """One row a metric, one column a system, and the references' own numbers.

  Rare means the rarest 10 % of running training tokens. Distinct-n stands with
  the number of n-grams it was taken at; what is per prompt compares the
  samples of one prompt, and is a mean over prompts. A value that is absent or
  undefined prints as 'missing'; '-' where a row has no reference value. Rows
  that not every task has stand only where some system or the references have a
  value, or a reason for having none.

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
    reference = _reference_cell(columns, row)
    told = any(_undefined(result, row) for result in columns.values())
    has_none = {*cells, reference} <= {MISSING, NOT_APPLICABLE}
    if row.optional and has_none and not told:
      continue
    rows.append([row.label, row.best, *cells, reference])
  return _markdown(rows, text_columns=2)


def format_tables(columns: Mapping[str, Result], width: int = WIDTH) -> str:
  """`format_table` in parts, one below the other.

  Args:
    columns: as of `format_table`.
    width: no part with more than one system is wider, in characters.

  Returns:
    Tables with an empty line between them.

  Raises:
    ConfigError: no columns.
    DataError: systems whose references differ, be it in another part.
  """
  # All in one first: it refuses systems that differ, wherever they end up.
  names, table = list(columns), format_table(columns)
  size = len(names)
  while size > 1 and table.index('\n') > width:
    size -= 1
    table = format_table({name: columns[name] for name in names[:size]})
  rest = {name: columns[name] for name in names[size:]}
  return f'{table}\n{format_tables(rest, width)}' if rest else table


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
  return _markdown(rows, text_columns=1)


def format_reasons(columns: Mapping[str, Result]) -> str:
  """Why metrics of `format_table` have no value, a line each; '' if all have.

  Args:
    columns: system name -> result of `evaluate`.
  """
  told = {
    f'{row.label}: {reason}': None
    for row in _ROWS
    for result in columns.values()
    if (reason := _undefined(result, row))
  }
  return ''.join(f'\n{line}\n' for line in told)


def _undefined(result: Result, row: _Row) -> str:
  reason = result.get(row.key, {}).get('definition', '')
  return reason if reason.startswith(UNDEFINED) else ''


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
  examples = result.get('examples', MISSING)
  outputs = result.get('outputs', examples)
  of_each = '' if outputs == examples else f', {outputs} outputs'
  return f'{" ".join(printable(name).split())} (n={examples}{of_each})'


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
  rows = [[_SIGNS.sub(r'\\\g<0>', cell) for cell in row] for row in rows]
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
