"""What do a training step and a decoding step take of each chip of a TPU?

  make aot                                    # all that is missing, and tests
  python -m benchmarks.aot --only='"1B"'      # in an environment with libtpu
"""

import importlib.metadata
import time
from collections import Counter
from collections.abc import Iterator

import jax

from benchmarks import harness, hlo
from benchmarks.aot import programs, tables
from benchmarks.harness import Record
from benchmarks.scale_on_paper import step
from pdl_jax.cluster import aot, memory

# JAX asks for the second before pdl_jax can say so.
ALONE = {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'}


def cases() -> Iterator[Record]:
  """Yields a case per model, topology and number of slices."""
  for slices in (1, 2):
    for model in programs.MODELS:
      for topology in programs.CHIPS:
        yield {
          'program': 'train', 'model': model, 'topology': topology,
          'slices': slices,
        }  # fmt: skip
  for model in programs.MODELS:
    for topology in programs.CHIPS:
      yield {
        'program': 'decode', 'model': model, 'topology': topology, 'slices': 1
      }


def measure(options: harness.Options) -> list[Record]:
  """Compiles each case; a tiny benchmark only the smallest."""
  found = list(cases())
  return harness.by_case(
    options, found[-9:-8] if options.tiny else found,
    lambda case: harness.alone(case, env=ALONE)[0],
  )  # fmt: skip


def measure_case(case: Record) -> Record:
  """Compiles one program, counts, and checks what was found."""
  model = programs.MODELS[case['model']]
  devices = aot.devices(case['topology'], case['slices'])
  mesh = programs.mesh_of(case['model'], devices, case['slices'])
  train = case['program'] == 'train'
  began = time.monotonic()
  lowered = programs.lower(case['program'], model, mesh)
  compiled, taken = aot.compile(lowered)
  seconds = time.monotonic() - began
  estimated = None
  if train:
    rows, length = programs.rows(mesh), programs.LENGTH
    estimated = memory.estimate(
      model, step.OPTIMIZER, tuple(mesh.shape.values()), rows, length, length
    ).total
  text = compiled.as_text()
  program = hlo.parse(text, turns=None)
  sent = Counter()
  for found in hlo.collectives(program, mesh.size // case['slices']):
    sent[found.kind] += found.sent
  record = {
    'case': case,
    'mesh': list(mesh.shape.values()),
    'parameters': step.parameters(model),
    'vocab_size': model.vocab_size,
    'jax': jax.__version__,
    'libtpu': importlib.metadata.version('libtpu'),
    'compile_seconds': round(seconds, 1),
    **taken._asdict(),
    'estimated': estimated,
    'sent_bytes': dict(sent),
    'between_slices': dict(hlo.between_slices(program)),
    'kernels': text.count('"tpu_custom_call"'),
    'too_large': (
      programs.too_large(hlo.shapes(program), model) if train else []
    ),
  }
  programs.check(record)
  return record


def table(records: list[Record]) -> str:
  """Formats the records in the order of the cases."""
  order = list(cases())
  return tables.table(sorted(records, key=lambda r: order.index(r['case'])))


if __name__ == '__main__':
  harness.main(__file__, measure, table, measure_case)
