"""Reads a pretrained model from a folder that Hugging Face tools wrote."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdl_jax.errors import DataError
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained import layout, safetensors
from pdl_jax.pretrained.families import read_config
from pdl_jax.pretrained.fields import Fields
from pdl_jax.pretrained.layout import OUTPUT, Shape, Slot
from pdl_jax.pretrained.safetensors import listed

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
  """A parameter that is still in its files; a leaf of `HFModel.weights`."""

  slot: Slot
  views: tuple[np.ndarray, ...]  # the slot's tensors in our layout

  @property
  def shape(self) -> Shape:
    """Returns the shape of the parameter."""
    return self.slot.shape

  def read(
    self, index: Index | None = None, dtype: Any = np.float32
  ) -> np.ndarray:
    """Reads the indexed part, or all; only that is read from the disk."""
    index = index or (slice(None),) * len(self.shape)
    if not self.slot.is_stacked:
      return np.array(self.views[0][index], dtype)
    parts = [view[index[1:]] for view in self.views[index[0]]]
    made = np.empty((len(parts), *parts[0].shape), dtype)
    for i, part in enumerate(parts):
      made[i] = part
    return made


class HFModel:
  """An opened folder: config.json, and tensors that are read on demand.

  `weights` is a tree of `Weight`s. DataError names tensors that are missing,
  unknown, damaged or of a wrong shape: nothing is loaded in part.
  """

  def __init__(self, path: Path):
    self.path = path
    self._config = declared_config(path)
    self.weights = self._weights(safetensors.open_folder(path))

  def config(self) -> ModelConfig:
    """Returns the model that config.json declares."""
    return self._config

  def shapes(self) -> dict:
    """Returns the tree of parameters as structs, for `mesh.shardings`."""
    struct = lambda weight: jax.ShapeDtypeStruct(weight.shape, np.float32)  # noqa: E731
    return jax.tree.map(struct, self.weights, is_leaf=_is_weight)

  def params(self) -> dict:
    """Reads all parameters in fp32 to the host."""
    return jax.tree.map(Weight.read, self.weights, is_leaf=_is_weight)

  def placed(self, shardings: Any, dtypes: Any) -> dict:
    """Reads parameters to devices; a process reads only what it keeps."""

    def place(weight: Weight, sharding: Any, dtype: np.dtype) -> jax.Array:
      return jax.make_array_from_callback(
        weight.shape, sharding, partial(weight.read, dtype=dtype), dtype=dtype
      )

    made = jax.tree.map(
      place, self.weights, shardings, dtypes, is_leaf=_is_weight
    )
    mesh = jax.tree.leaves(shardings)[0].mesh
    self._check_finite(jax.tree.leaves(made), mesh)
    return made

  def _check_finite(self, arrays: list[jax.Array], mesh: Mesh) -> None:
    """Checks numbers on their devices: they are read once and not copied."""
    weights = jax.tree.leaves(self.weights, is_leaf=_is_weight)
    own = [weight.slot for weight in weights]

    def finite(arrays: list[jax.Array]) -> list[jax.Array]:
      return [
        jnp.isfinite(x).all(tuple(range(slot.is_stacked, x.ndim)))
        for x, slot in zip(arrays, own, strict=True)
      ]

    # Every process has all flags, so that all stop.
    whole = NamedSharding(mesh, PartitionSpec())
    found = jax.jit(finite, out_shardings=whole)(arrays)
    if bad := [
      name
      for slot, flags in zip(own, found, strict=True)
      for name, good in zip(slot.names, np.atleast_1d(flags), strict=True)
      if not good
    ]:
      raise DataError(
        f'{self.path}: NaN or infinite numbers in {listed(set(bad))}; get the '
        'model again, or in bfloat16 or float32 where it was converted to '
        'float16'
      )

  def _weights(self, tensors: dict[str, np.ndarray]) -> dict:
    found = {slot.path: slot for slot in layout.slots(self._config)}
    need = layout.wanted(found.values())
    tensors = layout.add_prefix(self._config, tensors)
    self._check_head(tensors, need, found[layout.EMBED,].names[0])
    shapes = {name: x.shape for name, x in tensors.items()}
    layout.check(str(self.path), shapes, need)
    if whole := [name for name in need if tensors[name].dtype.kind in 'iub']:
      raise DataError(
        f'{self.path}: tensors of whole numbers, as of a quantized model: '
        f'{listed(whole)}; save it in bfloat16, float16 or float32'
      )
    return layout.tree_of({
      path: Weight(slot, tuple(slot.view(tensors[x]) for x in slot.names))
      for path, slot in found.items()
    })  # fmt: skip

  def _check_head(
    self, tensors: dict[str, np.ndarray], need: Mapping[str, Shape], embed: str
  ) -> None:
    """Refuses an output head that contradicts config.json; drops a copy."""
    if OUTPUT in need.keys() - tensors.keys():
      raise DataError(
        f'{self.path}: config.json says that the output head is not tied to '
        f'the embedding, and there is no {OUTPUT}; say tie_word_embeddings '
        'true there, or get the tensor'
      )
    if OUTPUT in need or OUTPUT not in tensors:
      return
    copy = tensors.pop(OUTPUT)
    if embed in tensors and not np.array_equal(tensors[embed], copy):
      raise DataError(
        f'{self.path}: config.json says that the output head is tied to '
        f'{embed}, and {OUTPUT} is another matrix; say tie_word_embeddings '
        'false there, or leave the tensor out'
      )


def declared_config(path: Path) -> ModelConfig:
  """Reads a folder's config.json, without looking for weights."""
  return read_config(Fields.read(path))


def _is_weight(x: Any) -> bool:
  return isinstance(x, Weight)
