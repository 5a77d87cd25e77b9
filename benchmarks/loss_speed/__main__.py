"""How fast is the loss of a linear head, in how much memory, and how exact?

  python -m benchmarks.loss_speed            # what is missing
  python -m benchmarks.loss_speed --fresh    # all of it
  python -m benchmarks.loss_speed --report   # from the records
  python -m benchmarks.loss_speed --smoke    # a tiny case of each

Each case runs in a process of its own and leaves one line in records.jsonl.
The peers need the packages of requirements.txt in this folder; `--ours` leaves
them out, and a report needs none of them.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.loss_speed import peers, report
from benchmarks.loss_speed.contenders import (
  BASELINE,
  CONTENDERS,
  MAIN,
  RIVALS,
)
from pdl_jax import process
from pdl_jax.storage import files

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
# Idle OpenMP workers of torch would spin while JAX is timed; a program from a
# cache would not show what compiling it takes.
ALONE = {
  'OMP_WAIT_POLICY': 'PASSIVE', 'JAX_ENABLE_COMPILATION_CACHE': 'false'
}  # fmt: skip
EIGHT = {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu', 'NPROC': '16'}

Case = dict[str, Any]
Record = dict[str, Any]


class Sizes(NamedTuple):
  """What is run.

  Attributes:
    tokens, width: N, D.
    rounds: V -> rounds, one case each.
    masked: (V, shares of masked tokens), one case each.
    errors: vocabularies of the comparison with fp64.
    meshes: (data, fsdp, tensor).
    mesh_vocabularies: V of the collectives.
  """

  tokens: int
  width: int
  rounds: dict[int, int]
  masked: tuple[int, tuple[float, ...]]
  errors: tuple[int, ...]
  meshes: tuple[tuple[int, int, int], ...]
  mesh_vocabularies: tuple[int, ...]


FULL = Sizes(
  tokens=2048,
  width=512,
  rounds={8192: 10, 32768: 10, 131072: 5, 262144: 3},
  masked=(32768, (0.5, 0.9)),
  errors=(8192, 50257),
  meshes=((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)),
  mesh_vocabularies=(8192, 32768, 131072),
)
SMOKE = Sizes(
  tokens=64,
  width=32,
  rounds={2048: 2},
  masked=(2048, (0.5,)),
  errors=(300,),
  meshes=((2, 2, 2),),
  mesh_vocabularies=(512,),
)


def main() -> None:
  """Runs what is missing, then writes the table and the figure."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  flag = lambda name, text: parser.add_argument(  # noqa: E731
    name, action='store_true', help=text
  )
  flag('--report', 'run nothing')
  flag('--fresh', 'forget the records')
  flag('--smoke', 'tiny sizes, into runs/loss_speed')
  flag('--ours', 'without the peers that need their own packages')
  parser.add_argument('--rounds', type=int, help='instead of those declared')
  parser.add_argument('--folder', type=Path, help='of records and tables')
  args = parser.parse_args()
  smoke = ROOT / 'runs' / 'loss_speed'
  folder = args.folder or (smoke if args.smoke else FOLDER)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'records.jsonl'
  if not args.report:
    if args.fresh:
      path.unlink(missing_ok=True)
    run(path, SMOKE if args.smoke else FULL, args.rounds, args.ours)
  records = read(path)
  text = table(records)
  (folder / 'table.md').write_text(text, 'utf-8')
  report.figure(records, folder / 'loss_speed')
  print(text)


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  return {'table.md': table(read(FOLDER / 'records.jsonl'))}


def read(path: Path) -> list[Record]:
  """The finished cases; none, where nothing was run."""
  if not path.exists():
    return []
  return files.read_lines(path)


def table(records: list[Record]) -> str:
  """All the tables, from the records alone."""
  return report.tables(records, paper())


# --- cases --------------------------------------------------------------------


def run(path: Path, sizes: Sizes, rounds: int | None, ours: bool) -> None:
  """Runs the cases that have no record, one process each."""
  missing = [x for x in peers.PACKAGES if importlib.util.find_spec(x) is None]
  if missing and not ours:
    raise SystemExit(
      f'not installed: {", ".join(missing)}; see benchmarks/loss_speed/'
      'README.md, or leave the peers out with --ours'
    )
  names = [
    name for name in CONTENDERS
    if not (ours and name in (*RIVALS, 'tokamax_public'))
  ]  # fmt: skip
  cases = (
    *_speed_cases(sizes, names, rounds), *_mesh_cases(sizes),
    *_error_cases(sizes, names),
  )  # fmt: skip
  done = {key(record['case']) for record in read(path)}
  for case in cases:
    if key(case) in done:
      continue
    print(f'== {key(case)}', flush=True)
    if case.get('masked'):
      case = case | {'contenders': _maskable(read(path), case, ours)}
    record = _child(case)
    with path.open('a', encoding='utf-8') as file:
      file.write(json.dumps(record) + '\n')


def key(case: Case) -> str:
  """Names a case; how often it is timed is not part of it."""
  kept = {k: v for k, v in case.items() if k not in ('rounds', 'contenders')}
  return json.dumps(kept)


def _speed_cases(
  sizes: Sizes, names: list[str], rounds: int | None
) -> Iterator[Case]:
  vocabulary, shares = sizes.masked
  points = [(v, 0.0) for v in sizes.rounds]
  for columns, share in points + [(vocabulary, share) for share in shares]:
    # A call takes 10 s and more there: the variants are left out.
    few = columns > 200_000
    yield {
      'kind': 'speed',
      'tokens': sizes.tokens,
      'width': sizes.width,
      'vocabulary': columns,
      'masked': share,
      'rounds': rounds or sizes.rounds[columns],
      'contenders': [n for n in names if n in MAIN] if few else names,
    }


def _maskable(records: list[Record], case: Case, ours: bool) -> list[str]:
  """Ours, the baseline, and the rival that was fastest with no mask."""
  names = [
    name for name, contender in CONTENDERS.items()
    if contender.ours and contender.weighted and 'frozen' not in name
  ]  # fmt: skip
  if ours:
    return [BASELINE, *names]
  unmasked = key(case | {'masked': 0.0})
  found = next(r for r in records if key(r['case']) == unmasked)['contenders']
  median = lambda name: statistics.median(  # noqa: E731
    report.ratios(found, name)
  )
  return [BASELINE, *names, min(RIVALS, key=median)]


def _error_cases(sizes: Sizes, names: list[str]) -> Iterator[Case]:
  narrow = [BASELINE, 'tokens', 'vocabulary']
  for columns in sizes.errors:
    for logits in ('flat', 'peaked'):
      for dtype, who in (('float32', names), ('bfloat16', narrow)):
        yield {
          'kind': 'error',
          'tokens': sizes.tokens,
          'width': sizes.width,
          'vocabulary': columns,
          'logits': logits,
          'dtype': dtype,
          'contenders': who,
        }


def _mesh_cases(sizes: Sizes) -> Iterator[Case]:
  for columns in sizes.mesh_vocabularies:
    for mesh in sizes.meshes:
      for method in ('tokens', 'vocabulary'):
        yield {
          'kind': 'collectives',
          'tokens': sizes.tokens,
          'width': sizes.width,
          'vocabulary': columns,
          'mesh': list(mesh),
          'method': method,
        }


def _child(case: Case) -> Record:
  on_mesh = case['kind'] == 'collectives'
  module = 'collectives' if on_mesh else 'measure'
  done = subprocess.run(
    [
      sys.executable, '-m', f'benchmarks.loss_speed.{module}',
      json.dumps(case),
    ],
    cwd=ROOT,
    env=os.environ | (EIGHT if on_mesh else ALONE),
    stdout=subprocess.PIPE,
    encoding='utf-8',
    check=True,
  )  # fmt: skip
  return json.loads(done.stdout.splitlines()[-1])


# --- on paper -----------------------------------------------------------------

# Dense bf16 FLOP/s and bytes/s, from the makers' data sheets.
MACHINES = {
  'H100 SXM': (989e12, 3.35e12),
  'TPU v5p': (459e12, 2.765e12),
}
PAPER_SIZES = (16384, 4096, 128256)


def paper() -> list[dict[str, Any]]:
  """A roofline: times of the matmuls and of the traffic, nothing measured.

  Inputs bf16, logits and the head's gradient fp32. Bytes by logit, where tiles
  go out to memory: unfused 18 (written 4, read for log Z 4, read for the
  softmax 4, its gradient written 2 and read by two matmuls 4); by tokens 14
  (powers written 4, read 4, gradient 2 + 4); by vocabulary 22 (8 in the
  forward pass, 14 in the backward). Bytes by entry of the head: unfused 8
  (read twice, gradient written); by tokens 12 for each group of n rows (read
  twice, gradient read and written); by vocabulary 14.
  """
  n, width, columns = PAPER_SIZES
  head, logits = width * columns, n * columns
  rows = []
  for machine, (flops, bandwidth) in MACHINES.items():
    for name, size, products, by_logit, by_entry in [
      ('unfused', n, 6, 18, 8),
      *(('tokens', size, 6, 14, 12) for size in (512, 1024, 2048, 4096)),
      *(('vocabulary', size, 8, 22, 14) for size in (512, 1024, 2048, 4096)),
    ]:
      groups = -(-n // size)
      times = {
        'matmuls': products * n * head / flops,
        'logits': by_logit * logits / bandwidth,
        'head': groups * by_entry * head / bandwidth,
      }
      in_memory = max(times['matmuls'], times['logits'] + times['head'])
      # [N, V] does not fit into any cache; a tile may.
      cached = max(times['matmuls'], times['head'])
      rows.append({
        'machine': machine,
        'method': name,
        'rows': size,
        **times,
        'cached': in_memory if name == 'unfused' else cached,
        'memory': in_memory,
      })
  return rows


if __name__ == '__main__':
  process.set_xla_flags()
  main()
