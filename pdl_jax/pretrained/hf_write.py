"""A model as the files of a folder that Hugging Face tools read.

A model that no family there has (complex attention, heads of codes and so on)
is written in a format of our own: config.json with model_type pdl_jax and all
fields of ModelConfig under `model`, and tensors with the names of our
parameters, layers stacked, in the layout of `model.api`. `HFModel` reads both.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pdl_jax.errors import PdlError
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained import safetensors
from pdl_jax.pretrained.families import (
  ACTIVATIONS,
  FAMILIES,
  FULL,
  SLIDING,
  read_config,
)
from pdl_jax.pretrained.fields import Fields
from pdl_jax.pretrained.layout import OUTPUT, Layout, layout
from pdl_jax.pretrained.rope import write_rope

OWN = 'pdl_jax'
SHARD_BYTES = 4 * 2**30
_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
Values = dict[str, Any]
# Name, bytes, and what makes the tensor.
Tensor = tuple[str, int, Callable[[], np.ndarray]]


def config_values(config: ModelConfig) -> Values:
  """config.json: of the first family that reads back as this very model."""
  plain = dataclasses.replace(
    config, dtype='float32', param_dtype='float32', remat=False
  )
  for kind in FAMILIES:
    values = _values(kind, plain)
    try:
      found = read_config(Fields(values, 'config.json'))
    except PdlError:
      continue
    if found == plain:
      return values
  fields = dataclasses.asdict(plain)
  del fields['lora']  # Adapters are added to their matrices, or are apart.
  return {'model_type': OWN, 'model': fields}


def write_model(
  folder: Path, config: ModelConfig, params: dict, values: Values,
  shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
  """Writes config.json and the tensors, in shards of at most so many bytes.

  Args:
    folder: exists.
    config: of the model.
    params: on the host, one group of layers, codes written down.
    values: of config.json: `config_values`, and what else is to stand there.
    shard_bytes: a larger tensor has a shard of its own.
  """
  own = values['model_type'] == OWN
  tensors = _own(params) if own else _theirs(layout(config), config, params)
  groups: list[list[Tensor]] = [[]]
  size = 0
  for tensor in tensors:
    if groups[-1] and size + tensor[1] > shard_bytes:
      groups.append([])
      size = 0
    groups[-1].append(tensor)
    size += tensor[1]
  index: dict[str, str] = {}
  for number, group in enumerate(groups, start=1):
    file = 'model.safetensors'
    if len(groups) > 1:
      file = f'model-{number:05d}-of-{len(groups):05d}.safetensors'
    made = {name: make() for name, _, make in group}
    safetensors.write_file(folder / file, made)
    index |= dict.fromkeys(made, file)
  if len(groups) > 1:
    total = sum(tensor[1] for group in groups for tensor in group)
    written = {'metadata': {'total_size': total}, 'weight_map': index}
    text = json.dumps(written, indent=2) + '\n'
    (folder / 'model.safetensors.index.json').write_text(text, 'utf-8')
  text = json.dumps(values, indent=2) + '\n'
  (folder / 'config.json').write_text(text, 'utf-8')


def own_tree(params: dict) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Our parameters by path; the one group of layers is called blocks."""
  (group,) = params['blocks']
  stack: list = [((), {**params, 'blocks': group})]
  while stack:
    path, node = stack.pop()
    if isinstance(node, dict):
      stack += [((*path, key), node[key]) for key in sorted(node)]
    else:
      yield path, node


def _own(params: dict) -> Iterator[Tensor]:
  for path, x in own_tree(params):
    yield '.'.join(path), x.nbytes, lambda x=x: np.asarray(x)


def _theirs(
  plan: Layout, config: ModelConfig, params: dict
) -> Iterator[Tensor]:
  (blocks,) = params['blocks']

  def tensors(places: tuple, tree: dict, layer: int | None) -> Iterator[Tensor]:
    for name in dict.fromkeys(place.name for place in places):
      parts = [place for place in places if place.name == name]
      found = [_leaf(tree, place.path, layer) for place in parts]
      size = sum(x.nbytes for x in found)

      def make(parts: list = parts, found: list = found) -> np.ndarray:
        pairs = zip(parts, found, strict=True)
        sides = [place.theirs(np.asarray(x)) for place, x in pairs]
        return np.concatenate(sides, -1) if len(sides) > 1 else sides[0]

      within = '' if layer is None else f'{plan.layers}{layer}.'
      whole = name if name == OUTPUT else f'{plan.prefix}{within}{name}'
      yield whole, size, make

  yield from tensors(plan.root, params, None)
  for layer in range(config.layers):
    yield from tensors(plan.block, blocks, layer)


def _leaf(tree: Any, path: tuple[str, ...], layer: int | None) -> np.ndarray:
  for key in path:
    tree = tree[key]
  return tree if layer is None else tree[layer]


def _values(kind: str, c: ModelConfig) -> Values:
  """What a family would declare; whether it is this model is checked after."""
  head = {
    'architectures': [FAMILIES[kind].architecture], 'model_type': kind,
    'dtype': 'float32', 'torch_dtype': 'float32', 'vocab_size': c.vocab_size,
    'tie_word_embeddings': c.head.kind == 'tied',
  }  # fmt: skip
  act = _NAMES[c.activation]
  if kind == 'gpt2':
    return head | {
      'n_embd': c.width, 'n_layer': c.layers, 'n_head': c.heads,
      # llama.cpp's converter reads the older of the two names.
      'n_positions': c.context, 'n_ctx': c.context, 'n_inner': c.mlp,
      'layer_norm_epsilon': c.norm_eps,
      'activation_function': act.replace('gelu_pytorch_tanh', 'gelu_new'),
    }  # fmt: skip
  rope = write_rope(c.rope_base, c.rope_scaling)
  older = {k: v for k, v in rope.items() if k != 'rope_theta'}
  values = head | {
    'hidden_size': c.width, 'intermediate_size': c.mlp,
    'num_hidden_layers': c.layers, 'num_attention_heads': c.heads,
    'num_key_value_heads': c.kv_heads, 'head_dim': c.head_dim,
    'max_position_embeddings': c.context, 'rms_norm_eps': c.norm_eps,
    'attention_bias': c.output_bias, 'hidden_act': act,
    'rope_parameters': rope, 'rope_theta': c.rope_base,
    'rope_scaling': older if c.rope_scaling.kind != 'none' else None,
  }  # fmt: skip
  if kind == 'llama':
    values['mlp_bias'] = c.mlp_bias
  if kind in ('llama', 'mistral', 'qwen2'):
    values = {k: v for k, v in values.items() if k != 'attention_bias' or v}
  return values | _of_windows(kind, c) | _of_gemma(kind, c)


def _of_windows(kind: str, c: ModelConfig) -> Values:
  window = max(c.windows, default=0)
  if kind == 'mistral':
    return {'sliding_window': window or None}
  if kind == 'llama':
    return {}
  kinds = [SLIDING if w else FULL for w in c.windows or (0,) * c.layers]
  values: Values = {'layer_types': kinds, 'sliding_window': window or None}
  if kind.startswith('qwen'):
    first = kinds.index(SLIDING) if SLIDING in kinds else c.layers
    values |= {'use_sliding_window': window > 0, 'max_window_layers': first}
  return values


def _of_gemma(kind: str, c: ModelConfig) -> Values:
  if not kind.startswith('gemma'):
    return {}
  scalar = (c.query_scale or 1.0) ** -2
  whole = round(scalar)
  values: Values = {
    'hidden_activation': _NAMES[c.activation],
    'query_pre_attn_scalar': whole if abs(scalar - whole) < 1e-6 else scalar,
    'attn_logit_softcapping': c.attention_softcap,
    'final_logit_softcapping': c.logit_softcap,
  }
  if kind == 'gemma3_text':
    local = c.local_rope_base or c.rope_base
    values |= {
      'rope_local_base_freq': local,
      'rope_parameters': {
        FULL: write_rope(c.rope_base, c.rope_scaling),
        SLIDING: {'rope_theta': local, 'rope_type': 'default'},
      },
    }  # fmt: skip
  return values
