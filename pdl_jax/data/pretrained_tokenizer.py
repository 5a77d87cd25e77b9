"""Reads and writes tokenizers of Hugging Face folders; reads those of GGUF."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models, processors
from tokenizers import Tokenizer as Backend

from pdl_jax.data.chat import ChatTemplate
from pdl_jax.data.tasks import TURN_CLOSES, turn_opens
from pdl_jax.data.tokenizer import (
  END_OF_TEXT,
  Tokenizer,
  byte_level,
  read_definition,
)
from pdl_jax.errors import DataError, reason
from pdl_jax.pretrained.fields import read_object
from pdl_jax.pretrained.gguf import GGUFModel
from pdl_jax.pretrained.hf_write import write_json
from pdl_jax.storage.files import fault

_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token',
           'cls_token', 'mask_token')  # fmt: skip
_NO_ID = 2**32  # the library counts tokens in 32 bits
# The plain format of `tasks`, for a model without a template.
_PLAIN = (
  '{% for message in messages %}'
  f'{turn_opens("{{ message.role }}")}{{{{ message.content | trim }}}}'
  f'{TURN_CLOSES}'
  '{% endfor %}'
  f'{{% if add_generation_prompt %}}{turn_opens("assistant")}{{% endif %}}'
)
_UNKNOWN, _CONTROL, _USER = 2, 3, 4  # GGUF's kinds of tokens
# GGUF's names of pre-tokenizers -> `words` of `byte_level`.
_PRE = {
  'gpt-2': 'gpt2', 'smollm': 'digits', 'qwen2': 'qwen2',
  'deepseek-r1-qwen': 'qwen2', 'llama-bpe': 'llama3', 'llama3': 'llama3',
  'llama-v3': 'llama3',
}  # fmt: skip
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


def open_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
  """Opens a folder's tokenizer, with the model's chat template if it has one.

  It reads tokenizer.json and, if present, tokenizer_config.json,
  chat_template.jinja and generation_config.json.
  """
  path = folder / 'tokenizer.json'
  if not path.exists():
    raise DataError(
      f'{folder} has no tokenizer.json; AutoTokenizer.from_pretrained(...)'
      '.save_pretrained(...) of transformers makes one'
    )
  backend = read_definition(path)
  backend.no_truncation()
  backend.no_padding()
  file = folder / 'tokenizer_config.json'
  options = _json(file)
  named = {key: _text(options.get(key), f'{file}: {key}') for key in _TOKENS}
  tokens = {key: text for key, text in named.items() if text}
  return _made(
    backend, folder.name, tokens, _ends(folder, backend),
    _template(folder, options), vocab_size,
    f'{folder}: neither tokenizer_config.json (eos_token) nor '
    'generation_config.json or config.json (eos_token_id) says what ends a '
    'text by a token of tokenizer.json',
  )  # fmt: skip


def open_gguf_tokenizer(model: GGUFModel, vocab_size: int) -> Tokenizer:
  """Opens a file's tokenizer, with its chat template if it has one."""
  name = model.path.name
  backend = _gguf_backend(model)

  def tokens(word: str) -> list[str]:
    return _known(backend, model.fields.get(f'{_G}{word}_token_id'))

  keys = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown',
          'pad_token': 'padding'}  # fmt: skip
  named = {key: token for key, word in keys.items() for token in tokens(word)}
  ends = [token for word in ('eos', 'eot', 'eom') for token in tokens(word)]
  return _made(
    backend, name, named, ends, model.fields.get('tokenizer.chat_template'),
    vocab_size, f'{name}: no {_G}eos_token_id says what ends a text',
  )  # fmt: skip


def open_plain_tokenizer(model: GGUFModel) -> Tokenizer:
  """Opens a file's tokenizer without its template; turns are as in `tasks`."""
  return Tokenizer(_gguf_backend(model), model.path.name)


def _made(
  backend: Backend, name: str, tokens: dict[str, str], ends: list[str],
  template: str | None, vocab_size: int, no_end: str,
) -> Tokenizer:  # fmt: skip
  """`ends` are what the model stops at; `no_end` is the error without any."""
  # The model cannot produce a token without a row.
  ends = [end for end in ends if (backend.token_to_id(end) or 0) < vocab_size]
  eos = tokens.get('eos_token') or next(iter(ends), None)
  if eos is None:
    raise DataError(no_end)
  chat = ChatTemplate(template, tokens, name) if template else None
  added = backend.get_added_tokens_decoder().values()
  specials = [token.content for token in added if token.special]
  turn = _end_of_turn(chat, specials) or eos
  others = [*ends, *([END_OF_TEXT] if END_OF_TEXT in specials else []), eos]
  text = next((end for end in others if end != turn), turn)
  stops = [eos, *ends]
  return Tokenizer(backend, name, turn, text, vocab_size, chat, stops)


def _end_of_turn(chat: ChatTemplate | None, specials: list[str]) -> str | None:
  after = chat.after_answer() if chat else ''
  found = [(after.index(token), token) for token in specials if token in after]
  return min(found)[1] if found else None


def _ends(folder: Path, backend: Backend) -> list[str]:
  found: list[str] = []
  for name in ('generation_config.json', 'config.json'):
    ids = _json(folder / name).get('eos_token_id')
    for number in ids if isinstance(ids, list) else [ids]:
      if not isinstance(number, int | None) or isinstance(number, bool):
        raise DataError(
          f'{folder / name}: eos_token_id is {number!r}, which is no token id'
        )
      found += _known(backend, number)
  return list(dict.fromkeys(found))


def _known(backend: Backend, number: Any) -> list[str]:
  """Returns the token of an id, or nothing for no id, such as -1."""
  is_number = isinstance(number, int) and not isinstance(number, bool)
  if not is_number or not 0 <= number < _NO_ID:
    return []
  token = backend.id_to_token(number)
  return [] if token is None else [token]


def _template(folder: Path, options: dict[str, Any]) -> str | None:
  file, source = folder / 'chat_template.jinja', options.get('chat_template')
  if file.exists():
    return _template_file(file)
  if source is None or isinstance(source, str):
    return source
  where = f'{folder / "tokenizer_config.json"}: chat_template'
  if isinstance(source, list):
    pairs = [
      (each.get('name'), each.get('template'))
      for each in source
      if isinstance(each, dict)
    ]
    is_text = all(isinstance(text, str) for pair in pairs for text in pair)
    if is_text and len(pairs) == len(source):
      if 'default' in (by_name := dict(pairs)):
        return by_name['default']
      names = ', '.join(map(repr, by_name)) or 'none'
      raise DataError(f"{where} names no 'default', only {names}")
  kind = type(source).__name__
  raise DataError(
    f'{where} is a {kind}; it must be text, or a list of objects with name and '
    'template'
  )


def _template_file(path: Path) -> str:
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{path} cannot be read as UTF-8 ({error})') from error
  # UTF-16 of English decodes as UTF-8, with a zero after each letter.
  if '\0' in text:
    raise DataError(f'{path} is not text in UTF-8: it has zero bytes')
  return text


def _text(token: Any, where: str) -> str | None:
  text = token.get('content') if isinstance(token, dict) else token
  if isinstance(text, str) or token is None:
    return text
  raise DataError(
    f'{where} is {token!r}; it must be text, or an object with content'
  )


def _json(path: Path) -> dict[str, Any]:
  return read_object(path) if path.exists() else {}


def _gguf_backend(model: GGUFModel) -> Backend:
  metadata, name = model.fields, model.path.name
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
    bpe = models.BPE(
      vocab=vocabulary, merges=merges, ignore_merges=words == 'llama3'
    )
  # The library raises plain Exception for merges that do not fit.
  except Exception as error:
    raise DataError(
      f'{name}: its tokens make no tokenizer ({reason(error)})'
    ) from None
  backend = byte_level(bpe, words)
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


def _fault(metadata: Mapping[str, Any]) -> str:
  """Says what is wrong with the tokenizer's fields; '' if nothing is."""
  if found := fault(metadata, _SHAPE):
    return found
  size, kinds = len(metadata[f'{_G}tokens']), len(metadata[f'{_G}token_type'])
  if kinds != size:
    return f'{_G}token_type has {kinds} entries for {size} tokens'
  for key in _IDS:
    if not 0 <= (metadata.get(key) or 0) < size:
      return f'{key} is {metadata[key]}, of {size} tokens'
  return ''


def write_tokenizer(folder: Path, tokenizer: Tokenizer, is_chat: bool) -> None:
  """Writes tokenizer.json, tokenizer_config.json and the chat template."""
  (folder / 'tokenizer.json').write_text(tokenizer.definition, 'utf-8')
  end = tokenizer.end_of_turn if is_chat else tokenizer.end_of_text

  def token(number: int) -> str:
    return tokenizer.raw(number).decode()

  options: dict[str, Any] = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': token(end),
    'pad_token': token(tokenizer.end_of_text),
    'clean_up_tokenization_spaces': False,
  }
  if tokenizer.start_of_text != tokenizer.end_of_text:
    options['bos_token'] = token(tokenizer.start_of_text)
  write_json(folder / 'tokenizer_config.json', options)
  template = tokenizer.chat.source if tokenizer.chat else _PLAIN * is_chat
  if template:
    (folder / 'chat_template.jinja').write_text(template, 'utf-8')


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns the token ids for config.json and generation_config.json."""
  found: dict[str, Any] = {
    'eos_token_id': list(tokenizer.stops),
    'pad_token_id': tokenizer.end_of_text,
  }
  if tokenizer.start_of_text != tokenizer.end_of_text:
    found['bos_token_id'] = tokenizer.start_of_text
  return found
