"""Counts the multiplications that a program executes, from its jaxpr.

The compiler's own account counts the body of a loop once. Here every
dot_general counts as often as its loops turn. Turns that depend on data (which
labels count) are computed from the data.
"""

import math
from typing import Any

import jax
from jax.extend import core

# Larger results are not computed: no number of turns depends on them.
_MOST = 2**20
# Primitives that run their one body once, on their own arguments.
_CALLS = (
  'jit', 'pjit', 'closed_call', 'checkpoint', 'remat', 'custom_jvp_call',
  'custom_vjp_call', 'custom_vjp_call_jaxpr', 'custom_vmap_call',
  'remat_opt',
)  # fmt: skip


def matmul_flops(closed: core.ClosedJaxpr, known: list[Any]) -> int:
  """Counts the floating-point operations of all matmuls, 2 MNK each.

  `known` has the value of each flat argument; None where it must not matter.
  A loop whose turns depend on unknown values raises ValueError.
  """
  return _walk(closed, known)[0]


def _walk(closed: Any, values: list[Any]) -> tuple[int, list[Any]]:
  """Returns the operations of one jaxpr, and outputs where computable."""
  jaxpr = getattr(closed, 'jaxpr', closed)
  consts = getattr(closed, 'consts', ())
  env = dict(zip(jaxpr.constvars, consts, strict=True))
  env.update(zip(jaxpr.invars, values, strict=True))
  read = lambda v: v.val if isinstance(v, core.Literal) else env[v]  # noqa: E731
  total = 0
  for equation in jaxpr.eqns:
    flops, outputs = _equation(equation, [read(v) for v in equation.invars])
    total += flops
    env.update(zip(equation.outvars, outputs, strict=True))
  return total, [read(v) for v in jaxpr.outvars]


def _equation(equation: Any, values: list[Any]) -> tuple[int, list[Any]]:
  name, params = equation.primitive.name, equation.params
  nothing = [None] * len(equation.outvars)
  if name == 'dot_general':
    return _dot(equation), nothing
  if name == 'scan':
    body = params['jaxpr']
    count = _constants(equation, getattr(body, 'jaxpr', body))
    inside = values[:count] + [None] * (len(values) - count)
    return params['length'] * _walk(body, inside)[0], nothing
  if name == 'while':
    return _while(params, values), nothing
  if name == 'cond':
    index, *rest = values
    branches = params['branches']
    if index is not None:
      return _walk(branches[int(index)], rest)
    return max(_walk(branch, rest)[0] for branch in branches), nothing
  bodies = [
    p for p in params.values() if isinstance(p, core.ClosedJaxpr | core.Jaxpr)
  ]
  if name in _CALLS:
    (body,) = bodies
    return _walk(body, values)
  # Others may have a body too, such as the addition of a scatter.
  if any(_walk(body, [None] * _arguments(body))[0] for body in bodies):
    raise ValueError(f'{name} has matmuls in its body, which are not counted')
  small = all(math.prod(v.aval.shape) <= _MOST for v in equation.outvars)
  if any(value is None for value in values) or not small:
    return 0, nothing
  found = equation.primitive.bind(*values, **params)
  return 0, list(found) if equation.primitive.multiple_results else [found]


def _arguments(body: Any) -> int:
  return len(getattr(body, 'jaxpr', body).invars)


def _constants(equation: Any, body: Any) -> int:
  """Counts the arguments of a scan before its carry, by shapes.

  The parameters of a scan change with JAX, but shapes do not. Scanned and
  stacked arrays have one more axis outside; constants and carry go in with
  equal shapes, and the carry alone comes out so.
  """
  whole = lambda outside, inside: sum(  # noqa: E731
    a.aval.shape == b.aval.shape for a, b in zip(outside, inside, strict=True)
  )
  enter = whole(equation.invars, body.invars)
  return enter - whole(equation.outvars, body.outvars)


def _dot(equation: Any) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left, (out,) = equation.invars[0].aval.shape, equation.outvars
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * depth * math.prod(out.aval.shape)


def _while(params: dict[str, Any], values: list[Any]) -> int:
  """Counts a fori_loop: `lower < upper`, one more each turn."""
  first, second = params['cond_nconsts'], params['body_nconsts']
  carry = values[first + second :]
  body = values[first : first + second] + [None] * len(carry)
  flops = _walk(params['body_jaxpr'], body)[0]
  if not flops:
    return 0
  condition = params['cond_jaxpr'].jaxpr
  *_, test = condition.eqns
  given = dict(zip(condition.invars, [*values[:first], *carry], strict=True))
  bounds = [
    v.val if isinstance(v, core.Literal) else given.get(v) for v in test.invars
  ]
  if test.primitive.name != 'lt' or any(bound is None for bound in bounds):
    raise ValueError(f'the turns of this loop are not known: {condition}')
  lower, upper = bounds
  return max(0, int(upper) - int(lower)) * flops


def of_call(f: Any, arguments: Any) -> int:
  """Counts a call: integers, booleans and vectors are known, matrices not."""
  flat = jax.tree.leaves(arguments)
  known = [x if x.ndim < 2 else None for x in flat]
  return matmul_flops(jax.make_jaxpr(f)(arguments), known)
