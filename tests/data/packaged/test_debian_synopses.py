"""Debian's descriptions: fetched by a stand-in, damaged, and made to pairs."""

import collections
import gzip
import random
import subprocess

import pytest

from pdl_jax.data import sources
from pdl_jax.data.packaged import debian_synopses as debian
from pdl_jax.data.packaged import pairs
from pdl_jax.data.packaged.debian_synopses import Description, Release
from pdl_jax.errors import DataError, HostError

TEXT = (
  ' It keeps the {0} of a {0} apart from those of any other one, and tells\n'
  ' by {0} which of the two came first, without being asked for it.'
)
PACKAGES = """\
Package: kettle
Source: kitchen (2.0-1)
Version: 2.0-1
Depends: water,
 heat
Description: boils water
Description-md5: 11
Section: utils

Package: spoon
Description-md5: 22
"""
TRANSLATION = """\
Package: kettle
Description-md5: 10
Description-en: boils ale
 It was so once.

Package: kettle
Description-md5: 11
Description-en: boils water
 It boils: tea,
 coffee.
 .
 And it whistles.


Package: spoon
Description-md5: 22
Description-en: stirs

Package: fork
Description-md5: 33
Description-en: is of another architecture
 Gone.
"""
ROWS = [
  Description(
    'kettle', 'kitchen', 'utils', 'boils water',
    ' It boils: tea,\n coffee.\n .\n And it whistles.',
  ),
  Description('spoon', 'spoon', '', 'stirs', ''),
]  # fmt: skip
RELEASE = Release('2026-07-11', 'bookworm', 'x_')


def _release(codename, date='Sat, 11 Jul 2026 10:16:37 UTC', origin='Debian'):
  return (
    '-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n'
    f'Origin: {origin}\nLabel: Debian\nCodename: {codename}\nDate: {date}\n'
  )


LISTS = {
  'a_dists_bookworm_InRelease': _release('bookworm'),
  'a_dists_bookworm_main_binary-amd64_Packages': PACKAGES,
  'a_dists_bookworm_main_i18n_Translation-en': TRANSLATION,
  'a_dists_updates_InRelease': _release(
    'bookworm-updates', 'Sun, 22 Nov 2026 10:16:37 UTC'
  ),
  'b_dists_x_InRelease': _release('x', 'Sun, 22 Nov 2026 00:00:00 UTC', 'Shop'),
}


@pytest.fixture
def apt(monkeypatch):
  """An apt-get that fetches the files in the list it returns."""
  lists, said = dict(LISTS), ['Get:1 http://somewhere bookworm InRelease']

  def run(command, **kwargs):
    folder = next(
      o.split('=')[1] for o in command if o.startswith('-oDir::State::lists')
    )
    debian.Path(folder).mkdir(parents=True)
    for name, text in lists.items():
      debian.Path(folder, name).write_text(text, 'utf-8')
    return subprocess.CompletedProcess(command, 100, stdout='\n'.join(said))

  monkeypatch.setattr(debian.shutil, 'which', lambda name: f'/bin/{name}')
  monkeypatch.setattr(debian.subprocess, 'run', run)
  return lists, said


def test_stanzas():
  text = '\n\nA: 1\nB: x: y\n  z\nC:\n\nA: 2\n\n'
  assert list(debian.stanzas(text)) == [
    {'A': '1', 'B': 'x: y\n  z', 'C': ''}, {'A': '2'},
  ]  # fmt: skip


def test_indexes_are_joined_by_package_and_sum():
  for translation in (TRANSLATION, f'{TRANSLATION}\n{TRANSLATION}'):
    assert debian.join_indexes(PACKAGES, translation) == ROWS
  assert debian.join_indexes('', TRANSLATION) == []


def test_the_newest_plain_debian_release_is_chosen(tmp_path):
  later = _release('forky', 'Fri, 1 Jan 2027 00:00:00 UTC')
  for name, text in {**LISTS, 'a_dists_forky_InRelease': later}.items():
    (tmp_path / name).write_text(text, 'utf-8')
  assert debian.newest_release(tmp_path) == (
    '2027-01-01', 'forky', 'a_dists_forky_',
  )  # fmt: skip


def test_fetch_keeps_what_apt_brought_although_it_failed(apt, tmp_path):
  file = tmp_path / 'new' / 'x.jsonl.gz'
  version = debian.fetch(file)
  assert version == debian.index_version(file)
  assert version.startswith('bookworm 2026-07-11 ')
  assert debian.read_index(file) == ROWS
  data = file.read_bytes()
  assert debian.fetch(file) == version
  assert file.read_bytes() == data
  assert list(file.parent.iterdir()) == [file]
  name = 'a_dists_bookworm_main_i18n_Translation-en'
  apt[0][name] = TRANSLATION.replace('whistles', 'sings')
  assert debian.fetch(file) != version


@pytest.mark.parametrize('ending', ['InRelease', 'Packages', 'Translation-en'])
def test_without_an_index_apts_complaint_is_passed_on(apt, tmp_path, ending):
  lists, said = apt
  said += ['W: a mirror is slow', 'E: no address for the host', 'Done']
  for name in [n for n in lists if n.endswith(ending)]:
    del lists[name]
  (tmp_path / 'x').write_text('of yesterday', 'utf-8')
  with pytest.raises(HostError, match=r'\(E: no address for the host\): check'):
    debian.fetch(tmp_path / 'x')
  assert (tmp_path / 'x').read_text('utf-8') == 'of yesterday'


def test_what_a_host_lacks_is_named(apt, monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(HostError, match=r'cannot be kept in \S+/file/x'):
    debian.fetch(tmp_path / 'file' / 'x')
  monkeypatch.setattr(debian.shutil, 'which', lambda name: None)
  with pytest.raises(HostError, match=r'no apt-get here, .* on a Debian machi'):
    debian.fetch(tmp_path / 'x')


def test_a_missing_or_damaged_file_is_named_with_the_command(tmp_path):
  file = tmp_path / 'x'
  for read in (debian.index_version, debian.read_index):
    with pytest.raises(DataError, match=r'x is missing: `python -m pdl_jax'):
      read(file)
  rows = [Description(f'p{i}', 's', '', 'y', 'z' * i) for i in range(300)]
  debian.write_index(file, rows, RELEASE)
  assert debian.read_index(file) == rows
  data = file.read_bytes()
  cuts = [data[:end] for end in range(0, len(data), 97)]
  for damage in (*cuts, b'text', data[:100] + b'?' + data[101:]):
    file.write_bytes(damage)
    with pytest.raises(DataError, match=r'x is damaged .*fetches it anew'):
      debian.read_index(file)
  text = gzip.decompress(data)
  file.write_bytes(gzip.compress(text.replace(b'p299', b'p298')))
  with pytest.raises(DataError, match=r'damaged \(checksum\)'):
    debian.read_index(file)


def _examples(descriptions):
  dropped = collections.Counter()
  made = debian.examples_of(descriptions)
  kept = pairs.without_copies(made, debian.split_of, dropped)
  return kept, dropped


@pytest.mark.parametrize(('text', 'expected'), [
  ('', []),
  (' One\n two.\n .\n Three.', ['One two.', 'Three.']),
  (' .\n One.\n .\n .\n', ['One.']),
  (' It does:\n  * a to b\n  - c\n    d\n 1. e', ['It does: a to b c d e']),
  (' has 2. or o in it - too', ['has 2. or o in it - too']),
  (' -5 degrees', ['-5 degrees']),
])  # fmt: skip
def test_paragraphs(text, expected):
  assert debian.paragraphs(text) == expected


def _row(package, source='box', section='utils', synopsis='A box.', text=''):
  return Description(package, source, section, synopsis, text)


@pytest.mark.parametrize(('rows', 'chosen'), [
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
])  # fmt: skip
def test_the_package_that_stands_for_its_source(rows, chosen):
  for order in (rows, rows[::-1]):
    package = debian.main_package(order)
    assert (package and package.package) == chosen


@pytest.mark.parametrize(('synopsis', 'description', 'reason'), [
  ('keeps things apart', 'word ' * 15, None),
  ('keeps things', 'word ' * 15, 'synopsis_too_short'),
  ('keeps ' * 16, 'word ' * 15, None),
  ('keeps ' * 17, 'word ' * 15, 'synopsis_too_long'),
  ('keeps things apart', 'word ' * 14, 'description_too_short'),
  ('keeps things apart', 'Keeps Things, apart ' * 5,
   'synopsis_in_description'),
  ('keeps things apart', 'keeps things apartment ' * 5, None),
])  # fmt: skip
def test_unfit_texts(synopsis, description, reason):
  assert debian.why_unfit(synopsis, description) == reason


def test_versions_of_a_program_share_a_split():
  splits = {debian.split_of(f'lua5.{n}') for n in range(50)}
  assert len(splits) == 1
  names = collections.Counter(
    debian.split_of(''.join(random.Random(n).choices('abcdef', k=9)))
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
  monkeypatch.setattr(debian, 'MAX_GROUPS', 99)
  rows = [*_descriptions(48), _row('box'), _row('dup', 'ka', text=' Short.')]
  kept, dropped = _examples(rows)
  random.Random(0).shuffle(rows)
  assert _examples(rows) == (kept, dropped)
  assert len(kept) == 48 and dropped == {'synopsis_too_short': 2}
  splits = [debian.split_of(pair.group) for pair in kept]
  assert splits == sorted(splits, key=sources.SPLITS.index)
  assert kept[0].source.startswith(f'It keeps the {kept[0].group} of a')


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cached index of made-up packages, in which every split has some."""
  monkeypatch.setattr(pairs, 'MAX_SEEN_SHINGLES', 1.0)
  monkeypatch.setattr(debian, 'MAX_GROUPS', 99)
  file = tmp_path / 'descriptions.jsonl.gz'
  monkeypatch.setattr(debian, 'CACHE', file)
  release = Release('2026-01-02', 'bookworm', '')
  debian.write_index(file, _descriptions(48), release)
  return file


def test_the_prepared_data_name_their_index(cache, tmp_path):
  def load():
    return sources.load('debian', 'test', str(tmp_path))

  source = load()
  version = debian.index_version(cache)
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
  debian.write_index(cache, _descriptions(40), release)
  with pytest.raises(DataError, match=f'{version}, not bookworm 2026-03-04 '):
    load()


def test_the_command_reports_and_fails_with_the_documented_code(
  cache, monkeypatch, capsys
):
  monkeypatch.setattr(debian, 'fetch', lambda: 'bookworm 2026-01-02 ab')
  assert debian.main() == 0
  assert capsys.readouterr().out == f'{cache}: bookworm 2026-01-02 ab\n'

  def fails():
    raise HostError('there is no apt-get here')

  monkeypatch.setattr(debian, 'fetch', fails)
  assert debian.main() == 4
  assert capsys.readouterr().err == 'there is no apt-get here\n'
