"""The loss of a linear head over a mesh, and its derivatives.

Each device works on its share (`losses.kernel`) inside `jax.shard_map`; the
custom derivatives are outside, so that no collective is ever differentiated.
Over (data, fsdp, tensor): the head is gathered over fsdp once; the statistics
of a group of tokens take a pmax and a psum of a few numbers a token over
tensor; the gradient of the hidden states takes one psum over tensor, that of
the head one psum over data and one reduce-scatter over fsdp.
"""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pdl_jax.losses.core import TokenStats
from pdl_jax.losses.fused import kernel
from pdl_jax.losses.fused.kernel import Gradients, Slopes, StatsFunction, Wanted
from pdl_jax.losses.fused.tiles import Head, Scale, Tiles, Tokens, plan_tiles


class Axes(NamedTuple):
  """Mesh axes that split a loss; those that a mesh does not have are left out.

  Attributes:
    batch: split the tokens.
    embed: one of them, which splits the width of the head too (fully sharded
      parameters), or None.
    vocab: splits the vocabulary, or None.
  """

  batch: tuple[str, ...] = ('data', 'fsdp')
  embed: str | None = 'fsdp'
  vocab: str | None = 'tensor'


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is fixed when a loss is compiled; see `linear.linear_pdl_loss`.

  Attributes:
    terms: of the loss; None for statistics alone.
    wants: statistics besides log Z and the label's logit.
    vocab_size, softcap, temperature, memory_bytes: of the loss.
    masked: whether some tokens may not count.
    transposed: whether the head is [V, D].
    mesh: that splits the arrays; None: one device, or a caller who is inside
      `jax.shard_map` already.
    axes: that the mesh has.
  """

  terms: StatsFunction | None
  wants: tuple[str, ...]
  vocab_size: int
  softcap: float | None
  temperature: float
  memory_bytes: int
  masked: bool
  transposed: bool
  mesh: Mesh | AbstractMesh | None
  axes: Axes

  @property
  def vocab_dim(self) -> int:
    """The axis of the head that the vocabulary is on."""
    return 0 if self.transposed else 1

  @property
  def explicit(self) -> bool:
    """Whether arrays carry their sharding in their type."""
    return self.mesh is not None and AxisType.Explicit in self.mesh.axis_types

  def tiles(self, head: Head, tokens: Tokens, *, keep: bool) -> Tiles:
    """Of one device's share."""
    rows = tokens.labels_N.size
    width = head.matrix.shape[self.vocab_dim]
    size, block = plan_tiles(rows, width, self.memory_bytes, keep)
    return Tiles(
      tokens=size,
      block=block,
      width=width,
      vocab_size=self.vocab_size,
      softcap=self.softcap,
      temperature=self.temperature,
      masked=self.masked,
      transposed=self.transposed,
      wants=self.wants,
      vocab_axis=self.axes.vocab,
      all_axes=_used_names(self.mesh),
    )


class Inputs(NamedTuple):
  """Flat arrays of a loss, tokens by rows: or their specs, or None."""

  hidden_NxD: Any
  matrix: Any
  bias_V: Any
  labels_N: Any
  weight_N: Any
  where_N: Any


def usable_mesh(mesh: Mesh | None) -> Mesh | AbstractMesh | None:
  """The mesh to split over by hand, if any: default, the one that is set."""
  found = jax.sharding.get_abstract_mesh() if mesh is None else mesh
  if found.empty or found.size == 1 or AxisType.Manual in found.axis_types:
    return None
  return found


def _used_names(mesh: Mesh | AbstractMesh | None) -> tuple[str, ...]:
  sizes = {} if mesh is None else mesh.shape
  return tuple(name for name, size in sizes.items() if size > 1)


def present_axes(axes: Axes, mesh: Mesh | AbstractMesh | None) -> Axes:
  """The axes that a mesh has, and that split anything."""
  names = _used_names(mesh)
  batch = tuple(name for name in axes.batch if name in names)
  return Axes(
    batch,
    axes.embed if axes.embed in batch else None,
    axes.vocab if axes.vocab in names else None,
  )


# --- splitting ----------------------------------------------------------------


def _specs(plan: Plan, inputs: Inputs) -> Inputs:
  """How the inputs are split."""
  tokens, (_, embed, vocab) = P(plan.axes.batch), plan.axes
  bias = None if inputs.bias_V is None else P(vocab)
  matrix = P(vocab, embed) if plan.transposed else P(embed, vocab)
  return Inputs(tokens, matrix, bias, tokens, tokens, tokens)


def _split(plan: Plan, inputs: Inputs) -> tuple[Plan, Inputs]:
  """Arrays that divide over the mesh; the padding is masked or out of reach."""
  if plan.mesh is None:
    return plan, inputs
  sizes, axes = plan.mesh.shape, plan.axes
  columns = inputs.matrix.shape[plan.vocab_dim]
  width = inputs.matrix.shape[1 - plan.vocab_dim]
  if axes.embed is not None and width % sizes[axes.embed]:
    axes = axes._replace(embed=None)
  tokens = -inputs.labels_N.size % math.prod(sizes[a] for a in axes.batch)
  types = -columns % sizes[axes.vocab] if axes.vocab else 0
  plan = dataclasses.replace(plan, axes=axes, masked=plan.masked or tokens > 0)
  padded = Inputs(
    _pad(inputs.hidden_NxD, 0, tokens),
    _pad(inputs.matrix, plan.vocab_dim, types),
    _pad(inputs.bias_V, 0, types),
    *(_pad(x, 0, tokens) for x in inputs[3:]),
  )
  if plan.explicit:
    reshard = partial(_reshard, plan)
    padded = jax.tree.map(reshard, padded, _specs(plan, padded))
  return plan, padded


def _reshard(plan: Plan, x: Array, spec: P) -> Array:
  assert plan.mesh is not None
  return jax.sharding.reshard(x, NamedSharding(plan.mesh, spec))


def _pad(x: Array | None, axis: int, missing: int) -> Array | None:
  if x is None or not missing:
    return x
  return jnp.pad(x, [(0, missing * (i == axis)) for i in range(x.ndim)])


def _cut(plan: Plan, x: Array, like: Array) -> Array:
  """Undoes what `_split` did to an array."""
  if plan.explicit:
    if x.shape != like.shape:
      # What does not divide over the mesh cannot be split over it.
      x = _reshard(plan, x, P())[tuple(map(slice, like.shape))]
    return _reshard(plan, x, jax.typeof(like).sharding.spec)
  return x if x.shape == like.shape else x[tuple(map(slice, like.shape))]


def _cut_gradients(
  plan: Plan, gradients: Gradients, inputs: Inputs
) -> Gradients:
  return Gradients(*(
    None if x is None else _cut(plan, x, like)
    for x, like in zip(gradients, inputs[:3], strict=True)
  ))  # fmt: skip


def _on_devices(plan: Plan, f: Any, in_specs: Any, out_specs: Any) -> Any:
  if plan.mesh is None:
    return f
  return jax.shard_map(
    f, mesh=plan.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )


# --- one device's share -------------------------------------------------------


def _share(plan: Plan, local: Inputs) -> tuple[Head, Tokens]:
  """The slice of the head, its width whole again, and the tokens."""
  matrix = local.matrix.astype(local.hidden_NxD.dtype)
  if plan.axes.embed is not None:
    matrix = lax.all_gather(
      matrix, plan.axes.embed, axis=1 - plan.vocab_dim, tiled=True
    )
  return Head(matrix, local.bias_V), Tokens(local.hidden_NxD, *local[3:])


def _combine(plan: Plan, shares: Gradients) -> Gradients:
  """Adds up the devices' shares; each keeps the part that it holds."""
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


def _gradient_specs(plan: Plan, wanted: Wanted, inputs: Inputs) -> Any:
  specs = _specs(plan, inputs)
  return Gradients(*(
    spec if asked else None
    for spec, asked in zip(specs[:3], wanted, strict=True)
  ))  # fmt: skip


def _sums_and_gradients(
  plan: Plan, wanted: Wanted, inputs: Inputs, parameters: Any
) -> tuple[tuple[Array, Array, Array], Gradients]:
  plan, padded = _split(plan, inputs)
  terms = plan.terms
  assert terms is not None

  def share(local: Inputs, parameters: Any) -> tuple:
    head, tokens = _share(plan, local)
    tiles = plan.tiles(head, tokens, keep=any(wanted))
    sums, shares = kernel.by_tokens(
      tiles, wanted, terms, head, tokens, parameters
    )
    sums = lax.psum(sums, plan.axes.batch) if plan.axes.batch else sums
    return sums, _combine(plan, shares)

  shared = _on_devices(
    plan, share, (_specs(plan, padded), P()),
    ((P(), P(), P()), _gradient_specs(plan, wanted, padded)),
  )  # fmt: skip
  sums, gradients = shared(padded, parameters)
  return sums, _cut_gradients(plan, gradients, inputs)


def _stats_and_scale(plan: Plan, inputs: Inputs) -> tuple[TokenStats, Scale]:
  plan, padded = _split(plan, inputs)

  def share(local: Inputs) -> tuple[TokenStats, Scale]:
    head, tokens = _share(plan, local)
    tiles = plan.tiles(head, tokens, keep=False)
    return kernel.stats_by_vocabulary(tiles, head, tokens)

  shared = _on_devices(
    plan, share, (_specs(plan, padded),), P(plan.axes.batch)
  )
  found = shared(padded)
  return jax.tree.map(lambda x: _cut(plan, x, inputs.labels_N), found)


def _gradient_of_stats(
  plan: Plan, wanted: Wanted, inputs: Inputs, scale: Scale, slopes: Slopes
) -> Gradients:
  plan, padded = _split(plan, inputs)
  missing = padded.labels_N.size - inputs.labels_N.size
  by_token = [jnp.pad(x, (0, missing)) for x in (*scale, *slopes)]
  tokens_spec = P(plan.axes.batch)
  if plan.explicit:
    by_token = [_reshard(plan, x, tokens_spec) for x in by_token]

  def share(local: Inputs, *by_token: Array) -> Gradients:
    top, mass, *slopes = by_token
    head, tokens = _share(plan, local)
    tiles = plan.tiles(head, tokens, keep=False)
    shares = kernel.gradient_by_vocabulary(
      tiles, wanted, head, tokens, Scale(top, mass), Slopes(*slopes)
    )
    return _combine(plan, shares)

  shared = _on_devices(
    plan, share, (_specs(plan, padded), *(tokens_spec,) * len(by_token)),
    _gradient_specs(plan, wanted, padded),
  )  # fmt: skip
  return _cut_gradients(plan, shared(padded, *by_token), inputs)


# --- derivatives --------------------------------------------------------------


def _summed(
  plan: Plan, inputs: Inputs, parameters: Any
) -> tuple[Array, Array, Array]:
  """(sum loss, sum weight, sum nll) over the tokens that count, fp32.

  The first is differentiable in hidden, matrix and bias: its gradient is made
  together with it.
  """
  nothing = Wanted(hidden=False, matrix=False, bias=False)
  return _sums_and_gradients(plan, nothing, inputs, parameters)[0]


summed = jax.custom_vjp(_summed, nondiff_argnums=(0,))


def _summed_forward(plan: Plan, inputs: Any, parameters: Any) -> tuple:
  wanted = _wanted(inputs)
  inputs, parameters = _values((inputs, parameters))
  sums, gradients = _sums_and_gradients(plan, wanted, inputs, parameters)
  return sums, (gradients, _dtypes(inputs), jax.tree.map(_nothing, parameters))


def _summed_backward(_: Plan, residuals: tuple, cotangents: tuple) -> tuple:
  gradients, like, nothing = residuals
  d_num = cotangents[0]
  scaled = Gradients(None, None, None)
  if not isinstance(d_num, SymbolicZero):
    scaled = jax.tree.map(lambda x: d_num * x, gradients)
  return _cotangent(scaled, like), nothing


summed.defvjp(_summed_forward, _summed_backward, symbolic_zeros=True)


def _token_stats(plan: Plan, inputs: Inputs) -> TokenStats:
  """Of every token, [N]; differentiable in hidden, matrix and bias."""
  return _stats_and_scale(plan, inputs)[0]


token_stats = jax.custom_vjp(_token_stats, nondiff_argnums=(0,))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
  """A Python value among the residuals."""

  value: Wanted


def _token_stats_forward(plan: Plan, inputs: Any) -> tuple:
  wanted = _wanted(inputs)
  inputs = _values(inputs)
  stats, scale = _stats_and_scale(plan, inputs)
  return stats, (inputs, scale, _Static(wanted))


def _token_stats_backward(
  plan: Plan, residuals: tuple, cotangents: TokenStats
) -> tuple:
  inputs, scale, wanted = residuals
  slopes = Slopes(*(
    jnp.zeros_like(scale.top) if isinstance(x, SymbolicZero) else x
    for x in (cotangents.log_z, cotangents.label, cotangents.average)
  ))  # fmt: skip
  gradients = _gradient_of_stats(plan, wanted.value, inputs, scale, slopes)
  return (_cotangent(gradients, _dtypes(inputs)),)


token_stats.defvjp(
  _token_stats_forward, _token_stats_backward, symbolic_zeros=True
)


def _values(tree: Any) -> Any:
  """The arrays of what a forward rule is given."""
  return jax.tree.map(
    lambda x: x.value, tree, is_leaf=lambda x: hasattr(x, 'perturbed')
  )


def _wanted(inputs: Any) -> Wanted:
  """The inputs that a gradient is asked for: a frozen head costs nothing."""
  bias = inputs.bias_V
  return Wanted(
    hidden=inputs.hidden_NxD.perturbed,
    matrix=inputs.matrix.perturbed,
    bias=bias is not None and bias.perturbed,
  )


def _dtypes(inputs: Inputs) -> Inputs:
  """Empty arrays, which carry the types to the backward pass."""
  return jax.tree.map(lambda x: jnp.zeros(0, x.dtype), inputs)


def _nothing(_: Array) -> None:
  return None


def _cotangent(gradients: Gradients, like: Inputs) -> Inputs:
  hidden, matrix, bias = (
    None if x is None else x.astype(y.dtype)
    for x, y in zip(gradients, like[:3], strict=True)
  )
  return Inputs(hidden, matrix, bias, None, None, None)
