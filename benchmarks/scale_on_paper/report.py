"""The tables, from the records alone."""

import re
from collections.abc import Iterator
from typing import Any

# Of a chip of v5p: dense bf16 FLOP/s, bytes of HBM, and bytes/s that it sends
# to all its neighbours together, half of the 1,200 GB/s of both directions
# (docs.cloud.google.com/tpu/docs/v5p).
FLOPS, HBM, LINKS = 459e12, 95e9, 600e9
KINDS = ('all-gather', 'all-reduce', 'reduce-scatter')
TITLES = {
  'tpu': "By the TPU's own compiler, for v5p:4x4x8",
  'cpu': 'By the compiler for CPU devices',
}
SHOWN = 3
LOSSES = {'linear': 'PDL, by groups of tokens', 'dense': 'optax, all logits'}

Record = dict[str, Any]


def table(records: list[Record]) -> str:
  """All tables as Markdown."""
  first = next(r for r in records if r['case']['compiler'] != 'shapes')
  return '\n'.join([
    *_introduction(first),
    *(line for name in TITLES for line in _compiled(records, name)),
    *_estimates(records),
  ])  # fmt: skip


def _introduction(record: Record) -> Iterator[str]:
  m = record['model']
  yield (
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
  yield (
    '| mesh | state and batch GB | temporaries GB | of 95 GB | '
    + ' | '.join(f'{kind} GB' for kind in KINDS)
    + ' | sent GB | s at 600 GB/s |'
  )
  yield '| --- |' + ' ---: |' * (5 + len(KINDS))
  for record in whole:
    total = record['argument_bytes'] + record['temporary_bytes']
    sent, size = record['sent_bytes'], _sent(record)
    yield _row(
      _mesh(record), _gb(record['argument_bytes']),
      _gb(record['temporary_bytes']), f'{total / HBM:.0%}',
      *(_gb(sent.get(kind, 0)) for kind in KINDS), _gb(size),
      f'{size / LINKS:.3f}',
    )  # fmt: skip
  yield ''
  if whole[0]['flops'] is not None:
    yield from _flops(whole)
  yield from _shares(found)
  yield from _largest(whole)


def _flops(records: list[Record]) -> Iterator[str]:
  yield '### Floating-point operations of the matmuls\n'
  yield (
    '| mesh | T counted | T on paper | counted / paper | head and loss, on '
    'paper | s at 459 T/s |'
  )
  yield '| --- |' + ' ---: |' * 5
  for record in records:
    counted, paper = record['flops'], record['paper_flops']
    total = sum(paper.values())
    yield _row(
      _mesh(record), f'{counted / 1e12:.1f}', f'{total / 1e12:.1f}',
      f'{counted / total:.4f}', f'{paper["head"] / total:.1%}',
      f'{counted / FLOPS:.3f}',
    )  # fmt: skip
  yield (
    '\nOn paper: 6 a matrix parameter and token, attention over all L x L '
    'positions, and the blocks forward once more, but for their last matmul.\n'
  )


def _shares(records: list[Record]) -> Iterator[str]:
  """What each loss adds to the same step without head and loss."""
  without = {
    _mesh(r): r for r in records if r['case']['loss'] == 'none'
  }
  pairs = [
    (r, without[_mesh(r)]) for r in records
    if r['case']['loss'] != 'none' and _mesh(r) in without
  ]  # fmt: skip
  if not pairs:
    return
  yield '### What head and loss add\n'
  yield (
    'Against the same step that ends in the sum of squares of the hidden '
    'states: the matrix is there, and neither multiplied nor gathered. Of the '
    "temporaries it is what the step's peak grows by.\n"
  )
  yield (
    '| mesh | loss | temporaries GB | sent GB | of what is sent | FLOPs T | '
    'of all FLOPs |'
  )
  yield '| --- | --- |' + ' ---: |' * 5
  for record, base in pairs:
    flops, share = '', ''
    if record['flops'] is not None:
      added = record['flops'] - base['flops']
      flops = f'{added / 1e12:.1f}'
      share = f'{added / record["flops"]:.1%}'
    sent = _sent(record) - _sent(base)
    yield _row(
      _mesh(record), LOSSES[record['case']['loss']],
      _gb(record['temporary_bytes'] - base['temporary_bytes']), _gb(sent),
      f'{sent / _sent(record):.1%}', flops, share,
    )  # fmt: skip
  yield ''


def _largest(records: list[Record]) -> Iterator[str]:
  yield '### The collectives that send most\n'
  yield '| mesh | kind | arrays on a chip | chips | times | sent GB |'
  yield '| --- | --- | --- | ---: | ---: | ---: |'
  for record in records:
    sums: dict[tuple, list[float]] = {}
    for x in record['largest']:
      shape = re.sub(r'/\*index=\d+\*/', '', x['shape'])
      found = sums.setdefault((x['kind'], shape, x['group']), [0, 0])
      found[0] += x['times']
      found[1] += x['sent']
    most = sorted(sums.items(), key=lambda item: -item[1][1])
    for (kind, shape, group), (times, sent) in most[:SHOWN]:
      yield _row(
        _mesh(record), kind, f'`{shape}`', str(group), str(times), _gb(sent)
      )
  yield ''


def _estimates(records: list[Record]) -> Iterator[str]:
  """Of pdl_jax.cluster.memory, beside what was compiled."""
  found = [r for r in records if r['case']['compiler'] == 'shapes']
  if not found:
    return
  compiled = {
    (r['case']['compiler'], _mesh(r)): r
    for r in records
    if r['case']['loss'] == 'linear' and r['case']['compiler'] != 'shapes'
  }
  parts = [x for x in found[0]['memory'] if x != 'total']
  yield '## From shapes alone, by pdl_jax.cluster.memory\n'
  yield (
    f'| mesh | {" | ".join(f"{x} GB" for x in parts)} | temporaries of the '
    'CPU program / these | of the TPU program / these |'
  )
  yield '| --- |' + ' ---: |' * (len(parts) + 2)
  for record in found:
    memory = record['memory']
    ratios = []
    for compiler in ('cpu', 'tpu'):
      other = compiled.get((compiler, _mesh(record)))
      ratio = other and other['temporary_bytes'] / memory['temporaries']
      ratios.append(f'{ratio:.2f}' if ratio else 'missing')
    yield _row(
      _mesh(record), *(_gb(memory[x]) for x in parts), *ratios
    )  # fmt: skip
  yield ''


def _sent(record: Record) -> float:
  return sum(record['sent_bytes'].values())


def _mesh(record: Record) -> str:
  return ' x '.join(map(str, record['case']['mesh']))


def _gb(value: float) -> str:
  return f'{value / 1e9:.2f}'


def _row(*cells: str) -> str:
  return f'| {" | ".join(cells)} |'
