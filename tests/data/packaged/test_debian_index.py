"""Package descriptions: indexes read, fetched by a stand-in, and damaged."""

import gzip
import subprocess

import pytest

from pdl_jax.data.packaged import debian_index
from pdl_jax.data.packaged.debian_index import Description, Release
from pdl_jax.errors import DataError, HostError

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
    debian_index.Path(folder).mkdir(parents=True)
    for name, text in lists.items():
      debian_index.Path(folder, name).write_text(text, 'utf-8')
    return subprocess.CompletedProcess(command, 100, stdout='\n'.join(said))

  monkeypatch.setattr(debian_index.shutil, 'which', lambda name: f'/bin/{name}')
  monkeypatch.setattr(debian_index.subprocess, 'run', run)
  return lists, said


def test_stanzas():
  text = '\n\nA: 1\nB: x: y\n  z\nC:\n\nA: 2\n\n'
  assert list(debian_index.stanzas(text)) == [
    {'A': '1', 'B': 'x: y\n  z', 'C': ''}, {'A': '2'},
  ]  # fmt: skip
  assert list(debian_index.stanzas('')) == []


def test_indexes_are_joined_by_package_and_sum():
  assert debian_index.join_indexes(PACKAGES, TRANSLATION) == ROWS
  assert debian_index.join_indexes('', TRANSLATION) == []
  again = debian_index.join_indexes(PACKAGES, f'{TRANSLATION}\n{TRANSLATION}')
  assert again == ROWS


def test_the_newest_plain_debian_release_is_chosen(tmp_path):
  assert debian_index.newest_release(tmp_path) is None
  for name, text in LISTS.items():
    (tmp_path / name).write_text(text, 'utf-8')
  release = Release('2026-07-11', 'bookworm', 'a_dists_bookworm_')
  assert debian_index.newest_release(tmp_path) == release
  later = _release('forky', 'Fri, 1 Jan 2027 00:00:00 UTC')
  (tmp_path / 'a_dists_forky_InRelease').write_text(later, 'utf-8')
  assert debian_index.newest_release(tmp_path).codename == 'forky'


def test_fetch_keeps_what_apt_brought_although_it_failed(apt, tmp_path):
  file = tmp_path / 'new' / 'x.jsonl.gz'
  version = debian_index.fetch(file)
  assert version == debian_index.index_version(file)
  assert version.startswith('bookworm 2026-07-11 ')
  assert debian_index.read_index(file) == ROWS
  data = file.read_bytes()
  assert debian_index.fetch(file) == version
  assert file.read_bytes() == data
  assert list(file.parent.iterdir()) == [file]


def test_another_text_is_another_version(apt, tmp_path):
  version = debian_index.fetch(tmp_path / 'x')
  name = 'a_dists_bookworm_main_i18n_Translation-en'
  apt[0][name] = TRANSLATION.replace('whistles', 'sings')
  assert debian_index.fetch(tmp_path / 'x') != version


@pytest.mark.parametrize('ending', ['InRelease', 'Packages', 'Translation-en'])
def test_without_an_index_apts_complaint_is_passed_on(apt, tmp_path, ending):
  lists, said = apt
  said += ['W: a mirror is slow', 'E: no address for the host', 'Done']
  for name in [n for n in lists if n.endswith(ending)]:
    del lists[name]
  (tmp_path / 'x').write_text('of yesterday', 'utf-8')
  with pytest.raises(HostError, match=r'\(E: no address for the host\): check'):
    debian_index.fetch(tmp_path / 'x')
  assert (tmp_path / 'x').read_text('utf-8') == 'of yesterday'


def test_without_apt_the_remedy_is_named(monkeypatch, tmp_path):
  monkeypatch.setattr(debian_index.shutil, 'which', lambda name: None)
  with pytest.raises(HostError, match=r'no apt-get here, .* on a Debian machi'):
    debian_index.fetch(tmp_path / 'x')


def test_a_folder_that_cannot_be_written_is_named(apt, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(HostError, match=r'cannot be kept in \S+/file/x'):
    debian_index.fetch(tmp_path / 'file' / 'x')


def test_a_missing_file_is_named_with_the_command(tmp_path):
  for read in (debian_index.index_version, debian_index.read_index):
    with pytest.raises(DataError, match=r'x is missing: `python -m pdl_jax'):
      read(tmp_path / 'x')


def test_a_damaged_file_is_named_wherever_it_is_damaged(tmp_path):
  file = tmp_path / 'x'
  rows = [Description(f'p{i}', 's', '', 'y', 'z' * i) for i in range(300)]
  debian_index.write_index(file, rows, RELEASE)
  assert debian_index.read_index(file) == rows
  data = file.read_bytes()
  cuts = [data[:end] for end in range(0, len(data), 97)]
  for damage in (*cuts, b'text', data[:100] + b'?' + data[101:]):
    file.write_bytes(damage)
    with pytest.raises(DataError, match=r'x is damaged .*fetches it anew'):
      debian_index.read_index(file)
  text = gzip.decompress(data)
  file.write_bytes(gzip.compress(text.replace(b'p299', b'p298')))
  with pytest.raises(DataError, match=r'damaged \(checksum\)'):
    debian_index.read_index(file)
