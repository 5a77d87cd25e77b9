"""Tables and the figure of the experiment, from its records alone."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loss_speed.contenders import BASELINE, CONTENDERS

Record = dict[str, Any]
Found = dict[str, dict[str, Any]]
MISSING = '-'
FROZEN = ('tokens_frozen', 'optax_frozen')


def tables(records: list[Record], paper: list[dict[str, Any]]) -> str:
  """Every table, with its heading."""
  parts = [
    _times(records), _seconds(records), _memory(records), _pairs(records),
    _masked(records), _flops(records), _errors(records), _setting(records),
    _collectives(records), _paper(paper),
  ]  # fmt: skip
  return '\n'.join(parts)


def ratios(found: Found, name: str, by: str = BASELINE) -> list[float]:
  """Time over that of `by` in the same round; nothing if one was not run."""
  if not {name, by} <= set(found):
    return []
  pairs = zip(found[name]['seconds'], found[by]['seconds'], strict=True)
  return [a / b for a, b in pairs]


def _section(
  heading: str, note: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
  lines = [
    f'## {heading}', '', note, '', '| ' + ' | '.join(header) + ' |',
    '| --- |' + ' ---: |' * (len(header) - 1),
    *('| ' + ' | '.join(row) + ' |' for row in rows), '',
  ]  # fmt: skip
  return '\n'.join(lines)


def _speed(records: list[Record], masked: bool = False) -> list[Record]:
  """The timed cases, those with masked tokens or those without."""
  return sorted(
    (
      r for r in records
      if r['case']['kind'] == 'speed' and bool(r['case']['masked']) == masked
    ),
    key=lambda r: (r['case']['vocabulary'], r['case']['masked']),
  )  # fmt: skip


def _by_contender(
  cases: list[Record], cell: Callable[[Found, str], str]
) -> list[list[str]]:
  rows = []
  for name, contender in CONTENDERS.items():
    if any(name in r['contenders'] for r in cases):
      rows.append([contender.label] + [
        cell(r['contenders'], name) if name in r['contenders'] else MISSING
        for r in cases
      ])  # fmt: skip
  return rows


def _columns(cases: list[Record]) -> list[str]:
  return ['loss'] + [f'V {r["case"]["vocabulary"]:,}' for r in cases]


def _quartiles(values: list[float]) -> str:
  if not values:
    return MISSING
  low, middle, high = _three(values)
  return f'{middle:.2f} ({low:.2f}-{high:.2f})'


def _three(values: list[float]) -> tuple[float, float, float]:
  """Quartiles and median, between the values where need be."""
  if len(values) == 1:
    return (values[0],) * 3
  low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
  return low, middle, high


# --- time and memory ----------------------------------------------------------


def _times(records: list[Record]) -> str:
  cases = _speed(records)
  counts = ['n, rounds'] + [str(r['case']['rounds']) for r in cases]
  rows = _by_contender(cases, lambda c, name: _quartiles(ratios(c, name)))
  return _section(
    'Table 1a: time',
    f'Over that of unfused optax in the same round: median (quartiles). '
    f'{_shape(cases)}',
    _columns(cases),
    [*rows, counts],
  )


def _shape(cases: list[Record]) -> str:
  shapes = {(r['case']['tokens'], r['case']['width']) for r in cases}
  return ' '.join(f'N {n:,}, D {d:,}, fp32.' for n, d in sorted(shapes))


def _seconds(records: list[Record]) -> str:
  cases = _speed(records)

  def cell(found: Found, name: str) -> str:
    compiled = found[name].get('compile_seconds')
    took = MISSING if compiled is None else f'{compiled:.1f}'
    return f'{min(found[name]["seconds"]):.3f} / {took}'

  return _section(
    'Table 1b: seconds',
    'The fastest round / the compilation (torch has none).',
    _columns(cases),
    _by_contender(cases, cell),
  )


def _memory(records: list[Record]) -> str:
  cases = _speed(records)

  def cell(found: Found, name: str) -> str:
    size = found[name]['temporary_bytes']
    ratio = size / found[BASELINE]['temporary_bytes']
    return f'{size / 1e6:,.1f} ({ratio:.3f})'

  return _section(
    'Table 1c: temporary memory',
    "MB beside inputs and outputs (over optax's): the compiler's account; for "
    "torch, measured differently, its allocator's peak less the outputs.",
    _columns(cases),
    _by_contender(cases, cell),
  )


def _pairs(records: list[Record]) -> str:
  cases = _speed(records)
  pairs = [
    ('weights: tokens / tokens without', 'tokens', 'tokens_plain'),
    ('frozen head: tokens / optax, both frozen', *FROZEN),
    ('frozen head: tokens frozen / tokens', 'tokens_frozen', 'tokens'),
    ('frozen head: optax frozen / optax', 'optax_frozen', BASELINE),
  ]
  rows = [
    [label] + [
      _quartiles(ratios(r['contenders'], name, by)) for r in cases
    ]
    for label, name, by in pairs
  ]  # fmt: skip
  return _section(
    'Table 1d: pairs',
    'Ratio of times in the same round: median (quartiles).',
    ['pair', *_columns(cases)[1:]],
    rows,
  )


def _masked(records: list[Record]) -> str:
  masked = _speed(records, masked=True)
  sizes = {r['case']['vocabulary'] for r in masked}
  open_ = [r for r in _speed(records) if r['case']['vocabulary'] in sizes]
  cases = open_ + masked
  taken = {name for r in masked for name in r['contenders']}
  rows = [
    row for name, row in zip(
      [n for n in CONTENDERS if any(n in r['contenders'] for r in cases)],
      _by_contender(cases, lambda c, name: _quartiles(ratios(c, name))),
      strict=True,
    ) if name in taken
  ]  # fmt: skip
  header = ['loss'] + [
    f'V {r["case"]["vocabulary"]:,}, {r["case"]["masked"]:.0%} masked'
    for r in cases
  ]
  return _section(
    'Table 1e: masked tokens',
    'Time over that of unfused optax with the same mask, in the same round: '
    'median (quartiles). Of the peers that can weigh a token, the one that '
    'was fastest with no mask.',
    header,
    rows,
  )


def _flops(records: list[Record]) -> str:
  cases = _speed(records) + _speed(records, masked=True)

  def row(name: str, record: Record) -> str:
    case, found = record['case'], record['contenders'].get(name, {})
    if 'flops' not in found:
      return MISSING
    ndv = case['tokens'] * case['width'] * case['vocabulary']
    ours, theirs = found['flops'] / ndv, found['flops_of_compiler'] / ndv
    return f'{ours:.2f} / {theirs:.2f}'

  rows = [
    [contender.label] + [row(name, r) for r in cases]
    for name, contender in CONTENDERS.items() if not contender.torch
  ]  # fmt: skip
  header = ['loss'] + [
    f'V {r["case"]["vocabulary"]:,}'
    + (f', {r["case"]["masked"]:.0%} masked' if r['case']['masked'] else '')
    for r in cases
  ]
  return _section(
    'Table 1f: floating-point operations, over NDV',
    'Matmuls as written, times the turns of their loops / all operations by '
    "the compiler's account, which counts the body of a loop once and knows "
    'what it merged. Unfused: 6.',
    header,
    rows,
  )


def _errors(records: list[Record]) -> str:
  cases = [r for r in records if r['case']['kind'] == 'error']

  def cell(found: Found, name: str) -> str:
    parts = (found[name].get(x) for x in ('loss', 'd_hidden', 'd_head'))
    return ' / '.join(MISSING if x is None else f'{x:.0e}' for x in parts)

  header = ['loss'] + [
    f'V {r["case"]["vocabulary"]:,}, {r["case"]["logits"]}, '
    f'{r["case"]["dtype"]}'
    for r in cases
  ]
  return _section(
    'Table 1g: relative errors',
    'Of loss / gradient of the hidden states / gradient of the head, against '
    'fp64: norm of the difference over the norm. Logits with a standard '
    'deviation of 0.02 (flat) or 8 (peaked).',
    header,
    _by_contender(cases, cell),
  )


def _setting(records: list[Record]) -> str:
  cases = [r for r in records if r['case']['kind'] != 'collectives']
  rows = []
  for r in cases:
    case, found = r['case'], r['environment']
    what = f'{case.get("masked", 0):.0%} masked'
    if case['kind'] == 'error':
      what = f'{case["logits"]}, {case["dtype"]}'
    rows.append([
      f'{case["kind"]}, V {case["vocabulary"]:,}, {what}', found['date'],
      f'{found["load_start"][0]:.1f}', f'{found["load_end"][0]:.1f}',
      str(found['cpus']),
    ])  # fmt: skip
  versions = sorted({
    ', '.join(
      f'{k} {v or "none"}' for k, v in r['environment']['versions'].items()
    ) for r in records
  })  # fmt: skip
  return _section(
    'Table 1h: circumstances',
    '; '.join(versions) + '.',
    ['case', 'date', 'load before', 'load after', 'CPUs'],
    rows,
  )


# --- collectives --------------------------------------------------------------


def _collectives(records: list[Record]) -> str:
  rows = []
  for r in (r for r in records if r['case']['kind'] == 'collectives'):
    case, found = r['case'], r['collectives']
    by_kind: Counter[str] = Counter()
    for x in found:
      by_kind[x['kind']] += x['bytes'] * (x['times'] or 1)
    unknown = any(x['times'] is None for x in found)
    kinds = ', '.join(f'{k} {v / 1e6:.3f}' for k, v in sorted(by_kind.items()))
    largest = max(found, key=lambda x: x['bytes'], default=None)
    inside = sum(x['times'] != 1 for x in found)
    rows.append([
      f'{"x".join(map(str, case["mesh"]))}, {case["method"]}',
      f'{case["vocabulary"]:,}',
      (kinds or 'none') + (', loops of unknown length' if unknown else ''),
      f'{sum(by_kind.values()) / 1e6:.3f}',
      f'{largest["kind"]} {largest["shape"]}' if largest else 'none',
      f'{inside} of {len(found)}',
      f'{r["logits_bytes_of_device"] / 1e6:.1f}',
      f'{r["logits_bytes"] / 1e6:.1f}',
    ])  # fmt: skip
  sizes = {
    (r['case']['tokens'], r['case']['width']) for r in records
    if r['case']['kind'] == 'collectives'
  }  # fmt: skip
  shape = ' '.join(f'N {n:,}, D {d:,}, fp32.' for n, d in sorted(sizes))
  return _section(
    'Table 2: collectives of the loss with both gradients, 8 devices',
    'Compiled, not run: MB that go into or come out of a device, loops '
    'multiplied out, groups of one device left out; beside them what [N, V] '
    f'logits would hold. {shape}',
    [
      'data x fsdp x tensor', 'V', 'MB by kind', 'MB', 'largest', 'in loops',
      "a device's logits, MB", 'all logits, MB',
    ],
    rows,
  )  # fmt: skip


# --- on paper -----------------------------------------------------------------


def _paper(paper: list[dict[str, Any]]) -> str:
  rows = [
    [
      f'{x["machine"]}, {x["method"]}', f'{x["rows"]:,}',
      *(f'{1e3 * x[k]:.1f}' for k in (
        'matmuls', 'logits', 'head', 'cached', 'memory'
      )),
    ]
    for x in paper
  ]  # fmt: skip
  return _section(
    'Table 3: roofline, on paper, not measured',
    'Milliseconds of loss and gradients, N 16,384, D 4,096, V 128,256, bf16, '
    'for groups of n rows. Matmuls 6NDV (vocabulary 8NDV) / peak; logits '
    '18, 14, 22 NV bytes / bandwidth (unfused, tokens, vocabulary); head and '
    'its gradient 8 DV, ceil(N/n) 12 DV, ceil(N/n) 14 DV bytes / bandwidth. '
    'At least: the larger of matmuls and traffic, tiles of logits in cache or '
    'in memory. `paper` in experiment.py says where the bytes come from.',
    [
      'machine, method', 'n', 'matmuls', 'logits', 'head',
      'at least, tiles in cache', 'at least, tiles in memory',
    ],
    rows,
  )  # fmt: skip


# --- figure -------------------------------------------------------------------

# Ours are solid and dark; whose line it is shows in the marker too.
LINES = {
  'tokens': ('#c1272d', 'o', '-'),
  'vocabulary': ('#0b4f9c', 's', '-'),
  'vocabulary_low': ('#4d9de0', 'D', '-'),
  'tokamax': ('#e08e0b', '^', '--'),
  'tokamax_public': ('#8c6d1f', 'v', '--'),
  'levanter': ('#2e8b57', '<', '--'),
  'levanter_1024': ('#7fbf7b', '>', '--'),
  'torch_class': ('#7b3294', 'P', ':'),
  'torch_token': ('#555555', 'X', ':'),
}


def figure(records: list[Record], path: Path) -> None:
  """Time and memory over unfused optax, against V: path.png and path.svg."""
  import matplotlib

  matplotlib.use('agg')
  matplotlib.rcParams |= {'svg.hashsalt': 'loss_speed', 'font.size': 10}
  from matplotlib import pyplot, ticker

  cases = _speed(records)
  sizes = [r['case']['vocabulary'] for r in cases]
  drawn, (time, memory) = pyplot.subplots(1, 2, figsize=(10, 5.2))
  for place, (name, (color, marker, line)) in enumerate(LINES.items()):
    at = [r for r in cases if name in r['contenders']]
    if not at:
      continue
    x = [r['case']['vocabulary'] for r in at]
    style: dict[str, Any] = {
      'color': color, 'marker': marker, 'linestyle': line, 'markersize': 5,
      'label': CONTENDERS[name].label,
    }  # fmt: skip
    three = [_three(ratios(r['contenders'], name)) for r in at]
    middle = [m for _, m, _ in three]
    bars = [[m - a for a, m, _ in three], [b - m for _, m, b in three]]
    # Beside one another: bars at the same V would hide each other.
    beside = 2 ** (0.05 * (place - len(LINES) // 2))
    time.errorbar(
      [v * beside for v in x], middle, bars, capsize=2, elinewidth=1, **style
    )
    memory.plot(x, [
      r['contenders'][name]['temporary_bytes']
      / r['contenders'][BASELINE]['temporary_bytes'] for r in at
    ], **style)  # fmt: skip
  for axis, title in ((time, 'time'), (memory, 'temporary memory')):
    axis.axhline(1, color='black', linewidth=0.8)
    axis.set_xscale('log', base=2)
    axis.set_xticks(sizes, [f'{v:,}' for v in sizes])
    axis.minorticks_off()
    axis.set_xlabel('vocabulary')
    axis.set_title(f'{title}, unfused optax = 1')
    axis.grid(alpha=0.25)
  memory.set_yscale('log')
  memory.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  memory.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  memory.yaxis.set_minor_locator(ticker.NullLocator())
  handles, labels = time.get_legend_handles_labels()
  drawn.legend(
    handles, labels, loc='lower center', ncols=3, frameon=False, fontsize=9.5
  )
  drawn.tight_layout(rect=(0, 0.15, 1, 1))
  drawn.savefig(path.with_suffix('.png'), dpi=150, metadata={'Software': None})
  drawn.savefig(path.with_suffix('.svg'), metadata={'Date': None})
  pyplot.close(drawn)
