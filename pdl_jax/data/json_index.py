"""Finds the good records of a JSON lines file in one pass."""

import array
import collections
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tqdm

from pdl_jax.data import schema
from pdl_jax.errors import DataError, printable

# A file that loses a larger share than this is not what it claims to be.
MAX_BAD_SHARE = 0.01
MAX_LINE = 64 * 2**20  # bytes of memory for one line
# All records have them, or none: those without a group would share one.
_NAMING = ('id', 'group')
_NAMED = 10  # fields that an error lists
_BOM = b'\xef\xbb\xbf'
# Beginnings of UTF-16 and UTF-32, with and without a byte-order mark.
_WIDE = (
  b'\xff\xfe', b'\xfe\xff', b'\0\0\xfe\xff', b'{\0', b'\0{', b'\0\0\0{',
)  # fmt: skip


class BadRecordError(ValueError):
  """A line that is not a record: the reason it counts under, and words."""


def parse(line: bytes) -> dict[str, Any]:
  """Reads a line; raises BadRecordError unless it is a JSON object."""
  if b'\0' in line:
    raise BadRecordError('nul', 'has a NUL byte in it')
  try:
    value = json.loads(line.decode(), object_pairs_hook=_object)
  except BadRecordError:
    raise
  except UnicodeDecodeError as error:
    raise BadRecordError('not_utf8', f'is not UTF-8 ({error})') from error
  except (ValueError, RecursionError) as error:
    if line.endswith(b'\n'):
      raise BadRecordError('not_json', f'is no JSON ({error})') from error
    raise BadRecordError(
      'torn_line', f'is torn: the file ends inside it ({error})'
    ) from error
  if not isinstance(value, dict):
    kind = type(value).__name__
    raise BadRecordError('not_an_object', f'is a JSON {kind}, not an object')
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise BadRecordError('repeated_key', f'has the key {twice!r} twice')
  return found


def _check(record: Mapping[str, Any], fields: Mapping[str, str]) -> None:
  for field, stored in fields.items():
    what = f'field {stored!r}' + (f' ({field})' if field != stored else '')
    if stored not in record:
      names = ', '.join(sorted(record)[:_NAMED]) or 'none'
      raise BadRecordError('missing_field', f'has no {what}, but {names}')
    text = schema.as_text(record[stored], field)
    if text is None:
      kind = type(record[stored]).__name__
      raise BadRecordError('not_a_string', f'has a {kind} as {what}')
    if '\0' in text:
      raise BadRecordError('nul', f'has a NUL character in {what}')
    if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
      raise BadRecordError('lone_surrogate', f'has half a character in {what}')
    if field == 'target' and not text.strip():
      raise BadRecordError('empty_target', f'has an empty {what}')


class Index:
  """The findings of one pass over a file, in 26 bytes per record."""

  def __init__(
    self, path: str, fields: Mapping[str, str] | None, *, skip: bool
  ) -> None:
    self.digest = ''  # SHA-256 of the file
    # Reason -> number of lines left out.
    self.dropped: collections.Counter[str] = collections.Counter()
    self.found: set[str] = set()  # canonical fields that some record has
    self._path, self._skip = path, skip
    self._required = schema.resolve(fields, ())
    self._possible = schema.resolve(fields, schema.FIELDS + schema.EXTRAS)
    self._first = ''  # the first defect
    self._starts, self._sizes = array.array('q'), array.array('q')
    self._ids = array.array('Q')  # 64-bit hashes; 0 without one
    self._has = {field: bytearray() for field in _NAMING}

  @property
  def optional(self) -> set[str]:
    """Canonical names of fields that good records may lack."""
    return self.found - {*self._required, *_NAMING}

  def read(self, file: int) -> None:
    """Reads all lines of a file descriptor."""
    sha = hashlib.sha256()
    blank, blanks = 0, 0  # the first line of a run of blank ones; their count
    for number, start, line in _lines(file, self._path):
      sha.update(line)
      if number == 1 and line.startswith(_WIDE):
        raise DataError(
          f'{self._path} is UTF-16 or UTF-32, by its first bytes; write it as'
          f' UTF-8: iconv -f UTF-16 -t UTF-8 {shlex.quote(self._path)} > NEW'
        )
      if number == 1 and line.startswith(_BOM):
        start, line = len(_BOM), line.removeprefix(_BOM)
      if not line.strip():
        blank, blanks = blank or number, blanks + 1
        continue
      # Blank lines are harmless only at the end of a file.
      if blanks:
        self._drop(blank, 'blank_line', 'is blank', blanks)
        blank, blanks = 0, 0
      try:
        self._keep(start, len(line), parse(line))
      except BadRecordError as error:
        self._drop(number, *error.args)
    self.digest = sha.hexdigest()

  def _keep(self, start: int, size: int, record: Mapping[str, Any]) -> None:
    there = {f: s for f, s in self._possible.items() if s in record}
    fields = self._required | there
    _check(record, fields)
    self.found.update(fields)
    self._starts.append(start)
    self._sizes.append(size)
    named = 'id' in fields
    self._ids.append(schema.hashed(record[fields['id']]) if named else 0)
    for field, has in self._has.items():
      has.append(field in fields)

  def _drop(self, number: int, why: str, text: str, count: int = 1) -> None:
    place = f'{self._path}:{number}: the line {text}'
    if not self._skip:
      raise DataError(
        f'{place}; mend it, name other fields, or set bad_records to skip'
      )
    self._first = self._first or place
    self.dropped[why] += count

  def good_spans(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and size, in bytes, of every good record."""
    kept_N = ~self._unnamed()
    kept_N[self._duplicates(kept_N)] = False
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
    return np.array(self._starts)[kept_N], np.array(self._sizes)[kept_N]

  def _unnamed(self) -> np.ndarray:
    lacks_N = np.zeros(len(self._starts), bool)
    for field, has in self._has.items():
      has_N = np.frombuffer(has, bool)
      lacking = np.flatnonzero(~has_N & ~lacks_N)
      if has_N.any() and len(lacking):
        other = self._line(int(np.argmax(has_N)))
        text = f'has no field {field!r}, but line {other} has'
        line = self._line(int(lacking[0]))
        self._drop(line, 'missing_field', text, len(lacking))
        lacks_N[lacking] = True
    return lacks_N

  def _duplicates(self, kept_N: np.ndarray) -> np.ndarray:
    ids_N = np.where(kept_N, self._ids, np.uint64(0))
    repeats, befores = schema.repeats(ids_N)
    if len(repeats):
      at = int(repeats.argmin())
      repeat, before = self._line(repeats[at]), self._line(befores[at])
      text = f'repeats the id of line {before}'
      self._drop(repeat, 'duplicate_id', text, len(repeats))
    return repeats

  def _line(self, position: int) -> int:
    """Returns the line number of a record, from 1."""
    left, number = self._starts[position], 1
    with open(self._path, 'rb') as file:
      while left > 0 and (chunk := file.read(min(left, 2**20))):
        number, left = number + chunk.count(b'\n'), left - len(chunk)
    return number


def _lines(file: int, path: str) -> Iterator[tuple[int, int, bytes]]:
  """Yields (number, start in bytes, bytes) of each line."""
  number, start, size = 0, 0, os.fstat(file).st_size
  with (
    open(file, 'rb', closefd=False) as lines,
    tqdm.tqdm(
      total=size, desc=printable(path), unit='B', unit_scale=True, disable=None
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
