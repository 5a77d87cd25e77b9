"""Estimates the most bytes that intermediate arrays of a jaxpr need at once.

This approximates a compiler's buffer assignment. Equations run in their order.
An elementwise result is fused into its user, so it exists only if it is used
more than once. Loops and updates of slices write in place.
"""

import math
from typing import Any

from jax.extend import core

_ELEMENTWISE = frozenset((
  'add', 'add_any', 'and', 'broadcast_in_dim', 'convert_element_type', 'copy',
  'cos', 'div', 'eq', 'exp', 'expand_dims', 'ge', 'gt', 'integer_pow', 'iota',
  'is_finite', 'le', 'log', 'logistic', 'lt', 'max', 'min', 'mul', 'name', 'ne',
  'neg', 'not', 'or', 'pow', 'reshape', 'rsqrt', 'select_n', 'sin', 'slice',
  'sqrt', 'square', 'squeeze', 'stop_gradient', 'sub', 'tanh', 'transpose',
))  # fmt: skip
_IN_PLACE = ('dynamic_update_slice', 'scatter', 'scatter-add', 'scatter_add')
_LOOPS = ('scan', 'while')


def peak_bytes(closed: Any, body: bool = False) -> int:
  """Returns the most bytes alive at once, besides arguments and constants.

  With `body`, the jaxpr is the body of a loop, whose carry may be overwritten.
  """
  jaxpr = getattr(closed, 'jaxpr', closed)
  roots, last = _lifetimes(jaxpr, body)
  ends: dict[int, list[Any]] = {}
  for root, index in last.items():
    ends.setdefault(index, []).append(root)
  given = {*jaxpr.invars, *jaxpr.constvars}
  alive = most = 0
  for index, equation in enumerate(jaxpr.eqns):
    dying = [x for x in ends.get(index, []) if x not in given]
    made = [v for v in equation.outvars if roots[v] == {v} and v in last]
    before, alive = alive, alive + sum(map(var_bytes, made))
    loop = equation.primitive.name in _LOOPS
    inside = max((peak_bytes(x, loop) for x in bodies(equation)), default=0)
    if loop:
      # The carry is overwritten; a part that is not read again is not kept.
      alive -= min(sum(map(var_bytes, dying)), alive - before)
      most = max(most, before, alive + inside)
      alive = before + sum(map(var_bytes, made))
    else:
      most = max(most, alive, before + inside)
    alive -= sum(map(var_bytes, dying))
  return most


def loop_peaks(closed: Any, turns: int) -> list[int]:
  """Lists `peak_bytes` of the body of every scan with that many turns."""
  jaxpr = getattr(closed, 'jaxpr', closed)
  found = []
  for equation in jaxpr.eqns:
    if equation.params.get('length') == turns:
      found.append(peak_bytes(equation.params['jaxpr'], body=True))
    else:
      found += [x for b in bodies(equation) for x in loop_peaks(b, turns)]
  return found


def bodies(equation: Any) -> list[Any]:
  """Lists the jaxprs inside an equation."""
  values = [
    x for value in equation.params.values()
    for x in (value if isinstance(value, tuple | list) else (value,))
  ]  # fmt: skip
  return [x for x in values if isinstance(x, core.ClosedJaxpr | core.Jaxpr)]


def var_bytes(var: Any) -> int:
  """Returns the bytes of a variable's array."""
  return math.prod(var.aval.shape) * getattr(var.aval.dtype, 'itemsize', 0)


def _lifetimes(
  jaxpr: Any, body: bool
) -> tuple[dict[Any, set], dict[Any, int]]:
  """Finds the arrays behind each variable, and which equation reads each last.

  A variable with an array of its own stands for itself alone.
  """
  end = len(jaxpr.eqns)
  users: dict[Any, int] = {}
  for equation in jaxpr.eqns:
    for v in _variables(equation.invars):
      users[v] = users.get(v, 0) + 1
  # An output has to exist.
  users.update(dict.fromkeys(_variables(jaxpr.outvars), 2))
  roots = {v: {v} for v in (*jaxpr.invars, *jaxpr.constvars)}
  last: dict[Any, int] = {}
  for index, equation in enumerate(jaxpr.eqns):
    read = _variables(equation.invars)
    carry = [v for v in read if body and v in jaxpr.invars and users[v] == 1]
    for root in {root for v in read for root in roots[v]}:
      last[root] = index
    for v in equation.outvars:
      if _is_elementwise(equation) and users.get(v, 0) == 1:
        roots[v] = {root for x in read for root in roots[x]}
      elif equation.primitive.name in _IN_PLACE and read:
        roots[v] = roots[read[0]]
      elif equation.primitive.name in _LOOPS and (
        like := next((x for x in carry if x.aval == v.aval), None)
      ):
        roots[v] = roots[like]
        carry.remove(like)
      else:
        roots[v] = {v}
        last[v] = index
  for v in _variables(jaxpr.outvars):
    last.update(dict.fromkeys(roots[v], end))
  return roots, last


def _is_elementwise(equation: Any) -> bool:
  """Whether it, or all it calls, is elementwise, as in `jax.nn.silu`."""
  inside = bodies(equation)
  if inside and equation.primitive.name not in _LOOPS:
    return all(
      _is_elementwise(x)
      for body in inside
      for x in getattr(body, 'jaxpr', body).eqns
    )
  return equation.primitive.name in _ELEMENTWISE


def _variables(atoms: Any) -> list[Any]:
  return [x for x in atoms if not isinstance(x, core.Literal)]
