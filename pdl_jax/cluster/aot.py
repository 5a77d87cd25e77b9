"""Compiles programs for TPUs that are not here, from shapes alone.

The compiler of their runtime is the package libtpu, which needs no TPU. It says
what a program takes of each chip, and refuses one that does not fit. Nothing
runs, so it says nothing about numbers or speed.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding

from pdl_jax.cluster import memory
from pdl_jax.errors import ConfigError, HostError, reason
from pdl_jax.losses import Loss
from pdl_jax.mesh import partition_spec
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.train import state
from pdl_jax.train.optimizer import (
  OptimizerConfig,
  make_optimizer,
  make_schedule,
)
from pdl_jax.train.step import StepConfig, train_step

# Libtpu is to ask no metadata server which TPU this is, and to be silent about
# it; as no chip is taken, it may compile in several processes.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Taken(NamedTuple):
  """Bytes per chip: `arguments` stay, `temporaries` are the peak of the rest.

  `output` is what a program returns beyond the arguments that it overwrites.
  """

  arguments: int
  temporaries: int
  output: int

  @property
  def total(self) -> int:
    """The most bytes at once."""
    return self.arguments + self.temporaries + self.output


def devices(topology: str, slices: int = 1) -> list[Any]:
  """Describes the chips of `slices` slices of a topology, such as v6e:4x4.

  Raises:
    HostError: libtpu is not installed.
    ConfigError: it knows no such topology.
  """
  try:
    importlib.import_module('libtpu')
  except ModuleNotFoundError as error:
    raise HostError(
      f'--topology={topology} needs the package libtpu, the compiler of TPU '
      'programs, which is not installed: pip install -r requirements-aot.txt'
    ) from error
  os.environ |= _ENVIRONMENT
  try:
    found = topologies.get_topology_desc(
      topology, platform='tpu', num_slices=slices
    )
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(
      f'--topology={topology} is none that libtpu knows, such as v5e:4x4, '
      f'v6e:4x4 or v5p:2x2x4: {reason(error)}'
    ) from error
  return found.devices


def lower_step(
  model: ModelConfig,
  config: OptimizerConfig,
  mesh: Mesh,
  rows: int,
  length: int,
  targets: int,
  loss: Loss = memory.PDL,
) -> jax.stages.Lowered:
  """Lowers the train step; arguments: see `memory.estimate`."""
  steps = 1 + config.warmup_steps
  optimizer = make_optimizer(config, steps)
  step = StepConfig(
    model, optimizer, make_schedule(config, steps), loss,
    config.grad_accum_steps,
  )  # fmt: skip
  params = jax.eval_shape(partial(lm.init, model), jax.random.key(0))
  start = state.describe(params, model, config, optimizer, mesh)
  batch = place(memory.batch_shapes(rows, length, targets), mesh, 'batch', None)
  tables = place(memory.table_shapes(model.vocab_size), mesh, None)
  with jax.set_mesh(mesh):
    return jax.jit(partial(train_step, step), donate_argnums=0).lower(
      start, batch, tables
    )


def place(tree: Any, mesh: Mesh, *names: str | None) -> Any:
  """Gives all shapes of a tree the sharding of these logical axes."""
  at = NamedSharding(mesh, partition_spec(*names))
  return jax.tree.map(lambda x: x.update(sharding=at), tree)


def compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, Taken]:
  """Compiles a program.

  Raises:
    ConfigError: the compiler finds no room for it on a chip.
  """
  try:
    with _nothing_kept():
      made = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise ConfigError(f'no room on a chip: {reason(error)}') from error
  found: Any = made.memory_analysis()
  return made, Taken(
    found.argument_size_in_bytes,
    found.temp_size_in_bytes,
    found.output_size_in_bytes - found.alias_size_in_bytes,
  )


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
  """Turns off JAX's cache, whose programs no compiler without chips can read.

  JAX asks once whether there is one, until the cache is reset.
  """
  key = 'jax_enable_compilation_cache'
  before = jax.config.values[key]
  try:
    jax.config.update(key, False)
    compilation_cache.reset_cache()
    yield
  finally:
    jax.config.update(key, before)
    compilation_cache.reset_cache()
