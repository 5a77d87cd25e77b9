"""What does a 7B model take of each chip of a v5p-256, by mesh?

  python -m benchmarks.scale_on_paper                # all that is missing
  python -m benchmarks.scale_on_paper --only=cpu     # or tpu, or shapes
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks import harness, hlo
from benchmarks.harness import Record
from benchmarks.scale_on_paper import step, tables
from pdl_jax.cluster import memory

# (data, fsdp, tensor).
MESHES = ((1, 128, 1), (2, 64, 1), (4, 32, 1), (1, 32, 4), (8, 8, 2))
# Meshes on which the loss of all logits is compiled too.
DENSE = ((4, 32, 1), (1, 32, 4))
COMPILERS = ('tpu', 'cpu', 'shapes')
ALONE = {
  'JAX_PLATFORMS': 'cpu', 'NPROC': '16',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',
  # So no metadata server is asked which TPU this is.
  'TPU_SKIP_MDS_QUERY': '1',
}  # fmt: skip


def cases(compiler: str) -> Iterator[Record]:
  """Yields a case per mesh and loss; 'shapes' compiles nothing."""
  for mesh in MESHES:
    losses = ['linear']
    if compiler != 'shapes':
      losses += ['none', 'dense'] if mesh in DENSE else ['none']
    for loss in losses:
      yield {'mesh': list(mesh), 'loss': loss, 'compiler': compiler}


def measure(options: harness.Options) -> list[Record]:
  """Measures each case; a tiny benchmark only one that compiles nothing."""
  found = [x for name in COMPILERS for x in cases(name)]
  return harness.by_case(
    options, found[-1:] if options.tiny else found,
    lambda case: harness.alone(case, env=ALONE)[0],
  )  # fmt: skip


def measure_case(case: Record) -> Record:
  """Measures memory, collectives and FLOPs of a chip."""
  if case['compiler'] == 'shapes':
    return {'case': case, 'memory': estimated(case['mesh'])}
  tpu = case['compiler'] == 'tpu'
  if not tpu:
    jax.config.update('jax_num_cpu_devices', step.CHIPS)
  model, size = step.MODEL, (step.ROWS, step.LENGTH)
  mesh = step.make_mesh(case['mesh'], tpu)
  began = time.monotonic()
  compiled = step.lower(mesh, case['loss'], model, *size).compile()
  seconds = time.monotonic() - began
  turns = []
  if case['loss'] == 'linear':
    turns = step.loss_turns(dict(mesh.shape), model, *size)
  program = hlo.parse(compiled.as_text(), turns)
  sent, largest = Counter(), []
  for found in hlo.collectives(program, mesh.size):
    sent[found.kind] += found.sent
    largest.append({**found._asdict(), 'sent': found.sent})
  taken: Any = compiled.memory_analysis()
  flops = step.model_flops(model, size[0] * size[1], size[1])
  return {
    'case': case,
    'model': {**step.shape_of(model), 'parameters': step.parameters(model)},
    'rows': size[0],
    'length': size[1],
    'chips': mesh.size,
    'jax': jax.__version__,
    'compile_seconds': round(seconds, 1),
    'argument_bytes': taken.argument_size_in_bytes,
    'temporary_bytes': taken.temp_size_in_bytes,
    'loss_turns': turns,
    # The TPU compiler turns matmuls into convolutions, which are not counted.
    'flops': None if tpu else hlo.dot_flops(program),
    'paper_flops': {key: value // mesh.size for key, value in flops.items()},
    'sent_bytes': dict(sent),
    'largest': sorted(largest, key=lambda x: -x['sent'])[:12],
  }


def estimated(mesh: list[int]) -> dict[str, int]:
  """Estimates bytes per chip by part, from shapes alone."""
  found = memory.estimate(
    step.MODEL, step.OPTIMIZER, mesh, step.ROWS, step.LENGTH, step.LENGTH
  )
  sums = {'temporaries': found.temporaries, 'total': found.total}
  return {**dataclasses.asdict(found), **sums}


def table(records: list[Record]) -> str:
  """Formats the records in the order of the cases."""
  order = [x for name in COMPILERS for x in cases(name)]
  return tables.table(sorted(records, key=lambda r: order.index(r['case'])))


if __name__ == '__main__':
  harness.main(__file__, measure, table, measure_case)
