"""Maps each parameter to its place and layout in Hugging Face files."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.model import lm, lora
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained.safetensors import listed

# Redundant buffers that older versions of transformers saved.
_BUFFERS = ('.rotary_emb.inv_freq', '.attn.bias', '.attn.masked_bias')
EMBED, OUTPUT = 'embed_VxD', 'lm_head.weight'
Shape = tuple[int, ...]
# A parameter's path in the tree of `model.lm`: ('blocks', 0, 'mlp', 'up').
Path = tuple[str | int, ...]


class Place(NamedTuple):
  """Where a parameter is in a tensor of a file."""

  name: str  # of the tensor, without the prefix of its layer
  inputs: int = 0  # how many of our first axes are inputs; 0: a vector
  turned: bool = False  # whether the file has [out, in]
  part: int = 0  # its number among the parameters side by side in the tensor
  parts: int = 1


class Slot(NamedTuple):
  """One of our parameters, and the tensors that hold it."""

  path: Path
  place: Place
  names: tuple[str, ...]  # tensors; one per layer if it is stacked
  shape: Shape  # ours

  @property
  def is_stacked(self) -> bool:
    """Returns whether the first axis is layers."""
    return self.path[0] == 'blocks'

  @property
  def layer_shape(self) -> Shape:
    """Returns our shape of what one tensor holds."""
    return self.shape[1:] if self.is_stacked else self.shape

  @property
  def tensor_shape(self) -> Shape:
    """Returns the shape of a tensor, with all its parts."""
    ours, (_, inputs, turned, _, parts) = self.layer_shape, self.place
    if not inputs:
      return (math.prod(ours) * parts,)
    flat = (math.prod(ours[:inputs]), math.prod(ours[inputs:]) * parts)
    return flat[::-1] if turned else flat

  def view(self, tensor: np.ndarray) -> np.ndarray:
    """Views a tensor in our layout, without a copy."""
    tensor = tensor.T if self.place.turned else tensor
    width = tensor.shape[-1] // self.place.parts
    mine = slice(self.place.part * width, (self.place.part + 1) * width)
    return tensor[..., mine].reshape(self.layer_shape)

  def theirs(self, x: np.ndarray) -> np.ndarray:
    """Returns a layer's parameter in the file's layout, this part alone."""
    alone = self.place._replace(parts=1, turned=False)
    flat = x.reshape(self._replace(place=alone).tensor_shape)
    return flat.T if self.place.turned else flat

  def layers(self, params: dict) -> Iterable[Any]:
    """Returns the parameter in a tree, layer by layer."""
    leaf = at(params, self.path)
    return leaf if self.is_stacked else [leaf]


def slots(config: ModelConfig) -> list[Slot]:
  """Lists the parameters of a model, with their tensors."""
  places, made = _places(config), []
  layers = f'{prefix(config)}{"h" if config.learned_positions else "layers"}.'
  ours = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
  for keys, x in jax.tree.leaves_with_path(ours):
    path = tuple(key.idx if hasattr(key, 'idx') else key.key for key in keys)
    if lora.is_adapter(str(path[-1])):
      continue
    if path[0] == 'blocks':
      place = places['.'.join(path[2:])]
      names = [f'{layers}{i}.{place.name}' for i in range(config.layers)]
    else:
      place = places['.'.join(path)]
      names = [_whole(place.name, prefix(config))]
    made.append(Slot(path, place, tuple(names), x.shape))
  return made


def prefix(config: ModelConfig) -> str:
  """Returns the prefix of all tensor names except the output head."""
  return 'transformer.' if config.learned_positions else 'model.'


def add_prefix(config: ModelConfig, tensors: Mapping[str, Any]) -> dict:
  """Adds the prefix that files of a model without head lack; drops buffers."""
  start = prefix(config)
  lacks = not any(name.startswith(start) for name in tensors)
  return {
    _whole(name, start) if lacks else name: tensor
    for name, tensor in tensors.items()
    if not name.endswith(_BUFFERS)
  }


def _whole(name: str, start: str) -> str:
  return name if name == OUTPUT else start + name


def wanted(slots: Iterable[Slot]) -> dict[str, Shape]:
  """Returns the tensors that a file must have, with their shapes."""
  return {name: slot.tensor_shape for slot in slots for name in slot.names}


def check(
  where: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape]
) -> None:
  """Refuses tensors that do not fit, all in one line."""
  wrong = [
    f'{name} {found[name]}, not {wanted[name]}'
    for name in wanted.keys() & found.keys()
    if found[name] != wanted[name]
  ]
  parts = (
    ('missing tensors', wanted.keys() - found.keys()),
    ('unknown tensors', found.keys() - wanted.keys()),
    ('tensors of other shapes', wrong),
  )
  if said := [f'{word} {listed(names)}' for word, names in parts if names]:
    raise DataError(f'{where}: {"; ".join(said)}')


def _places(config: ModelConfig) -> dict[str, Place]:
  made = _gpt2() if config.learned_positions else _llama(config.post_norms)
  return made | {'head.matrix_VxD': Place(OUTPUT, 1)}


def _llama(post_norms: bool) -> dict[str, Place]:
  """Places of Llama, Mistral, Qwen, Gemma: [out, in], separate projections."""
  made = {EMBED: Place('embed_tokens.weight', 1)}
  for ours, letter in zip(lora.ATTENTION, 'qkvo', strict=True):
    name, inputs = f'self_attn.{letter}_proj', 2 if ours == 'output' else 1
    made[f'attention.{ours}'] = Place(f'{name}.weight', inputs, turned=True)
    made[f'attention.{ours}_bias'] = Place(f'{name}.bias')
  for ours in lora.MLP:
    made[f'mlp.{ours}'] = Place(f'mlp.{ours}_proj.weight', 1, turned=True)
    made[f'mlp.{ours}_bias'] = Place(f'mlp.{ours}_proj.bias')
  before_mlp = 'pre_feedforward' if post_norms else 'post_attention'
  for ours, theirs in (
    ('norm', 'norm'), ('attention_norm', 'input_layernorm'),
    ('attention_post_norm', 'post_attention_layernorm'),
    ('mlp_norm', f'{before_mlp}_layernorm'),
    ('mlp_post_norm', 'post_feedforward_layernorm'),
    ('attention.query_norm', 'self_attn.q_norm'),
    ('attention.key_norm', 'self_attn.k_norm'),
  ):  # fmt: skip
    made[f'{ours}.scale'] = Place(f'{theirs}.weight')
  return made


def _gpt2() -> dict[str, Place]:
  """Places of GPT-2: [in, out]; query, key, value side by side; biases."""
  made = {
    EMBED: Place('wte.weight', 1), 'positions_LxD': Place('wpe.weight', 1)
  }  # fmt: skip
  for ours, theirs, inputs in (
    ('attention.output', 'attn.c_proj', 2), ('mlp.up', 'mlp.c_fc', 1),
    ('mlp.down', 'mlp.c_proj', 1),
  ):  # fmt: skip
    made[ours] = Place(f'{theirs}.weight', inputs)
    made[f'{ours}_bias'] = Place(f'{theirs}.bias')
  for part, ours in enumerate(('query', 'key', 'value')):
    whole = Place('attn.c_attn.weight', 1, part=part, parts=3)
    made[f'attention.{ours}'] = whole
    made[f'attention.{ours}_bias'] = whole._replace(
      name='attn.c_attn.bias', inputs=0
    )
  for ours, theirs in (
    ('norm', 'ln_f'), ('attention_norm', 'ln_1'), ('mlp_norm', 'ln_2')
  ):  # fmt: skip
    made[f'{ours}.scale'] = Place(f'{theirs}.weight')
    made[f'{ours}.bias'] = Place(f'{theirs}.bias')
  return made


def at(tree: Any, path: Iterable[str | int]) -> Any:
  """Returns the leaf or subtree at a path."""
  for key in path:
    tree = tree[key]
  return tree


def tree_of(leaves: Mapping[Path, Any]) -> dict:
  """Makes a tree of leaves and their paths."""
  made: dict = {}
  for path, leaf in leaves.items():
    tree = made
    for key in path[:-1]:
      tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
  return {**made, 'blocks': (made['blocks'][0],)}
