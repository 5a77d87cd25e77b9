"""Adapters in the format of PEFT: adapter_config.json, and one safetensors.

Per layer that is adapted there are lora_A.weight, [r, in], and lora_B.weight,
[out, r], also where the matrix of the layer is [in, out] (GPT-2).
"""

import json
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.model import lora
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.lora import LoRAConfig
from pdl_jax.pretrained import safetensors
from pdl_jax.pretrained.fields import read_object
from pdl_jax.pretrained.huggingface import shapes_of
from pdl_jax.pretrained.layout import OUTPUT, Place, layout
from pdl_jax.pretrained.safetensors import listed

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
_ROOT = 'base_model.model.'
_TENSOR = re.compile(r'(.+)\.lora_([AB])(?:\.default)?\.weight')
# Keys that are read, and of PEFT's those that change no function: of training,
# of where an adapter is put (its tensors say so), of kinds of layers that are
# not here, and the details of initialisations.
_READ = {
  'alpha_pattern', 'base_model_name_or_path', 'bias', 'init_lora_weights',
  'layers_to_transform', 'lora_alpha', 'peft_type', 'r', 'rank_pattern',
  'use_rslora',
}  # fmt: skip
_HARMLESS = {
  'auto_mapping', 'corda_config', 'eva_config', 'exclude_modules',
  'fan_in_fan_out', 'inference_mode', 'layers_pattern', 'loftq_config',
  'lora_dropout', 'lora_ga_config', 'megatron_core', 'peft_version',
  'qalora_group_size', 'revision', 'runtime_config', 'target_modules',
  'task_type',
}  # fmt: skip
# All others may have changed the base weights: of such an adapter PEFT takes
# the initial product out of them when it is opened, or cannot.
_STARTS = (None, True, False, 'gaussian', 'eva', 'orthogonal')
# With an adapter of the head PEFT saves a copy of the head itself.
_COPY = OUTPUT.replace('.weight', '.base_layer.weight')
Params = dict
Path_ = tuple[str, ...]


class Adapter(NamedTuple):
  """What a folder holds, in the layout of `model.api`.

  Attributes:
    path: of the folder.
    pairs: A and B of each adapted matrix, by its path from a block or the
      root; stacked over layers within a block, smaller ranks filled with 0.
    scales: of their products, one a layer; NaN: the layer has none.
    ranks: that occur.
    base: name or path of the model that it says it is of; '': it says nothing.
    head_VxD: the output head that it is of, where it has a copy.
  """

  path: Path
  pairs: dict[Path_, tuple[np.ndarray, np.ndarray]]
  scales: dict[Path_, np.ndarray]
  ranks: frozenset[int]
  base: str
  head_VxD: np.ndarray | None = None

  def check_head(self, params: Params) -> None:
    """Refuses the adapter of a model with another output head."""
    if self.head_VxD is None:
      return
    has = params['head'][lora.MATRIX]
    if not jnp.array_equal(has, jnp.asarray(self.head_VxD, has.dtype)):
      raise DataError(
        f'{self.path / TENSORS}: {_ROOT}{_COPY} is not the output head of the '
        'model; the adapter is of another one'
      )

  def check(self, asked: LoRAConfig) -> None:
    """Refuses to be trained on as adapters of another kind.

    Raises:
      ConfigError: with what this one is, and the keys that say so.
    """
    ranks = sorted(self.ranks)
    every = np.concatenate(list(self.scales.values()))
    found = sorted({float(x) for x in every if not np.isnan(x)})
    has = {_target(path) for path in self.pairs}
    targets = [name for name in lora.TARGETS if name in has]
    of_all = not np.isnan(every).any()
    if len(ranks) > 1 or len(found) > 1 or found[0] <= 0 or not of_all:
      raise ConfigError(
        f'model.adapter {self.path} has ranks {ranks} and factors {found}'
        f'{"" if of_all else ", in some of the layers"}; only one of one rank '
        'and one factor > 0, in all layers, is trained on. With another '
        'optimizer.trainable it is added to the weights'
      )
    same = has == set(asked.targets)
    if not same or ranks != [asked.rank] or abs(found[0] - asked.scale) > 1e-6:
      raise ConfigError(
        f'model.adapter {self.path} is not what model.lora says; to train it '
        f'on give --config.model.lora.rank={ranks[0]} '
        f'--config.model.lora.alpha={found[0] * ranks[0]:g} '
        f'--config.model.lora.targets={",".join(targets)}'
      )


class _Module(NamedTuple):
  """A layer of theirs, and what of ours is in it."""

  layer: int | None
  places: tuple[Place, ...]


def read(path: Path, config: ModelConfig) -> Adapter:
  """Opens the adapter of a model.

  Args:
    path: its folder.
    config: of the model, of a family that transformers has.

  Raises:
    DataError: naming what is missing, unknown, of a wrong shape, or changes
      what an adapter does in a way that is not read.
  """
  says = _read_config(path)
  modules = _modules(config)
  pairs: dict[str, dict[str, np.ndarray]] = {}
  unknown: list[str] = []
  head_VxD: np.ndarray | None = None
  for name, tensor in safetensors.open_file(path / TENSORS).items():
    found = _TENSOR.fullmatch(name.removeprefix(_ROOT))
    if name == _ROOT + _COPY and config.head.kind == 'dense':
      head_VxD = tensor
    elif found is None or found[1] not in modules:
      unknown.append(name)
    else:
      pairs.setdefault(found[1], {})[found[2]] = tensor
  _check(path, modules, pairs, unknown, config, says)
  return _stacked(path, modules, pairs, config, says)._replace(
    head_VxD=head_VxD
  )


def insert(adapter: Adapter, params: Params) -> Params:
  """A model's parameters with those of the adapter beside its matrices."""
  return _beside(params, adapter.pairs)


def add(adapter: Adapter, params: Params) -> Params:
  """A model's parameters with the adapter added to its matrices."""
  pairs = {
    path: (a, b * _along(np.nan_to_num(adapter.scales[path]), b))
    for path, (a, b) in adapter.pairs.items()
  }
  unit = LoRAConfig(1, alpha=1.0, targets=lora.TARGETS)
  # Compiled, so that a product is split as its matrix is.
  return jax.jit(partial(lora.merged, unit))(_beside(params, pairs))


def write(folder: Path, config: ModelConfig, params: Params, base: str) -> None:
  """Writes the adapters of a model.

  Args:
    folder: exists.
    config: of the model, of a family that transformers has.
    params: with the adapters, on the host.
    base: name or path of the model that they are of.
  """
  made: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  for name, module in _modules(config).items():
    pair = _theirs(module, config, params)
    if pair is None:
      continue
    for which, tensor in zip('AB', pair, strict=True):
      tensor = np.ascontiguousarray(tensor)
      made[f'{_ROOT}{name}.lora_{which}.weight'] = tensor
    ranks[_short(name, config)] = len(pair[0])
  c = config.lora
  other = {name: rank for name, rank in ranks.items() if rank != c.rank}
  values = {
    'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'auto_mapping': None,
    'base_model_name_or_path': base, 'revision': None, 'inference_mode': True,
    'r': c.rank, 'lora_alpha': c.alpha, 'lora_dropout': c.dropout,
    'target_modules': sorted(ranks), 'bias': 'none', 'use_rslora': False,
    'use_dora': False, 'init_lora_weights': True, 'modules_to_save': None,
    'fan_in_fan_out': config.learned_positions, 'layers_to_transform': None,
    'layers_pattern': None, 'rank_pattern': other,
    'alpha_pattern': {name: c.scale * rank for name, rank in other.items()},
  }  # fmt: skip
  safetensors.write_file(folder / TENSORS, made)
  text = json.dumps(values, indent=2) + '\n'
  (folder / CONFIG).write_text(text, 'utf-8')


def _read_config(path: Path) -> dict[str, Any]:
  if not os.path.isfile(path / CONFIG):
    raise DataError(f'model.adapter: there is no {path / CONFIG}')
  if not os.path.isfile(path / TENSORS):
    raise DataError(
      f'model.adapter: there is no {path / TENSORS}; pickles (.bin) run code '
      'when they are opened, and are not read: save it as safetensors '
      '(save_pretrained does)'
    )
  says = read_object(path / CONFIG)
  try:
    kind = says['peft_type']
    says['lora_alpha'] = _number(says['lora_alpha'])
    patterns = dict(says.get('alpha_pattern') or {})
    says['alpha_pattern'] = {
      re.compile(rf'(.*\.)?({key})$'): _number(x)
      for key, x in patterns.items()
    }
    says['rank_pattern'] = dict(says.get('rank_pattern') or {})
    if type(says.get('use_rslora', False)) not in (bool, type(None)):
      raise ValueError(f'use_rslora {says["use_rslora"]!r}')
  except (ValueError, KeyError, TypeError, re.error) as error:
    raise DataError(
      f'{path / CONFIG} is not that of an adapter ({type(error).__name__}: '
      f'{error})'
    ) from error
  if kind != 'LORA':
    raise DataError(f'{path / CONFIG}: peft_type {kind}; only LORA is read')
  unread = [
    f'{key} {value}'
    for key, value in says.items()
    if key not in _READ | _HARMLESS and value not in (None, False, '', [], {})
  ]
  if says.get('bias') not in (None, 'none'):
    unread.append(f'bias {says["bias"]}')
  start = says.get('init_lora_weights')
  if start not in _STARTS:
    unread.append(f'init_lora_weights {start}, which changes the base weights')
  if unread:
    raise DataError(
      f'{path / CONFIG}: not read here: {", ".join(unread)}; merge it with '
      'PEFT (merge_and_unload) and give the whole model as model.pretrained'
    )
  return says


def _number(value: Any) -> float:
  if type(value) not in (int, float) or not math.isfinite(value):
    raise ValueError(f'{value!r} is no number')
  return float(value)


def _modules(config: ModelConfig) -> dict[str, _Module]:
  """All linear layers by their names in a model of transformers."""
  plan, found = layout(config), {}

  def add(name: str, layer: int | None, place: Place) -> None:
    had = found[name].places if name in found else ()
    found[name] = _Module(layer, (*had, place))

  for place in plan.root:
    if place.name == OUTPUT:
      add(OUTPUT.removesuffix('.weight'), None, place)
  for layer in range(config.layers):
    for place in plan.block:
      if place.inputs and _target(place.path) in lora.TARGETS:
        name = place.name.removesuffix('.weight')
        add(f'{plan.prefix}{plan.layers}{layer}.{name}', layer, place)
  return found


def _target(path: Path_) -> str:
  return lora.HEAD if path[0] == 'head' else path[-1]


def _sides(place: Place, config: ModelConfig) -> tuple[tuple, tuple]:
  """Shapes of the input and the output axes, ours."""
  shapes: Any = shapes_of(config)
  if place.path[0] == 'head':
    return (config.width,), (config.vocab_size,)
  shapes = shapes['blocks'][0]
  for key in place.path:
    shapes = shapes[key]
  shape = shapes[1:]
  return shape[: place.inputs], shape[place.inputs :]


def _check(
  path: Path,
  modules: dict[str, _Module],
  pairs: dict[str, dict[str, np.ndarray]],
  unknown: list[str],
  config: ModelConfig,
  says: dict[str, Any],
) -> None:
  """Refuses what does not fit, all of it in one line."""
  halves = [name for name, pair in pairs.items() if len(pair) < 2]
  if says.get('layers_to_transform') in (None, []):
    # Of every layer that one has.
    suffixes = {_short(name, config) for name in pairs}
    halves += [
      name for name in modules
      if _short(name, config) in suffixes and name not in pairs
    ]  # fmt: skip
  said = []
  for word, names in (('unknown tensors', unknown), ('no pair for', halves)):
    said += [f'{word} {listed(names)}'] if names else []
  if not pairs and not said:
    said.append('no adapter in it')
  wrong = []
  ranks = {says.get('r'), *says['rank_pattern'].values()}
  for name, pair in pairs.items():
    if len(pair) < 2:
      continue
    place = modules[name].places[0]
    into, out = map(math.prod, _sides(place, config))
    rank = pair['A'].shape[0] if pair['A'].ndim else 0
    for which, shape in (('A', (rank, into)), ('B', (out * place.parts, rank))):
      numbers = pair[which].astype(np.float32)
      if pair[which].dtype.kind in 'iub' or not np.isfinite(numbers).all():
        wrong.append(f'{name} {which} with numbers that are not finite floats')
      elif rank == 0 or pair[which].shape != shape:
        wrong.append(f'{name} {which} {pair[which].shape}, not {shape}')
      elif rank not in ranks:
        wrong.append(f'{name} of rank {rank}, which {CONFIG} does not have')
  said += [f'shapes {listed(wrong)}'] if wrong else []
  if said:
    raise DataError(
      f'{path / TENSORS} does not fit the model: {"; ".join(said)}'
    )


def _stacked(
  path: Path,
  modules: dict[str, _Module],
  pairs: dict[str, dict[str, np.ndarray]],
  config: ModelConfig,
  says: dict[str, Any],
) -> Adapter:
  ranks = frozenset(len(pair['A']) for pair in pairs.values())
  rank, made, scales = max(ranks), {}, {}
  for name, pair in pairs.items():
    layer, places = modules[name]
    own = len(pair['A'])
    for place in places:
      into, out = _sides(place, config)
      within = layer is not None
      layers = (config.layers,) * within
      if place.path not in made:
        made[place.path] = (
          np.zeros((*layers, *into, rank), np.float32),
          np.zeros((*layers, rank, *out), np.float32),
        )
        scales[place.path] = np.full(layers or (1,), np.nan, np.float32)
      a, b = made[place.path]
      if within:
        a, b = a[layer], b[layer]
      rows = math.prod(out)
      mine = pair['B'][place.part * rows : (place.part + 1) * rows]
      a[..., :own] = pair['A'].T.reshape(*into, own)
      b[:own] = mine.T.reshape(own, *out)
      scales[place.path][layer or 0] = _scale(name, own, says)
  base = str(says.get('base_model_name_or_path') or '')
  return Adapter(path, made, scales, ranks, base)


def _scale(module: str, rank: int, says: dict[str, Any]) -> float:
  """Of the product; patterns are of the ends of names, as in PEFT."""
  alpha = says['lora_alpha']
  for pattern, value in says['alpha_pattern'].items():
    if pattern.match(module):
      alpha = value
      break
  return alpha / (rank**0.5 if says.get('use_rslora') else rank)


def _along(scales: np.ndarray, b: np.ndarray) -> np.ndarray:
  """One factor a layer, or one."""
  if len(scales) == 1 and b.ndim == 2:
    return scales.reshape(1, 1)
  return scales.reshape(-1, *(1,) * (b.ndim - 1))


def _beside(params: Params, pairs: dict[Path_, Any]) -> Params:
  (group,) = params['blocks']
  root = {**params, 'blocks': group}
  for path, pair in pairs.items():
    full = path if path[0] == 'head' else ('blocks', *path)
    root = _put(root, full, pair)
  return {**root, 'blocks': (root['blocks'],)}


def _put(tree: Params, path: Path_, pair: Any) -> Params:
  key, *rest = path
  if rest:
    return {**tree, key: _put(tree[key], tuple(rest), pair)}
  return {**tree, **dict(zip(lora.names(key), pair, strict=True))}


def _theirs(
  module: _Module, config: ModelConfig, params: Params
) -> tuple[np.ndarray, np.ndarray] | None:
  """A and B of a layer of theirs; None: it is not adapted.

  Several of ours side by side, each with an A of its own, are one of a rank as
  large as all of theirs.
  """
  found = []
  for place in module.places:
    *way, name = place.path
    tree: Any = params if module.layer is None else params['blocks'][0]
    for key in way:
      tree = tree[key]
    if lora.names(name)[0] in tree:
      a, b = (np.asarray(tree[key]) for key in lora.names(name))
      if module.layer is not None:
        a, b = a[module.layer], b[module.layer]
      rank = b.shape[0]
      found.append((place.part, a.reshape(-1, rank).T, b.reshape(rank, -1).T))
  if not found:
    return None
  parts, columns, row = module.places[0].parts, [], found[0][2].shape[0]
  for part, _, b in found:
    column = np.zeros((parts * row, b.shape[1]), b.dtype)
    column[part * row : (part + 1) * row] = b
    columns.append(column)
  return np.concatenate([a for _, a, _ in found]), np.concatenate(columns, 1)


def _short(name: str, config: ModelConfig) -> str:
  """What PEFT calls a layer in every block: its last words."""
  # GPT-2 has two c_proj in a block.
  words = 2 if config.learned_positions else 1
  return '.'.join(name.split('.')[-words:])
