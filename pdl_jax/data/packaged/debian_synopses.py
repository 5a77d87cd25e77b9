"""Debian's package descriptions: the synopsis from the long description.

A synopsis is a summary by a maintainer, full of names that occur once.

`python -m pdl_jax.data.packaged.debian_synopses` fetches the text once with
apt-get; then the data set is made without a network. It changes with Debian, so
its identity includes the release, its date and a checksum.
"""

import collections
import re
import sys
from collections.abc import Iterator

from pdl_jax.data.packaged import debian_index, texts
from pdl_jax.data.packaged.debian_index import Description
from pdl_jax.data.packaged.pairs import MAX_GROUPS, normalised, without_copies
from pdl_jax.data.packaged.texts import Example
from pdl_jax.errors import PdlError

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
  file = debian_index.CACHE
  return debian_index.index_version(file) if file.exists() else ''


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
  made = examples_of(debian_index.read_index(debian_index.CACHE))
  return texts.by_split(without_copies(made, split_of, dropped), split_of)


def main() -> int:
  """Fetches the descriptions; returns an exit code of errors.py."""
  try:
    version = debian_index.fetch()
  except PdlError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  print(f'{debian_index.CACHE}: {version}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
