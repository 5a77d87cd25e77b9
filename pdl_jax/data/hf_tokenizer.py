"""The tokenizer of a folder as Hugging Face tools leave it, or of GGUF."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from pdl_jax.data.chat import ChatTemplate
from pdl_jax.data.gguf_backend import read_backend
from pdl_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from pdl_jax.errors import DataError
from pdl_jax.model.pretrained.gguf import GGUFModel

_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'pad_token')


def open_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
  """With the model's own chat template, if it has one.

  Args:
    folder: with tokenizer.json, and perhaps tokenizer_config.json,
      chat_template.jinja, generation_config.json.
    vocab_size: rows of the model.

  Raises:
    DataError: there is no tokenizer.json, or nothing says what ends a text.
  """
  path = folder / 'tokenizer.json'
  if not path.exists():
    raise DataError(
      f'{folder} has no tokenizer.json; AutoTokenizer.from_pretrained(...)'
      '.save_pretrained(...) of transformers makes one'
    )
  try:
    backend = Backend.from_file(str(path))
  except Exception as error:  # The library raises no narrower class.
    raise DataError(f'{path} is no tokenizer ({error})') from error
  backend.no_truncation()
  backend.no_padding()
  options = _json(folder / 'tokenizer_config.json')
  named = {key: _text(options.get(key)) for key in _TOKENS}
  tokens = {key: text for key, text in named.items() if text}
  return _made(
    backend, folder.name, tokens, _ends(folder, backend),
    _template(folder, options), vocab_size,
    f'{folder}: neither tokenizer_config.json (eos_token) nor '
    'generation_config.json or config.json (eos_token_id) says what ends a '
    'text by a token of tokenizer.json',
  )  # fmt: skip


def open_gguf_tokenizer(model: GGUFModel, vocab_size: int) -> Tokenizer:
  """With the chat template of the file, if it has one.

  Raises:
    DataError: it is of a kind that is not read, or nothing says what ends a
      text.
  """
  fields, name = model.fields, model.path.name
  backend = read_backend(fields, name)
  start = 'tokenizer.ggml.'
  tokens, ends = fields[f'{start}tokens'], []
  keys = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown',
          'pad_token': 'padding'}  # fmt: skip
  ids = {key: fields.get(f'{start}{word}_token_id') for key, word in
         keys.items()}  # fmt: skip
  for word in ('eos', 'eot', 'eom'):
    ends += _known(backend, fields.get(f'{start}{word}_token_id'))
  named = {key: tokens[number] for key, number in ids.items()
           if number is not None and number < len(tokens)}  # fmt: skip
  return _made(
    backend, name, named, ends, fields.get('tokenizer.chat_template'),
    vocab_size, f'{name}: no {start}eos_token_id says what ends a text',
  )  # fmt: skip


def _made(
  backend: Backend, name: str, tokens: dict[str, str], ends: list[str],
  template: str | None, vocab_size: int, no_end: str,
) -> Tokenizer:  # fmt: skip
  """Args: ends: what the model stops at; no_end: the error without any."""
  eos = tokens.get('eos_token') or next(iter(ends), None)
  if eos is None:
    raise DataError(no_end)
  chat = ChatTemplate(template, tokens, name) if template else None
  specials = _specials(backend)
  turn = _end_of_turn(chat, specials) or eos
  others = [*ends, *([END_OF_TEXT] if END_OF_TEXT in specials else []), eos]
  text = next((end for end in others if end != turn), turn)
  stops = [eos, *ends]
  return Tokenizer(backend, name, turn, text, vocab_size, chat, stops)


def _template(folder: Path, options: dict[str, Any]) -> str | None:
  file, source = folder / 'chat_template.jinja', options.get('chat_template')
  if file.exists():
    return file.read_text('utf-8')
  if isinstance(source, list):
    by_name = {each['name']: each['template'] for each in source}
    return by_name.get('default')
  return source


def _end_of_turn(
  chat: ChatTemplate | None, specials: list[str]
) -> str | None:
  """The first control token behind the text of an answer."""
  after = chat.after_answer() if chat else ''
  found = [(after.index(token), token) for token in specials if token in after]
  return min(found)[1] if found else None


def _ends(folder: Path, backend: Backend) -> list[str]:
  """What the model itself stops at, by its configurations."""
  found: list[str] = []
  for name in ('generation_config.json', 'config.json'):
    ids = _json(folder / name).get('eos_token_id')
    for number in ids if isinstance(ids, list) else [ids]:
      found += _known(backend, number)
  return list(dict.fromkeys(found))


def _known(backend: Backend, number: Any) -> list[str]:
  """The token of an id; none for what is no id of it, such as -1."""
  if not isinstance(number, int) or number < 0:
    return []
  token = backend.id_to_token(number)
  return [] if token is None else [token]


def _specials(backend: Backend) -> list[str]:
  added = backend.get_added_tokens_decoder().values()
  return [token.content for token in added if token.special]


def _text(token: Any) -> str | None:
  """Of a token as a string, or as an object with its content."""
  return token.get('content') if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise DataError(f'{path} is not JSON ({error})') from error
