"""The bytes of a token, and text of which every character can be seen."""

import json
import unicodedata

from pdl_jax.data.tokenizer import Tokenizer

# Byte-level BPE spells every byte as a printable character: those that are one
# already as themselves, the others from 256 on.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
  chr(256 + number): byte for number, byte in enumerate(_OTHERS)
}
_SIGNS = {' ': '·', '\n': '↵', '\t': '⇥', '\r': '␍'}
# In running text line breaks stay, and what joins letters and emoji.
_KEPT = '\n\u200c\u200d'


class Pieces:
  """The bytes behind the ids of a tokenizer."""

  def __init__(self, tokenizer: Tokenizer):
    definition = json.loads(tokenizer.definition)
    vocabulary = definition['model']['vocab'].items()
    self._pieces = {number: piece for piece, number in vocabulary}
    self._added = {
      token['id']: token['content'] for token in definition['added_tokens']
    }

  def raw(self, number: int) -> bytes:
    """Of a control token, its name."""
    if number in self._added:
      return self._added[number].encode()
    return bytes(_BYTES[sign] for sign in self._pieces[number])


def visible(raw: bytes) -> str:
  """A token on one line: white space as signs, what cannot be seen escaped.

  Bytes that are no UTF-8 by themselves read \\xe6; a mark that would sit on
  the character before stands on a dotted circle.
  """
  text = raw.decode(errors='backslashreplace')
  text = ''.join(_SIGNS.get(sign) or _escaped(sign) for sign in text)
  if text and unicodedata.category(text[0]).startswith('M'):
    return f'◌{text}'
  return text


def readable(text: str) -> str:
  """Running text without control characters; lines stay lines."""
  return ''.join(
    sign if sign in _KEPT else _escaped(sign) for sign in text
  )


def _escaped(sign: str) -> str:
  if sign.isprintable():
    return sign
  return sign.encode('unicode_escape').decode()
