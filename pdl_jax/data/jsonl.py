"""Reads JSON lines by position: one object per line of a plain file."""

import dataclasses
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pdl_jax.data import parts, schema
from pdl_jax.data.json_index import BadRecordError, Index, parse
from pdl_jax.errors import DataError


class JsonLines:
  """The good records of a file, read by position.

  One pass checks every line and keeps 26 bytes per record, no text. Objects can
  be pickled, and read from several threads. `fields` are the used ones, see
  `schema.resolve`: every record has those that were named. A missing style or
  source reads as ''.
  """

  def __init__(
    self, path: str, fields: Mapping[str, str] | None, bad_records: str
  ) -> None:
    """Indexes the file; `sources.load` explains `bad_records`."""
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
    start, size = int(self._starts[index]), int(self._sizes[index])
    try:
      return self._blank | parse(os.pread(self._file, size, start))
    except BadRecordError as error:
      raise self._changed() from error

  def _changed(self) -> DataError:
    return DataError(f'{self.path} has changed since it was read; start again')

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != '_file'}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._file, version = self._open()
    if version != self._version:
      raise self._changed()


def split_path(path: str, split: str) -> str:
  """Returns the file of a split: PATH with {split} in it, or in a folder."""
  file = path
  if '{split}' in path:
    file = path.replace('{split}', split)
  elif not os.path.isfile(path):
    file = os.path.join(path, f'{split}.jsonl')
  if os.path.isfile(file) and not file.endswith('.gz'):
    return file
  told = f'jsonl: there is no plain file {file}'
  if file.endswith('.gz') or os.path.exists(f'{file}.gz'):
    told += '; a compressed file cannot be read by position: gunzip it first'
  names = os.listdir(path) if os.path.isdir(path) else []
  found = [name[:-6] for name in names if name.endswith('.jsonl')]
  raise DataError(f'{told}; {schema.other_splits(found)}' if found else told)


def open_jsonl(
  name: str, called: str, path: str, fields: Mapping[str, str] | None,
  bad_records: str,
) -> schema.Source:  # fmt: skip
  """Opens a split of JSON lines; one file for all is divided by a hash."""

  def open_split(split: str) -> schema.Source:
    file = split_path(path, split)
    records = JsonLines(file, fields, bad_records)
    return schema.Source(
      records=records,
      fields=records.fields,
      identity=['jsonl', records.digest, sorted(records.fields.items())],
      metadata={
        'file': file, 'kept': len(records), 'dropped': records.dropped,
      },
      place=file,
      remedy='it has changed since it was read; start again',
      unique=True,
    )  # fmt: skip

  one_file = '{split}' not in path and os.path.isfile(path)
  opener = _divided(open_split('')) if one_file else open_split
  return parts.open_parts(name, called, opener)


def _hashed_split(key: object) -> str:
  percent = schema.hashed(key) % 100
  return 'train' if percent < 90 else 'validation' if percent < 95 else 'test'


def _divided(whole: schema.Source) -> Callable[[str], schema.Source]:
  """Opens splits of a file that holds all of them; groups stay together."""
  records, fields = whole.records, whole.fields
  key = next((k for k in ('group', 'id') if k in fields), 'number')
  keys = range(len(records))
  if key != 'number':
    keys = (records[number][fields[key]] for number in keys)
  split_N = np.array(list(map(_hashed_split, keys)))
  sizes = {split: int((split_N == split).sum()) for split in schema.SPLITS}
  told = (
    f'{whole.place} holds all splits, divided by a hash of the {key} (90/5/5): '
    + ', '.join(f'{size} {split}' for split, size in sizes.items())
  )

  def open_split(split: str) -> schema.Source:
    schema.check_known('split of one file', split, schema.SPLITS)
    if not sizes[split]:
      raise DataError(
        f'{told}; too few for {split}: write files of your own, SPLIT.jsonl in'
        ' a folder'
      )
    numbers = np.flatnonzero(split_N == split)
    return dataclasses.replace(
      whole,
      records=parts.Chosen([(records, numbers)], {}),
      identity=[*whole.identity, 'hash', split],
      metadata={**whole.metadata, 'kept': sizes[split], 'divided': told},
    )

  return open_split
