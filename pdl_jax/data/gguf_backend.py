"""The vocabulary of a GGUF file as a tokenizer of the `tokenizers` library."""

from collections.abc import Mapping
from typing import Any

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from pdl_jax.errors import DataError, reason
from pdl_jax.storage.files import fault

# GGUF's kinds of tokens.
_UNKNOWN, _CONTROL, _USER = 2, 3, 4
# Byte-level BPE by how text is cut into words: GGUF's names.
_PRE = {
  'gpt-2': 'gpt2', 'smollm': 'digits', 'qwen2': 'qwen2',
  'deepseek-r1-qwen': 'qwen2', 'llama-bpe': 'llama3', 'llama3': 'llama3',
  'llama-v3': 'llama3',
}  # fmt: skip
Metadata = Mapping[str, Any]
_G = 'tokenizer.ggml.'
_IDS = tuple(
  f'{_G}{word}_token_id'
  for word in ('bos', 'eos', 'eot', 'eom', 'unknown', 'padding')
)
_SHAPE = {
  f'{_G}tokens': list[str], f'{_G}token_type': list[int],
  f'{_G}merges': list[str], f'{_G}add_bos_token?': bool,
  'tokenizer.chat_template?': str,
  **{f'{key}?': int | None for key in _IDS},
}  # fmt: skip


def read_backend(metadata: Metadata, name: str) -> Tokenizer:
  """Makes the tokenizer that the metadata of a file declares.

  Args:
    metadata: of the file.
    name: of the file, for errors.

  Raises:
    DataError: it is a kind that is not read, not there, or not as it should be.
  """
  kind, pre = metadata.get(f'{_G}model'), metadata.get(f'{_G}pre', 'default')
  if kind != 'gpt2' or pre not in _PRE:
    raise DataError(
      f'{name}: tokenizer {kind!r} with pre {pre!r} is not read; of GGUF only '
      f"byte-level BPE is ('gpt2' with {', '.join(_PRE)}); take the model's "
      'folder with safetensors and tokenizer.json'
    )
  if wrong := _fault(metadata):
    raise DataError(f'{name}: {wrong}; take another copy of the file')
  words, tokens = _PRE[pre], metadata[f'{_G}tokens']
  merges = [tuple(m.split(' ')) for m in metadata[f'{_G}merges']]
  vocabulary = {token: number for number, token in enumerate(tokens)}
  try:
    model = models.BPE(
      vocab=vocabulary, merges=merges, ignore_merges=words == 'llama3'
    )
  # The library raises Exception itself for merges that do not fit.
  except Exception as error:
    raise DataError(
      f'{name}: its tokens make no tokenizer ({reason(error)})'
    ) from None
  backend = byte_level(model, words)
  for token, role in zip(tokens, metadata[f'{_G}token_type'], strict=True):
    if role in (_CONTROL, _UNKNOWN):
      added = AddedToken(token, special=True, normalized=False)
      backend.add_special_tokens([added])
    elif role == _USER:
      backend.add_tokens([AddedToken(token, normalized=False)])
  start = metadata.get(f'{_G}bos_token_id')
  adds = metadata.get(f'{_G}add_bos_token', words == 'llama3')
  if start is not None and adds:
    backend.post_processor = processors.TemplateProcessing(
      single=[tokens[start], '$A'], pair=[tokens[start], '$A', '$B'],
      special_tokens=[(tokens[start], start)],
    )  # fmt: skip
  return backend


def _fault(metadata: Metadata) -> str:
  """What is wrong with the fields of a tokenizer; '' if nothing is."""
  if found := fault(metadata, _SHAPE):
    return found
  size, kinds = len(metadata[f'{_G}tokens']), len(metadata[f'{_G}token_type'])
  if kinds != size:
    return f'{_G}token_type has {kinds} entries for {size} tokens'
  for key in _IDS:
    if not 0 <= (metadata.get(key) or 0) < size:
      return f'{key} is {metadata[key]}, of {size} tokens'
  return ''


def byte_level(model: models.BPE, words: str = 'digits') -> Tokenizer:
  """Makes a tokenizer of a BPE of bytes.

  Args:
    model: of merges.
    words: how text is cut: gpt2, as GPT-2 does; digits, the same with digits
      one by one; qwen2 and llama3, which take digits one by one and three by
      three.
  """
  backend = Tokenizer(model)
  cut = {
    'gpt2': [],
    'digits': [pre_tokenizers.Digits(individual_digits=True)],
    'qwen2': [_split(r'\p{N}')],
    'llama3': [_split(r'\p{N}{1,3}')],
  }[words]
  as_bytes = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=words in ('gpt2', 'digits')
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence([*cut, as_bytes])
  if words == 'qwen2':
    backend.normalizer = normalizers.NFC()
  backend.decoder = decoders.ByteLevel()
  return backend


def _split(digits: str) -> pre_tokenizers.Split:
  """Clitics, words with a sign before them, numbers, signs, white space."""
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
    + r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )  # fmt: skip
  return pre_tokenizers.Split(Regex(pattern), 'isolated')
