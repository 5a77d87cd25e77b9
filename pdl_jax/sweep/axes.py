"""Makes cells of axes: the product of named generators, each run once.

An axis is a generator beside get_config in a config file; `sweep_alpha` is the
axis alpha. Each value that it yields is a set of overrides:

  def sweep_alpha() -> Iterator[dict[str, Any]]:
    for alpha in (0.0, 0.25, 0.5):
      yield {'loss.alpha': alpha}

An axis can also be a key with its values, as in `loss.alpha=0,0.25`. The key
may be shortened to its last part, or to the name of an axis that sets it.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from pdl_jax.config import (
  Settings,
  config_hash,
  flatten,
  numbers,
  run_id,
  unknown_key,
)
from pdl_jax.data.schema import check_known
from pdl_jax.errors import ConfigError
from pdl_jax.sweep.claims import Cell, Overrides

_PREFIX = 'sweep_'
_BOOLS = {'true': True, 'false': False, '1': True, '0': False}
_KINDS = {bool: 'true or false', int: 'a whole number', float: 'a number'}


def cells(
  module: ModuleType,
  names: Sequence[str],
  base_config: ConfigDict,
  given: Collection[str] = (),
) -> list[Cell]:
  """Makes the product of axes, of which the last varies fastest.

  Args:
    module: the config file, with its sweep_NAME generators.
    names: axes, or KEY=VALUE,VALUE.
    given: keys that the command line has set. No axis may set them again, and
      they are part of the folder names.

  Returns:
    Each run once, in the order of first points.
  """
  axes = [
    _values(module, entry, base_config)
    if '=' in entry
    else _axis(module, entry)
    for entry in names
  ]
  names = [entry.partition('=')[0] for entry in names]
  if repeated := {name for name in names if names.count(name) > 1}:
    raise ConfigError(f'sweep axis {repeated.pop()} is named twice')
  found: dict[str, Cell] = {}
  for point in itertools.product(*axes):
    overrides = _merge(names, point, given)
    made = cell(base_config, overrides, given)
    same = found.setdefault(made.digest, made)
    if same is not made:
      found[made.digest] = _join(same, made)
  names_used = Counter(cell.run_id for cell in found.values())
  return [
    dataclasses.replace(cell, run_id=f'{cell.run_id}-{cell.digest}')
    if names_used[cell.run_id] > 1
    else cell
    for cell in found.values()
  ]


def _values(
  module: ModuleType, entry: str, base_config: ConfigDict
) -> list[Overrides]:
  """Reads an axis that is written out, as in 'loss.alpha=0,0.25'."""
  name, _, told = entry.partition('=')
  defaults = flatten(json.loads(base_config.to_json()))
  key = _key(module, name, defaults)
  kind = type(defaults[key])
  values: list[Overrides] = []
  for text in told.split(','):
    try:
      value = _BOOLS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
      raise ConfigError(
        f'--sweep={entry}: {text!r} is not {_KINDS[kind]}, as {key} is'
      ) from None
    values.append({key: value})
  return values


def _key(module: ModuleType, name: str, defaults: Mapping[str, Any]) -> str:
  """Finds the key that a name means; the name of an axis means its key."""
  if name in defaults:
    return name
  if name in _declared(module):
    found = {key for point in _axis(module, name) for key in point}
  else:
    found = {key for key in defaults if key.endswith(f'.{name}')}
  if not found:
    raise ConfigError(unknown_key(name, name))
  if len(found) > 1:
    raise ConfigError(
      f'--sweep={name}=... can mean {", ".join(sorted(found))}; give one whole'
    )
  return found.pop()


def _declared(module: ModuleType) -> list[str]:
  return [
    key.removeprefix(_PREFIX)
    for key, value in vars(module).items()
    if key.startswith(_PREFIX) and callable(value)
  ]


def _axis(module: ModuleType, name: str) -> list[Overrides]:
  known = _declared(module)
  if not known:
    raise ConfigError(
      f'{module.__name__} has no sweep axes; write a generator '
      f'{_PREFIX}{name} beside its get_config'
    )
  check_known('sweep axis', name, known)
  values = list(getattr(module, _PREFIX + name)())
  if not values:
    raise ConfigError(f'sweep axis {name} of {module.__name__} yields nothing')
  return values


def _merge(
  names: Sequence[str], point: Sequence[Overrides], given: Collection[str]
) -> dict[str, Any]:
  """Merges one point of the product; no key may have two values."""
  merged: dict[str, Any] = {}
  owner = dict.fromkeys(given, 'the command line')
  for name, overrides in zip(names, point, strict=True):
    for key, value in overrides.items():
      if key in owner and merged.get(key) != value:
        raise ConfigError(
          f'{key} is set by sweep axis {name} and by {owner[key]}; leave one '
          'of them out'
        )
      owner[key] = f'sweep axis {name}'
      merged[key] = value
  return merged


def cell(
  base_config: ConfigDict, overrides: Overrides, given: Iterable[str] = ()
) -> Cell:
  """Makes one run from overrides, dotted key -> value, of a base config.

  `given` names further keys for the folder name.
  """
  label = ' '.join(f'{k.rsplit(".", 1)[-1]}={v}' for k, v in overrides.items())
  config = base_config.copy_and_resolve_references()
  known = flatten(json.loads(config.to_json()))
  for key in overrides:
    if key not in known:
      raise ConfigError(unknown_key(key, key))
  try:
    config.update_from_flattened_dict(overrides)
    resolved = Settings.from_config(config).resolved
  except (ConfigError, TypeError) as error:
    raise ConfigError(f'sweep cell {label}: {error}') from None
  return Cell(
    (label,), overrides, resolved, run_id(resolved, {*given, *overrides}),
    config_hash(resolved),
  )  # fmt: skip


def _join(first: Cell, second: Cell) -> Cell:
  """Adds the labels of a cell that is the same run."""
  if numbers(first.config) != numbers(second.config):
    raise ConfigError(
      f'cells {first.labels[0]} and {second.labels[0]} are different runs with '
      f'the same hash {first.digest}; sweep them into two folders'
    )
  return dataclasses.replace(first, labels=first.labels + second.labels)
