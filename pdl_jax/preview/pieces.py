"""Tokens and text of which every character can be seen."""

import unicodedata

from pdl_jax.data.tokenizer import spelled
from pdl_jax.errors import printable

_SIGNS = {' ': '·', '\n': '↵', '\t': '⇥', '\r': '␍'}


def visible(raw: bytes) -> str:
  """A token on one line: white space as signs, what cannot be seen escaped.

  Bytes that are no character by themselves read like <0xE6>; a mark that would
  sit on the character before stands on a dotted circle.
  """
  text = spelled(raw)
  text = ''.join(_SIGNS.get(sign) or _escaped(sign) for sign in text)
  if text and unicodedata.category(text[0]).startswith('M'):
    return f'◌{text}'
  return text


def readable(text: str) -> str:
  """Running text without control characters; lines stay lines."""
  return printable(text, keep='\n')


def _escaped(sign: str) -> str:
  if sign.isprintable():
    return sign
  return sign.encode('unicode_escape').decode()
