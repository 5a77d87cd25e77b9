"""Describes a run and the memory it needs, without an accelerator."""

import math

from pdl_jax.cluster import aot, memory
from pdl_jax.config import Settings, flatten
from pdl_jax.data import sources
from pdl_jax.data.tasks import TASKS
from pdl_jax.errors import ConfigError
from pdl_jax.mesh import MESH_AXES, MeshSettings
from pdl_jax.run import load_model, loss_tables

# Nearly twice the memory of the largest accelerators.
_MOST_BYTES = 5 * 10**11


def describe(
  settings: Settings, devices: int | None, topology: str = ''
) -> str:
  """Formats the configuration and the memory of a device, as shell comments.

  `devices` is how many the run will have. None means as many as the mesh names,
  where -1 counts as few. A `topology` of TPUs has so many as it has chips, and
  the step is compiled for it.
  """
  mesh = settings.mesh
  chips = aot.devices(topology, mesh.slices) if topology else []
  shape = mesh.sizes(len(chips) or devices or _fewest(mesh))
  lengths = settings.data.lengths
  # Every token of a document except the first is predicted.
  whole = TASKS[settings.data.task].documents
  targets = lengths.sequence if whole else lengths.target
  model, loss = load_model.shape(settings), loss_tables.make_loss(settings.loss)
  size = settings.train.batch_size, lengths.sequence, targets
  needed = memory.estimate(model, settings.optimizer, shape, *size, loss)
  if needed.arguments > _MOST_BYTES:
    raise ConfigError(
      f'each of {math.prod(shape)} devices would keep '
      f'{needed.arguments / 1e9:,.0f} GB between steps, and none has more than '
      f'{_MOST_BYTES / 1e9:,.0f} GB; a smaller model, or more devices '
      '(--devices=N, mesh.fsdp, mesh.tensor)'
    )
  flat = flatten(settings.resolved)
  named = ' x '.join(
    f'{axis} {size}' for axis, size in zip(MESH_AXES, shape, strict=True)
  )
  if mesh.slices > 1:
    named += f' over {mesh.slices} slices'
  lines = [
    'configuration:',
    *(f'  {key} = {value!r}' for key, value in sorted(flat.items())),
    '',
    f'memory of each of {math.prod(shape)} devices, mesh {named}, '
    f'{settings.train.batch_size} rows of {lengths.sequence} tokens a step:',
    *(f'  {line}' for line in memory.format_table(needed).splitlines()),
    '',
    *_same_splits(settings),
  ]
  if chips:
    made = aot.lower_step(
      model, settings.optimizer, mesh.make(chips), *size, loss
    )
    lines += _compiled(topology, aot.compile(made)[1])
  return '\n'.join(f'# {line}'.rstrip() for line in lines)


def _compiled(topology: str, taken: aot.Taken) -> list[str]:
  rows = {**taken._asdict(), 'total': taken.total}
  return [
    f"by the TPU's own compiler for {topology}, which has run nothing:",
    *(f'  {name:24}{size / 1e9:10.3f} GB' for name, size in rows.items()),
    '',
  ]


def _same_splits(settings: Settings) -> list[str]:
  used = ('train', 'validation', settings.evaluate.split)
  called = {split: settings.data.splits[split] for split in used}
  return sources.same_names(settings.data.name, called)


def _fewest(mesh: MeshSettings) -> int:
  known = math.prod(size for size in mesh.shape if size != -1)
  return known * (mesh.slices if mesh.data == -1 else 1)
