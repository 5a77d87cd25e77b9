"""Words what the tables of a report say, before any markup.

This is the one place that turns entries into text: what is bold, what a missing
value is called, how many digits are shown. Writers only add their markup.
"""

import re

from pdl_jax.evaluate.table import Cell, Table, one_line
from pdl_jax.report.layout import Column, Entry, Part, Row
from pdl_jax.report.statistics import LEVEL, Spread, seed_floor

NONE = '-'
_ARROWS = {'higher': '↑', 'lower': '↓', 'reference': '≈', 'none': ''}
_BETTER = {
  'higher': '↑ higher is better',
  'lower': '↓ lower is better',
  'reference': '≈ closest to the references is better',
}
_CONVENTIONS = (
  'Mean ± sample standard deviation over seeds; one seed: its value alone. '
  'Bold: the best of its column, told apart from all others. '
  '=: tied, the best and those that cannot be told from it (the same at these '
  'digits, or the 95 % interval of their difference holds 0 or is unknown).'
)


def results(part: Part) -> Table:
  """One row per system, with its metrics and seeds; the references last."""
  headings = ('System', *map(_heading, part.columns), 'Seeds')
  rows = [
    (
      Cell((_label(row),)),
      *(_result(row, row.entries[c.key], c) for c in part.columns),
      Cell((_seeds(row),)),
    )
    for row in part.rows
  ]
  references = [
    Cell((NONE if c.reference is None else number(c.reference, c.digits),))
    for c in part.columns
  ]
  rows.append((Cell(('References',)), *references, Cell((NONE,))))
  return Table(headings, tuple(rows), ruled=1)


def differences(part: Part) -> Table | None:
  """One row per system: every metric minus the baseline's.

  None if there is no other system, or the baseline has no numbers.
  """
  baseline = part.baseline
  if baseline is None or len(part.rows) < 2 or not baseline.measured_seeds:
    return None
  headings = ('System', *map(_heading, part.columns))
  rows = [
    (
      Cell((_label(row),)),
      *(_difference(row, baseline, column) for column in part.columns),
    )
    for row in part.rows
    # The model before fine-tuning is not compared.
    if row.is_baseline or row.state != 'done'
    or any(entry.difference for entry in row.entries.values())
  ]  # fmt: skip
  return Table(headings, tuple(rows))


def unmeasured(part: Part) -> str:
  """What replaces the tables of a part without numbers; else ''."""
  if any(row.measured_seeds for row in part.rows):
    return ''
  rows = ', '.join(f'{one_line(row.label)} ({row.state})' for row in part.rows)
  return f'No numbers yet. Declared on {one_line(part.split)}: {rows}.'


def results_legend(*parts: Part) -> str:
  """The conventions of `results` for all of these parts, as one line."""
  used = {column.better for part in parts for column in part.columns}
  arrows = [text for better, text in _BETTER.items() if better in used]
  sentences = [_CONVENTIONS]
  if arrows:
    sentences.append(f'{", ".join(arrows)}.')
  if any(
    _is_short_of_seeds(row, entry)
    for part in parts
    for row in part.rows
    for entry in row.entries.values()
  ):
    sentences.append('(n=1): a value of fewer seeds than its row, here 1.')
  if any(row.chosen for part in parts for row in part.rows):
    sentences.append('Chosen: picked on validation.')
  return ' '.join(sentences)


def differences_legend(part: Part) -> tuple[str, ...]:
  """The conventions of `differences`, a sentence or two each."""
  compared = [
    entry
    for row in part.rows
    for entry in row.entries.values()
    if entry.difference is not None and entry.difference.p is not None
  ]
  over = 'groups of documents and seeds'
  if _paired_seeds(part) == {1}:
    over = 'groups of documents alone (one seed says nothing of others)'
  sentences = [
    f'System minus baseline, with the 95 % interval over {over} in brackets '
    'where there is one.'
  ]
  if compared:
    sentences.append(
      f'p: after Holm over the {len(compared)} comparisons with the '
      'baseline that have one.'
    )
  sentences.append(f'{NONE}: not compared.')
  if any(column.better == 'reference' for column in part.columns):
    sentences.append(
      '≈: difference of the distances to the references; below 0 is closer.'
    )
  across = [one_line(c.label) for c in part.columns if not c.over_documents]
  if across:
    sentences.append(
      f'No interval over documents, only seeds count: {", ".join(across)}.'
    )
  return tuple(sentences)


def remarks(part: Part) -> tuple[str, ...]:
  """The sentences below the tables of a part."""
  plural = '' if part.documents == 1 else 's'
  return (
    f'{part.documents:,} document{plural} of {one_line(part.split)}, evaluated '
    'with each seed'
    + (
      f'; they come from {part.groups:,} groups, which intervals resample.'
      if part.groups < part.documents
      else '.'
    ),
    *_floors(part),
    *(
      f'{one_line(row.label)}: {one_line(row.note)}'
      for row in part.rows
      if row.note
    ),
    *map(one_line, part.notes),
  )


def definitions(part: Part) -> tuple[tuple[str, str], ...]:
  """Heading and definition of each column."""
  return tuple((_heading(c), one_line(c.definition)) for c in part.columns)


def number(value: float, digits: int) -> str:
  """Rounds a value for a table; never a negative zero."""
  return f'{value:z.{digits}f}'


def mean_and_std(spread: Spread, digits: int, between: str) -> str:
  """Formats 'mean ± deviation', or the mean of a single seed alone."""
  text = number(spread.mean, digits)
  if spread.std is not None:
    text += f'{between}± {number(spread.std, digits)}'
  return text


def file_stem(name: str) -> str:
  """Turns the name of a part or figure into one for files."""
  return re.sub(r'[^A-Za-z0-9_.-]+', '-', name)


def _heading(column: Column) -> str:
  return f'{one_line(column.label)} {_ARROWS[column.better]}'.rstrip()


def _label(row: Row) -> str:
  roles = ['baseline'] * row.is_baseline + ['chosen'] * row.chosen
  label = one_line(row.label)
  return f'{label} ({", ".join(roles)})' if roles else label


def _seeds(row: Row) -> str:
  measured, wanted = len(row.measured_seeds), len(row.seeds)
  return f'{wanted}' if measured == wanted else f'{measured} of {wanted}'


def _is_short_of_seeds(row: Row, entry: Entry) -> bool:
  return 0 < len(entry.by_seed) < len(row.measured_seeds)


def absent(row: Row) -> str:
  """Names a cell without a value.

  A finished run measured every metric, so its value is undefined.
  """
  return 'undefined' if row.state in ('done', 'partly') else row.state


def _result(row: Row, entry: Entry, column: Column) -> Cell:
  if entry.spread is None:
    return Cell((absent(row),))
  text = mean_and_std(entry.spread, column.digits, ' ')
  if entry.best and not entry.alone:
    text += ' ='
  if _is_short_of_seeds(row, entry):
    return Cell((text, f'(n={len(entry.by_seed)})'), entry.alone)
  return Cell((text,), entry.alone)


def _difference(row: Row, baseline: Row, column: Column) -> Cell:
  entry = row.entries[column.key]
  if row.is_baseline:
    return Cell((NONE,))
  if entry.spread is None:
    return Cell((absent(row),))
  found = entry.difference
  if found is None:
    lost = baseline.entries[column.key].spread is None
    return Cell(('no baseline' if lost else NONE,))
  if found.identical:
    return Cell(('identical',))
  if found.value is None:
    return Cell(('undefined',))
  pieces = [_signed(found.value, column.digits)]
  if found.low is not None and found.high is not None:
    ends = (_signed(end, column.digits) for end in (found.low, found.high))
    pieces.append(f'[{", ".join(ends)}]')
  if found.p is not None:
    pieces.append('p<0.001' if found.p < 0.001 else f'p={found.p:.3f}')
  return Cell(tuple(pieces))


def _signed(value: float, digits: int) -> str:
  return f'{value:+z.{digits}f}'.replace('inf', '∞')


def _paired_seeds(part: Part) -> set[int]:
  """The numbers of seeds that compared rows share with the baseline."""
  baseline = part.baseline
  seeds = baseline.measured_seeds if baseline else set()
  compared = [row.measured_seeds for row in part.rows if row.compared]
  return {len(seeds & own) for own in compared if seeds}


def _floors(part: Part) -> list[str]:
  """Says what so few seeds cannot show, whatever the numbers are."""
  return [
    f'{n} paired seed{"" if n == 1 else "s"} cannot reach p below '
    f'{seed_floor(n):.3g} (2/2^{n}), even before the adjustment'
    f'{"; it is left out." if seed_floor(n) > LEVEL else "."}'
    for n in sorted(_paired_seeds(part) - {0})
  ]
