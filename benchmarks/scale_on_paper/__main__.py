"""What does a 7B model take of each chip of a v5p-256, by mesh?

  python -m benchmarks.scale_on_paper                 # CPU
  python -m benchmarks.scale_on_paper --compiler=tpu  # libtpu
  python -m benchmarks.scale_on_paper --compiler=shapes
  python -m benchmarks.scale_on_paper --report

The real train step with Power-Law Decay Loss at V 128,256 is compiled for 128
devices that are not there, from shapes alone, and the program is read: memory,
bytes sent, floating-point operations. Once for CPU devices, which needs nothing
besides pdl_jax; and by the TPU's own compiler for the slice itself, which needs
requirements.txt of this folder, and no TPU. Nothing is run. `shapes` compiles
nothing: it is what pdl_jax.cluster.memory says. Each case is
compiled in a process of its own and leaves one line in records.jsonl; those
that have one are left out.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.scale_on_paper import report
from pdl_jax import process
from pdl_jax.storage import files

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
# (data, fsdp, tensor).
MESHES = ((1, 128, 1), (2, 64, 1), (4, 32, 1), (1, 32, 4), (8, 8, 2))
# Meshes on which the loss by all logits is compiled too.
DENSE = ((4, 32, 1), (1, 32, 4))
ALONE = {
  'JAX_PLATFORMS': 'cpu', 'NPROC': '16',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',
}  # fmt: skip
# No metadata server is asked which TPU this is.
AS_TPU = {'TPU_SKIP_MDS_QUERY': '1'}

Record = dict[str, Any]


def main() -> None:
  """Compiles what has no record, then writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--compiler', choices=('shapes', 'cpu', 'tpu'), default='cpu'
  )
  parser.add_argument('--report', action='store_true', help='compile nothing')
  args = parser.parse_args()
  if not args.report:
    run(args.compiler)
  text = report.table(read())
  (FOLDER / 'table.md').write_text(text, 'utf-8')
  print(text)


def cases(compiler: str) -> Iterator[dict[str, Any]]:
  """Each by its mesh, its loss and its compiler; 'shapes' compiles nothing."""
  for mesh in MESHES:
    if compiler == 'shapes':
      yield {'mesh': list(mesh), 'loss': 'linear', 'compiler': compiler}
      continue
    for loss in ('linear', 'none', *(('dense',) if mesh in DENSE else ())):
      yield {'mesh': list(mesh), 'loss': loss, 'compiler': compiler}


def run(compiler: str) -> None:
  """Compiles the cases that have no record, one process each."""
  for case in cases(compiler):
    if case in [record['case'] for record in read()]:
      continue
    print(f'== {json.dumps(case)}', flush=True)
    extra = AS_TPU if compiler == 'tpu' else {}
    done = subprocess.run(
      [
        sys.executable, '-m', 'benchmarks.scale_on_paper.measure',
        json.dumps(case),
      ],
      cwd=ROOT, env=os.environ | ALONE | extra, stdout=subprocess.PIPE,
      encoding='utf-8', check=True,
    )  # fmt: skip
    with (FOLDER / 'records.jsonl').open('a', encoding='utf-8') as file:
      file.write(done.stdout.splitlines()[-1] + '\n')


def read() -> list[Record]:
  """The compiled cases, in the order of their declaration."""
  path = FOLDER / 'records.jsonl'
  if not path.exists():
    return []
  lines = files.read_lines(path)
  order = [x for name in ('tpu', 'cpu', 'shapes') for x in cases(name)]
  return sorted(lines, key=lambda record: order.index(record['case']))


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  return {'table.md': report.table(read())}


if __name__ == '__main__':
  process.set_xla_flags()
  main()
