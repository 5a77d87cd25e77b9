"""Makes the tables and the figure of the benchmark from its records alone."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.harness import Record
from benchmarks.loss_speed.contenders import BASELINE, CONTENDERS
from pdl_jax.report import figures, marks

# Contender -> what it took in a case.
Found = dict[str, dict[str, Any]]
Cell = Callable[[Found, str], str]
MISSING = '-'


def table(records: list[Record]) -> str:
  """Formats every table, with its heading."""
  timed = sorted(
    (r for r in records if r['case']['kind'] == 'speed'),
    key=lambda r: (r['case']['vocabulary'], r['case']['masked']),
  )
  cases = [r for r in timed if not r['case']['masked']]
  masked = [r for r in timed if r['case']['masked']]
  return '\n'.join([
    *_speed(cases), _pairs(cases), _masked(cases, masked),
    _flops([*cases, *masked]), _errors(records), _setting(records),
    _collectives(records), _paper(),
  ])  # fmt: skip


def ratios(found: Found, name: str, by: str = BASELINE) -> np.ndarray:
  """Time over that of `by` in the same round; [] if one was not run."""
  if not {name, by} <= set(found):
    return np.empty(0)
  return np.divide(found[name]['seconds'], found[by]['seconds'])


def _quartiles(found: Found, name: str, by: str = BASELINE) -> str:
  values = ratios(found, name, by)
  return harness.spread(values, to='-') if values.size else MISSING


def _by_contender(
  cases: list[Record], cell: Cell, title: Callable[[Record], str] | None = None
) -> list[list[str]]:
  """Headings, and the row of each contender that some case has."""
  rows = [['loss', *map(title or _size, cases)]]
  for name, contender in CONTENDERS.items():
    found = [r['contenders'] for r in cases]
    if any(name in each for each in found):
      cells = [cell(x, name) if name in x else MISSING for x in found]
      rows.append([contender.label, *cells])
  return rows


def _section(heading: str, note: str, rows: list[list[str]]) -> str:
  return harness.section(heading, note, harness.markdown(rows[0], rows[1:]))


def _size(record: Record) -> str:
  return f'V {record["case"]["vocabulary"]:,}'


def _shape(records: list[Record]) -> str:
  shapes = {(r['case']['tokens'], r['case']['width']) for r in records}
  return ' '.join(f'N {n:,}, D {d:,}, fp32.' for n, d in sorted(shapes))


# --- time and memory ----------------------------------------------------------


def _speed(cases: list[Record]) -> Iterator[str]:
  def seconds(found: Found, name: str) -> str:
    compiled = found[name].get('compile_seconds')
    took = MISSING if compiled is None else f'{compiled:.1f}'
    return f'{min(found[name]["seconds"]):.3f} / {took}'

  def memory(found: Found, name: str) -> str:
    size = found[name]['temporary_bytes']
    ratio = size / found[BASELINE]['temporary_bytes']
    return f'{size / 1e6:,.1f} ({ratio:.3f})'

  counts = ['n, rounds', *(str(r['case']['rounds']) for r in cases)]
  yield _section(
    'Table 1a: time',
    'Over that of unfused optax in the same round: median (quartiles). '
    f'{_shape(cases)}',
    [*_by_contender(cases, _quartiles), counts],
  )
  yield _section(
    'Table 1b: seconds',
    'The fastest round / the compilation (torch has none).',
    _by_contender(cases, seconds),
  )
  yield _section(
    'Table 1c: temporary memory',
    "MB beside inputs and outputs (over optax's): the compiler's account; for "
    "torch, measured differently, its allocator's peak less the outputs.",
    _by_contender(cases, memory),
  )


def _pairs(cases: list[Record]) -> str:
  pairs = [
    ('weights: tokens / tokens without', 'tokens', 'tokens_plain'),
    ('frozen head: tokens / optax, both frozen', 'tokens_frozen',
     'optax_frozen'),
    ('frozen head: tokens frozen / tokens', 'tokens_frozen', 'tokens'),
    ('frozen head: optax frozen / optax', 'optax_frozen', BASELINE),
  ]  # fmt: skip
  return _section(
    'Table 1d: pairs',
    'Ratio of times in the same round: median (quartiles).',
    [['pair', *map(_size, cases)], *(
      [label, *(_quartiles(r['contenders'], name, by) for r in cases)]
      for label, name, by in pairs
    )],
  )  # fmt: skip


def _masked(cases: list[Record], masked: list[Record]) -> str:
  sizes = {r['case']['vocabulary'] for r in masked}
  shown = [r for r in cases if r['case']['vocabulary'] in sizes] + masked
  taken = {CONTENDERS[name].label for r in masked for name in r['contenders']}
  headings, *rows = _by_contender(
    shown, _quartiles, lambda r: f'{_size(r)}, {r["case"]["masked"]:.0%} masked'
  )
  return _section(
    'Table 1e: masked tokens',
    'Time over that of unfused optax with the same mask, in the same round: '
    'median (quartiles). Of the peers that can weigh a token, the one that '
    'was fastest with no mask.',
    [headings, *(row for row in rows if row[0] in taken)],
  )


def _flops(cases: list[Record]) -> str:
  def cell(name: str, record: Record) -> str:
    case, found = record['case'], record['contenders'].get(name, {})
    if 'flops' not in found:
      return MISSING
    ndv = case['tokens'] * case['width'] * case['vocabulary']
    ours, theirs = found['flops'] / ndv, found['flops_of_compiler'] / ndv
    return f'{ours:.2f} / {theirs:.2f}'

  def title(record: Record) -> str:
    mask = record['case']['masked']
    return _size(record) + (f', {mask:.0%} masked' if mask else '')

  return _section(
    'Table 1f: floating-point operations, over NDV',
    'Matmuls as written, times the turns of their loops / all operations by '
    "the compiler's account, which counts the body of a loop once and knows "
    'what it merged. Unfused: 6.',
    [['loss', *map(title, cases)], *(
      [contender.label, *(cell(name, r) for r in cases)]
      for name, contender in CONTENDERS.items() if not contender.torch
    )],
  )  # fmt: skip


def _errors(records: list[Record]) -> str:
  def cell(found: Found, name: str) -> str:
    parts = (found[name].get(x) for x in ('loss', 'd_hidden', 'd_head'))
    return ' / '.join(MISSING if x is None else f'{x:.0e}' for x in parts)

  return _section(
    'Table 1g: relative errors',
    'Of loss / gradient of the hidden states / gradient of the head, against '
    'fp64: norm of the difference over the norm. Logits with a standard '
    'deviation of 0.02 (flat) or 8 (peaked).',
    _by_contender(
      [r for r in records if r['case']['kind'] == 'error'], cell,
      lambda r: f'{_size(r)}, {r["case"]["logits"]}, {r["case"]["dtype"]}',
    ),
  )  # fmt: skip


def _setting(records: list[Record]) -> str:
  def name(record: Record) -> str:
    case = record['case']
    what = f'{case.get("masked", 0):.0%} masked'
    if case['kind'] == 'error':
      what = f'{case["logits"]}, {case["dtype"]}'
    return f'{case["kind"]}, {_size(record)}, {what}'

  shown = [r for r in records if r['case']['kind'] != 'collectives']
  versions = sorted({
    ', '.join(
      f'{k} {v or "none"}' for k, v in r['environment']['versions'].items()
    ) for r in records
  })  # fmt: skip
  return harness.section(
    'Table 1h: circumstances', '; '.join(versions) + '.',
    harness.listed(shown, {
      'case': name,
      'date': lambda r: r['environment']['date'],
      'load before': lambda r: f'{r["environment"]["load_start"][0]:.1f}',
      'load after': lambda r: f'{r["environment"]["load_end"][0]:.1f}',
      'CPUs': lambda r: str(r['environment']['cpus']),
    }),
  )  # fmt: skip


# --- collectives --------------------------------------------------------------


def _collectives(records: list[Record]) -> str:
  def by_kind(record: Record) -> Counter[str]:
    found: Counter[str] = Counter()
    for x in record['collectives']:
      found[x['kind']] += x['bytes'] * x['times']
    return found

  def kinds(record: Record) -> str:
    each = sorted(by_kind(record).items())
    return ', '.join(f'{k} {v / 1e6:.3f}' for k, v in each) or 'none'

  def largest(record: Record) -> str:
    x = max(record['collectives'], key=lambda x: x['bytes'], default=None)
    return f'{x["kind"]} {x["shape"]}' if x else 'none'

  compiled = [r for r in records if r['case']['kind'] == 'collectives']
  return harness.section(
    'Table 2: collectives of the loss with both gradients, 8 devices',
    'Compiled, not run: MB that go into or come out of a device, loops '
    'multiplied out, groups of one device left out; beside them what [N, V] '
    f'logits would hold. {_shape(compiled)}',
    harness.listed(compiled, {
      'data x fsdp x tensor': lambda r: (
        f'{"x".join(map(str, r["case"]["mesh"]))}, {r["case"]["method"]}'
      ),
      'V': lambda r: f'{r["case"]["vocabulary"]:,}',
      'MB by kind': kinds,
      'MB': lambda r: f'{sum(by_kind(r).values()) / 1e6:.3f}',
      'largest': largest,
      'in loops': lambda r: (
        f'{sum(x["times"] != 1 for x in r["collectives"])} of '
        f'{len(r["collectives"])}'
      ),
      "a device's logits, MB": lambda r: (
        f'{r["logits_bytes_of_device"] / 1e6:.1f}'
      ),
      'all logits, MB': lambda r: f'{r["logits_bytes"] / 1e6:.1f}',
    }),
  )  # fmt: skip


# --- on paper -----------------------------------------------------------------

# Dense bf16 FLOP/s and bytes/s, from the makers' data sheets.
MACHINES = {
  'H100 SXM': (989e12, 3.35e12),
  'TPU v5p': (459e12, 2.765e12),
}
PAPER_SIZES = (16384, 4096, 128256)


def _paper() -> str:
  """Computes a roofline from matmuls and memory traffic; nothing is measured.

  Inputs are bf16; logits and the head's gradient are fp32.

  Bytes per logit, if tiles go out to memory: unfused 18 (written 4, read for
  log Z 4, read for the softmax 4, its gradient written 2 and read by two
  matmuls 4); by tokens 14 (powers written 4, read 4, gradient 2 + 4); by
  vocabulary 22 (8 in the forward pass, 14 in the backward).

  Bytes per entry of the head: unfused 8 (read twice, gradient written); by
  tokens 12 per group of n rows (read twice, gradient read and written); by
  vocabulary 14.
  """
  n, width, columns = PAPER_SIZES
  head, logits = width * columns, n * columns
  rows = [[
    'machine, method', 'n', 'matmuls', 'logits', 'head',
    'at least, tiles in cache', 'at least, tiles in memory',
  ]]  # fmt: skip
  for machine, (flops, bandwidth) in MACHINES.items():
    for name, size, products, by_logit, by_entry in [
      ('unfused', n, 6, 18, 8),
      *(('tokens', size, 6, 14, 12) for size in (512, 1024, 2048, 4096)),
      *(('vocabulary', size, 8, 22, 14) for size in (512, 1024, 2048, 4096)),
    ]:
      groups = -(-n // size)
      matmuls = products * n * head / flops
      by_logits = by_logit * logits / bandwidth
      by_head = groups * by_entry * head / bandwidth
      in_memory = max(matmuls, by_logits + by_head)
      # [N, V] does not fit into any cache; a tile may.
      cached = in_memory if name == 'unfused' else max(matmuls, by_head)
      times = (matmuls, by_logits, by_head, cached, in_memory)
      rows.append([
        f'{machine}, {name}', f'{size:,}', *(f'{1e3 * x:.1f}' for x in times)
      ])  # fmt: skip
  return _section(
    'Table 3: roofline, on paper, not measured',
    'Milliseconds of loss and gradients, N 16,384, D 4,096, V 128,256, bf16, '
    'for groups of n rows. Matmuls 6NDV (vocabulary 8NDV) / peak; logits '
    '18, 14, 22 NV bytes / bandwidth (unfused, tokens, vocabulary); head and '
    'its gradient 8 DV, ceil(N/n) 12 DV, ceil(N/n) 14 DV bytes / bandwidth. '
    'At least: the larger of matmuls and traffic, tiles of logits in cache or '
    'in memory. `_paper` in tables.py says where the bytes come from.',
    rows,
  )


# --- figure -------------------------------------------------------------------

DRAWN = (
  'tokens', 'vocabulary', 'vocabulary_low', 'tokamax', 'tokamax_public',
  'levanter', 'levanter_1024', 'torch_class', 'torch_token',
)  # fmt: skip


def figure(records: list[Record]) -> dict[str, str]:
  """Draws time and memory over unfused optax, against V: name -> text."""
  text = figures.svg(
    partial(_draw, records), 'Time and temporary memory, unfused optax = 1'
  )
  return {} if text is None else {'loss_speed.svg': text}


def _draw(records: list[Record]) -> Figure:
  cases = sorted(
    (
      r for r in records
      if r['case']['kind'] == 'speed' and not r['case']['masked']
    ),
    key=lambda r: r['case']['vocabulary'],
  )  # fmt: skip
  sizes = [r['case']['vocabulary'] for r in cases]
  picture, axes = marks.panels(2, 3.6)
  time, memory = axes
  for number, name in enumerate(DRAWN):
    at = [r for r in cases if name in r['contenders']]
    if not at:
      continue
    mark = marks.category(number)
    style: dict[str, Any] = {
      'color': mark.colour, 'ls': mark.dash, 'marker': mark.marker,
      'label': CONTENDERS[name].label,
    }  # fmt: skip
    low, middle, high = np.transpose([
      np.quantile(ratios(r['contenders'], name), (0.25, 0.5, 0.75)) for r in at
    ])
    x = np.array([r['case']['vocabulary'] for r in at])
    # Shifted, because bars at the same V would hide each other.
    beside = 2 ** (0.05 * (number - len(DRAWN) // 2))
    time.errorbar(x * beside, middle, [middle - low, high - middle], **style)
    memory.plot(x, [
      r['contenders'][name]['temporary_bytes']
      / r['contenders'][BASELINE]['temporary_bytes'] for r in at
    ], **style)  # fmt: skip
  marks.set_logarithmic(memory)
  time.set_xscale('log')
  for ax, title in ((time, 'time'), (memory, 'temporary memory')):
    ax.axhline(1, color='black', linewidth=0.8)
    ax.set_xticks(sizes, [f'{v // 1024}' for v in sizes])
    ax.minorticks_off()
    ax.set_xlabel('vocabulary / 1,024')
    ax.set_ylabel(f'{title}, unfused optax = 1\n(lower is better)')
  marks.add_legend(picture, axes)
  return picture
