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
from pdl_jax.losses.fused.gradient import (
  Gradients,
  NeedsGrad,
  StatCotangents,
)
from pdl_jax.losses.fused.plan import Plan, Tiles
from pdl_jax.losses.fused.tiles import Matrix, Scale, Tokens

# --- splitting ----------------------------------------------------------------


def _is_explicit(plan: Plan) -> bool:
  """Whether the types of arrays carry their sharding."""
  mesh = plan.config.mesh
  return mesh is not None and AxisType.Explicit in mesh.axis_types


def _specs(plan: Plan, matrix: Matrix) -> tuple[Matrix, Tokens]:
  batch, embed, vocab = plan.config.axes
  bias = None if matrix.bias_V is None else P(vocab)
  split = P(vocab, embed) if plan.config.transposed else P(embed, vocab)
  return Matrix(split, bias), Tokens(*(P(batch),) * 4)


def _split(
  plan: Plan, matrix: Matrix, tokens: Tokens
) -> tuple[Plan, Matrix, Tokens]:
  """Pads arrays to divide over the mesh; padding is masked or out of reach."""
  config = plan.config
  if config.mesh is None:
    return plan, matrix, tokens
  sizes, axes, dim = config.mesh.shape, config.axes, config.vocab_dim
  width = matrix.matrix.shape[1 - dim]
  if axes.embed is not None and width % sizes[axes.embed]:
    axes = axes._replace(embed=None)
  rows = -tokens.labels_N.size % math.prod(sizes[name] for name in axes.batch)
  types = -matrix.matrix.shape[dim] % sizes[axes.vocab] if axes.vocab else 0
  plan = dataclasses.replace(
    plan, config=dataclasses.replace(config, axes=axes),
    masked=plan.masked or rows > 0,
  )  # fmt: skip
  matrix = Matrix(
    _pad(matrix.matrix, dim, types), _pad(matrix.bias_V, 0, types)
  )
  tokens = Tokens(*(_pad(x, 0, rows) for x in tokens))
  if _is_explicit(plan):
    matrix, tokens = jax.tree.map(
      partial(_reshard, plan), (matrix, tokens), _specs(plan, matrix)
    )
  return plan, matrix, tokens


def _reshard(plan: Plan, x: Array, spec: P) -> Array:
  assert plan.config.mesh is not None
  return jax.sharding.reshard(x, NamedSharding(plan.config.mesh, spec))


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


def _cut_gradients(
  plan: Plan, gradients: Gradients, matrix: Matrix, tokens: Tokens
) -> Gradients:
  like = tokens.hidden_NxD, *matrix
  return Gradients(*(
    None if x is None else _cut(plan, x, y)
    for x, y in zip(gradients, like, strict=True)
  ))  # fmt: skip


def _on_devices(plan: Plan, f: Any, in_specs: Any, out_specs: Any) -> Any:
  mesh = plan.config.mesh
  if mesh is None:
    return f
  return jax.shard_map(
    f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )


# --- one device's share -------------------------------------------------------


def _whole_width(plan: Plan, matrix: Matrix, tokens: Tokens) -> Matrix:
  """Casts the head's slice to the states' dtype and gathers its full width."""
  rows = matrix.matrix.astype(tokens.hidden_NxD.dtype)
  embed = plan.config.axes.embed
  if embed is not None:
    rows = lax.all_gather(
      rows, embed, axis=1 - plan.config.vocab_dim, tiled=True
    )
  return Matrix(rows, matrix.bias_V)


def _combine(plan: Plan, shares: Gradients) -> Gradients:
  """Adds up the devices' shares; each device keeps the part that it holds."""
  hidden, matrix, bias = shares
  batch, embed, vocab = plan.config.axes
  if hidden is not None and vocab is not None:
    hidden = lax.psum(hidden, vocab)
  if matrix is not None and embed is not None:
    matrix = lax.psum_scatter(
      matrix, embed, scatter_dimension=1 - plan.config.vocab_dim, tiled=True
    )
  others = tuple(name for name in batch if name != embed)
  if matrix is not None and others:
    matrix = lax.psum(matrix, others)
  if bias is not None and batch:
    bias = lax.psum(bias, batch)
  return Gradients(hidden, matrix, bias)


def _gradient_specs(
  plan: Plan, needs_grad: NeedsGrad, matrix: Matrix
) -> Gradients:
  of_matrix, of_tokens = _specs(plan, matrix)
  specs: Any = of_tokens.hidden_NxD, *of_matrix
  return Gradients(*(
    spec if asked else None
    for spec, asked in zip(specs, needs_grad, strict=True)
  ))  # fmt: skip


def _sums_and_gradients(
  plan: Plan, needs_grad: NeedsGrad, matrix: Matrix, tokens: Tokens,
  parameters: Any,
) -> tuple[tuple[Array, Array, Array], Gradients]:  # fmt: skip
  plan, columns, rows = _split(plan, matrix, tokens)
  batch = plan.config.axes.batch

  def share(matrix: Matrix, tokens: Tokens, parameters: Any) -> tuple:
    matrix = _whole_width(plan, matrix, tokens)
    tiles = _tiles(plan, matrix, tokens, keep=any(needs_grad))
    sums, shares = kernel.by_tokens(
      tiles, needs_grad, matrix, tokens, parameters
    )
    return lax.psum(sums, batch) if batch else sums, _combine(plan, shares)

  shared = _on_devices(
    plan, share, (*_specs(plan, columns), P()),
    ((P(), P(), P()), _gradient_specs(plan, needs_grad, columns)),
  )  # fmt: skip
  sums, gradients = shared(columns, rows, parameters)
  return sums, _cut_gradients(plan, gradients, matrix, tokens)


def _tiles(plan: Plan, matrix: Matrix, tokens: Tokens, *, keep: bool) -> Tiles:
  width = matrix.matrix.shape[plan.config.vocab_dim]
  return plan.tiles(tokens.labels_N.size, width, keep=keep)


def _stats_and_scale(
  plan: Plan, matrix: Matrix, tokens: Tokens
) -> tuple[TokenStats, Scale]:
  plan, columns, rows = _split(plan, matrix, tokens)

  def share(matrix: Matrix, tokens: Tokens) -> tuple[TokenStats, Scale]:
    matrix = _whole_width(plan, matrix, tokens)
    tiles = _tiles(plan, matrix, tokens, keep=False)
    return kernel.stats_by_vocabulary(tiles, matrix, tokens)

  shared = _on_devices(
    plan, share, _specs(plan, columns), P(plan.config.axes.batch)
  )
  found = shared(columns, rows)
  return jax.tree.map(lambda x: _cut(plan, x, tokens.labels_N), found)


def _gradient_of_stats(
  plan: Plan, needs_grad: NeedsGrad, matrix: Matrix, tokens: Tokens,
  scale: Scale, stat_cotangents: StatCotangents,
) -> Gradients:  # fmt: skip
  plan, columns, rows = _split(plan, matrix, tokens)
  missing = rows.labels_N.size - tokens.labels_N.size
  by_token = [jnp.pad(x, (0, missing)) for x in (*scale, *stat_cotangents)]
  spec = P(plan.config.axes.batch)
  if _is_explicit(plan):
    by_token = [_reshard(plan, x, spec) for x in by_token]

  def share(matrix: Matrix, tokens: Tokens, *by_token: Array) -> Gradients:
    max_logit, sum_exp, *rest = by_token
    matrix = _whole_width(plan, matrix, tokens)
    tiles = _tiles(plan, matrix, tokens, keep=False)
    shares = kernel.gradient_by_vocabulary(
      tiles, needs_grad, matrix, tokens, Scale(max_logit, sum_exp),
      StatCotangents(*rest),
    )  # fmt: skip
    return _combine(plan, shares)

  shared = _on_devices(
    plan, share, (*_specs(plan, columns), *(spec,) * len(by_token)),
    _gradient_specs(plan, needs_grad, columns),
  )  # fmt: skip
  gradients = shared(columns, rows, *by_token)
  return _cut_gradients(plan, gradients, matrix, tokens)


# --- derivatives --------------------------------------------------------------


def _summed(
  plan: Plan, matrix: Matrix, tokens: Tokens, parameters: Any
) -> tuple[Array, Array, Array]:
  """Returns (sum loss, sum weight, sum nll) over tokens that count, fp32.

  The first is differentiable in hidden states, matrix and bias; its gradient
  is computed with it.
  """
  nothing = NeedsGrad(hidden=False, matrix=False, bias=False)
  return _sums_and_gradients(plan, nothing, matrix, tokens, parameters)[0]


summed = jax.custom_vjp(_summed, nondiff_argnums=(0,))


def _summed_forward(
  plan: Plan, matrix: Any, tokens: Any, parameters: Any
) -> tuple:
  needs_grad = _needs_grad(matrix, tokens)
  matrix, tokens, parameters = _values((matrix, tokens, parameters))
  sums, gradients = _sums_and_gradients(
    plan, needs_grad, matrix, tokens, parameters
  )
  nothing = jax.tree.map(lambda _: None, parameters)
  return sums, (gradients, _dtypes(matrix, tokens), nothing)


def _summed_backward(_: Plan, residuals: tuple, cotangents: tuple) -> tuple:
  gradients, like, nothing = residuals
  d_num = cotangents[0]
  scaled = Gradients(None, None, None)
  if not isinstance(d_num, SymbolicZero):
    scaled = jax.tree.map(lambda x: d_num * x, gradients)
  return *_cotangents(scaled, like), nothing


summed.defvjp(_summed_forward, _summed_backward, symbolic_zeros=True)


def _token_stats(plan: Plan, matrix: Matrix, tokens: Tokens) -> TokenStats:
  """Returns statistics of every token, [N]; differentiable like `summed`."""
  return _stats_and_scale(plan, matrix, tokens)[0]


token_stats = jax.custom_vjp(_token_stats, nondiff_argnums=(0,))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
  """A Python value among the residuals."""

  value: NeedsGrad


def _token_stats_forward(plan: Plan, matrix: Any, tokens: Any) -> tuple:
  needs_grad = _needs_grad(matrix, tokens)
  matrix, tokens = _values((matrix, tokens))
  stats, scale = _stats_and_scale(plan, matrix, tokens)
  return stats, (matrix, tokens, scale, _Static(needs_grad))


def _token_stats_backward(
  plan: Plan, residuals: tuple, cotangents: TokenStats
) -> tuple:
  matrix, tokens, scale, needs_grad = residuals
  stat_cotangents = StatCotangents(*(
    jnp.zeros_like(scale.max_logit) if isinstance(x, SymbolicZero) else x
    for x in (cotangents.log_z, cotangents.label, cotangents.average)
  ))  # fmt: skip
  gradients = _gradient_of_stats(
    plan, needs_grad.value, matrix, tokens, scale, stat_cotangents
  )
  return _cotangents(gradients, _dtypes(matrix, tokens))


token_stats.defvjp(
  _token_stats_forward, _token_stats_backward, symbolic_zeros=True
)


def _values(tree: Any) -> Any:
  """Unwraps the arrays that a forward rule receives."""
  return jax.tree.map(
    lambda x: x.value, tree, is_leaf=lambda x: hasattr(x, 'perturbed')
  )


def _needs_grad(matrix: Any, tokens: Any) -> NeedsGrad:
  """Reads which gradients are asked for: a frozen head costs nothing."""
  bias = matrix.bias_V
  return NeedsGrad(
    hidden=tokens.hidden_NxD.perturbed,
    matrix=matrix.matrix.perturbed,
    bias=bias is not None and bias.perturbed,
  )


def _dtypes(matrix: Matrix, tokens: Tokens) -> Gradients:
  """Returns empty arrays, which carry the dtypes to the backward pass."""
  like = Gradients(tokens.hidden_NxD, *matrix)
  return jax.tree.map(lambda x: jnp.zeros(0, x.dtype), like)


def _cotangents(gradients: Gradients, like: Gradients) -> tuple[Matrix, Tokens]:
  hidden, matrix, bias = (
    None if x is None or y is None else x.astype(y.dtype)
    for x, y in zip(gradients, like, strict=True)
  )
  return Matrix(matrix, bias), Tokens(hidden, None, None, None)
