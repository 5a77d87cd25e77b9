"""A finished run: its settings, its folder, and what it ended with."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from pdl_jax import own_files
from pdl_jax.config import Settings
from pdl_jax.errors import CheckpointError, ConfigError
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.run_folder import CONFIG, RESULTS, RunFolder
from pdl_jax.storage import files
from pdl_jax.train import optimizer, state
from pdl_jax.train.checkpoint import Checkpointer
from pdl_jax.train.state import TrainState

Tree = Any
# Most runs that are named where a folder of runs is given for one.
_LISTED = 10


def open_run(option: str, workdir: Path) -> tuple[Settings, RunFolder]:
  """Reads the settings of a finished run, and opens its folder.

  Args:
    option: what named the run, for errors.

  Raises:
    ConfigError: there is no run, it has not finished, or another version of
      pdl_jax with other keys made it.
  """
  if not os.path.lexists(workdir / 'config.json'):
    inside = sorted(file.parent.name for file in workdir.glob('*/config.json'))
    told = f'; in it are the runs {", ".join(inside[:_LISTED])}' * bool(inside)
    more = f' and {len(inside) - _LISTED} more' * (len(inside) > _LISTED)
    raise ConfigError(f'{option}: there is no run in {workdir}{told}{more}')
  if not os.path.lexists(workdir / 'results.json'):
    raise ConfigError(
      f'{option}: the run in {workdir} has not finished; the command that '
      'began it continues it'
    )
  if os.path.lexists(workdir / 'env.json'):
    recorded = files.read_json(workdir / 'env.json', dict).get('own_files', {})
    own_files.load(recorded)
  kept = files.read_json(workdir / 'config.json', CONFIG)
  told = kept.pop('hash')
  try:
    settings = Settings.from_resolved(kept)
  except (ConfigError, KeyError, TypeError) as error:
    raise ConfigError(
      f'{option}: {workdir}/config.json has not the keys of this version of '
      f'pdl_jax, or was altered ({error}); use the commit in its env.json'
    ) from None
  if settings.hash != told:
    raise ConfigError(
      f'{option}: {workdir}/config.json was altered: its hash is {told}, its '
      f'values give {settings.hash}; {files.MEND}'
    )
  files.read_json(workdir / 'results.json', RESULTS)
  return settings, RunFolder(workdir, settings)


def open_checkpoints(
  settings: Settings, folder: RunFolder, elsewhere: Collection[str] = ()
) -> Checkpointer:
  """Opens a run's checkpoints, which keep the best step on validation."""
  return Checkpointer(
    folder.path, keep=settings.train.keep_checkpoints, best='validation_nats',
    elsewhere=elsewhere,
  )  # fmt: skip


def start_state(
  settings: Settings, model: ModelConfig, params: Tree, mesh: Mesh
) -> TrainState:
  """Places a run's model on the mesh, as it is before the first step."""
  made = optimizer.make_optimizer(settings.optimizer, settings.train.steps)
  return state.create(params, model, settings.optimizer, made, mesh)


def restore(
  settings: Settings, folder: RunFolder, start: TrainState
) -> TrainState:
  """Restores the last state of a finished run onto the mesh of `start`.

  What the checkpoint does not have is as in `start`.

  Raises:
    CheckpointError: the last step is not there, or is damaged.
  """
  with open_checkpoints(settings, folder) as checkpoints:
    restored = checkpoints.restore_latest(start, None)
  if restored is None:
    raise CheckpointError(
      f'{folder.path} has no checkpoint to start from; its stored predictions '
      'can be measured without one'
    )
  number, current, _ = restored
  if number != settings.train.steps:
    raise CheckpointError(
      f'the newest intact checkpoint of {folder.path} is of step {number}, not '
      f'of the last one, {settings.train.steps}; the model is not the one that '
      'the run reports'
    )
  return current


def params_of(model: ModelConfig, current: TrainState) -> Tree:
  """Returns all parameters: layers in one group, learned codes written down."""
  params = optimizer.merge(current.trained, current.frozen)
  return lm.fix_head(model, lm.join_blocks(params))
