"""Tokenizers: of a pretrained model, or trained here."""

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import (
  Encoding,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  trainers,
)
from tokenizers import (
  Tokenizer as Backend,
)

from pdl_jax.data.chat import ChatTemplate
from pdl_jax.errors import DataError
from pdl_jax.storage.files import MEND

END_OF_TEXT = '<|endoftext|>'
START_OF_TURN = '<|im_start|>'
END_OF_TURN = '<|im_end|>'
# Byte-level BPE spells bytes as printable characters: printable ones as
# themselves, the others as characters from 256 on.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
  chr(256 + number): byte for number, byte in enumerate(_OTHERS)
}
_NO_TEXT = 0xDC00  # `surrogateescape` adds it to bytes that are no UTF-8
# SentencePiece's spelling of a byte that is in no piece, and of a space.
_BYTE = re.compile('<0x([0-9A-F]{2})>')
_SPACE = '\u2581'
_LONGEST = 200  # characters of the library's message in our errors


class Tokenizer:
  """Converts text to ids and back, and knows the special ids.

  Attributes:
    vocab_size: V, rows of the model; without a model, the number of tokens.
    end_of_turn: id that ends every answer.
    end_of_text: id that ends every document.
    stops: ids that end an answer: both of these, and others of the model.
    start_of_text: id before every document; end of text if there is no other.
    special_ids: ids of control tokens that have a row, end of turn included.
    specials: texts of all control tokens, also of those without a row.
    strips: control token -> whether it absorbs white space (before, behind).
    definition: the whole tokenizer as JSON; `load` reads it from a file.
    fingerprint: hex SHA-256 of the definition.
  """

  def __init__(
    self,
    backend: Backend,
    name: str,
    end_of_turn: str = END_OF_TURN,
    end_of_text: str = END_OF_TEXT,
    vocab_size: int = 0,
    chat: ChatTemplate | None = None,
    stops: Sequence[str] = (),
  ):
    """`vocab_size` counts the rows of the model, which may have spare ones."""
    self.chat = chat
    self._backend = backend
    self.name = name
    size = backend.get_vocab_size(with_added_tokens=True)
    self.vocab_size = vocab_size or size
    ends = [self._end(token) for token in (end_of_turn, end_of_text, *stops)]
    self.end_of_turn, self.end_of_text = ends[:2]
    self.stops = tuple(dict.fromkeys(ends))
    self.start_of_text = _start(backend, self.end_of_text)
    self.check_rows([self.start_of_text], 'the beginning of every text')
    added = backend.get_added_tokens_decoder()
    controls = [(n, added[n]) for n in sorted(added) if added[n].special]
    # Placeholders beyond the last row are no types, but no text either.
    self.special_ids = tuple(n for n, _ in controls if n < self.vocab_size)
    self.specials = tuple(token.content for _, token in controls)
    self.strips = {t.content: (t.lstrip, t.rstrip) for _, t in controls}
    self.definition = backend.to_str()
    decoder = json.loads(self.definition)['decoder']
    self._spells_bytes = 'ByteLevel' in json.dumps(decoder)
    self.fingerprint = hashlib.sha256(self.definition.encode()).hexdigest()
    # Contents must not be able to end a turn: control tokens are spelled out.
    self._content = Backend.from_str(self.definition)
    # SentencePiece adds a space before a text, but not within one.
    self._later = Backend.from_str(self.definition.replace(
      '"prepend_scheme":"first"', '"prepend_scheme":"never"'
    ))  # fmt: skip
    for content in (self._content, self._later):
      content.encode_special_tokens = True

  @classmethod
  def train(
    cls, texts: Iterable[str], vocab_size: int, name: str
  ) -> 'Tokenizer':
    """Learns a BPE from texts, with the same chat tokens."""
    backend = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[END_OF_TEXT, START_OF_TURN, END_OF_TURN],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return cls(backend, name)

  @classmethod
  def read(cls, definition: str, name: str) -> 'Tokenizer':
    """Reads what `definition` wrote."""
    return cls(Backend.from_str(definition), name)

  @classmethod
  def load(cls, path: Path, name: str) -> 'Tokenizer':
    """Reads a definition from a file."""
    try:
      with _backend_errors('it cannot be used'):
        return cls(Backend.from_file(str(path)), name)
    except DataError as error:
      raise DataError(f'{path} is no tokenizer: {error}; {MEND}') from error

  def encode_template(self, text: str) -> list[int]:
    """Encodes a piece of the chat format, with its control tokens."""
    return self.encode_rendered(text).ids

  def encode_rendered(self, text: str) -> Encoding:
    """Encodes a piece of the chat format, with offsets."""
    with _backend_errors(f'tokenizer {self.name} fails at a text'):
      return self._backend.encode(text, add_special_tokens=False)

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Encodes contents, one list per text; control tokens are spelled out."""
    with _backend_errors(f'tokenizer {self.name} fails at a text'):
      encodings = self._content.encode_batch_fast(
        list(texts), add_special_tokens=False
      )
    return [e.ids for e in encodings]

  def encode_run(self, text: str, is_first: bool) -> Encoding:
    """Encodes content between control tokens, with offsets."""
    backend = self._content if is_first else self._later
    with _backend_errors(f'tokenizer {self.name} fails at a text'):
      return backend.encode(text, add_special_tokens=False)

  def ends(self) -> str:
    """Says for the terminal which tokens end what."""
    named = {number: repr(self.token(number)) for number in self.stops}
    return (
      f'{named[self.end_of_turn]} ends a turn, {named[self.end_of_text]} a '
      f'text; an answer stops at {" ".join(named.values())}'
    )

  def check_rows(self, ids: Sequence[int], what: str) -> None:
    """Raises DataError if the model has no row for an id."""
    highest = max(ids, default=0)
    if highest >= self.vocab_size:
      raise DataError(
        f'{what} makes token {highest} '
        f'({self._backend.id_to_token(highest)!r}) of tokenizer {self.name}, '
        f'and its model has {self.vocab_size} rows; leave that out, or take '
        'the tokenizer of this model'
      )

  def _end(self, token: str) -> int:
    number = self._backend.token_to_id(token)
    if number is None:
      raise DataError(f'tokenizer {self.name} has no {token} token')
    if number >= self.vocab_size:
      raise DataError(
        f'tokenizer {self.name}: {token!r}, which ends a text, is token '
        f'{number}, and its model has {self.vocab_size} rows; take the '
        'tokenizer of this model'
      )
    if number not in self._backend.get_added_tokens_decoder():
      raise DataError(
        f'tokenizer {self.name}: {token!r} (token {number}) is to end a text, '
        'and is an ordinary word of the vocabulary; mend eos_token or '
        'eos_token_id, or declare it in added_tokens of tokenizer.json'
      )
    return number

  def encode_words(
    self, texts: Sequence[str]
  ) -> list[list[tuple[str, list[int]]]]:
    """Encodes contents word by word: the words of each text with their ids.

    A word is what the pre-tokenizer passes to the model, without the space
    before it; white space alone stays as it is. Together the ids are those of
    `encode`.
    """
    encodings = self._content.encode_batch(
      list(texts), add_special_tokens=False
    )
    return [
      _words(text, encoding)
      for text, encoding in zip(texts, encodings, strict=True)
    ]

  def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
    """Returns the text of ids, by default without special tokens."""
    return self._backend.decode(list(ids), skip_special_tokens=not keep_special)

  def raw(self, number: int) -> bytes:
    """Returns the bytes of an id; for a control token, its name."""
    added = self._backend.get_added_tokens_decoder().get(number)
    if added is not None:
      return added.content.encode()
    piece = self._backend.id_to_token(number)
    if piece is None:
      raise DataError(
        f'tokenizer {self.name} has no token {number}, only {self.vocab_size}'
      )
    if self._spells_bytes:
      return bytes(_BYTES[sign] for sign in piece)
    if found := _BYTE.fullmatch(piece):
      return bytes([int(found[1], 16)])
    return piece.replace(_SPACE, ' ').encode()

  def token(self, number: int) -> str:
    """Returns an id as readable text, for tables; see `spelled`.

    A row without a token reads like <300>.
    """
    if number < self.vocab_size and self._backend.id_to_token(number) is None:
      return f'<{number}>'
    return spelled(self.raw(number))


def byte_level(model: models.BPE, words: str = 'digits') -> Backend:
  """Makes a byte-level BPE tokenizer.

  `words` says how text is cut: gpt2 as GPT-2 does, digits the same with single
  digits. qwen2 and llama3 cut as these models do, with one or up to three
  digits.
  """
  backend = Backend(model)
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
  """Cuts contractions, words, numbers, punctuation and white space."""
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
    + r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )  # fmt: skip
  return pre_tokenizers.Split(Regex(pattern), 'isolated')


def spelled(raw: bytes) -> str:
  """Returns bytes as text; what is not UTF-8 reads like <0xE2>."""
  return ''.join(
    f'<0x{ord(sign) - _NO_TEXT:X}>' if '\udc80' <= sign <= '\udcff' else sign
    for sign in raw.decode(errors='surrogateescape')
  )


def read_definition(path: Path) -> Backend:
  """Reads a tokenizer.json."""
  with _backend_errors(f'{path} is no tokenizer'):
    backend = Backend.from_file(str(path))
    backend.encode('a')  # Some faults show only when it is used.
  return backend


@contextlib.contextmanager
def _backend_errors(what: str) -> Iterator[None]:
  try:
    yield
  # It raises no narrower class, and its panics are no Exception.
  except BaseException as error:
    is_panic = type(error).__name__ == 'PanicException'
    if not isinstance(error, Exception) and not is_panic:
      raise
    reason = ' '.join(str(error).split())[:_LONGEST]
    raise DataError(f'{what} ({reason or type(error).__name__})') from error


def _start(backend: Backend, otherwise: int) -> int:
  """Returns what the tokenizer puts before a text, or else `otherwise`."""
  plain, whole = (
    backend.encode('a', add_special_tokens=add).ids for add in (False, True)
  )
  return whole[0] if whole[:1] != plain[:1] else otherwise


def _words(text: str, encoding: Encoding) -> list[tuple[str, list[int]]]:
  words = []
  pieces = zip(encoding.word_ids, encoding.offsets, encoding.ids, strict=True)
  for _, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
    _, offsets, ids = zip(*group, strict=True)
    word = text[offsets[0][0] : offsets[-1][1]]
    word = word if word.isspace() else word.removeprefix(' ')
    words.append((word, list(ids)))
  return words
