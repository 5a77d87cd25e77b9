"""Writes a model as a folder that Hugging Face tools read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from pdl_jax.errors import ConfigError, PdlError
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained import families, safetensors
from pdl_jax.pretrained.families import FAMILIES, FULL, SLIDING
from pdl_jax.pretrained.fields import Fields
from pdl_jax.pretrained.layout import Slot, slots
from pdl_jax.pretrained.rope import write_rope

SHARD_BYTES = 4 * 2**30
_NAMES = {
  ours: theirs for theirs, ours in reversed(families.ACTIVATIONS.items())
}
Values = dict[str, Any]
# The parameters that share a tensor, side by side.
Parts = list[tuple[Slot, np.ndarray]]


def config_values(config: ModelConfig) -> Values:
  """Makes config.json of the first family that reads back as this model."""
  plain = dataclasses.replace(
    config, dtype='float32', param_dtype='float32', remat=False,
    attention_impl='auto',
  )  # fmt: skip
  for kind in FAMILIES:
    values = _values(kind, plain)
    try:
      found = families.read_config(Fields(values, 'config.json'))
    except PdlError:
      continue
    if found == plain:
      return values
  raise ConfigError(
    f'no family of transformers has this model (attention '
    f'{config.attention.kind}, head {config.head.kind}, bias '
    f'{config.head.bias}): it cannot be exported; '
    '--config.model.pretrained=run:FOLDER starts another run from it'
  )


def write_model(
  folder: Path, config: ModelConfig, params: dict, values: Values,
  shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
  """Writes config.json and the tensors, in shards of at most `shard_bytes`.

  A larger tensor has its own shard. `params` are on the host; `values` are
  those of `config_values` and additions.
  """
  shards: list[dict[str, Parts]] = [{}]
  total = size = 0
  for name, parts in _parts(config, params).items():
    more = sum(x.nbytes for _, x in parts)
    if shards[-1] and size + more > shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = parts
    size += more
    total += more
  index: dict[str, str] = {}
  for number, shard in enumerate(shards, start=1):
    file = 'model.safetensors'
    if len(shards) > 1:
      file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    made = {name: _tensor(parts) for name, parts in shard.items()}
    safetensors.write_file(folder / file, made)
    index |= dict.fromkeys(made, file)
  if len(shards) > 1:
    written = {'metadata': {'total_size': total}, 'weight_map': index}
    write_json(folder / 'model.safetensors.index.json', written)
  write_json(folder / 'config.json', values)


def write_json(path: Path, values: Values) -> None:
  """Writes an object as Hugging Face tools do."""
  path.write_text(json.dumps(values, indent=2) + '\n', 'utf-8')


def _parts(config: ModelConfig, params: dict) -> dict[str, Parts]:
  made: dict[str, Parts] = {}
  for slot in slots(config):
    for name, x in zip(slot.names, slot.layers(params), strict=True):
      made.setdefault(name, []).append((slot, x))
  return made


def _tensor(parts: Parts) -> np.ndarray:
  parts = sorted(parts, key=lambda pair: pair[0].place.part)
  sides = [slot.theirs(np.asarray(x)) for slot, x in parts]
  return np.concatenate(sides, -1) if len(sides) > 1 else sides[0]


def _values(kind: str, c: ModelConfig) -> Values:
  """Makes what a family would declare; the caller checks that it fits."""
  head = {
    'architectures': [FAMILIES[kind].architecture], 'model_type': kind,
    'dtype': 'float32', 'torch_dtype': 'float32', 'vocab_size': c.vocab_size,
    'tie_word_embeddings': c.head.kind == 'tied',
  }  # fmt: skip
  act = _NAMES[c.activation]
  if kind == 'gpt2':
    return head | {
      **_named(families.GPT2_SIZES, c),
      # llama.cpp's converter reads n_ctx, the older name.
      'n_ctx': c.context, 'n_inner': c.mlp,
      'layer_norm_epsilon': c.norm_eps,
      'activation_function': act.replace('gelu_pytorch_tanh', 'gelu_new'),
    }  # fmt: skip
  rope = write_rope(c.rope_base, c.rope_scaling)
  older = {k: v for k, v in rope.items() if k != 'rope_theta'}
  values = head | {
    **_named(families.SIZES, c),
    'rms_norm_eps': c.norm_eps,
    'attention_bias': c.output_bias, 'hidden_act': act,
    'rope_parameters': rope, 'rope_theta': c.rope_base,
    'rope_scaling': older if c.rope_scaling.kind != 'none' else None,
  }  # fmt: skip
  if kind == 'llama':
    values['mlp_bias'] = c.mlp_bias
  if kind in ('llama', 'mistral', 'qwen2'):
    values = {k: v for k, v in values.items() if k != 'attention_bias' or v}
  return values | _of_windows(kind, c) | _of_gemma(kind, c)


def _named(names: dict[str, str], c: ModelConfig) -> Values:
  return {theirs: getattr(c, ours) for ours, theirs in names.items()}


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
