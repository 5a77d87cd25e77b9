"""Maps the tensors of safetensors files, without a copy on the host.

A file is the size of its header in 8 bytes, the header (JSON: dtype, shape and
place of each tensor), and the numbers. These are mapped into memory, so a
layout's views read only their part of the file. The safetensors package 0.8.0
slices only by the axes of the file, which are not ours (heads apart, parts side
by side). Its whole tensors are copies: one of 128 MB took 128 MB.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.pretrained.fields import parse_object, read_object

_DTYPES: dict[str, Any] = {
  'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
  'BF16': ml_dtypes.bfloat16, 'I64': np.int64, 'I32': np.int32,
  'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'U16': np.uint16,
  'U32': np.uint32, 'BOOL': np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_SHARD = re.compile(r'[^/\\\0]+\.safetensors')
_PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt')
_MOST_NAMES = 8


def listed(names: Iterable[str]) -> str:
  """Lists names for an error, sorted, and counts the rest."""
  names = sorted(names)
  more = len(names) - _MOST_NAMES
  tail = f' and {more} more' if more > 0 else ''
  return ', '.join(names[:_MOST_NAMES]) + tail


def open_folder(folder: Path) -> dict[str, np.ndarray]:
  """Returns all tensors by name, mapped into memory."""
  if (folder / _SINGLE).exists():
    return open_file(folder / _SINGLE)
  index = _weight_map(folder)
  files = sorted(set(index.values()))
  if absent := [name for name in files if not (folder / name).exists()]:
    raise DataError(
      f'{folder} lacks shards that its index names: {listed(absent)}'
    )
  found: dict[str, np.ndarray] = {}
  for file in files:
    tensors = open_file(folder / file)
    if twice := found.keys() & tensors.keys():
      raise DataError(
        f'{folder}: tensors in two shards: {listed(twice)}; get it again'
      )
    found |= tensors
  if absent := index.keys() - found.keys():
    raise DataError(
      f'{folder / _INDEX} names tensors that are in no shard: '
      f'{listed(absent)}; get the folder again'
    )
  return found


def open_file(path: Path) -> dict[str, np.ndarray]:
  """Returns the tensors of a file by name, mapped read-only into memory."""
  size = 0
  try:
    size = path.stat().st_size
    with path.open('rb') as file:
      header_size = int.from_bytes(file.read(8), 'little')
      if not 2 <= header_size <= size - 8:
        raise ValueError(f'a header of {header_size} bytes')
      header = parse_object(file.read(header_size), f'{path}: its header')
    numbers = np.memmap(path, np.uint8, 'r')[8 + header_size :]
    header.pop('__metadata__', None)
    _check_places(header)
    return {
      name: _tensor(path, name, x, numbers) for name, x in header.items()
    }
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(
      f'{path} is not a whole safetensors file of {size} bytes '
      f'({type(error).__name__}: {error}); get it again'
    ) from error


def _check_places(header: Mapping[str, Any]) -> None:
  """Refuses tensors that share bytes, which no tool writes."""
  places = sorted((*x['data_offsets'], name) for name, x in header.items())
  for (_, end, one), (start, _, other) in itertools.pairwise(places):
    if start < end:
      raise ValueError(f'{one} and {other} overlap')


def write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes one file, whole or not at all; all tensors are aligned."""
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  start = 0
  # The widest types come first, so that all are aligned.
  order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
  for name in order:
    x = tensors[name]
    header[name] = {
      'dtype': _NAMES[x.dtype],
      'shape': list(x.shape),
      'data_offsets': [start, start + x.nbytes],
    }
    start += x.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  # The tensors may be mapped from the old file.
  partial = path.with_name(f'{path.name}.partial')
  with partial.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in order:
      file.write(np.ascontiguousarray(tensors[name]).tobytes())
  partial.replace(path)


def _tensor(
  path: Path, name: str, entry: Mapping[str, Any], numbers: np.ndarray
) -> np.ndarray:
  if entry['dtype'] not in _DTYPES:
    raise DataError(
      f'{path}: {name} is of type {entry["dtype"]}, which is not read; save '
      'the model in bfloat16, float16 or float32'
    )
  dtype, shape = np.dtype(_DTYPES[entry['dtype']]), tuple(entry['shape'])
  first, last = entry['data_offsets']
  sizes = (*shape, first, last)
  if any(type(size) is not int or size < 0 for size in sizes):
    raise ValueError(f'{name} of shape {shape} at {first}:{last}')
  size = math.prod(shape) * dtype.itemsize
  if not first <= last <= len(numbers) or last - first != size:
    raise ValueError(
      f'{name} of {size} bytes at {first}:{last} of {len(numbers)}'
    )
  return numbers[first:last].view(dtype).reshape(shape)


def _weight_map(folder: Path) -> dict[str, str]:
  if not (folder / _INDEX).exists():
    pickles = [p.name for kind in _PICKLES for p in folder.glob(kind)]
    if pickles:
      raise DataError(
        f'{folder} holds pickles ({listed(pickles)}), which run code when they '
        'are opened and are not read; save the model as safetensors'
      )
    other = [p.name for p in folder.glob('*.safetensors')]
    raise DataError(
      f'{folder} has neither {_SINGLE} nor {_INDEX}'
      + (f', only {listed(other)}' if other else '')
    )
  index = read_object(folder / _INDEX).get('weight_map')
  if not isinstance(index, dict) or not index:
    raise DataError(f'{folder / _INDEX} has no weight_map of tensors to shards')
  for file in index.values():
    if not isinstance(file, str) or not _SHARD.fullmatch(file):
      raise DataError(
        f'{folder / _INDEX}: a shard is a file beside it, not {file!r}'
      )
  return index
