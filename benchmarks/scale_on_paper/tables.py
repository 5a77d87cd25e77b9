"""Makes the tables from the records alone."""

import re
from collections.abc import Iterator

from benchmarks import harness
from benchmarks.harness import Record

# Of a v5p chip: dense bf16 FLOP/s, bytes of HBM, and bytes/s that it sends to
# all its neighbours together, half of the 1,200 GB/s of both directions
# (docs.cloud.google.com/tpu/docs/v5p).
FLOPS, HBM, LINKS = 459e12, 95e9, 600e9
KINDS = ('all-gather', 'all-reduce', 'reduce-scatter')
TITLES = {
  'tpu': "By the TPU's own compiler, for v5p:4x4x8",
  'cpu': 'By the compiler for CPU devices',
}
SHOWN = 3
LOSSES = {'linear': 'PDL, by groups of tokens', 'dense': 'optax, all logits'}


def table(records: list[Record]) -> str:
  """Formats all tables."""
  compiled = [r for r in records if r['case']['compiler'] != 'shapes']
  return '\n'.join([
    *map(_introduction, compiled[:1]),
    *(text for name in TITLES for text in _compiled(compiled, name)),
    *_estimates(records),
  ])


def _introduction(record: Record) -> str:
  m = record['model']
  return (
    f'A model of {m["parameters"] / 1e9:.2f}e9 parameters: V '
    f'{m["vocab_size"]:,}, D {m["width"]:,}, {m["layers"]} layers, {m["heads"]}'
    f' heads, {m["kv_heads"]} of keys and values, F {m["mlp"]:,}; fp32 '
    'parameters and AdamW moments, bf16 activations, remat of each layer. '
    f'{record["rows"]} rows of {record["length"]:,} tokens a step over '
    f'{record["chips"]} chips. A mesh is data x fsdp x tensor; GB are 1e9 '
    'bytes; all figures are of one chip and one step.\n'
  )


def _compiled(records: list[Record], compiler: str) -> Iterator[str]:
  found = [r for r in records if r['case']['compiler'] == compiler]
  whole = [r for r in found if r['case']['loss'] == 'linear']
  if not whole:
    return
  yield f'## {TITLES[compiler]}\n'
  yield harness.markdown(
    (
      'mesh', 'state and batch GB', 'temporaries GB', 'of 95 GB',
      *(f'{kind} GB' for kind in KINDS), 'sent GB', 's at 600 GB/s',
    ),
    [_taken(record) for record in whole],
  )  # fmt: skip
  if whole[0]['flops'] is not None:
    yield _flops(whole)
  yield from _shares(found)
  yield _largest(whole)


def _taken(record: Record) -> list[str]:
  state, temporary = record['argument_bytes'], record['temporary_bytes']
  sent = [record['sent_bytes'].get(kind, 0) for kind in KINDS]
  return [
    _mesh(record), _gb(state), _gb(temporary),
    f'{(state + temporary) / HBM:.0%}', *map(_gb, sent), _gb(_sent(record)),
    f'{_sent(record) / LINKS:.3f}',
  ]  # fmt: skip


def _flops(records: list[Record]) -> str:
  rows = []
  for record in records:
    counted, paper = record['flops'], record['paper_flops']
    total = sum(paper.values())
    rows.append([
      _mesh(record), f'{counted / 1e12:.1f}', f'{total / 1e12:.1f}',
      f'{counted / total:.4f}', f'{paper["head"] / total:.1%}',
      f'{counted / FLOPS:.3f}',
    ])  # fmt: skip
  headings = (
    'mesh', 'T counted', 'T on paper', 'counted / paper',
    'head and loss, on paper', 's at 459 T/s',
  )  # fmt: skip
  return (
    '### Floating-point operations of the matmuls\n\n'
    + harness.markdown(headings, rows)
    + '\nOn paper: 6 a matrix parameter and token, attention over all L x L '
    'positions, and the blocks forward once more, but for their last matmul.\n'
  )


def _shares(records: list[Record]) -> Iterator[str]:
  without = {_mesh(r): r for r in records if r['case']['loss'] == 'none'}
  rows = []
  for record in records:
    base = without.get(_mesh(record))
    if record['case']['loss'] == 'none' or base is None:
      continue
    flops = share = ''
    if record['flops'] is not None:
      added = record['flops'] - base['flops']
      flops = f'{added / 1e12:.1f}'
      share = f'{added / record["flops"]:.1%}'
    sent = _sent(record) - _sent(base)
    rows.append([
      _mesh(record), LOSSES[record['case']['loss']],
      _gb(record['temporary_bytes'] - base['temporary_bytes']), _gb(sent),
      f'{sent / _sent(record):.1%}', flops, share,
    ])  # fmt: skip
  if not rows:
    return
  headings = (
    'mesh', 'loss', 'temporaries GB', 'sent GB', 'of what is sent', 'FLOPs T',
    'of all FLOPs',
  )  # fmt: skip
  yield (
    '### What head and loss add\n\n'
    'Against the same step that ends in the sum of squares of the hidden '
    'states: the matrix is there, and neither multiplied nor gathered. Of the '
    "temporaries it is what the step's peak grows by.\n\n"
    + harness.markdown(headings, rows, 'llrrrrr')
  )


def _largest(records: list[Record]) -> str:
  rows = []
  for record in records:
    sums: dict[tuple, list[float]] = {}
    for x in record['largest']:
      shape = re.sub(r'/\*index=\d+\*/', '', x['shape'])
      found = sums.setdefault((x['kind'], shape, x['group']), [0, 0])
      found[0] += x['times']
      found[1] += x['sent']
    most = sorted(sums.items(), key=lambda item: -item[1][1])
    for (kind, shape, group), (times, sent) in most[:SHOWN]:
      rows.append([
        _mesh(record), kind, f'`{shape}`', str(group), str(times), _gb(sent)
      ])  # fmt: skip
  headings = ('mesh', 'kind', 'arrays on a chip', 'chips', 'times', 'sent GB')
  return '### The collectives that send most\n\n' + harness.markdown(
    headings, rows, 'lllrrr'
  )


def _estimates(records: list[Record]) -> Iterator[str]:
  found = [r for r in records if r['case']['compiler'] == 'shapes']
  if not found:
    return
  compiled = {
    (r['case']['compiler'], _mesh(r)): r['temporary_bytes']
    for r in records
    if r['case']['loss'] == 'linear' and r['case']['compiler'] != 'shapes'
  }
  parts = [x for x in found[0]['memory'] if x != 'total']
  rows = []
  for record in found:
    memory = record['memory']
    ratios = []
    for compiler in ('cpu', 'tpu'):
      size = compiled.get((compiler, _mesh(record)))
      ratios.append(
        f'{size / memory["temporaries"]:.2f}' if size else 'missing'
      )
    rows.append([_mesh(record), *(_gb(memory[x]) for x in parts), *ratios])
  headings = (
    'mesh', *(f'{x} GB' for x in parts),
    'temporaries of the CPU program / these', 'of the TPU program / these',
  )  # fmt: skip
  yield '## From shapes alone, by pdl_jax.cluster.memory\n'
  yield harness.markdown(headings, rows)


def _sent(record: Record) -> float:
  return sum(record['sent_bytes'].values())


def _mesh(record: Record) -> str:
  return ' x '.join(map(str, record['case']['mesh']))


def _gb(value: float) -> str:
  return f'{value / 1e9:.2f}'
