"""The one way in for text: a prepared data set as a random-access sequence."""

import contextlib
import difflib
import hashlib
import importlib
import io
import json
import operator
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

from pdl_jax.errors import ConfigError, DataError, HostError

if TYPE_CHECKING:
  from pdl_jax.data.builders.packages import PackagedBuilder

# Name in a config -> module and class of the builder, imported when asked for.
BUILDERS: dict[str, tuple[str, str]] = {
  'botocore': (
    'pdl_jax.data.builders.botocore_summaries',
    'BotocoreSummaries',
  ),
}
SPLITS = ('train', 'validation', 'test')
FIELDS = ('id', 'document', 'summary', 'group')


class Source:
  """One split of a data set: a sequence of records, read when indexed.

  Attributes:
    name: its name in BUILDERS.
    split: train, validation or test.
    fingerprint: 64 hex digits over builder, version, split, number of examples
      and the version of the package it was made from; equal on every machine.
    metadata: what the builder stored: the package and its version, how many
      records each split keeps, and how many were dropped for which reason.
  """

  def __init__(
    self,
    records: Sequence[Mapping[str, bytes | None]],
    *,
    name: str,
    split: str,
    fingerprint: str,
    metadata: Mapping[str, Any],
    folder: str,
  ) -> None:
    self.name = name
    self.split = split
    self.fingerprint = fingerprint
    self.metadata = metadata
    self._records = records
    self._folder = folder

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: SupportsIndex) -> dict[str, str]:
    """Returns record `index` as text, under the keys in FIELDS.

    Raises:
      IndexError: the index is not in [-len, len).
      DataError: the file is damaged, or the record lacks a field.
    """
    index = range(len(self))[operator.index(index)]
    try:
      record = self._records[index]
    except RuntimeError as error:
      raise DataError(
        f'{self.name}, split {self.split}: record {index} of {len(self)} in'
        f' {self._folder} cannot be read ({error}); delete that folder and it'
        ' is prepared again'
      ) from error
    return {field: self._text(record, index, field) for field in FIELDS}

  def __repr__(self) -> str:
    return f'Source({self.name!r}, {self.split!r}, {self.fingerprint[:8]})'

  def _text(
    self, record: Mapping[str, bytes | None], index: int, field: str
  ) -> str:
    value = record.get(field)
    if value is None:
      which = (record.get('id') or b'no id').decode()
      raise DataError(
        f'{self.name}, split {self.split}: record {index} ({which}) has no'
        f' field {field!r}; delete {self._folder} and it is prepared again'
      )
    return value.decode()


def load(name: str, split: str, data_dir: str | None = None) -> Source:
  """Opens a packaged data set; the first call on a machine prepares it.

  Args:
    name: a key of BUILDERS.
    split: train, validation or test.
    data_dir: where TFDS keeps its data; None is its own default, the
      environment's TFDS_DATA_DIR or else ~/tensorflow_datasets.

  Raises:
    ConfigError: there is no such name or split.
    DataError: the package is missing or of another version, or what was
      prepared is damaged.
    HostError: data_dir cannot be written.
  """
  # Takes half a second, which those who only import this module save.
  import tensorflow_datasets as tfds

  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  _check_known('data set', name, BUILDERS)
  _check_known('split', split, SPLITS)
  builder = _prepared_builder(name, data_dir)
  metadata = dict(builder.info.metadata or {})
  if metadata.get('package_version') != builder.PACKAGE_VERSION:
    raise DataError(
      f'{builder.data_dir} was made from {builder.PACKAGE}'
      f' {metadata.get("package_version")}, not {builder.PACKAGE_VERSION};'
      ' delete that folder and it is prepared again'
    )
  records = tfds.data_source(
    f'{builder.name}:{builder.version}',
    split=split,
    data_dir=builder.data_dir_root,
    download=False,
  )
  identity = [
    builder.name,
    str(builder.version),
    split,
    builder.info.splits[split].num_examples,
    f'{builder.PACKAGE}=={builder.PACKAGE_VERSION}',
  ]
  return Source(
    cast(Sequence[Mapping[str, bytes | None]], records),
    name=name,
    split=split,
    fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    metadata=metadata,
    folder=str(builder.data_dir),
  )


def _check_known(what: str, value: str, known: Sequence[str] | Mapping) -> None:
  if value not in known:
    nearest = difflib.get_close_matches(value, known, n=1, cutoff=0)[0]
    raise ConfigError(
      f'there is no {what} {value!r}; did you mean {nearest!r}?'
      f' Known: {", ".join(known)}'
    )


def _prepared_builder(name: str, data_dir: str | None) -> 'PackagedBuilder':
  """Returns the TFDS builder of a data set that is on disk afterwards."""
  module, class_name = BUILDERS[name]
  builder_class = getattr(importlib.import_module(module), class_name)
  folder = os.path.expanduser(data_dir) if data_dir else None
  try:
    builder = builder_class(data_dir=folder)
    if builder.info.initialized:
      return builder
    _prepare(builder)
    return builder_class(data_dir=folder)
  except OSError as error:
    raise HostError(
      f'{name} cannot be prepared in the data_dir'
      f' {data_dir or "of TFDS (TFDS_DATA_DIR)"}: {error}; name a folder that'
      ' can be written'
    ) from error


def _prepare(builder: 'PackagedBuilder') -> None:
  print(
    f'preparing {builder.name} {builder.version} in {builder.data_dir}'
    ' (once, well under a minute)',
    file=sys.stderr,
  )
  try:
    # TFDS announces a download of unknown size, and there is none.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(file_format='array_record')
  except OSError:
    # Another process that started at the same time may have been first.
    if not os.path.exists(os.path.join(builder.data_dir, 'dataset_info.json')):
      raise
