"""Synopses and descriptions: small made-up packages, and the real ones."""

import collections
import random

import pytest

from pdl_jax.data import sources
from pdl_jax.data.packaged import debian_index, debian_synopses, pairs
from pdl_jax.data.packaged.debian_index import Description, Release
from pdl_jax.errors import DataError, HostError

TEXT = (
  ' It keeps the {0} of a {0} apart from those of any other one, and tells\n'
  ' by {0} which of the two came first, without being asked for it.'
)
# What Debian's last release of bookworm gives.
GOLDEN_VERSION = 'bookworm 2026-07-11 769b43d74ef3'


def _examples(descriptions):
  dropped = collections.Counter()
  made = debian_synopses.examples_of(descriptions)
  kept = pairs.without_copies(made, debian_synopses.split_of, dropped)
  return kept, dropped


@pytest.fixture(scope='module')
def real():
  """The pairs of the index here, and why the others were dropped."""
  if not debian_index.CACHE.exists():
    pytest.skip(f'{debian_index.COMMAND} has not been run here')
  rows = debian_index.read_index(debian_index.CACHE)
  return rows, *_examples(rows)


def test_every_source_is_kept_or_counted(real):
  rows, kept, dropped = real
  assert len(kept) + sum(dropped.values()) == len({row.source for row in rows})
  counts = collections.Counter(
    debian_synopses.split_of(pair.group) for pair in kept
  )
  shares = [counts[s] / len(kept) for s in sources.SPLITS]
  assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
  if debian_index.index_version(debian_index.CACHE) == GOLDEN_VERSION:
    assert counts == {
      'train': 21364, 'validation': 2575, 'test': 2633,
    }  # fmt: skip
    assert dropped == {
      'boilerplate_summary': 4, 'description_too_short': 3802,
      'duplicate_document': 118, 'duplicate_summary': 172,
      'near_duplicate': 630, 'nothing_of_its_own': 139,
      'synopsis_in_description': 2314, 'synopsis_too_long': 76,
      'synopsis_too_short': 342,
    }  # fmt: skip


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', []),
    (' One\n two.\n .\n Three.', ['One two.', 'Three.']),
    (' .\n One.\n .\n .\n', ['One.']),
    (' It does:\n  * a to b\n  - c\n    d\n 1. e', ['It does: a to b c d e']),
    (' has 2. or o in it - too', ['has 2. or o in it - too']),
    (' -5 degrees', ['-5 degrees']),
  ],
)
def test_paragraphs(text, expected):
  assert debian_synopses.paragraphs(text) == expected


def _row(package, source='box', section='utils', synopsis='A box.', text=''):
  return Description(package, source, section, synopsis, text)


@pytest.mark.parametrize(
  ('rows', 'chosen'),
  [
    ([_row('box-extras'), _row('box')], 'box'),
    ([_row('a'), _row('box')], 'box'),
    ([_row('crate'), _row('big-crate')], 'crate'),
    ([_row('b'), _row('a')], 'a'),
    ([_row('box-doc'), _row('python3-box')], 'python3-box'),
    ([_row('libbox', section='libdevel'), _row('box-tools')], 'box-tools'),
    ([_row('box-dev')], 'box-dev'),
    ([_row('box', text=' This is a dummy package.'), _row('crate')], 'crate'),
    ([_row('box', synopsis='box (transitional package)')], None),
    ([_row('a', text=' It holds the debugging symbols.')], None),
    ([_row('a', text=' It reads metapackages.'), _row('b')], 'a'),
    ([], None),
  ],
)
def test_the_package_that_stands_for_its_source(rows, chosen):
  for order in (rows, rows[::-1]):
    package = debian_synopses.main_package(order)
    assert (package and package.package) == chosen


@pytest.mark.parametrize(
  ('synopsis', 'description', 'reason'),
  [
    ('keeps things apart', 'word ' * 15, None),
    ('keeps things', 'word ' * 15, 'synopsis_too_short'),
    ('keeps ' * 16, 'word ' * 15, None),
    ('keeps ' * 17, 'word ' * 15, 'synopsis_too_long'),
    ('keeps things apart', 'word ' * 14, 'description_too_short'),
    ('keeps things apart', 'Keeps Things, apart ' * 5,
     'synopsis_in_description'),
    ('keeps things apart', 'keeps things apartment ' * 5, None),
  ],
)  # fmt: skip
def test_unfit_texts(synopsis, description, reason):
  assert debian_synopses.why_unfit(synopsis, description) == reason


def test_versions_of_a_program_share_a_split():
  splits = {debian_synopses.split_of(f'lua5.{n}') for n in range(50)}
  assert len(splits) == 1
  names = collections.Counter(
    debian_synopses.split_of(''.join(random.Random(n).choices('abcdef', k=9)))
    for n in range(2000)
  )
  assert 1500 < names['train'] < 1700 and min(names.values()) > 150


def _descriptions(number):
  words = [f'{a}{b}' for a in ('ka', 'mi', 'so') for b in 'bdfghklmnprstvwz']
  return [
    _row(f'lib{w}', w, synopsis=f'keeps {w} apart', text=TEXT.format(w))
    for w in words[:number]
  ]


def test_a_paragraph_of_many_sources_is_dropped(monkeypatch):
  monkeypatch.setattr(pairs, 'MAX_SEEN_SHINGLES', 1.0)
  rows = _descriptions(4)
  for i, row in enumerate(rows):
    about = f'\n .\n The {row.source} library, lib{row.source}, is for all.'
    rows[i] = row._replace(text=f'{about}{row.text}\n .\n Only {i} has this.')
  few, dropped = _examples(rows[:3])
  assert not dropped and all('is for all' in pair.source for pair in few)
  # Now the one with its name alone is a text of many, and so is the rest.
  everything, dropped = _examples(rows)
  assert not everything and dropped == {'description_too_short': 4}


def test_pairs_do_not_depend_on_the_order(monkeypatch):
  monkeypatch.setattr(pairs, 'MAX_SEEN_SHINGLES', 1.0)
  monkeypatch.setattr(debian_synopses, 'MAX_GROUPS', 99)
  rows = [*_descriptions(48), _row('box'), _row('dup', 'ka', text=' Short.')]
  kept, dropped = _examples(rows)
  random.Random(0).shuffle(rows)
  assert _examples(rows) == (kept, dropped)
  assert len(kept) == 48 and dropped == {'synopsis_too_short': 2}
  splits = [debian_synopses.split_of(pair.group) for pair in kept]
  assert splits == sorted(splits, key=sources.SPLITS.index)
  assert kept[0].source.startswith(f'It keeps the {kept[0].group} of a')


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cached index of made-up packages, in which every split has some."""
  monkeypatch.setattr(pairs, 'MAX_SEEN_SHINGLES', 1.0)
  monkeypatch.setattr(debian_synopses, 'MAX_GROUPS', 99)
  file = tmp_path / 'descriptions.jsonl.gz'
  monkeypatch.setattr(debian_index, 'CACHE', file)
  release = Release('2026-01-02', 'bookworm', '')
  debian_index.write_index(file, _descriptions(48), release)
  return file


def test_the_prepared_data_name_their_index(cache, tmp_path):
  def load():
    return sources.load('debian', 'test', str(tmp_path))

  source = load()
  version = debian_index.index_version(cache)
  assert source.metadata['package_version'] == version
  assert sum(source.metadata['kept'].values()) == 48
  assert source.metadata['dropped'] == {}
  word = source[0]['group']
  assert source[0] == {
    'id': f'lib{word}', 'group': word, 'target': f'keeps {word} apart',
    'source': ' '.join(TEXT.format(word).split()),
  }  # fmt: skip
  # A machine that was handed the prepared data needs no index ...
  cache.rename(tmp_path / 'away')
  assert load().fingerprint == source.fingerprint
  # ... and one with a newer index sees that they are of another version.
  release = Release('2026-03-04', 'bookworm', '')
  debian_index.write_index(cache, _descriptions(40), release)
  with pytest.raises(DataError, match=f'{version}, not bookworm 2026-03-04 '):
    load()


def test_without_an_index_or_data_the_command_is_named(cache, tmp_path):
  cache.unlink()
  with pytest.raises(DataError, match=r'missing: `python -m pdl_jax.data.pack'):
    sources.load('debian', 'test', str(tmp_path))


def test_the_command_reports_and_fails_with_the_documented_code(
  cache, monkeypatch, capsys
):
  monkeypatch.setattr(debian_index, 'fetch', lambda: 'bookworm 2026-01-02 ab')
  assert debian_synopses.main() == 0
  assert capsys.readouterr().out == f'{cache}: bookworm 2026-01-02 ab\n'

  def fails():
    raise HostError('there is no apt-get here')

  monkeypatch.setattr(debian_index, 'fetch', fails)
  assert debian_synopses.main() == 4
  assert capsys.readouterr().err == 'there is no apt-get here\n'
