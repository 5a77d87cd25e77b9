"""Loss of a linear head over a mesh, and its derivatives.

Each device computes its share (`fused.kernel`) inside `jax.shard_map`. The
custom derivatives are outside, so that no collective is differentiated. On a
(data, fsdp, tensor) mesh:

  head                   gathered once over fsdp
  statistics             a pmax and a psum over tensor, few numbers per token
  gradient of hidden     one psum over tensor
  gradient of the head   one psum over data, one reduce-scatter over fsdp
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pdl_jax.losses.core import TokenStats
from pdl_jax.losses.fused import kernel
from pdl_jax.losses.fused.plan import NOTHING, Gradients, Plan
from pdl_jax.losses.fused.tiles import Matrix, Scale, StatCotangents, Tokens

# --- splitting ----------------------------------------------------------------


def _is_explicit(plan: Plan) -> bool:
  """Whether the types of arrays carry their sharding."""
  return plan.mesh is not None and AxisType.Explicit in plan.mesh.axis_types


def _specs(plan: Plan, matrix: Matrix) -> Matrix:
  _, embed, vocab = plan.axes
  split = P(vocab, embed) if plan.transposed else P(embed, vocab)
  return Matrix(split, None if matrix.bias_V is None else P(vocab))


def _split(plan: Plan, matrix: Matrix, rows: tuple) -> tuple[Plan, Matrix, Any]:
  """Pads arrays to divide over the mesh; padding is masked or out of reach.

  `rows` are the tokens, and maybe other arrays with a row per token.
  """
  if plan.mesh is None:
    return plan, matrix, rows
  sizes, axes, dim = plan.mesh.shape, plan.axes, plan.vocab_dim
  width = matrix.matrix.shape[1 - dim]
  if axes.embed is not None and width % sizes[axes.embed]:
    axes = axes._replace(embed=None)
  missing = -len(rows[0].labels_N) % math.prod(sizes[x] for x in axes.batch)
  types = -matrix.matrix.shape[dim] % sizes[axes.vocab] if axes.vocab else 0
  plan = dataclasses.replace(
    plan, axes=axes, masked=plan.masked or missing > 0
  )
  matrix = Matrix(
    _pad(matrix.matrix, dim, types), _pad(matrix.bias_V, 0, types)
  )
  rows = jax.tree.map(lambda x: _pad(x, 0, missing), rows)
  if _is_explicit(plan):
    place = partial(_reshard, plan)
    matrix = jax.tree.map(place, matrix, _specs(plan, matrix))
    rows = jax.tree.map(lambda x: place(x, P(axes.batch)), rows)
  return plan, matrix, rows


def _reshard(plan: Plan, x: Array, spec: P) -> Array:
  assert plan.mesh is not None
  return jax.sharding.reshard(x, NamedSharding(plan.mesh, spec))


def _pad(x: Array | None, axis: int, missing: int) -> Array | None:
  if x is None or not missing:
    return x
  return jnp.pad(x, [(0, missing * (i == axis)) for i in range(x.ndim)])


def _cut(plan: Plan, x: Array, like: Array) -> Array:
  """Undoes the padding and resharding of `_split`."""
  whole = tuple(map(slice, like.shape))
  if _is_explicit(plan):
    if x.shape != like.shape:
      # Uneven sizes cannot be split over the mesh.
      x = _reshard(plan, x, P())[whole]
    return _reshard(plan, x, jax.typeof(like).sharding.spec)
  return x if x.shape == like.shape else x[whole]


def _on_devices(
  plan: Plan, share: Callable[..., Any], matrix: Matrix, rows: Any,
  parameters: Any = (), *, keep: bool = False, out_specs: Any,
) -> Any:  # fmt: skip
  """Calls share(plan, matrix, parameters, *rows) with each device's part.

  There the matrix has its full width and the dtype of the hidden states.
  """

  def local(matrix: Matrix, rows: Any, parameters: Any) -> Any:
    hidden_NxD = rows[0].hidden_NxD
    own = matrix.matrix.astype(hidden_NxD.dtype)
    if plan.axes.embed is not None:
      own = lax.all_gather(
        own, plan.axes.embed, axis=1 - plan.vocab_dim, tiled=True
      )
    on_device = plan.for_device(
      len(hidden_NxD), own.shape[plan.vocab_dim], keep=keep
    )
    return share(on_device, Matrix(own, matrix.bias_V), parameters, *rows)

  if plan.mesh is None:
    return local(matrix, rows, parameters)
  in_specs = _specs(plan, matrix), P(plan.axes.batch), P()
  return jax.shard_map(
    local, mesh=plan.mesh, in_specs=in_specs, out_specs=out_specs,
    check_vma=False,
  )(matrix, rows, parameters)  # fmt: skip


# --- gradients ----------------------------------------------------------------


def _by_input(matrix: Any, tokens: Any) -> Gradients:
  """Returns what has a gradient."""
  return Gradients(tokens.hidden_NxD, *matrix)


def _needed(plan: Plan, of_inputs: Gradients) -> Gradients:
  return Gradients(*(
    x if needed else None
    for x, needed in zip(of_inputs, plan.needs, strict=True)
  ))  # fmt: skip


def _combine(plan: Plan, shares: Gradients) -> Gradients:
  """Adds up the devices' shares; each device keeps the part that it holds."""
  hidden, matrix, bias = shares
  batch, embed, vocab = plan.axes
  if hidden is not None and vocab is not None:
    hidden = lax.psum(hidden, vocab)
  if matrix is not None and embed is not None:
    matrix = lax.psum_scatter(
      matrix, embed, scatter_dimension=1 - plan.vocab_dim, tiled=True
    )
  others = tuple(name for name in batch if name != embed)
  if matrix is not None and others:
    matrix = lax.psum(matrix, others)
  if bias is not None and batch:
    bias = lax.psum(bias, batch)
  return Gradients(hidden, matrix, bias)


def _gradient_specs(plan: Plan, matrix: Matrix) -> Gradients:
  return _needed(plan, Gradients(P(plan.axes.batch), *_specs(plan, matrix)))


def _cut_gradients(
  plan: Plan, gradients: Gradients, matrix: Matrix, tokens: Tokens
) -> Gradients:
  whole = _needed(plan, _by_input(matrix, tokens))
  return jax.tree.map(partial(_cut, plan), gradients, whole)


# --- losses and statistics ----------------------------------------------------


def _sums_and_gradients(
  plan: Plan, matrix: Matrix, tokens: Tokens, parameters: Any
) -> tuple[tuple[Array, Array, Array], Gradients]:
  plan, columns, rows = _split(plan, matrix, (tokens,))
  batch = plan.axes.batch

  def share(
    plan: Plan, matrix: Matrix, parameters: Any, tokens: Tokens
  ) -> tuple:
    sums, shares = kernel.by_tokens(plan, matrix, tokens, parameters)
    return lax.psum(sums, batch) if batch else sums, _combine(plan, shares)

  sums, gradients = _on_devices(
    plan, share, columns, rows, parameters, keep=any(plan.needs),
    out_specs=(P(), _gradient_specs(plan, matrix)),
  )  # fmt: skip
  return sums, _cut_gradients(plan, gradients, matrix, tokens)


def _stats_and_scale(
  plan: Plan, matrix: Matrix, tokens: Tokens
) -> tuple[TokenStats, Scale]:
  plan, columns, rows = _split(plan, matrix, (tokens,))

  def share(plan: Plan, matrix: Matrix, _: Any, tokens: Tokens) -> tuple:
    return kernel.stats_by_vocabulary(plan, matrix, tokens)

  found = _on_devices(plan, share, columns, rows, out_specs=P(plan.axes.batch))
  return jax.tree.map(lambda x: _cut(plan, x, tokens.labels_N), found)


def _gradient_of_stats(
  plan: Plan, matrix: Matrix, tokens: Tokens, scale: Scale,
  stat_cotangents: StatCotangents,
) -> Gradients:  # fmt: skip
  plan, columns, rows = _split(plan, matrix, (tokens, scale, stat_cotangents))

  def share(plan: Plan, matrix: Matrix, _: Any, *rows: Any) -> Gradients:
    return _combine(plan, kernel.gradient_by_vocabulary(plan, matrix, *rows))

  gradients = _on_devices(
    plan, share, columns, rows, out_specs=_gradient_specs(plan, matrix)
  )
  return _cut_gradients(plan, gradients, matrix, tokens)


# --- derivatives --------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(
  plan: Plan, matrix: Matrix, tokens: Tokens, parameters: Any
) -> tuple[Array, Array, Array]:
  """Returns (sum loss, sum weight, sum nll) over tokens that count, fp32.

  The first is differentiable in hidden states, matrix and bias; its gradient
  is computed with it.
  """
  return _sums_and_gradients(plan, matrix, tokens, parameters)[0]


def _summed_forward(
  plan: Plan, matrix: Any, tokens: Any, parameters: Any
) -> tuple:
  like = _dtypes(matrix, tokens)
  matrix, tokens, parameters = _values((matrix, tokens, parameters))
  sums, gradients = _sums_and_gradients(
    _with_needs(plan, like), matrix, tokens, parameters
  )
  nothing = jax.tree.map(lambda _: None, parameters)
  return sums, (gradients, like, nothing)


def _summed_backward(_: Plan, residuals: tuple, cotangents: tuple) -> tuple:
  gradients, like, nothing = residuals
  d_num = cotangents[0]
  if isinstance(d_num, SymbolicZero):
    return *_cotangents(NOTHING, like), nothing
  scaled = jax.tree.map(lambda x: d_num * x, gradients)
  return *_cotangents(scaled, like), nothing


summed.defvjp(_summed_forward, _summed_backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_stats(plan: Plan, matrix: Matrix, tokens: Tokens) -> TokenStats:
  """Returns statistics of every token, [N]; differentiable like `summed`."""
  return _stats_and_scale(plan, matrix, tokens)[0]


def _token_stats_forward(plan: Plan, matrix: Any, tokens: Any) -> tuple:
  like = _dtypes(matrix, tokens)
  matrix, tokens = _values((matrix, tokens))
  stats, scale = _stats_and_scale(plan, matrix, tokens)
  return stats, (matrix, tokens, scale, like)


def _token_stats_backward(
  plan: Plan, residuals: tuple, cotangents: TokenStats
) -> tuple:
  matrix, tokens, scale, like = residuals
  stat_cotangents = StatCotangents(*(
    jnp.zeros_like(scale.max_logit) if isinstance(x, SymbolicZero) else x
    for x in cotangents[:3]
  ))  # fmt: skip
  gradients = _gradient_of_stats(
    _with_needs(plan, like), matrix, tokens, scale, stat_cotangents
  )
  return _cotangents(gradients, like)


token_stats.defvjp(
  _token_stats_forward, _token_stats_backward, symbolic_zeros=True
)


def _values(tree: Any) -> Any:
  """Unwraps the arrays that a forward rule receives."""
  return jax.tree.map(
    lambda x: x.value, tree, is_leaf=lambda x: hasattr(x, 'perturbed')
  )


def _dtypes(matrix: Any, tokens: Any) -> Gradients:
  """Returns an empty array for each gradient that is asked for.

  A frozen head costs nothing. The arrays carry dtypes to the backward pass.
  """
  return Gradients(*(
    None if x is None or not x.perturbed else jnp.zeros(0, x.value.dtype)
    for x in _by_input(matrix, tokens)
  ))  # fmt: skip


def _with_needs(plan: Plan, like: Gradients) -> Plan:
  needs = Gradients(*(x is not None for x in like))
  return dataclasses.replace(plan, needs=needs)


def _cotangents(gradients: Gradients, like: Gradients) -> tuple[Matrix, Tokens]:
  hidden, *rest = (
    None if x is None else x.astype(y.dtype)
    for x, y in zip(gradients, like, strict=True)
  )
  return Matrix(*rest), Tokens(hidden, None, None, None)
