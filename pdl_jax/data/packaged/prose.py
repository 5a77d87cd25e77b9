"""Converts HTML of API documentation to clean sentences."""

import html.parser
import re
import unicodedata
from typing import NamedTuple

_BLOCK_NAMES = (
  'p|li|ul|ol|dl|dt|dd|note|important|caution|div|h1|h2|h3|h4|pre|br'
  '|fullname|title|text|table|tr|td|th'
)
_INLINE_NAMES = (
  'a|b|code|em|i|strong|u|span|link|filename|replaceable|accessibility'
  '|sub|sup|small|xhtml|zonbook'
)
_BLOCK_TAGS = frozenset(_BLOCK_NAMES.split('|'))
_INLINE_TAGS = frozenset(_INLINE_NAMES.split('|'))
# Their text is about the page, not about its subject.
_ASIDE_TAGS = frozenset(('note', 'important', 'caution', 'fullname', 'title'))
_MARKUP = re.compile(rf'</?(?:{_BLOCK_NAMES}|{_INLINE_NAMES})\b[^<>]*>', re.I)

# These never end a sentence; other words with a full stop may.
_ABBREVIATIONS = re.compile(
  r'["“(\[]*(?:[Ee]\.?g|[Ii]\.?e|cf|vs|viz|approx|[Ff]ig|Dr|Mrs?|Ms|Prof|St)\.'
)
_TERMINATOR = re.compile(r'[.!?]+["”’\')\]]*(?=\s|$)')
_ENUMERATOR = re.compile(r'[(\["“]*(?:\d{1,2}|[A-Za-z])\.')
_POINTER = re.compile(
  r'For (?:more|further|additional|general|detailed) (?:information|details)\b'
  r'|For (?:more|information|details|instructions|guidance|a list|an example'
  r'|examples|specific information)\b.*?\b(?:see|refer to|visit|go to)\b'
  r'|To learn more\b|Learn more\b|(?:Please |Also )?(?:[Ss]ee|[Rr]efer to) '
)


class Block(NamedTuple):
  """A paragraph or list item; an aside is a note, a warning or a title."""

  text: str
  aside: bool


class _BlockParser(html.parser.HTMLParser):
  """Collects blocks; unknown tags are placeholders and stay text."""

  def __init__(self) -> None:
    super().__init__(convert_charrefs=True)
    self.blocks: list[Block] = []
    self._parts: list[str] = []
    self._asides = 0

  def handle_starttag(
    self, tag: str, attrs: list[tuple[str, str | None]]
  ) -> None:
    if tag in _BLOCK_TAGS:
      self.end_block()
      self._asides += tag in _ASIDE_TAGS
    elif tag not in _INLINE_TAGS:
      self._parts.append(self.get_starttag_text() or '')

  def handle_endtag(self, tag: str) -> None:
    if tag in _BLOCK_TAGS:
      self.end_block()
      if tag in _ASIDE_TAGS:
        self._asides = max(0, self._asides - 1)

  def handle_data(self, data: str) -> None:
    self._parts.append(data)

  def end_block(self) -> None:
    text = ''.join(self._parts)
    self._parts.clear()
    if text and not text.isspace():
      self.blocks.append(Block(_tidy(text), self._asides > 0))


def _tidy(text: str) -> str:
  """Undoes ligatures, hard spaces, and the gaps that removed tags leave."""
  text = ' '.join(unicodedata.normalize('NFKC', text).split())
  text = re.sub(r' +([.,;:!?)\]]+(?:\s|$))', r'\1', text)
  return re.sub(r'([(\[]) +', r'\1', text)


def _parse(markup: str) -> list[Block]:
  parser = _BlockParser()
  parser.feed(markup)
  parser.close()
  parser.end_block()
  return parser.blocks


def html_blocks(markup: str) -> list[Block]:
  """Splits HTML into paragraphs and list items of plain text.

  Some pages were escaped twice: text that is markup after decoding is parsed
  once more. Unknown tags such as <region> are placeholders and stay.
  """
  blocks = []
  for block in _parse(markup):
    if _MARKUP.search(block.text):
      blocks += [
        Block(inner.text, block.aside or inner.aside)
        for inner in _parse(block.text)
      ]
    else:
      blocks.append(block)
  return blocks


def _ends_sentence(sentence: str, following: str) -> bool:
  word = sentence.split()[-1]
  if not following:
    return True
  if following[0].islower() or _ABBREVIATIONS.fullmatch(word):
    return False
  if word == 'No.' and following[0].isdigit():
    return False
  if _ENUMERATOR.fullmatch(sentence):
    return False
  return sentence.count('(') <= sentence.count(')')


def split_sentences(text: str) -> list[str]:
  """Splits one block into sentences.

  A sentence ends at `.`, `!` or `?` (with closing quotes or brackets) before
  white space, and at the end of the block. It goes on before a lower-case
  letter, inside a bracket, and after an abbreviation (e.g., i.e., vs., ...). It
  also goes on after `No.` before a number, and after a lone enumerator (`1.`,
  `a.`). So `Amazon S3. The` and `etc. The` are boundaries; `Node.js`,
  `10.0.0.1` and `etc. and` are not.
  """
  sentences, start = [], 0
  for match in _TERMINATOR.finditer(text):
    sentence = text[start : match.end()].strip()
    if _ends_sentence(sentence, text[match.end() :].lstrip()[:1]):
      sentences.append(sentence)
      start = match.end()
  rest = text[start:].strip()
  return [*sentences, rest] if rest else sentences


def is_pointer(sentence: str) -> bool:
  """Returns whether a sentence only refers to another page."""
  return _POINTER.match(sentence) is not None
