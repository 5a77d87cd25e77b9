"""JSON lines: one object a line, read by position from a plain file."""

import array
import collections
import hashlib
import os
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tqdm

from pdl_jax.data import schema
from pdl_jax.data.json_record import BadRecordError, check, parse
from pdl_jax.errors import ConfigError, DataError

# A file that loses more of its records than this is not what it claims to be.
MAX_BAD_SHARE = 0.01
MAX_LINE = 64 * 2**20  # bytes; what one line may take of the memory
POLICIES = ('error', 'skip')
_BOM = b'\xef\xbb\xbf'


class JsonLines:
  """The good records of a file, of which only the positions are kept.

  One pass at the beginning checks every line and keeps 24 bytes a record, no
  text. Safe to read from several threads, and picklable.

  Attributes:
    path: of the file.
    digest: SHA-256 of its bytes, 64 hex digits.
    dropped: reason -> number of lines left out.
  """

  def __init__(
    self, path: str, fields: Mapping[str, str], bad_records: str = 'error'
  ) -> None:
    """Indexes the file.

    Args:
      path: a plain file.
      fields: canonical name -> stored name of the fields that are used.
      bad_records: 'error' stops at the first defect; 'skip' leaves bad records
        out, up to MAX_BAD_SHARE of all.

    Raises:
      ConfigError: there is no such policy.
      DataError: a defect, too many of them, no record, or no such file.
    """
    schema.check_known('policy for bad records', bad_records, POLICIES)
    self.path = path
    self._file, self._version = self._open()
    index = _Index(path, fields, skip=bad_records == 'skip')
    index.read(self._file)
    self._starts, self._sizes = index.good_spans()
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
      return parse(os.pread(self._file, size, start))
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


class _Index:
  """What one pass over a file finds."""

  def __init__(
    self, path: str, fields: Mapping[str, str], *, skip: bool
  ) -> None:
    self.digest = ''
    self.dropped: collections.Counter[str] = collections.Counter()
    self._path, self._fields, self._skip = path, fields, skip
    self._first = ''  # the first defect
    self._starts, self._sizes = array.array('q'), array.array('q')
    self._ids = array.array('Q')  # 64-bit hashes

  def read(self, file: int) -> None:
    """Reads all lines of a file descriptor."""
    sha = hashlib.sha256()
    blank, blanks = 0, 0  # line of the first one, and how many, so far
    for number, start, line in _lines(file, self._path):
      sha.update(line)
      if number == 1 and line.startswith(_BOM):
        start, line = len(_BOM), line.removeprefix(_BOM)
      if not line.strip():
        blank, blanks = blank or number, blanks + 1
        continue
      # Blank lines are harmless at the end of a file only.
      if blanks:
        self._drop(blank, BadRecordError('blank_line', 'is blank'), blanks)
        blank, blanks = 0, 0
      self._read_line(number, start, line)
    self.digest = sha.hexdigest()

  def _read_line(self, number: int, start: int, line: bytes) -> None:
    try:
      record = parse(line)
      check(record, self._fields)
    except BadRecordError as error:
      self._drop(number, error)
      return
    self._starts.append(start)
    self._sizes.append(len(line))
    if 'id' in self._fields:
      self._ids.append(_hash(record[self._fields['id']]))

  def _drop(self, number: int, bad: BadRecordError, count: int = 1) -> None:
    place = f'{self._path}:{number}: the line {bad}'
    if not self._skip:
      raise DataError(
        f'{place}; mend it, name other fields, or set bad_records to skip'
      )
    self._first = self._first or place
    self.dropped[bad.reason] += count

  def good_spans(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and size, in bytes, of every good record.

    Raises:
      DataError: too many bad records, or no good one.
    """
    kept_N = np.ones(len(self._starts), bool)
    kept_N[self._duplicates()] = False
    bad, good = self.dropped.total(), int(kept_N.sum())
    if bad > MAX_BAD_SHARE * (bad + good):
      counts = ', '.join(f'{self.dropped[r]} {r}' for r in self.dropped)
      raise DataError(
        f'{self._path}: {bad} of {bad + good} records are bad ({counts}), more'
        f' than the {MAX_BAD_SHARE:.0%} that may be skipped; the first:'
        f' {self._first}'
      )
    if not good:
      raise DataError(f'{self._path} holds no records')
    starts_N = np.asarray(self._starts, np.int64)
    sizes_N = np.asarray(self._sizes, np.int64)
    return starts_N[kept_N], sizes_N[kept_N]

  def _duplicates(self) -> np.ndarray:
    """Returns the positions of records whose id an earlier one has."""
    ids_N = np.asarray(self._ids, np.uint64)
    order_N = np.argsort(ids_N, kind='stable')
    same = ids_N[order_N[1:]] == ids_N[order_N[:-1]]
    repeats, befores = order_N[1:][same], order_N[:-1][same]
    if len(repeats):
      at = int(repeats.argmin())
      repeat, before = self._line(repeats[at]), self._line(befores[at])
      text = f'repeats the id of line {before}'
      bad = BadRecordError('duplicate_id', text)
      self._drop(repeat, bad, len(repeats))
    return repeats

  def _line(self, position: int) -> int:
    """Returns the number, from 1, of the line of a record."""
    left, number = self._starts[position], 1
    with open(self._path, 'rb') as file:
      while left > 0 and (chunk := file.read(min(left, 2**20))):
        number, left = number + chunk.count(b'\n'), left - len(chunk)
    return number


def _lines(file: int, path: str) -> Iterator[tuple[int, int, bytes]]:
  """Yields number, start in bytes, and bytes of each line."""
  number, start, size = 0, 0, os.fstat(file).st_size
  with (
    open(file, 'rb', closefd=False) as lines,
    tqdm.tqdm(
      total=size, desc=path, unit='B', unit_scale=True, disable=None
    ) as bar,
  ):
    while line := lines.readline(MAX_LINE + 1):
      number += 1
      if len(line) > MAX_LINE:
        raise DataError(
          f'{path}:{number}: the line is over {MAX_LINE // 2**20} MiB; every'
          ' line is to be one record, a JSON object'
        )
      yield number, start, line
      start += len(line)
      bar.update(len(line))


def _hash(value: object) -> int:
  digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
  return int.from_bytes(digest)


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


def stored_names(path: str) -> list[str]:
  """Returns the names of the fields of the first line that is an object."""
  with open(path, 'rb') as file:
    while line := file.readline(MAX_LINE):
      try:
        return list(parse(line.removeprefix(_BOM)))
      except BadRecordError:
        continue
  return []


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
    fields: see `schema.resolve`; the stored names are those of the first
      line that is an object.
    bad_records: see `JsonLines`.

  Raises:
    ConfigError: the path or the fields are wrong.
    DataError: the file is missing or not good.
  """
  file = split_path(path, split)
  chosen = schema.resolve(fields, stored_names(file))
  records = JsonLines(file, chosen, bad_records)
  return schema.Opened(
    records=records,
    fields=chosen,
    identity=['jsonl', records.digest, sorted(chosen.items())],
    metadata={'file': file, 'kept': len(records), 'dropped': records.dropped},
    place=file,
    remedy='it has changed since it was read; start again',
  )
