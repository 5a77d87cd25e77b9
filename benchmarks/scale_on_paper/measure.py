"""Compiles one case and prints its record, as one JSON line.

  python -m benchmarks.scale_on_paper.measure '{"mesh": [4, 32, 1], ...}'

Called by experiment.py, which sets the environment.
"""

import dataclasses
import json
import sys
import time
from collections import Counter
from typing import Any

import jax

from benchmarks.scale_on_paper import cases, hlo
from pdl_jax.cluster import memory


def main() -> None:
  """Of the case on the command line."""
  print(json.dumps(measure(json.loads(sys.argv[1]))))


def measure(case: dict[str, Any]) -> dict[str, Any]:
  """Memory, collectives and FLOPs of a chip."""
  if case['compiler'] == 'shapes':
    return {'case': case, 'memory': estimated(case['mesh'])}
  tpu = case['compiler'] == 'tpu'
  if not tpu:
    jax.config.update('jax_num_cpu_devices', cases.CHIPS)
  model, size = cases.MODEL, (cases.ROWS, cases.LENGTH)
  mesh = cases.make_mesh(case['mesh'], tpu)
  began = time.monotonic()
  compiled = cases.lower(mesh, case['loss'], model, *size).compile()
  seconds = time.monotonic() - began
  turns = []
  if case['loss'] == 'linear':
    turns = cases.loss_turns(dict(mesh.shape), model, *size)
  program = hlo.parse(compiled.as_text(), turns)
  sent, largest = Counter(), []
  for found in hlo.collectives(program, mesh.size):
    sent[found.kind] += found.sent
    largest.append({**found._asdict(), 'sent': found.sent})
  taken: Any = compiled.memory_analysis()
  flops = cases.model_flops(model, size[0] * size[1], size[1])
  return {
    'case': case,
    'model': {**cases.shape_of(model), 'parameters': cases.parameters(model)},
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
  """Bytes a chip by part, from shapes alone."""
  found = memory.estimate(
    cases.MODEL, cases.OPTIMIZER, mesh, cases.ROWS, cases.LENGTH, cases.LENGTH
  )
  sums = {'temporaries': found.temporaries, 'total': found.total}
  return {**dataclasses.asdict(found), **sums}


if __name__ == '__main__':
  main()
