"""A pretrained model from a folder as Hugging Face tools leave it."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.model import lm
from pdl_jax.model.config import (
  AttentionConfig,
  HeadConfig,
  ModelConfig,
  RopeScaling,
)
from pdl_jax.pretrained import safetensors
from pdl_jax.pretrained.families import read_config
from pdl_jax.pretrained.fields import Fields
from pdl_jax.pretrained.hf_write import OWN, own_tree
from pdl_jax.pretrained.layout import BUFFERS, OUTPUT, at, layout, put
from pdl_jax.pretrained.safetensors import listed

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
  """A parameter that is still in its file, a leaf of `HFModel.weights`.

  Attributes:
    shape: of the parameter.
    views: of the layers it is stacked from, or the parameter alone.
    stacked: whether the first axis is that of layers.
    names: of the tensors of the views.
  """

  shape: tuple[int, ...]
  views: tuple[np.ndarray, ...]
  stacked: bool
  names: tuple[str, ...]

  @property
  def dtype(self) -> np.dtype:
    """fp32, or that of codes, which are no numbers."""
    found = self.views[0].dtype
    return found if np.issubdtype(found, np.integer) else np.dtype(np.float32)

  def read(
    self, index: Index | None = None, dtype: np.dtype | None = None
  ) -> np.ndarray:
    """A part of it, or all; nothing else is read from the disk.

    Args:
      index: of the part.
      dtype: default: its own.
    """
    index = index or (slice(None),) * len(self.shape)
    dtype = dtype or self.dtype
    if not self.stacked:
      return np.array(self.views[0][index], dtype)
    parts = [view[index[1:]] for view in self.views[index[0]]]
    made = np.empty((len(parts), *parts[0].shape), dtype)
    for i, part in enumerate(parts):
      made[i] = part
    return made


class HFModel:
  """An opened folder: config.json, and tensors that are read on demand.

  Attributes:
    path: the folder.

  Raises:
    DataError: naming what is missing, unknown, of a wrong shape or damaged;
      nothing is loaded in part.
  """

  def __init__(self, path: Path):
    self.path = path
    self._config, own = _declared(path)
    weights = self._own_weights if own else self._weights
    self.weights = weights(safetensors.open_folder(path))

  def config(self) -> ModelConfig:
    """The shape that config.json declares."""
    return self._config

  def shapes(self) -> dict:
    """The tree of parameters as structs, for `sharding.shardings`."""
    return jax.tree.map(
      lambda weight: jax.ShapeDtypeStruct(weight.shape, weight.dtype),
      self.weights, is_leaf=_is_weight,
    )  # fmt: skip

  def params(self) -> dict:
    """All parameters in fp32 on the host, in the layout of `model.api`."""
    read = lambda weight: weight.read()  # noqa: E731
    return jax.tree.map(read, self.weights, is_leaf=_is_weight)

  def placed(self, shardings: Any, dtypes: Any) -> dict:
    """The same on devices: each process reads the parts that it keeps.

    Args:
      shardings: tree of the shardings of the parameters.
      dtypes: tree of their dtypes.

    Raises:
      DataError: naming tensors with numbers that are not finite.
    """

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
    """Where the arrays are: one reading of them, and no copy."""
    weights = jax.tree.leaves(self.weights, is_leaf=_is_weight)
    stacked = [weight.stacked for weight in weights]

    def finite(arrays: list[jax.Array]) -> list[jax.Array]:
      return [
        jnp.isfinite(x).all(tuple(range(own, x.ndim)))
        for x, own in zip(arrays, stacked, strict=True)
      ]

    # Whole on every process, so that all of them stop.
    whole = NamedSharding(mesh, PartitionSpec())
    found = jax.jit(finite, out_shardings=whole)(arrays)
    if bad := [
      name
      for weight, flags in zip(weights, found, strict=True)
      for name, good in zip(weight.names, np.atleast_1d(flags), strict=True)
      if not good
    ]:
      raise DataError(
        f'{self.path}: NaN or infinite numbers in {listed(set(bad))}; get the '
        'model again, or in bfloat16 or float32 where it was converted to '
        'float16'
      )

  def _weights(self, tensors: dict[str, np.ndarray]) -> dict:
    """The tree of parameters, every tensor at its place."""
    c = self._config
    plan, shapes = layout(c), shapes_of(c)
    tensors = _named(tensors, plan.prefix)
    block_shapes = shapes['blocks'][0]
    wanted: dict[str, tuple[int, ...]] = {
      place.name: place.shape(at(shapes, place.path)) for place in plan.root
    }
    for i in range(c.layers):
      for place in plan.block:
        ours = at(block_shapes, place.path)[1:]
        wanted[f'{plan.layers}{i}.{place.name}'] = place.shape(ours)
    self._check(tensors, wanted)
    whole = [x for x in wanted if tensors[x].dtype.kind in 'iub']
    if whole:
      raise DataError(
        f'{self.path}: tensors of whole numbers, as of a quantized model: '
        f'{listed(whole)}; save it in bfloat16, float16 or float32'
      )
    made: dict = {}
    blocks: dict = {}
    for place in plan.root:
      shape = at(shapes, place.path)
      view = place.view(tensors[place.name], shape)
      put(made, place.path, Weight(shape, (view,), False, (place.name,)))
    for place in plan.block:
      shape = at(block_shapes, place.path)
      names = tuple(f'{plan.layers}{i}.{place.name}' for i in range(c.layers))
      views = tuple(place.view(tensors[name], shape[1:]) for name in names)
      put(blocks, place.path, Weight(shape, views, True, names))
    return {**made, 'blocks': (blocks,)}

  def _own_weights(self, tensors: dict[str, np.ndarray]) -> dict:
    """The tree of a model that no family has; see `hf_write`."""
    shapes = shapes_of(self._config)
    wanted = {'.'.join(path): shape for path, shape in own_tree(shapes)}
    self._check(tensors, wanted)
    made: dict = {}
    for path, shape in own_tree(shapes):
      name = '.'.join(path)
      weight = Weight(shape, (tensors[name],), False, (name,))
      put(made, path, weight)
    return {**made, 'blocks': (made['blocks'],)}

  def _check(
    self,
    tensors: dict[str, np.ndarray],
    wanted: dict[str, tuple[int, ...]],
  ) -> None:
    """Refuses what does not fit, all of it in one line."""
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted
    if OUTPUT in missing:
      raise DataError(
        f'{self.path}: config.json says that the output head is not tied to '
        f'the embedding, and there is no {OUTPUT}; say tie_word_embeddings '
        'true there, or get the tensor'
      )
    if OUTPUT in extra:
      self._check_tied(tensors, next(iter(wanted)))
      extra -= {OUTPUT}
    if missing or extra:
      parts = (('missing', missing), ('unknown', extra))
      said = [f'{word} tensors {listed(n)}' for word, n in parts if n]
      raise DataError(f'{self.path}: {"; ".join(said)}')
    wrong = [
      f'{name} {tensors[name].shape}, not {shape}'
      for name, shape in wanted.items()
      if tensors[name].shape != shape
    ]
    if wrong:
      raise DataError(
        f'{self.path}: shapes are not those of config.json: {listed(wrong)}'
      )

  def _check_tied(self, tensors: dict[str, np.ndarray], embed: str) -> None:
    """A copy of a tied embedding is no surprise; another matrix is one."""
    if embed in tensors and not np.array_equal(
      tensors[embed], tensors[OUTPUT]
    ):
      raise DataError(
        f'{self.path}: config.json says that the output head is tied to '
        f'{embed}, and {OUTPUT} is another matrix; say tie_word_embeddings '
        'false there, or leave the tensor out'
      )


def declared_config(path: Path) -> ModelConfig:
  """The shape that a folder's config.json declares; no weight is looked for.

  Raises:
    DataError: see `HFModel`.
  """
  return _declared(path)[0]


def _declared(path: Path) -> tuple[ModelConfig, bool]:
  """And whether it is in the format of pdl_jax."""
  fields = Fields.read(path)
  own = fields.get('model_type') == OWN
  return (_own_config if own else read_config)(fields), own


def _own_config(fields: Fields) -> ModelConfig:
  values = fields.group('model')
  groups = {
    'head': HeadConfig, 'attention': AttentionConfig,
    'rope_scaling': RopeScaling,
  }  # fmt: skip
  try:
    for key, group in groups.items():
      values[key] = group(**values[key])
    return ModelConfig(**{**values, 'windows': tuple(values['windows'])})
  except (KeyError, TypeError, ConfigError) as error:
    raise DataError(
      f'{fields.name}: `model` has not the fields of this version of pdl_jax '
      f'({error})'
    ) from None


def _is_weight(x: Any) -> bool:
  return isinstance(x, Weight)


def shapes_of(config: ModelConfig) -> dict:
  """The tree of parameters with their shapes as leaves."""
  made = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
  return jax.tree.map(lambda x: tuple(x.shape), made)


def _named(
  tensors: dict[str, np.ndarray], prefix: str
) -> dict[str, np.ndarray]:
  """Without the prefix, and without buffers that are no parameters."""
  return {
    name.removeprefix(prefix): tensor
    for name, tensor in tensors.items()
    if not name.endswith(BUFFERS)
  }
