"""Estimates what a train step needs on each device, by part, from shapes alone.

The bytes of the state are exact (`state.describe`). The rest is an estimate
from the jaxpr of the step on one device's share of the arrays.
benchmarks/scale_on_paper compares it with compilers. No devices are needed.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.sharding import AbstractMesh, AxisType

from pdl_jax.cluster import liveness
from pdl_jax.errors import ConfigError
from pdl_jax.losses import LOSSES, Head, Loss, LossTables
from pdl_jax.mesh import MESH_AXES, check_batch, parts, shardings
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.train import state
from pdl_jax.train.optimizer import OptimizerConfig, make_optimizer, merge
from pdl_jax.train.state import TrainState
from pdl_jax.train.step import target_hidden

Tree = Any
PDL = Loss(LOSSES['power_law'], {})


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes per device.

  Attributes:
    parameters: exact.
    moments: of the optimizer, with the counters of the state; exact.
    inputs: a batch, and the tables of the loss; exact.
    gradients: of trained parameters; double if micro-batches are accumulated.
    activations: kept for the backward pass.
    loss: the further peak of head and loss, including the gathered head and its
      gradient.
    layer: the further peak of one layer, forward or backward.
  """

  parameters: int
  moments: int
  inputs: int
  gradients: int
  activations: int
  loss: int
  layer: int

  @property
  def arguments(self) -> int:
    """Bytes that stay between steps, and those of the batch; exact."""
    return self.parameters + self.moments + self.inputs

  @property
  def temporaries(self) -> int:
    """The peak of temporary bytes, at the loss or in the backward pass."""
    return self.activations + max(self.loss, self.gradients + self.layer)

  @property
  def total(self) -> int:
    """The most bytes at once."""
    return self.arguments + self.temporaries


def estimate(
  model: ModelConfig,
  config: OptimizerConfig,
  mesh_shape: Sequence[int],
  rows: int,
  length: int,
  targets: int,
  loss: Loss = PDL,
) -> Memory:
  """Estimates the memory of a train step.

  Args:
    mesh_shape: (data, fsdp, tensor), no -1.
    rows: of the global batch.
    length: tokens per row.
    targets: predicted positions per row.
  """
  mesh = abstract_mesh(mesh_shape)
  check_batch(mesh, 'train.batch_size', rows, config.grad_accum_steps)
  optimizer = make_optimizer(config, steps=1 + config.warmup_steps)
  shapes = jax.eval_shape(partial(lm.init, model), jax.random.key(0))
  whole = state.describe(shapes, model, config, optimizer, mesh)
  parameters = shard_bytes((whole.trained, whole.frozen))
  trained = shard_bytes(whole.trained)
  split = parts(mesh, 'batch')
  share = _share(model, mesh, whole)
  micro = rows // (split * config.grad_accum_steps)
  activations, casts = _kept(share, micro, length, targets)
  inputs = jax.tree.leaves(
    (
      batch_shapes(rows // split, length, targets),
      table_shapes(model.vocab_size),
    )
  )
  return Memory(
    parameters=parameters,
    moments=shard_bytes(whole) - parameters,
    inputs=sum(x.size * x.dtype.itemsize for x in inputs),
    gradients=trained * (1 if config.grad_accum_steps == 1 else 2),
    # Parameters cast to the dtype of a matmul are split like the originals.
    activations=activations + casts // parts(mesh, 'embed'),
    loss=_loss_peak(share, micro, targets, loss),
    layer=_layer_peak(share, micro, length, targets),
  )


def format_table(memory: Memory) -> str:
  """Formats a few lines for a terminal, in GB (1e9 bytes) per device."""
  rows = {
    **dataclasses.asdict(memory), 'arguments': memory.arguments,
    'temporaries (estimate)': memory.temporaries,
    'total (estimate)': memory.total,
  }  # fmt: skip
  return '\n'.join(
    f'{name:24}{value / 1e9:10.3f} GB' for name, value in rows.items()
  )


def abstract_mesh(shape: Sequence[int]) -> AbstractMesh:
  """Makes a (data, fsdp, tensor) mesh without concrete devices."""
  if min(shape) < 1:
    raise ConfigError(f'mesh {tuple(shape)} must have sizes of at least 1')
  auto = (AxisType.Auto,) * len(MESH_AXES)
  return AbstractMesh(tuple(shape), MESH_AXES, axis_types=auto)


def shard_bytes(tree: Tree) -> int:
  """Sums the bytes of a tree of shapes with shardings on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


class _Share(NamedTuple):
  """The model as one device computes it: widths whole, heads and F split."""

  model: ModelConfig
  trained: Tree
  frozen: Tree

  def hidden(self, trained: Tree, frozen: Tree, batch: Tree) -> Any:
    return target_hidden(self.model, merge(trained, frozen), batch)


def _share(model: ModelConfig, mesh: AbstractMesh, whole: TrainState) -> _Share:
  """Takes the share of a device; what fsdp splits is gathered for use."""
  alone = abstract_mesh((1, 1, mesh.shape['tensor']))
  parameters = merge(whole.trained, whole.frozen)
  axes = lm.logical_axes(model, groups=len(parameters['blocks']))
  placed = shardings(alone, axes, parameters)

  def one(x: jax.ShapeDtypeStruct | None, at: Any) -> Any:
    if x is None:
      return None
    return jax.ShapeDtypeStruct(at.shard_shape(x.shape), x.dtype)

  def local(tree: Tree) -> Tree:
    return jax.tree.map(one, tree, placed, is_leaf=lambda x: x is None)

  split = {
    axis: getattr(model, axis) // parts(mesh, axis)
    for axis in ('heads', 'kv_heads', 'mlp')
  }
  model = dataclasses.replace(model, **split)
  return _Share(model, local(whole.trained), local(whole.frozen))


def batch_shapes(rows: int, length: int, targets: int) -> dict[str, Any]:
  """Returns the shapes of a batch of training."""
  text = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  read = jax.ShapeDtypeStruct((rows, targets), jnp.int32)
  return {
    'tokens': text, 'segments': text, 'positions': text, 'labels': read,
    'reads': read, 'where': jax.ShapeDtypeStruct((rows, targets), bool),
  }  # fmt: skip


def table_shapes(vocab_size: int) -> LossTables:
  """Returns the shapes of the loss's tables."""
  weights_V: Any = jax.ShapeDtypeStruct((vocab_size,), jnp.float32)
  return LossTables(weights_V)


def _kept(
  share: _Share, rows: int, length: int, targets: int
) -> tuple[int, int]:
  """Counts bytes kept between the passes: those that grow with rows, the rest.

  The rest is parameters in the dtype of a matmul.
  """

  def forward(trained: Tree, frozen: Tree, batch: Tree) -> Any:
    return jax.vjp(lambda x: share.hidden(x, frozen, batch), trained)

  def count(rows: int) -> int:
    batch = batch_shapes(rows, length, targets)
    jaxpr = jax.make_jaxpr(forward)(share.trained, share.frozen, batch).jaxpr
    made = {v for equation in jaxpr.eqns for v in equation.outvars}
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    return sum(map(liveness.var_bytes, made & kept))

  one, two = count(rows), count(2 * rows)
  return two - one, 2 * one - two


def _layer_peak(share: _Share, rows: int, length: int, targets: int) -> int:
  """Finds the most bytes that one turn of a scan over layers has alive."""

  def both(trained: Tree, frozen: Tree, batch: Tree) -> Any:
    hidden, pull = jax.vjp(lambda x: share.hidden(x, frozen, batch), trained)
    return pull(hidden)

  batch = batch_shapes(rows, length, targets)
  jaxpr = jax.make_jaxpr(both)(share.trained, share.frozen, batch)
  groups = merge(share.trained, share.frozen)['blocks']
  layers = {jax.tree.leaves(group)[0].shape[0] for group in groups}
  return max(x for n in layers for x in liveness.loop_peaks(jaxpr, n))


def _loss_peak(share: _Share, rows: int, targets: int, loss: Loss) -> int:
  """Finds the most bytes that head and loss have alive, gradients included."""
  hidden = jax.ShapeDtypeStruct(
    (rows, targets, share.model.width), share.model.compute_dtype
  )
  # Intermediates of other parameters' gradients do not exist yet.
  name = 'head' if 'head' in share.trained else 'embed_VxD'
  own = {name: share.trained[name]}, {name: share.frozen[name]}

  def head(trained: Tree, frozen: Tree) -> Head:
    return lm.head(share.model, merge(trained, frozen))

  def value(
    trained: Tree, hidden: Any, frozen: Tree, batch: Tree, tables: LossTables
  ) -> Any:
    return loss.sums(
      head(trained, frozen), hidden, batch['labels'], tables, batch['where']
    )[0].num

  # The weights are read whole, but the share of the head has fewer columns.
  columns = jax.eval_shape(head, *own).vocab_size
  jaxpr = jax.make_jaxpr(jax.grad(value, (0, 1)))(
    own[0], hidden, own[1], batch_shapes(rows, targets, targets),
    table_shapes(columns),
  )  # fmt: skip
  return liveness.peak_bytes(jaxpr)
