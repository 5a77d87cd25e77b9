"""Describes a run and the memory it needs, without an accelerator."""

import math

from pdl_jax.cluster import memory
from pdl_jax.config import Settings, flatten
from pdl_jax.data import sources
from pdl_jax.data.tasks import TASKS
from pdl_jax.errors import ConfigError
from pdl_jax.mesh import MESH_AXES
from pdl_jax.run import load_model, loss_tables

# Nearly twice the memory of the largest accelerators.
_MOST_BYTES = 5 * 10**11


def describe(settings: Settings, devices: int | None) -> str:
  """Formats the configuration and the memory of a device, as shell comments.

  `devices` is how many the run will have. None means as many as the mesh names,
  where -1 counts as 1.
  """
  shape = _mesh_shape(settings.mesh, devices)
  lengths = settings.data.lengths
  # Every token of a document except the first is predicted.
  whole = TASKS[settings.data.task].documents
  targets = lengths.sequence if whole else lengths.target
  needed = memory.estimate(
    load_model.shape(settings), settings.optimizer, shape,
    settings.train.batch_size, lengths.sequence, targets,
    loss_tables.make_loss(settings.loss),
  )  # fmt: skip
  if needed.arguments > _MOST_BYTES:
    raise ConfigError(
      f'each of {math.prod(shape)} devices would keep '
      f'{needed.arguments / 1e9:,.0f} GB between steps, and none has more than '
      f'{_MOST_BYTES / 1e9:,.0f} GB; a smaller model, or more devices '
      '(--devices=N, mesh.fsdp, mesh.tensor)'
    )
  flat = flatten(settings.resolved)
  mesh = ' x '.join(
    f'{axis} {size}' for axis, size in zip(MESH_AXES, shape, strict=True)
  )
  lines = [
    'configuration:',
    *(f'  {key} = {value!r}' for key, value in sorted(flat.items())),
    '',
    f'memory of each of {math.prod(shape)} devices, mesh {mesh}, '
    f'{settings.train.batch_size} rows of {lengths.sequence} tokens a step:',
    *(f'  {line}' for line in memory.format_table(needed).splitlines()),
    '',
    *_same_splits(settings),
  ]
  return '\n'.join(f'# {line}'.rstrip() for line in lines)


def _same_splits(settings: Settings) -> list[str]:
  used = ('train', 'validation', settings.evaluate.split)
  called = {split: settings.data.splits[split] for split in used}
  return sources.same_names(settings.data.name, called)


def _mesh_shape(
  asked: tuple[int, int, int], devices: int | None
) -> tuple[int, ...]:
  known = math.prod(size for size in asked if size != -1)
  devices = known if devices is None else devices
  sizes = [devices // known if size == -1 else size for size in asked]
  if math.prod(sizes) != devices or min(sizes) < 1:
    raise ConfigError(
      f'mesh {asked} does not make {devices} devices; --devices=N says how '
      'many a run will have'
    )
  return tuple(sizes)
