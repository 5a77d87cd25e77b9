"""The tokenizer of a folder as Hugging Face tools leave it."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from pdl_jax.data.chat import ChatTemplate
from pdl_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from pdl_jax.errors import DataError

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
  ends = _ends(folder, backend)
  eos = tokens.get('eos_token') or next(iter(ends), None)
  if eos is None:
    raise DataError(
      f'{folder}: neither tokenizer_config.json (eos_token) nor '
      'generation_config.json or config.json (eos_token_id) says what ends a '
      'text'
    )
  chat = _chat(folder, options, tokens)
  specials = _specials(backend)
  turn = _end_of_turn(chat, specials) or eos
  others = [*ends, *([END_OF_TEXT] if END_OF_TEXT in specials else []), eos]
  text = next((end for end in others if end != turn), turn)
  return Tokenizer(backend, folder.name, turn, text, vocab_size, chat)


def _chat(
  folder: Path, options: dict[str, Any], tokens: dict[str, str]
) -> ChatTemplate | None:
  file, source = folder / 'chat_template.jinja', options.get('chat_template')
  if file.exists():
    source = file.read_text()
  if isinstance(source, list):
    by_name = {each['name']: each['template'] for each in source}
    source = by_name.get('default')
  return ChatTemplate(source, tokens, str(folder)) if source else None


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
      token = None if number is None else backend.id_to_token(number)
      if token and token not in found:
        found.append(token)
  return found


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
    return json.loads(path.read_text())
  except ValueError as error:
    raise DataError(f'{path} is not JSON ({error})') from error
