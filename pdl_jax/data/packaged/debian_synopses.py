"""Debian's package descriptions: the synopsis from the long description.

A synopsis is a summary by a maintainer, full of names that occur once.

`python -m pdl_jax.data.packaged.debian_synopses` fetches the text once into one
file: apt-get brings the signed indexes of this machine's sources into a folder
of its own, without root rights, and changes nothing of the system. The part
`main` of the newest Debian release is kept. Then the data set is made without a
network. It changes with Debian, so its identity includes the release, its date
and a checksum.
"""

import collections
import contextlib
import email.utils
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO, cast

from pdl_jax.data.packaged import texts
from pdl_jax.data.packaged.pairs import MAX_GROUPS, normalised, without_copies
from pdl_jax.data.packaged.texts import Example
from pdl_jax.errors import DataError, HostError, PdlError

CACHE = (
  Path(__file__).parents[3] / '.cache' / 'debian' / 'descriptions.jsonl.gz'
)
COMMAND = 'python -m pdl_jax.data.packaged.debian_synopses'
_OPTIONS = (
  'Dir::State::status=/dev/null',
  'Acquire::Languages=en',
  'Acquire::GzipIndexes=false',
  'Acquire::http::Timeout=30',
  'APT::Sandbox::User=root',  # else root's apt cannot enter the folder
)
MIN_SYNOPSIS_WORDS, MAX_SYNOPSIS_WORDS = 3, 16
MIN_DESCRIPTION_WORDS = 15

# Packages that accompany another one. They are taken if a source has no others:
# a library in Go is only a -dev package.
_SIDE_SECTIONS = frozenset((
  'debug', 'doc', 'introspection', 'libdevel', 'localization', 'metapackages',
  'oldlibs', 'tasks',
))  # fmt: skip
_SIDE_NAME = re.compile(
  r'-(?:common|data|dbg|dbgsym|dev|doc|examples|l10n|prof|tests?)$'
)
# Packages without content of their own to describe.
_STUB = re.compile(
  r'\b(?:transitional|dummy|meta-?package|meta package|virtual package'
  r'|empty package|dependency package|debug(?:ging)? symbols)\b',
  re.I,
)
_ITEM = re.compile(r'^(?:[-*+•·o]|\(?\d{1,2}[.)]) +')


class Description(NamedTuple):
  """The description of one binary package."""

  package: str
  source: str  # the source package it is built from
  section: str
  synopsis: str
  text: str  # as in the index: lines begin with a space, paragraphs after ' .'


class Release(NamedTuple):
  """A Debian release among the fetched files."""

  date: str  # 2026-07-11
  codename: str
  prefix: str  # of its file names


def stanzas(text: str) -> Iterator[dict[str, str]]:
  """Yields the fields of each stanza of an index, line breaks kept."""
  for stanza in text.split('\n\n'):
    fields = re.findall(r'^([^\s:]+):[ \t]*(.*(?:\n[ \t].*)*)', stanza, re.M)
    if fields:
      yield dict(fields)


def join_indexes(packages: str, translation: str) -> list[Description]:
  """Joins the index of packages with that of their descriptions.

  The second also has former descriptions; the checksum picks the current one.
  """
  known = {}
  for fields in stanzas(packages):
    name = fields['Package']
    source = fields.get('Source', name).split()[0]  # without its version
    key = name, fields.get('Description-md5')
    known[key] = source, fields.get('Section', '')
  joined = set()
  for fields in stanzas(translation):
    key = fields['Package'], fields['Description-md5']
    if key in known:
      source, section = known[key]
      synopsis, _, text = fields['Description-en'].partition('\n')
      joined.add(Description(key[0], source, section, synopsis.strip(), text))
  return sorted(joined)


def newest_release(lists: Path) -> Release | None:
  """Finds the newest plain Debian release (no updates, no backports)."""
  releases = []
  for file in lists.glob('*_InRelease'):
    head = file.read_text(encoding='utf-8')[:4096]
    fields = dict(re.findall(r'^(\w+): (.*)$', head, re.M))
    codename = fields.get('Codename', '-')
    if fields.get('Origin') == 'Debian' and '-' not in codename:
      date = email.utils.parsedate_to_datetime(fields['Date']).date()
      prefix = file.name.removesuffix('InRelease')
      releases.append(Release(date.isoformat(), codename, prefix))
  return max(releases, default=None)


def _run_apt(folder: Path) -> str:
  apt = shutil.which('apt-get')
  if apt is None:
    raise HostError(
      'there is no apt-get here, which fetches the package descriptions: run'
      f' `{COMMAND}` on a Debian machine and copy its file to {CACHE}'
    )
  options = [
    *_OPTIONS,
    f'Dir::State={folder}',
    f'Dir::State::lists={folder}/lists',
    f'Dir::Cache={folder}/cache',
  ]
  done = subprocess.run(
    [apt, '--quiet', 'update', *(f'-o{option}' for option in options)],
    env={**os.environ, 'LC_ALL': 'C'},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    encoding='utf-8',
  )
  return done.stdout


def fetch(file: Path = CACHE) -> str:
  """Fetches today's descriptions into a file, and returns `index_version`.

  Success means that Debian's indexes have come: apt-get may fail because of
  another source, or go on after a failure.
  """
  try:
    with tempfile.TemporaryDirectory() as name:
      folder = Path(name)
      said = _run_apt(folder)
      release = newest_release(folder / 'lists')
      prefix = release.prefix if release else ''
      packages = sorted(folder.glob(f'lists/{prefix}main_binary-*_Packages'))
      translation = folder / 'lists' / f'{prefix}main_i18n_Translation-en'
      if release is None or not packages or not translation.exists():
        # An error, or else a warning.
        complaint = min(
          re.findall(r'^[EW]:.*', said, re.M), default='it named no error'
        )
        raise HostError(
          'apt-get has fetched no index of a Debian release'
          f' ({complaint.strip()}): check the network and that'
          ' /etc/apt/sources.list or sources.list.d names Debian'
        )
      rows = join_indexes(
        packages[0].read_text(encoding='utf-8'),
        translation.read_text(encoding='utf-8'),
      )
    write_index(file, rows, release)
  except OSError as error:
    raise HostError(
      f'the package descriptions cannot be kept in {file}: {error}'
    ) from error
  return index_version(file)


def write_index(file: Path, rows: list[Description], release: Release) -> None:
  """Writes a file with the release and a checksum in its first line."""
  body = ''.join(f'{json.dumps(row)}\n' for row in rows)
  digest = hashlib.sha256(body.encode()).hexdigest()
  version = f'{release.codename} {release.date} {digest[:12]}'
  head = json.dumps({'version': version, 'sha256': digest})
  file.parent.mkdir(parents=True, exist_ok=True)
  unfinished = file.with_suffix(f'.{os.getpid()}')
  unfinished.write_bytes(gzip.compress(f'{head}\n{body}'.encode(), mtime=0))
  unfinished.replace(file)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
  """Opens a file of `write_index`, or says that it is missing or damaged."""
  try:
    with gzip.open(file, 'rt', encoding='utf-8') as lines:
      yield cast(TextIO, lines)
  except FileNotFoundError as error:
    raise DataError(
      f'{file} is missing: `{COMMAND}` fetches it with apt-get (16 MB, without'
      ' root rights)'
    ) from error
  except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
    raise DataError(
      f'{file} is damaged ({error}): `{COMMAND}` fetches it anew'
    ) from error


def index_version(file: Path) -> str:
  """Returns codename, date and checksum: 'bookworm 2026-07-11 0123456789ab'."""
  with _opened(file) as lines:
    return json.loads(lines.readline())['version']


def read_index(file: Path) -> list[Description]:
  """Reads all descriptions."""
  with _opened(file) as lines:
    digest, body = json.loads(lines.readline())['sha256'], lines.read()
    if hashlib.sha256(body.encode()).hexdigest() != digest:
      raise ValueError('checksum')
    return [Description(*json.loads(line)) for line in body.splitlines()]


def split_of(source: str) -> str:
  """Assigns a split by a hash; versions (lua5.1, lua5.4) stay together."""
  stem = re.sub(r'[\d.]+', '', source)
  return texts.split_by_hash(f'debian/{stem}')


def paragraphs(text: str) -> list[str]:
  """Removes line breaks, and marks of lists and paragraphs."""
  found: list[list[str]] = [[]]
  for line in map(str.strip, text.split('\n')):
    if line == '.':
      found.append([])
    else:
      found[-1] += _ITEM.sub('', line, count=1).split()
  return [' '.join(words) for words in found if words]


def main_package(descriptions: list[Description]) -> Description | None:
  """Chooses a source's main package, preferably one with the same name."""
  candidates = [
    d for d in descriptions if not _STUB.search(f'{d.synopsis}\n{d.text}')
  ]

  def rank(d: Description) -> tuple[bool, bool, int, str]:
    side = d.section in _SIDE_SECTIONS or bool(_SIDE_NAME.search(d.package))
    return side, d.package != d.source, len(d.package), d.package

  return min(candidates, key=rank, default=None)


def why_unfit(synopsis: str, description: str) -> str | None:
  """Returns why two texts are no example, or None."""
  length = len(synopsis.split())
  if length < MIN_SYNOPSIS_WORDS:
    return 'synopsis_too_short'
  if length > MAX_SYNOPSIS_WORDS:
    return 'synopsis_too_long'
  if len(description.split()) < MIN_DESCRIPTION_WORDS:
    return 'description_too_short'
  if f' {normalised(synopsis)} ' in f' {normalised(description)} ':
    return 'synopsis_in_description'
  return None


def _without_name(paragraph: str, description: Description) -> str:
  names = set(normalised(f'{description.package} {description.source}').split())
  return ' '.join(w for w in normalised(paragraph).split() if w not in names)


def own_paragraphs(
  descriptions: list[Description],
) -> Iterator[tuple[Description, str]]:
  """Yields each description with its own paragraphs in one line.

  Paragraphs that more than MAX_GROUPS sources share, package names apart, are
  dropped. They describe something else ("Node.js is ...").
  """
  keyed = [
    [(_without_name(p, description), p) for p in paragraphs(description.text)]
    for description in descriptions
  ]
  counts = collections.Counter(
    key for parts in keyed for key in {key for key, _ in parts}
  )
  for description, parts in zip(descriptions, keyed, strict=True):
    own = [paragraph for key, paragraph in parts if counts[key] <= MAX_GROUPS]
    yield description, ' '.join(own)


def examples_of(descriptions: list[Description]) -> Iterator[Example | str]:
  """Yields the example of each source package, by name."""
  by_source = collections.defaultdict(list)
  for description in descriptions:
    by_source[description.source].append(description)
  chosen = [main_package(by_source[source]) for source in sorted(by_source)]
  yield from ['nothing_of_its_own'] * chosen.count(None)
  for row, description in own_paragraphs(list(filter(None, chosen))):
    synopsis = ' '.join(row.synopsis.split())
    yield why_unfit(synopsis, description) or Example(
      row.package, row.source, description, synopsis
    )


def version_here() -> str:
  """Returns the local index's version, or '': prepared data need no index."""
  return index_version(CACHE) if CACHE.exists() else ''


@texts.register_text(
  'debian',
  dataset='debian_synopses',
  package='the Debian index',
  package_version=version_here,
  description=(
    'The descriptions of the packages in Debian main: the synopsis'
    ' (target) is to be written from the long description (source). One'
    ' package stands for each source package; no description, synopsis or'
    ' near-copy occurs twice.'
  ),
  citation='The Debian Project: descriptions by the package maintainers.',
  license='As of the packages, all of them free (DFSG)',
)
def make(dropped: collections.Counter[str]) -> texts.Splits:
  """Makes synopses of Debian packages from their long descriptions."""
  made = examples_of(read_index(CACHE))
  return texts.by_split(without_copies(made, split_of, dropped), split_of)


def main() -> int:
  """Fetches the descriptions; returns an exit code of errors.py."""
  try:
    version = fetch()
  except PdlError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  print(f'{CACHE}: {version}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
