"""What a mesh sends: the collectives of the compiled loss, from its HLO.

  python -m benchmarks.loss_speed.collectives '{"kind": "collectives", ...}'

Compiled for eight made-up CPU devices from shapes alone; nothing is run.
Called by experiment.py.
"""

import json
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.loss_speed.measure import environment
from pdl_jax.losses.fused.api import linear_pdl_loss
from pdl_jax.mesh import make_mesh

KINDS = (
  'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'collective-broadcast',
)  # fmt: skip
_BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
  'f32': 4, 's64': 8, 'u64': 8, 'f64': 8,
}  # fmt: skip


def main() -> None:
  """Prints the record of the case on the command line, as one JSON line."""
  case = json.loads(sys.argv[1])
  found = collectives(compiled_text(case))
  logits = case['tokens'] * case['vocabulary'] * 4
  print(
    json.dumps({
      'case': case,
      'environment': environment(),
      'collectives': found,
      'logits_bytes': logits,
      'logits_bytes_of_device': logits // math.prod(case['mesh']),
    })
  )


def compiled_text(case: dict[str, Any]) -> str:
  """HLO of the loss with both gradients, laid out as the inputs are."""
  n, width, columns = case['tokens'], case['width'], case['vocabulary']
  mesh = make_mesh(case['mesh'])
  rows, head, whole = (
    NamedSharding(mesh, spec)
    for spec in (P(('data', 'fsdp')), P('fsdp', 'tensor'), P())
  )
  shape = lambda size, dtype, at: jax.ShapeDtypeStruct(  # noqa: E731
    size, dtype, sharding=at
  )

  def value(hidden: Any, head: Any, labels: Any, weights: Any) -> Any:
    return linear_pdl_loss(
      hidden, head, labels, weights, method=case['method'], mesh=mesh,
      ignore_index=None,
    )  # fmt: skip

  step = jax.jit(
    jax.value_and_grad(value, (0, 1)), out_shardings=(whole, (rows, head))
  )
  lowered = step.lower(
    shape((n, width), jnp.float32, rows),
    shape((width, columns), jnp.float32, head),
    shape((n,), jnp.int32, rows),
    shape((columns,), jnp.float32, whole),
  )
  return lowered.compile().as_text()


def collectives(text: str) -> list[dict[str, Any]]:
  """Every collective of a program: kind, shape, bytes on a device, times.

  `bytes` is what goes in or comes out, whichever is more; `group` how many
  devices take part: with one alone nothing is sent, and it is left out;
  `times` how often its loops turn, None where the compiler does not know.
  """
  bodies, entry = _computations(text)
  found: list[dict[str, Any]] = []

  def visit(name: str, times: int | None) -> None:
    shapes = dict(
      match.groups() for line in bodies[name]
      if (match := re.match(r'(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ', line))
    )  # fmt: skip
    for line in bodies[name]:
      kind = re.search(rf' ({"|".join(KINDS)})(?:-start)?\((.*?)\)', line)
      if kind:
        out = shapes[re.match(r'(?:ROOT )?%?([\w.-]+) =', line)[1]]
        given = [
          shapes[x] for x in re.findall(r'%([\w.-]+)', kind[2]) if x in shapes
        ]
        size = max(_bytes(out), sum(_bytes(x) for x in given))
        plain = re.sub(r'\{[\d,]*\}', '', out)
        group = _group(line)
        if group != 1:
          found.append({
            'kind': kind[1], 'shape': plain, 'bytes': size, 'group': group,
            'times': times,
          })  # fmt: skip
      turns: int | None = 1
      if re.search(r' while\(', line):
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        turns = int(known[1]) if known else None
      inside = None if None in (times, turns) else times * turns
      for callee in _called(line):
        if callee in bodies:
          visit(callee, inside)

  visit(entry, 1)
  return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation, and the name of the entry."""
  bodies: dict[str, list[str]] = {}
  name = entry = ''
  for line in text.splitlines():
    opened = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
    if opened:
      name = opened[2]
      bodies[name] = []
      entry = name if opened[1] else entry
    elif name and line.startswith('  '):
      bodies[name].append(line.strip())
  return bodies, entry


def _called(line: str) -> list[str]:
  """Computations that an instruction runs; not the test of a loop."""
  keys = 'body|to_apply|calls|true_computation|false_computation'
  names = re.findall(rf'(?:{keys})=%?([\w.-]+)', line)
  branches = re.search(r'branch_computations=\{(.*?)\}', line)
  return names + (re.findall(r'[\w.-]+', branches[1]) if branches else [])


def _group(line: str) -> int | None:
  """Devices that one collective is among; None: by pairs, or all of them."""
  if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return len(listed[1].split(','))
  if shaped := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
    return int(shaped[1])
  if named := re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    axes = [axis.strip().strip("'") for axis in named[2].split(',')]
    return math.prod(int(sizes[axis]) for axis in axes)
  if 'replica_groups={}' in line or 'source_target_pairs=' in line:
    return None
  raise ValueError(f'the devices of this collective are not known: {line}')


def _bytes(shape: str) -> int:
  return sum(
    _BYTES[dtype] * math.prod(int(x) for x in sizes.split(',') if x)
    for dtype, sizes in re.findall(r'(\w+)\[([\d,]*)\]', shape)
  )


if __name__ == '__main__':
  main()
