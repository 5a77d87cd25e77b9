"""One table of logical axis names to mesh axes, and the checks around it.

The mesh has three axes: 'data' (replicas, split batch), 'fsdp' (split batch
and parameters), 'tensor' (split heads, mlp, vocabulary and codes).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from pdl_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """Devices along each axis of the mesh, and the slices they are in."""

  # Devices along each axis of the mesh; -1 takes all that are left.
  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  # Slices of TPUs, which only a slower network joins; elsewhere each process is
  # one. mesh.data goes over them, fsdp and tensor stay inside a slice.
  slices: int = 1

  @property
  def shape(self) -> tuple[int, int, int]:
    """Sizes along the axes, in the order of MESH_AXES."""
    return self.data, self.fsdp, self.tensor

  def make(self, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh of these devices, by default of all that are there."""
    return make_mesh(self.shape, devices, self.slices)

  def sizes(self, count: int) -> tuple[int, ...]:
    """Returns the sizes along the axes of a mesh of `count` devices."""
    return _sizes(self.shape, count, self.slices)


MESH_AXES = ('data', 'fsdp', 'tensor')

RULES: dict[str, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'length': None,
  'layers': None,
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'vocab': 'tensor',
  # Rows of the codebooks of a VQ-Logits head.
  'codes': 'tensor',
  # The width of an activation is never split; that of a parameter, embed, is.
  'activation': None,
}


def make_mesh(
  shape: Sequence[int],
  devices: Sequence[Any] | None = None,
  slices: int = 1,
) -> Mesh:
  """Makes a (data, fsdp, tensor) mesh; one size may be -1, for what is left.

  Raises:
    ConfigError: the product of the shape is not the number of devices, or they
      are not in so many slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = _sizes(shape, len(devices), slices)
  auto = (AxisType.Auto,) * len(MESH_AXES)
  on_tpu = devices[0].platform == 'tpu'
  if slices > 1 or on_tpu:
    _check_slices(devices, slices, 'slice_index' if on_tpu else 'process_index')
  if slices == 1:
    return jax.make_mesh(sizes, MESH_AXES, axis_types=auto, devices=devices)
  data, *inside = sizes
  placed = mesh_utils.create_hybrid_device_mesh(
    (data // slices, *inside), (slices, 1, 1), devices,
    process_is_granule=not on_tpu,
  )  # fmt: skip
  return Mesh(placed, MESH_AXES, axis_types=auto)


def _sizes(shape: Sequence[int], count: int, slices: int) -> tuple[int, ...]:
  sizes = list(shape)
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and known > 0 and count % known == 0:
    sizes[sizes.index(-1)] = count // known
  if any(size < 1 for size in sizes) or math.prod(sizes) != count:
    named = ' x '.join(
      f'{axis} {size}' for axis, size in zip(MESH_AXES, shape, strict=True)
    )
    raise ConfigError(
      f'mesh {named} does not make the {count} devices; the product must be '
      'equal (one -1 stands for the rest)'
    )
  if slices < 1 or sizes[0] % slices:
    raise ConfigError(
      f'mesh.data {sizes[0]} is not a multiple of mesh.slices {slices}: data '
      'goes over the slices, fsdp and tensor stay inside one'
    )
  return tuple(sizes)


def _check_slices(devices: Sequence[Any], slices: int, by: str) -> None:
  # A slice described alone (cluster/aot.py) has no number.
  found = Counter(getattr(device, by, 0) for device in devices)
  if len(found) != slices or len(set(found.values())) > 1:
    kind = 'slices' if by == 'slice_index' else 'processes'
    raise ConfigError(
      f'mesh.slices {slices}, but the devices are in {len(found)} {kind}, of '
      f'{", ".join(map(str, found.values()))} devices; it must be their '
      'number, and all must be as large'
    )


def platform() -> str:
  """Returns what is compiled for, cpu, gpu or tpu: the mesh's, if it is set.

  A mesh may be of devices that this process does not have.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def partition_spec(*names: str | None) -> PartitionSpec:
  """Returns the PartitionSpec of logical axes; ConfigError if two collide."""
  axes = [None if name is None else RULES[name] for name in names]
  used: list[str] = []
  for axis in axes:
    used += [axis] if isinstance(axis, str) else list(axis or ())
  if len(used) != len(set(used)):
    raise ConfigError(f'axes {names} use one mesh axis twice: {axes}')
  return PartitionSpec(*axes)


def constrain(x: Array, *names: str | None) -> Array:
  """Pins an activation's sharding; does nothing where no mesh is set."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(*names))


def shardings(mesh: Mesh | AbstractMesh, names: Any, shapes: Any) -> Any:
  """Returns the NamedShardings of a tree of arrays.

  Args:
    names: tree with a PartitionSpec of logical axis names for each array.
    shapes: tree of arrays or shape structs of the same structure.

  Raises:
    ConfigError: an axis does not divide; names the parameter.
  """

  def one(
    path: tuple, leaf: jax.ShapeDtypeStruct, axes: PartitionSpec
  ) -> NamedSharding:
    partition = partition_spec(*axes)
    for size, name, axis in zip(leaf.shape, axes, partition, strict=True):
      if size % (count := parts(mesh, name)):
        raise ConfigError(
          f'{jax.tree_util.keystr(path, simple=True, separator="/")}: axis '
          f'{name} of {size} does not divide over {count} ({axis}) devices; '
          'choose another mesh'
        )
    return NamedSharding(mesh, partition)

  return jax.tree_util.tree_map_with_path(one, shapes, names)


def parts(mesh: Mesh | AbstractMesh, name: str | None) -> int:
  """Returns over how many devices a logical axis is split."""
  axis = None if name is None else RULES[name]
  axes = (axis,) if isinstance(axis, str) else axis or ()
  return math.prod(mesh.shape[each] for each in axes)


def check_batch(
  mesh: Mesh | AbstractMesh, key: str, batch: int, grad_accum_steps: int
) -> None:
  """Refuses a global batch that does not split over micro-batches and mesh."""
  count = parts(mesh, 'batch')
  if batch % (count * grad_accum_steps):
    raise ConfigError(
      f'{key} {batch} does not divide into {grad_accum_steps} micro-batches '
      f'over {count} (data x fsdp) devices; use a multiple of '
      f'{count * grad_accum_steps}'
    )


def batch_share(mesh: Mesh) -> tuple[int, int]:
  """Returns which share of a batch this process reads, and of how many.

  Processes that differ only along the tensor axis read the same share. A share
  that ends within a process is refused.
  """
  count = parts(mesh, 'batch')
  placed = NamedSharding(mesh, partition_spec('batch'))
  rows: dict[int, set[int]] = {}
  for device, (part,) in placed.devices_indices_map((count,)).items():
    first = part.indices(count)[0]
    rows.setdefault(device.process_index, set()).add(first)
  shares = sorted({tuple(sorted(own)) for own in rows.values()})
  if sum(map(len, shares)) != count or len(set(map(len, shares))) != 1:
    raise ConfigError(
      f'mesh {dict(mesh.shape)} splits batches across the devices of a '
      f'process and of others at once ({len(rows)} processes); make data x '
      'fsdp a multiple or a divisor of their number'
    )
  own = tuple(sorted(rows[jax.process_index()]))
  return shares.index(own), len(shares)


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, Array]:
  """Makes global arrays over the mesh from this process's share of each."""
  return {
    name: jax.make_array_from_process_local_data(_rows(mesh, rows), rows)
    for name, rows in batch.items()
  }


def put_whole_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, Array]:
  """Makes global arrays over the mesh from arrays that every process has."""
  return {
    name: put(rows, _rows(mesh, rows)) for name, rows in batch.items()
  }


def put(array: np.ndarray | Array, placed: NamedSharding) -> Array:
  """Places an array that every process has whole, or that is global already.

  With several processes nothing is sent or compared.
  """
  is_global = isinstance(array, Array) and not array.is_fully_addressable
  if jax.process_count() == 1 or is_global:
    return jax.device_put(array, placed)
  whole = np.asarray(array)
  return jax.make_array_from_callback(
    whole.shape, placed, lambda index: whole[index]
  )


def _rows(mesh: Mesh, rows: np.ndarray) -> NamedSharding:
  names = ('batch', *(None,) * (rows.ndim - 1))
  return NamedSharding(mesh, partition_spec(*names))
