"""JSON lines: one object a line, read by position from a plain file."""

import os
import weakref
from collections.abc import Mapping
from typing import Any

from pdl_jax.data import schema
from pdl_jax.data.json_index import Index
from pdl_jax.data.json_record import BadRecordError, parse
from pdl_jax.errors import ConfigError, DataError

POLICIES = ('error', 'skip')


class JsonLines:
  """The good records of a file, of which only the positions are kept.

  One pass at the beginning checks every line and keeps 26 bytes a record, no
  text. Safe to read from several threads, and picklable.

  Attributes:
    path: of the file.
    fields: canonical name -> stored name of the fields that are used: those
      that were named, and what any record has, see `schema.resolve`. Where
      others have a style or a source, a record without one has ''.
    digest: SHA-256 of its bytes, 64 hex digits.
    dropped: reason -> number of lines left out.
  """

  def __init__(
    self,
    path: str,
    fields: Mapping[str, str] | None,
    bad_records: str = 'error',
  ) -> None:
    """Indexes the file.

    Args:
      path: a plain file.
      fields: see `schema.resolve`; what is named here every record must have.
      bad_records: 'error' stops at the first defect; 'skip' leaves bad records
        out, up to json_index.MAX_BAD_SHARE of all.

    Raises:
      ConfigError: there is no such policy or field.
      DataError: a defect, too many of them, no record, or no such file.
    """
    schema.check_known('policy for bad records', bad_records, POLICIES)
    self.path = path
    self._file, self._version = self._open()
    index = Index(path, fields, skip=bad_records == 'skip')
    index.read(self._file)
    self._starts, self._sizes = index.good_spans()
    self.fields = schema.resolve(fields, index.found)
    self._blank = {self.fields[field]: '' for field in index.optional}
    self.digest, self.dropped = index.digest, dict(index.dropped)

  def _open(self) -> tuple[int, tuple[int, int]]:
    try:
      file = os.open(self.path, os.O_RDONLY)
    except OSError as error:
      raise DataError(f'{self.path} cannot be read: {error}') from error
    weakref.finalize(self, os.close, file)
    status = os.fstat(file)
    return file, (status.st_size, status.st_mtime_ns)

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads record `index`.

    Raises:
      IndexError: the index is not in [-len, len).
      DataError: the file is no longer what was indexed.
    """
    start, size = int(self._starts[index]), int(self._sizes[index])
    try:
      return self._blank | parse(os.pread(self._file, size, start))
    except BadRecordError as error:
      raise self._changed() from error

  def _changed(self) -> DataError:
    return DataError(f'{self.path} has changed since it was read; start again')

  def __getstate__(self) -> dict[str, Any]:
    return {key: self.__dict__[key] for key in self.__dict__ if key != '_file'}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._file, version = self._open()
    if version != self._version:
      raise self._changed()


def split_path(path: str, split: str) -> str:
  """Returns the file of a split: PATH with {split} in it, or a folder's.

  Args:
    path: absolute.
    split: as it is called in the name of the file.

  Raises:
    ConfigError: the path names one file for all splits.
    DataError: there is no such file, or it is compressed.
  """
  if '{split}' in path:
    file = path.replace('{split}', split)
  elif os.path.isfile(path):
    raise ConfigError(
      f'jsonl:{path} is one file for all splits; put {{split}} in the path, or'
      f' name a folder with {split}.jsonl in it'
    )
  else:
    file = os.path.join(path, f'{split}.jsonl')
  if file.endswith('.gz') or not os.path.isfile(file):
    hint = ''
    if file.endswith('.gz') or os.path.exists(f'{file}.gz'):
      hint = '; a compressed file cannot be read by position: gunzip it first'
    raise DataError(f'jsonl: there is no plain file {file}{hint}')
  return file


def open_jsonl(
  name: str,
  split: str,
  path: str,
  fields: Mapping[str, str] | None,
  bad_records: str,
) -> schema.Opened:
  """Opens a file of JSON lines.

  Args:
    name: of the data set, for errors.
    split: as it is called in the name of the file.
    path: see `split_path`.
    fields, bad_records: see `JsonLines`.

  Raises:
    ConfigError: the path or the fields are wrong.
    DataError: the file is missing or not good.
  """
  file = split_path(path, split)
  records = JsonLines(file, fields, bad_records)
  return schema.Opened(
    records=records,
    fields=records.fields,
    identity=['jsonl', records.digest, sorted(records.fields.items())],
    metadata={'file': file, 'kept': len(records), 'dropped': records.dropped},
    place=file,
    remedy='it has changed since it was read; start again',
  )
