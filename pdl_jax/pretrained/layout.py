"""Where Hugging Face files keep each parameter, and in which layout."""

import math
from typing import Any, NamedTuple

import numpy as np

from pdl_jax.model.config import ModelConfig

# Buffers that older versions of transformers saved; nothing is in them.
BUFFERS = ('.rotary_emb.inv_freq', '.attn.bias', '.attn.masked_bias')
OUTPUT = 'lm_head.weight'


class Place(NamedTuple):
  """One parameter in a file, of one layer.

  Attributes:
    path: of ours, such as ('attention', 'query'), below a block or the root.
    name: theirs, below a layer or the root.
    inputs: how many of our axes, from the first, are its input axis; 0: it is
      a vector.
    turned: whether the file has [out, in].
    part, parts: which of so many lie side by side in the tensor.
  """

  path: tuple[str, ...]
  name: str
  inputs: int = 0
  turned: bool = False
  part: int = 0
  parts: int = 1

  def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Of their tensor, all parts together."""
    if not self.inputs:
      return (math.prod(ours) * self.parts,)
    rows = math.prod(ours[: self.inputs])
    flat = (rows, math.prod(ours[self.inputs :]) * self.parts)
    return flat[::-1] if self.turned else flat

  def view(self, tensor: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
    """Their tensor in our layout: a view, nothing is copied."""
    tensor = tensor.T if self.turned else tensor
    width = tensor.shape[-1] // self.parts
    mine = slice(self.part * width, (self.part + 1) * width)
    return tensor[..., mine].reshape(ours)

  def theirs(self, x: np.ndarray) -> np.ndarray:
    """Our parameter in the layout of the file, this part alone."""
    flat = x.reshape(self._replace(parts=1, turned=False).shape(x.shape))
    return flat.T if self.turned else flat


class Layout(NamedTuple):
  """All places of a family.

  Attributes:
    prefix: of all names but the output head's; files of a model without head
      may lack it.
    layers: what the name of a layer begins with.
    root, block: the places.
  """

  prefix: str
  layers: str
  root: tuple[Place, ...]
  block: tuple[Place, ...]


def layout(config: ModelConfig) -> Layout:
  """Of a model, by what it is made of."""
  made = _gpt2(config) if config.learned_positions else _llama(config)
  if config.head.kind == 'dense':
    head = Place(('head', 'matrix_VxD'), OUTPUT, 1)
    made = made._replace(root=(*made.root, head))
  return made


def _norm(path: tuple[str, ...], name: str, bias: bool) -> list[Place]:
  places = [Place((*path, 'scale'), f'{name}.weight')]
  return places + ([Place((*path, 'bias'), f'{name}.bias')] if bias else [])


def _llama(c: ModelConfig) -> Layout:
  """Llama, Mistral, Qwen and Gemma: [out, in], each projection alone."""
  biases = {'query': c.qkv_bias, 'key': c.qkv_bias, 'value': c.qkv_bias,
            'output': c.output_bias}  # fmt: skip
  block: list[Place] = []
  for ours, theirs in (
    ('query', 'q'), ('key', 'k'), ('value', 'v'), ('output', 'o')
  ):  # fmt: skip
    name, inputs = f'self_attn.{theirs}_proj', 2 if ours == 'output' else 1
    block.append(Place(('attention', ours), f'{name}.weight', inputs, True))
    if biases[ours]:
      block.append(Place(('attention', f'{ours}_bias'), f'{name}.bias'))
  for ours in ('gate', 'up', 'down'):
    block.append(Place(('mlp', ours), f'mlp.{ours}_proj.weight', 1, True))
    if c.mlp_bias:
      block.append(Place(('mlp', f'{ours}_bias'), f'mlp.{ours}_proj.bias'))
  norms = {'attention_norm': 'input_layernorm'}
  if c.post_norms:
    norms |= {
      'attention_post_norm': 'post_attention_layernorm',
      'mlp_norm': 'pre_feedforward_layernorm',
      'mlp_post_norm': 'post_feedforward_layernorm',
    }
  else:
    norms['mlp_norm'] = 'post_attention_layernorm'
  for ours, theirs in norms.items():
    block += _norm((ours,), theirs, False)
  for ours, theirs in (('query', 'q'), ('key', 'k')) * c.qk_norm:
    block += _norm(('attention', f'{ours}_norm'), f'self_attn.{theirs}_norm',
                   False)  # fmt: skip
  root = [
    Place(('embed_VxD',), 'embed_tokens.weight', 1), *_norm(('norm',), 'norm',
                                                            False)
  ]  # fmt: skip
  return Layout('model.', 'layers.', tuple(root), tuple(block))


def _gpt2(c: ModelConfig) -> Layout:
  """GPT-2: [in, out], query, key and value side by side, biases throughout."""
  block = [
    *_norm(('attention_norm',), 'ln_1', True),
    *_norm(('mlp_norm',), 'ln_2', True),
    Place(('attention', 'output'), 'attn.c_proj.weight', 2),
    Place(('attention', 'output_bias'), 'attn.c_proj.bias'),
    Place(('mlp', 'up'), 'mlp.c_fc.weight', 1),
    Place(('mlp', 'up_bias'), 'mlp.c_fc.bias'),
    Place(('mlp', 'down'), 'mlp.c_proj.weight', 1),
    Place(('mlp', 'down_bias'), 'mlp.c_proj.bias'),
  ]
  for part, ours in enumerate(('query', 'key', 'value')):
    for path, name, inputs in (
      (ours, 'attn.c_attn.weight', 1), (f'{ours}_bias', 'attn.c_attn.bias', 0)
    ):  # fmt: skip
      place = Place(('attention', path), name, inputs, part=part, parts=3)
      block.append(place)
  root = (
    Place(('embed_VxD',), 'wte.weight', 1),
    Place(('positions_LxD',), 'wpe.weight', 1),
    *_norm(('norm',), 'ln_f', True),
  )
  return Layout('transformer.', 'h.', root, tuple(block))


def at(tree: Any, path: tuple[str, ...]) -> Any:
  """A leaf, or what is below a path."""
  for key in path:
    tree = tree[key]
  return tree


def put(tree: dict, path: tuple[str, ...], leaf: Any) -> None:
  """Sets a leaf; what it is below is made."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = leaf
