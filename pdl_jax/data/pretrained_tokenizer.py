"""The tokenizer of a folder as Hugging Face tools leave it, or of GGUF."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from pdl_jax.data.chat import ChatTemplate
from pdl_jax.data.gguf_backend import read_backend
from pdl_jax.data.tokenizer import END_OF_TEXT, Tokenizer, read_definition
from pdl_jax.errors import DataError
from pdl_jax.pretrained.fields import read_object
from pdl_jax.pretrained.gguf import GGUFModel

_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token',
           'cls_token', 'mask_token')  # fmt: skip
# The library counts tokens in 32 bits.
_NO_ID = 2**32


def open_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
  """Opens a folder's tokenizer, with the model's own chat template, if any.

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
  """Opens a file's tokenizer, with its chat template, if it has one.

  Raises:
    DataError: it is of a kind that is not read, or nothing says what ends a
      text.
  """
  name = model.path.name
  backend = read_backend(model.fields, name)

  def tokens(word: str) -> list[str]:
    return _known(backend, model.fields.get(f'tokenizer.ggml.{word}_token_id'))

  keys = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown',
          'pad_token': 'padding'}  # fmt: skip
  named = {key: token for key, word in keys.items() for token in tokens(word)}
  ends = [token for word in ('eos', 'eot', 'eom') for token in tokens(word)]
  return _made(
    backend, name, named, ends, model.fields.get('tokenizer.chat_template'),
    vocab_size, f'{name}: no tokenizer.ggml.eos_token_id says what ends a text',
  )  # fmt: skip


def _made(
  backend: Backend, name: str, tokens: dict[str, str], ends: list[str],
  template: str | None, vocab_size: int, no_end: str,
) -> Tokenizer:  # fmt: skip
  """Args: ends: what the model stops at; no_end: the error without any."""
  # What has no row cannot be said by the model.
  ends = [end for end in ends if _row(backend, end) < vocab_size]
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


def _row(backend: Backend, token: str) -> int:
  number = backend.token_to_id(token)
  assert number is not None, 'it has this token'
  return number


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
  # So is UTF-16 of English, with a zero behind each letter.
  if '\0' in text:
    raise DataError(f'{path} is not text in UTF-8: it has zero bytes')
  return text


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
      if not isinstance(number, int | None) or isinstance(number, bool):
        raise DataError(
          f'{folder / name}: eos_token_id is {number!r}, which is no token id'
        )
      found += _known(backend, number)
  return list(dict.fromkeys(found))


def _known(backend: Backend, number: Any) -> list[str]:
  """The token of an id; none for what is no id of it, such as -1."""
  is_number = isinstance(number, int) and not isinstance(number, bool)
  if not is_number or not 0 <= number < _NO_ID:
    return []
  token = backend.id_to_token(number)
  return [] if token is None else [token]


def _specials(backend: Backend) -> list[str]:
  added = backend.get_added_tokens_decoder().values()
  return [token.content for token in added if token.special]


def _text(token: Any, where: str) -> str | None:
  """Of a token as a string, or as an object with its content."""
  text = token.get('content') if isinstance(token, dict) else token
  if isinstance(text, str) or token is None:
    return text
  raise DataError(
    f'{where} is {token!r}; it must be text, or an object with content'
  )


def _json(path: Path) -> dict[str, Any]:
  return read_object(path) if path.exists() else {}
