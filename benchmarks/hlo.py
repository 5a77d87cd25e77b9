"""Counts what a compiled program sends and multiplies, from its text.

The compiler's own account (`cost_analysis`) counts the body of a loop once.
Here everything counts as often as the loops around it turn. Programs are for
one of many devices, and so are the sizes.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute',
)  # fmt: skip
_BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2,
  's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8,
}  # fmt: skip
_INSTRUCTION = re.compile(r'(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(')
_CALLED = re.compile(
  r'(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)'
)


class Instruction(NamedTuple):
  """One line of a program, parsed."""

  name: str
  type: str
  kind: str
  operands: list[str]
  line: str


class Program(NamedTuple):
  """Computations by name, and how often each runs per call of the program."""

  computations: dict[str, dict[str, Instruction]]
  times: Counter[str]


class Collective(NamedTuple):
  """What one collective moves.

  Attributes:
    kind: one of COLLECTIVES.
    shape: of its result, as the program writes it.
    bytes: of the whole array on a device: the result of a gather, the input of
      a scatter.
    group: number of devices that take part.
    times: how often it runs.
  """

  kind: str
  shape: str
  bytes: int
  group: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes a device sends in a step, around a ring of its group.

    (g - 1) / g of the array, and twice that for an all-reduce, which is a
    scatter and a gather (Patarasuk and Yuan 2009, J. Parallel Distrib. Comput.
    69(2)).
    """
    share = (self.group - 1) / self.group
    factor = {'all-reduce': 2 * share, 'collective-permute': 1.0}
    return factor.get(self.kind, share) * self.bytes * self.times


def parse(text: str, turns: Sequence[int] | None = ()) -> Program:
  """Reads the text of a compiled HLO module.

  `turns` are those of the loops whose count the text does not give, in the
  order in which they run. With None, what is in them counts as nan.
  """
  computations, entry = _computations(text)
  times: Counter[str] = Counter()
  left, known = list(turns or ()), {}

  def turns_of(loop: Instruction) -> int:
    if loop.name not in known:
      count = _trip_count(loop, computations)
      if count is None and turns is None:
        count = math.nan
      if count is None and not left:
        raise ValueError(f'the turns of this loop are not known: {loop.line}')
      known[loop.name] = left.pop(0) if count is None else count
    return known[loop.name]

  def visit(name: str, count: int) -> None:
    times[name] += count
    for instruction in computations[name].values():
      inner = count
      if instruction.kind == 'while':
        inner *= turns_of(instruction)
      for callee in _CALLED.findall(instruction.line):
        visit(callee, inner)

  visit(entry, 1)
  if left:
    raise ValueError(f'{len(left)} of the turns belong to no loop')
  return Program(computations, times)


def collectives(program: Program, devices: int) -> list[Collective]:
  """Lists a program's collectives that run and send anything.

  `devices` is the group size where the program names no group.
  """
  found = []
  for name, body in program.computations.items():
    for x in body.values():
      kind = _kind(x, body)
      if kind in COLLECTIVES and program.times[name]:
        given = sum(type_bytes(body[operand].type) for operand in x.operands)
        out = type_bytes(x.type) - given * x.kind.endswith('-start')
        group = devices if kind == COLLECTIVES[-1] else _group(x.line, devices)
        shape = re.sub(r'\{[^}]*\}', '', x.type)
        made = Collective(
          kind, shape, max(given, out), group, program.times[name]
        )
        if group > 1:
          found.append(made)
  return found


def between_slices(program: Program) -> Counter[str]:
  """Counts the bytes that a TPU sends to other slices, by what is done there.

  The operation is SUM, MAX and so on of a reduction, '' of anything else. What
  crosses slices is handed to the host, which the program calls a send.
  """
  found: Counter[str] = Counter()
  for name, body in program.computations.items():
    for x in body.values():
      if x.kind == 'send' and '"xla_megascale_runtime"' in x.line:
        done = re.search(r'_megascale_reduce_operation="(\w+)"', x.line)
        size = type_bytes(body[x.operands[0]].type) * program.times[name]
        found[done[1] if done else ''] += size
  return found


def shapes(program: Program) -> set[tuple[int, ...]]:
  """Collects the shapes of all arrays that get memory of their own.

  The values inside a fusion get none.
  """
  fused = {
    name
    for body in program.computations.values()
    for x in body.values()
    if x.kind == 'fusion'
    for name in _CALLED.findall(x.line)
  }
  return {
    tuple(_numbers(sizes))
    for name, body in program.computations.items()
    if name not in fused
    for x in body.values()
    for sizes in re.findall(r'\w\[([\d,]*)\]', x.type)
  }


def dot_flops(program: Program) -> int:
  """Counts the floating-point operations of all matmuls, 2 MNK each."""
  total = 0
  for name, body in program.computations.items():
    for x in body.values():
      if x.kind == 'dot':
        left = _shape(body[x.operands[0]].type)
        axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', x.line)
        depth = [left[int(i)] for i in _numbers(axes[1])] if axes else []
        size = 2 * math.prod(depth) * math.prod(_shape(x.type))
        total += size * program.times[name]
  return total


def type_bytes(text: str) -> int:
  """Returns the bytes of an array or a tuple of arrays."""
  total = 0
  for dtype, sizes in re.findall(r'\b([a-z]\w*)\[([\d,]*)\]', text):
    if dtype not in _BYTES:
      raise ValueError(f'the size of {dtype} is not known: {text}')
    total += _BYTES[dtype] * math.prod(_numbers(sizes))
  return total


def _kind(x: Instruction, body: dict[str, Instruction]) -> str:
  """Returns the kind of an operation, also of a disguised reduce-scatter.

  The TPU's compiler writes a reduce-scatter as a fusion of an all-reduce and
  the slice that a device keeps.
  """
  root = list(body.values())[-1]
  if root.kind == 'dynamic-slice' and root.operands[0] == x.name:
    return x.kind.replace('all-reduce', 'reduce-scatter')
  return x.kind.removesuffix('-start')


def _computations(text: str) -> tuple[dict, str]:
  found: dict[str, dict[str, Instruction]] = {}
  name = entry = ''
  for line in text.splitlines():
    opened = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
    if opened:
      name = opened[2]
      found[name] = {}
      entry = name if opened[1] else entry
    elif match := _INSTRUCTION.match(line.strip()):
      inside = line.strip()[match.end() :].split(')')[0]
      operands = re.findall(r'%([\w.-]+)', inside)
      found[name][match[1]] = Instruction(*match.groups(), operands, line)
  return found, entry


def _trip_count(
  loop: Instruction, computations: dict[str, dict[str, Instruction]]
) -> int | None:
  """Returns the turns of a loop from 0 to a constant, or None."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line):
    return int(known[1])
  condition = re.search(r'condition=%?([\w.-]+)', loop.line)
  body = computations[condition[1]] if condition else {}
  root = list(body.values())[-1]
  if root.kind != 'compare' or 'direction=LT' not in root.line:
    return None
  bound = re.search(r'constant\((\d+)\)', body[root.operands[-1]].line)
  return int(bound[1]) if bound else None


def _group(line: str, devices: int) -> int:
  """Counts the devices that take part, in any of the three notations."""
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{('[^}]*)\}", line)
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[x]) for x in re.findall(r"'(\w+)'", mesh[2]))
  if iota := re.search(r'replica_groups=\[\d+,(\d+)\]<=', line):
    return int(iota[1])
  if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
    return len(_numbers(listed[1]))
  if 'replica_groups={}' in line:
    return devices
  raise ValueError(f'the devices of this collective are not known: {line}')


def _shape(text: str) -> tuple[int, ...]:
  (sizes,) = re.findall(r'\[([\d,]*)\]', text)
  return tuple(_numbers(sizes))


def _numbers(text: str) -> list[int]:
  return [int(x) for x in text.split(',') if x]
