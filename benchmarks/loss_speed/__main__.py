"""How fast is the loss of a linear head, in how much memory, and how exact?

  python -m benchmarks.loss_speed
"""

import importlib.util
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Record
from benchmarks.loss_speed import measures, tables
from benchmarks.loss_speed.contenders import (
  BASELINE,
  CONTENDERS,
  MAIN,
  RIVALS,
)

# Idle OpenMP workers of torch would spin while JAX is timed. A cached program
# would not show what compiling takes.
ALONE = {
  'OMP_WAIT_POLICY': 'PASSIVE', 'JAX_ENABLE_COMPILATION_CACHE': 'false'
}  # fmt: skip
# (data, fsdp, tensor).
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8))
EIGHT = {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu', 'NPROC': '16'}


def measure(options: harness.Options) -> list[Record]:
  """Measures each case."""
  missing = {
    contender.package for contender in CONTENDERS.values()
    if importlib.util.find_spec(contender.package) is None
  }  # fmt: skip
  if missing and not options.tiny:
    raise SystemExit(
      f'not installed: {", ".join(sorted(missing))}; see '
      'benchmarks/loss_speed/README.md'
    )
  names = [n for n, each in CONTENDERS.items() if each.package not in missing]
  cases = [
    *_speed_cases(options.tiny, names), *_mesh_cases(options.tiny),
    *_error_cases(options.tiny, names),
  ]  # fmt: skip
  return harness.by_case(options, cases, partial(_alone, options.place))


def _alone(place: Path, case: Record) -> Record:
  if case.get('masked'):
    who = _maskable(harness.read(place), case)
    case = case | {'contenders': who}
  env = EIGHT if case['kind'] == 'collectives' else ALONE
  return harness.alone(case, env=env)[0]


def _size(tiny: bool) -> Record:
  return {'tokens': 64 if tiny else 2048, 'width': 32 if tiny else 512}


def _speed_cases(tiny: bool, names: list[str]) -> Iterator[Record]:
  rounds = {8192: 10, 32768: 10, 131072: 5, 262144: 3}
  masked = [(32768, 0.5), (32768, 0.9)]
  if tiny:
    rounds, masked = {2048: 2}, [(2048, 0.5)]
  for columns, share in [*((v, 0.0) for v in rounds), *masked]:
    # A call takes over 10 s there, so the variants are left out.
    few = columns > 200_000
    yield {
      'kind': 'speed', **_size(tiny), 'vocabulary': columns, 'masked': share,
      'rounds': rounds[columns],
      'contenders': [n for n in names if n in MAIN] if few else names,
    }  # fmt: skip


def _maskable(records: list[Record], case: Record) -> list[str]:
  """Lists ours, the baseline, and the fastest rival without a mask."""
  unmasked = harness.case_key(case | {'masked': 0.0})
  found = next(
    r['contenders'] for r in records
    if harness.case_key(r['case']) == unmasked
  )  # fmt: skip
  rivals = sorted(
    set(RIVALS) & set(found),
    key=lambda name: statistics.median(tables.ratios(found, name)),
  )
  ours = [name for name, contender in CONTENDERS.items() if contender.ours]
  return [BASELINE, *ours, *rivals[:1]]


def _error_cases(tiny: bool, names: list[str]) -> Iterator[Record]:
  narrow = [BASELINE, 'tokens', 'vocabulary']
  for columns in (300,) if tiny else (8192, 50257):
    for logits in ('flat', 'peaked'):
      for dtype, who in (('float32', names), ('bfloat16', narrow)):
        yield {
          'kind': 'error', **_size(tiny), 'vocabulary': columns,
          'logits': logits, 'dtype': dtype, 'contenders': who,
        }  # fmt: skip


def _mesh_cases(tiny: bool) -> Iterator[Record]:
  for columns in (512,) if tiny else (8192, 32768, 131072):
    for mesh in MESHES[2:3] if tiny else MESHES:
      for method in ('tokens', 'vocabulary'):
        yield {
          'kind': 'collectives', **_size(tiny), 'vocabulary': columns,
          'mesh': list(mesh), 'method': method,
        }  # fmt: skip


def report_files(folder: Path) -> dict[str, str]:
  """Returns what follows from the records: name -> text."""
  records = harness.read(folder)
  return {'table.md': tables.table(records), **tables.figure(records)}


if __name__ == '__main__':
  harness.main(__file__, measure, None, measures.measure, report_files)
