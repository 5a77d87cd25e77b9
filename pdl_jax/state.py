"""What training changes: parameters, optimizer moments, counters."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdl_jax.errors import ConfigError
from pdl_jax.model import api
from pdl_jax.model.config import ModelConfig
from pdl_jax.optimizer import OptimizerConfig, partition, trainable_mask
from pdl_jax.sharding import put, shardings

Tree = Any


class TrainState(NamedTuple):
  """A pytree; every leaf is an array with a sharding.

  Attributes:
    step: steps taken, skipped ones included.
    trained: parameters that train; None in the place of others.
    frozen: the others.
    opt_state: of the trained parameters alone.
    skipped: steps whose loss or gradient was not finite.
    skipped_in_row: of these, since the last good step.
  """

  step: Array
  trained: Tree
  frozen: Tree
  opt_state: Tree
  skipped: Array
  skipped_in_row: Array


def check_layers(config: OptimizerConfig, model: ModelConfig) -> None:
  """Refuses to train the last n of n layers or fewer, before data is read."""
  if config.trainable == 'last_layers' and config.last_layers >= model.layers:
    raise ConfigError(
      f'optimizer.last_layers {config.last_layers} must be below the '
      f"model's {model.layers} layers; optimizer.trainable=all trains all"
    )


def create(
  params: Tree,
  model: ModelConfig,
  config: OptimizerConfig,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """A state at step 0, every array placed on the mesh.

  Args:
    params: of `model.api`, one group of layers, on the host or on devices.
    model: their shape.
    config: which of them train.
    optimizer: from `make_optimizer`.
    mesh: from `make_mesh`.

  Raises:
    ConfigError: if a parameter does not divide over the mesh, or if
      `last_layers` is not below the number of layers.
  """
  check_layers(config, model)
  if config.trainable == 'last_layers':
    params = api.split_blocks(params, config.last_layers)
  axes = api.logical_axes(model, groups=len(params['blocks']))
  placed = shardings(mesh, axes, params)
  params = jax.tree.map(put, params, placed)
  mask = trainable_mask(config, params)
  trained, frozen = partition(params, mask)
  trained_placed, _ = partition(placed, mask)
  replicated = NamedSharding(mesh, PartitionSpec())
  moments = optax.tree_utils.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    jax.eval_shape(optimizer.init, trained),
    trained_placed,
    transform_non_params=lambda _: replicated,
  )
  zero = lambda: put(np.zeros((), np.int32), replicated)  # noqa: E731
  return TrainState(
    step=zero(),
    trained=trained,
    frozen=frozen,
    opt_state=jax.jit(optimizer.init, out_shardings=moments)(trained),
    skipped=zero(),
    skipped_in_row=zero(),
  )
