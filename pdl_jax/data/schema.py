"""One split of a data set, and the stored field behind each of a record."""

import dataclasses
import difflib
import hashlib
import json
import numbers
import operator
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, SupportsIndex

import numpy as np

from pdl_jax.errors import ConfigError, DataError, PdlError, reason

FIELDS = ('id', 'group', 'source', 'target')
EXTRAS = ('style',)
SPLITS = ('train', 'validation', 'test')
BAD_RECORDS = ('error', 'skip')


class Records(Protocol):
  """Stored records by position; several threads may read at once."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Span(NamedTuple):
  """Consecutive records of a stored split."""

  stored: str  # identity of the split, as JSON
  start: int
  stop: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Source:
  """One split of a data set: a sequence of records, read when indexed.

  A record maps FIELDS, then the extra fields, to text. Without a stored id, it
  is split:index; the group defaults to the id and the source to ''.
  """

  records: Records  # under stored names; values are UTF-8 or text
  # Canonical name -> stored name of what is stored, in order.
  fields: Mapping[str, str]
  identity: Sequence[Any]  # JSON that the fingerprint is made of
  # Numbers of kept and of dropped records, by reason; the package of a text.
  metadata: Mapping[str, Any]
  place: str  # its folder or file
  remedy: str  # what to do if a record cannot be read
  called: str = ''  # the data set's own name of the split
  spans: tuple[Span, ...] = ()  # its records, if another split may share them
  unique: bool = False  # no two records can have the same id
  name: str = ''
  split: str = ''

  @property
  def fingerprint(self) -> str:
    """Returns 64 hex digits that identify the text on every machine."""
    identity = json.dumps(list(self.identity))
    return hashlib.sha256(identity.encode()).hexdigest()

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: SupportsIndex) -> dict[str, str]:
    """Returns record `index` as text.

    Raises:
      IndexError: the index is not in [-len, len).
      DataError: the file is damaged, or the record lacks a field. The other
        methods raise it for the fields that they read.
    """
    index, record = self._read(index)
    texts = {field: self._text(record, index, field) for field in self.fields}
    id_ = texts.get('id', f'{self.split}:{index}')
    return {'id': id_, 'group': id_, 'source': ''} | texts

  def group(self, index: SupportsIndex) -> str:
    """Returns the group of a record, whatever its other fields hold."""
    return self._first(index, 'group', 'id')

  def id(self, index: SupportsIndex) -> str:
    """Returns the id of a record, whatever its other fields hold."""
    return self._first(index, 'id')

  def _first(self, index: SupportsIndex, *fields: str) -> str:
    index, record = self._read(index)
    for field in fields:
      if field in self.fields:
        return self._text(record, index, field)
    return f'{self.split}:{index}'

  def _read(self, index: SupportsIndex) -> tuple[int, Mapping[str, Any]]:
    index = range(len(self))[operator.index(index)]
    try:
      return index, self.records[index]
    except (PdlError, MemoryError):
      raise
    # array_record, Arrow and `datasets` have errors of their own.
    except Exception as error:
      raise DataError(
        f'{self._where(index)} of {len(self)} in {self.place} cannot be'
        f' read ({reason(error)}); {self.remedy}'
      ) from error

  def __repr__(self) -> str:
    return f'Source({self.name!r}, {self.split!r}, {self.fingerprint[:8]})'

  def _where(self, index: int) -> str:
    return f'{self.name}, split {self.split}: record {index}'

  def _text(self, record: Mapping[str, Any], index: int, field: str) -> str:
    stored = self.fields[field]
    try:
      text = as_text(record.get(stored), field)
    except UnicodeDecodeError as error:
      raise DataError(
        f'{self._where(index)} in {self.place} is not UTF-8 in field'
        f' {stored!r} ({error}); {self.remedy}'
      ) from error
    if text is None:
      which = as_text(record.get(self.fields.get('id', '')), 'id')
      raise DataError(
        f'{self._where(index)} ({which or "no id"}) in {self.place} has'
        f' no text in field {stored!r}; {self.remedy}'
      )
    return text


def check_known(what: str, value: str, known: Collection[str]) -> None:
  """Raises ConfigError, naming the nearest known value, if unknown."""
  if value not in known:
    nearest = difflib.get_close_matches(value, known, n=1, cutoff=0)[0]
    raise ConfigError(
      f'there is no {what} {value!r}; did you mean {nearest!r}?'
      f' Known: {", ".join(known)}'
    )


def resolve(
  fields: Mapping[str, str] | None, stored: Collection[str]
) -> dict[str, str]:
  """Maps canonical fields to stored ones.

  A field that is not named, or named '', is used if it is stored under its own
  name. The source is so only if nothing is named: a column `source` often says
  where a text comes from. Missing fields have defaults: the id numbers the
  records, the group is the id, and the source is '' (language modelling).
  """
  chosen = named(fields)
  for field in chosen:
    check_known('field of a record', field, FIELDS + EXTRAS)
  own = ['id', 'group', *EXTRAS] + ([] if chosen else ['source'])
  chosen = {field: field for field in own if field in stored} | chosen
  chosen = {'target': 'target'} | chosen
  return {field: chosen[field] for field in FIELDS + EXTRAS if field in chosen}


def named(mapping: Mapping[str, str] | None) -> dict[str, str]:
  """Drops what is mapped to ''."""
  return {key: value for key, value in (mapping or {}).items() if value}


def renamed_splits(splits: Mapping[str, str] | None) -> dict[str, str]:
  """Drops the splits that have our names."""
  chosen = named(splits)
  for split in chosen:
    check_known('split', split, SPLITS)
  return {ours: theirs for ours, theirs in chosen.items() if ours != theirs}


def resolve_stored(
  name: str,
  fields: Mapping[str, str] | None,
  texts: Collection[str],
  integers: Collection[str],
) -> dict[str, str]:
  """Like `resolve`; ConfigError if a field is not stored, or no text."""
  chosen = resolve(fields, [*texts, *integers])
  texts, integers = sorted(texts), sorted(integers)
  for field, stored in chosen.items():
    allowed = texts + integers if field in ('id', 'group') else texts
    if stored not in allowed:
      raise ConfigError(
        f'{name} stores no text {stored!r}, which is to be the {field}; its'
        f' text fields are: {", ".join(texts) or "none"}; set the fields of the'
        ' data set'
      )
  return chosen


def other_splits(found: Collection[str]) -> str:
  """Names the splits that exist, and what to type to use them."""
  first = min(found)
  return (
    f'there are: {", ".join(sorted(found))}; say which is which with'
    f' --config.data.splits.validation={first} and the like, or take a part,'
    f" such as '{first}[90%:]'"
  )


def as_text(value: object, field: str) -> str | None:
  """Returns text, or None if it is none; ids and groups may be integers."""
  if isinstance(value, bytes):
    return value.decode()
  is_integer = isinstance(value, numbers.Integral)
  if is_integer and not isinstance(value, bool) and field in ('id', 'group'):
    return str(value)
  return value if isinstance(value, str) else None


def local_path(path: str, data_dir: str | None) -> str:
  """Resolves ~, and a path relative to data_dir or the current folder."""
  return os.path.abspath(
    os.path.join(os.path.expanduser(data_dir or ''), os.path.expanduser(path))
  )


def hashed(value: object) -> int:
  """Hashes a text into 64 bits, the same on every machine."""
  digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
  return int.from_bytes(digest)


def repeats(hashes_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Finds the positions of repeated hashes and of the ones before; skips 0."""
  order_N = np.argsort(hashes_N, kind='stable')
  order_N = order_N[hashes_N[order_N] > 0]
  same = hashes_N[order_N[1:]] == hashes_N[order_N[:-1]]
  return order_N[1:][same], order_N[:-1][same]
