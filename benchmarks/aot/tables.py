"""Makes the table from the records alone."""

from benchmarks import harness
from benchmarks.aot import programs
from benchmarks.harness import Record

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute')
PROGRAMS = {
  'train': (
    'A training step',
    f'{programs.ROWS} rows of {programs.LENGTH:,} tokens on each chip, every '
    'position a target; PDL, AdamW, fp32 parameters and moments, bf16 '
    'activations, remat of each layer.',
  ),
  'decode': (
    'A step of greedy decoding',
    f'{programs.ROWS} rows on each chip, a cache of {programs.LENGTH:,} tokens '
    'in bf16; parameters as training keeps them, in fp32.',
  ),
}


def table(records: list[Record]) -> str:
  """Formats a table for each kind of program."""
  parts = [
    'Compiled for chips that are not here; nothing ran. A mesh is data x fsdp '
    'x tensor. GB are 1e9 bytes, of one chip and one step.\n'
  ]
  for program, (heading, note) in PROGRAMS.items():
    found = [r for r in records if r['case']['program'] == program]
    if found:
      parts.append(harness.section(heading, note, _table(found, program)))
  return '\n'.join(parts)


def _table(records: list[Record], program: str) -> str:
  columns = {
    'model': lambda r: r['case']['model'],
    'chips': lambda r: r['case']['topology'],
    'slices': lambda r: str(r['case']['slices']),
    'mesh': lambda r: ' x '.join(map(str, r['mesh'])),
    'arguments GB': lambda r: _gb(r['arguments']),
    'temporaries GB': lambda r: _gb(r['temporaries']),
    'of the HBM': lambda r: f'{_total(r) / _room(r):.0%}',
    'compiled / estimated': lambda r: f'{_total(r) / r["estimated"]:.2f}',
    **{
      f'{kind} GB': lambda r, kind=kind: _gb(r['sent_bytes'].get(kind, 0))
      for kind in KINDS
    },
    'to other slices GB': lambda r: _gb(sum(r['between_slices'].values())),
  }
  if program != 'train':
    del columns['compiled / estimated']
  return harness.listed(records, columns, 'llrl' + 'r' * (len(columns) - 4))


def _total(record: Record) -> int:
  return record['arguments'] + record['temporaries'] + record['output']


def _room(record: Record) -> float:
  return programs.CHIPS[record['case']['topology']]


def _gb(value: float) -> str:
  return f'{value / 1e9:.2f}'
