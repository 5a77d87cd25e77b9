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
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_SPACE = '\u2581'
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
  f'{_G}merges?': list[str], f'{_G}scores?': list[float],
  f'{_G}add_bos_token?': bool, f'{_G}add_space_prefix?': bool,
  'tokenizer.chat_template?': str,
  **{f'{key}?': int | None for key in _IDS},
}  # fmt: skip


def read_backend(metadata: Metadata, name: str) -> Tokenizer:
  """What the metadata of a file declares.

  Args:
    metadata: of the file.
    name: of the file, for errors.

  Raises:
    DataError: it is a kind that is not read, not there, or not as it should be.
  """
  kind = metadata.get('tokenizer.ggml.model')
  pre = metadata.get('tokenizer.ggml.pre', 'default')
  is_pieces = kind == 'llama' and 'tokenizer.ggml.scores' in metadata
  if not is_pieces and (kind != 'gpt2' or pre not in _PRE):
    raise DataError(
      f'{name}: tokenizer {kind!r} with pre {pre!r} is not read; of GGUF these '
      f"are: 'llama', and 'gpt2' with {', '.join(_PRE)}; take the model's "
      'folder with tokenizer.json'
    )
  if wrong := _fault(metadata, 'scores' if is_pieces else 'merges'):
    raise DataError(f'{name}: {wrong}; take another copy of the file')
  try:
    backend = _pieces(metadata) if is_pieces else _bytes(metadata, _PRE[pre])
  # The library raises Exception itself for pieces that do not fit together.
  except Exception as error:
    raise DataError(
      f'{name}: its tokens make no tokenizer ({reason(error)})'
    ) from None
  tokens = metadata['tokenizer.ggml.tokens']
  kinds = metadata['tokenizer.ggml.token_type']
  for token, role in zip(tokens, kinds, strict=True):
    if role in (_CONTROL, _UNKNOWN):
      added = AddedToken(token, special=True, normalized=False)
      backend.add_special_tokens([added])
    elif role == _USER:
      backend.add_tokens([AddedToken(token, normalized=False)])
  start = metadata.get('tokenizer.ggml.bos_token_id')
  by_kind = is_pieces or _PRE.get(pre) == 'llama3'
  if start is not None and metadata.get(
    'tokenizer.ggml.add_bos_token', by_kind
  ):
    backend.post_processor = processors.TemplateProcessing(
      single=[tokens[start], '$A'], pair=[tokens[start], '$A', '$B'],
      special_tokens=[(tokens[start], start)],
    )  # fmt: skip
  return backend


def _fault(metadata: Metadata, needed: str) -> str:
  """What is wrong with the fields of a tokenizer; '' if nothing is."""
  if found := fault(metadata, {**_SHAPE, f'{_G}{needed}': Any}):
    return found
  size = len(metadata[f'{_G}tokens'])
  for key in (f'{_G}token_type', *([f'{_G}scores'] * (needed == 'scores'))):
    if len(metadata[key]) != size:
      return f'{key} has {len(metadata[key])} entries for {size} tokens'
  for key in _IDS:
    if not 0 <= (metadata.get(key) or 0) < size:
      return f'{key} is {metadata[key]}, of {size} tokens'
  return ''


def byte_level(model: models.BPE, words: str = 'digits') -> Tokenizer:
  """BPE of bytes.

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


def _bytes(metadata: Metadata, words: str) -> Tokenizer:
  tokens = metadata['tokenizer.ggml.tokens']
  merges = [tuple(m.split(' ')) for m in metadata['tokenizer.ggml.merges']]
  vocabulary = {token: number for number, token in enumerate(tokens)}
  model = models.BPE(
    vocab=vocabulary, merges=merges, ignore_merges=words == 'llama3'
  )
  return byte_level(model, words)


def _pieces(metadata: Metadata) -> Tokenizer:
  """SentencePiece's BPE: pieces with scores, the best merged first.

  Only pieces of text are merged: text must not become a control token.
  """
  tokens = metadata['tokenizer.ggml.tokens']
  scores = metadata['tokenizer.ggml.scores']
  kinds = metadata['tokenizer.ggml.token_type']
  ranks = {
    token: -score
    for token, score, kind in zip(tokens, scores, kinds, strict=True)
    if kind in (_NORMAL, _USER)
  }
  merges = [
    (ranks[piece], -cut, piece[:cut], piece[cut:])
    for piece in ranks
    for cut in range(1, len(piece))
    if piece[:cut] in ranks and piece[cut:] in ranks
  ]
  unknown = metadata.get('tokenizer.ggml.unknown_token_id', 0)
  backend = Tokenizer(models.BPE(
    vocab={token: number for number, token in enumerate(tokens)},
    merges=[(left, right) for _, _, left, right in sorted(merges)],
    unk_token=tokens[unknown], fuse_unk=True, byte_fallback=_BYTE in kinds,
  ))  # fmt: skip
  has_prefix = metadata.get('tokenizer.ggml.add_space_prefix', True)
  spaces = normalizers.Replace(' ', _SPACE)
  prefix = [normalizers.Prepend(_SPACE)] * has_prefix
  backend.normalizer = normalizers.Sequence([*prefix, spaces])
  parts = [
    decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()
  ]  # fmt: skip
  strip = [decoders.Strip(' ', 1, 0)] * has_prefix
  backend.decoder = decoders.Sequence([*parts, *strip])
  return backend
