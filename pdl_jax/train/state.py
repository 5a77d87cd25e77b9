"""What training changes: parameters, optimizer moments, counters."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
  use_abstract_mesh,
)

from pdl_jax.errors import ConfigError
from pdl_jax.mesh import put, shardings
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.lora import MATRIX
from pdl_jax.train.optimizer import OptimizerConfig, partition, trainable_mask

Tree = Any


class TrainState(NamedTuple):
  """A pytree; every leaf is an array with a sharding.

  Attributes:
    step: steps taken, skipped ones included.
    trained: parameters that train; None in the place of others.
    skipped: steps whose loss or gradient was not finite.
    skipped_in_row: those since the last good step.
  """

  step: Array
  trained: Tree
  frozen: Tree
  opt_state: Tree
  skipped: Array
  skipped_in_row: Array


def _grouped(config: OptimizerConfig, model: ModelConfig, params: Tree) -> Tree:
  """Parts the last layers if they train; refuses to train all as the last."""
  if config.trainable != 'last_layers':
    return params
  if config.last_layers >= model.layers:
    raise ConfigError(
      f'optimizer.last_layers {config.last_layers} must be below the '
      f"model's {model.layers} layers; optimizer.trainable=all trains all"
    )
  return lm.split_blocks(params, config.last_layers)


def create(
  params: Tree,
  model: ModelConfig,
  config: OptimizerConfig,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """Makes the state at step 0, with every array placed on the mesh.

  Frozen parameters have the model's `param_dtype`. Trained ones are in fp32:
  most of Adam's steps are below what bf16 resolves. `params` have one group of
  layers, on the host or on devices.
  """
  shapes = describe(params, model, config, optimizer, mesh)
  params = _grouped(config, model, params)
  at = jax.tree.map(lambda x: x.sharding, shapes)
  wanted = (shapes.trained, shapes.frozen)
  parts = partition(params, trainable_mask(config, params))
  parts = jax.tree.map(_cast, parts, wanted)
  trained, frozen = jax.tree.map(put, parts, (at.trained, at.frozen))
  moments = jax.jit(optimizer.init, out_shardings=at.opt_state)(trained)
  step, *skipped = (put(np.zeros((), np.int32), at.step) for _ in range(3))
  return TrainState(step, trained, frozen, moments, *skipped)


def describe(
  params: Tree,
  model: ModelConfig,
  config: OptimizerConfig,
  optimizer: optax.GradientTransformation,
  mesh: Mesh | AbstractMesh,
) -> TrainState:
  """Returns shapes and shardings of `create`; allocates nothing."""
  params = jax.eval_shape(partial(_grouped, config, model), params)
  axes = lm.logical_axes(model, groups=len(params['blocks']))
  params = jax.tree.map(_at, params, shardings(mesh, axes, params))
  mask = trainable_mask(config, params)
  dtypes = dtypes_at_rest(model, params, mask)
  params = jax.tree.map(lambda x, dtype: x.update(dtype=dtype), params, dtypes)
  trained, frozen = partition(params, mask)
  replicated = NamedSharding(mesh, PartitionSpec())
  moments = _moments(optimizer, trained, mesh)
  count: Any = jax.ShapeDtypeStruct((), np.int32, sharding=replicated)
  return TrainState(count, trained, frozen, moments, count, count)


def _moments(
  optimizer: optax.GradientTransformation, trained: Tree, mesh: Any
) -> Tree:
  """Returns what the optimizer keeps, split as the parameters are.

  JAX carries shardings through `init` on a mesh of explicit axes: a moment that
  is summed over an axis is split as the axes that are left.
  """
  explicit = AbstractMesh(
    mesh.axis_sizes, mesh.axis_names,
    axis_types=(AxisType.Explicit,) * len(mesh.axis_names),
  )  # fmt: skip

  def move(x: Any, to: Any) -> jax.ShapeDtypeStruct:
    spec = x.sharding.spec if x.sharding else PartitionSpec()
    return _at(x, NamedSharding(to, spec))

  with use_abstract_mesh(explicit):
    parameters = jax.tree.map(lambda x: move(x, explicit), trained)
    made = jax.eval_shape(optimizer.init, parameters)
  return jax.tree.map(lambda x: move(x, mesh), made)


def dtypes_at_rest(model: ModelConfig, params: Tree, mask: Tree) -> Tree:
  """Returns the dtype in which each parameter, or its shape, is kept."""
  frozen = jnp.dtype(model.param_dtype)

  def one(path: tuple, x: Any, trains: bool) -> np.dtype:
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x.dtype
    # Other parts of a head are small, and log frequencies must not be rounded.
    small = path[0].key == 'head' and path[-1].key != MATRIX
    return np.dtype(np.float32) if trains or small else frozen

  return jax.tree_util.tree_map_with_path(one, params, mask)


def _cast(x: Any, to: Any) -> Any:
  return x if x.dtype == to.dtype else x.astype(to.dtype)


def _at(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
