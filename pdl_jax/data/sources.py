"""The one way in for text: a prepared data set as a random-access sequence."""

import contextlib
import hashlib
import importlib
import io
import itertools
import json
import operator
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from pdl_jax.data import catalogue, jsonl, schema
from pdl_jax.errors import ConfigError, DataError, HostError

if TYPE_CHECKING:
  from pdl_jax.data.builders.packages import PackagedBuilder

# Name in a config -> module and class of the builder, imported when asked for,
# and which of its fields are called otherwise here.
BUILDERS: dict[str, tuple[str, str, Mapping[str, str]]] = {
  'botocore': (
    'botocore_summaries',
    'BotocoreSummaries',
    {'source': 'document', 'target': 'summary'},
  ),
  'chitchat': ('chitchat_dialogue', 'ChitchatDialogue', {}),
  'sotu_time': ('sotu_speeches', 'SotuTime', {}),
  'sotu_interleaved': ('sotu_speeches', 'SotuInterleaved', {}),
  'bible': ('bible_styles', 'BibleStyles', {}),
  'debian': ('debian_synopses', 'DebianSynopses', {}),
}
# Kind of a data set that is not in BUILDERS -> how to write it.
KINDS = {'tfds': 'tfds:NAME', 'jsonl': 'jsonl:PATH', 'hf': 'hf:FOLDER'}
SPLITS = schema.SPLITS
FIELDS = schema.FIELDS


class Source:
  """One split of a data set: a sequence of records, read when indexed.

  A record maps FIELDS, then the extra fields, to text. The id is split:index
  if none is stored, the group is then the id, and a source that is not stored
  is ''.

  Attributes:
    name: as `load` takes it.
    split: train, validation or test.
    fields: canonical name -> stored name of what is stored.
    fingerprint: 64 hex digits over what identifies the text; equal on every
      machine.
    metadata: what is known about the data set: of a packaged one the package
      and its version, how many records each split keeps, and how many were
      dropped for which reason.
  """

  def __init__(self, opened: schema.Opened, *, name: str, split: str) -> None:
    self.name = name
    self.split = split
    self.fields = opened.fields
    identity = json.dumps(list(opened.identity))
    self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    self.metadata = opened.metadata
    self._opened = opened

  def __len__(self) -> int:
    return len(self._opened.records)

  def __getitem__(self, index: SupportsIndex) -> dict[str, str]:
    """Returns record `index` as text.

    Raises:
      IndexError: the index is not in [-len, len).
      DataError: the file is damaged, or the record lacks a field.
    """
    index, record = self._read(index)
    texts = {field: self._text(record, index, field) for field in self.fields}
    id_ = texts.get('id', self._number(index))
    return {'id': id_, 'group': id_, 'source': ''} | texts

  def group(self, index: SupportsIndex) -> str:
    """Returns the group of record `index`, whatever its other fields hold.

    Raises:
      IndexError: the index is not in [-len, len).
      DataError: the file is damaged, or the record lacks the group.
    """
    index, record = self._read(index)
    for field in ('group', 'id'):
      if field in self.fields:
        return self._text(record, index, field)
    return self._number(index)

  def _number(self, index: int) -> str:
    return f'{self.split}:{index}'

  def _read(self, index: SupportsIndex) -> tuple[int, Mapping[str, Any]]:
    index = range(len(self))[operator.index(index)]
    try:
      return index, self._opened.records[index]
    # What array_record raises, and Arrow.
    except (RuntimeError, OSError) as error:
      raise DataError(
        f'{self._where(index)} of {len(self)} in {self._opened.place} cannot be'
        f' read ({error}); {self._opened.remedy}'
      ) from error

  def __repr__(self) -> str:
    return f'Source({self.name!r}, {self.split!r}, {self.fingerprint[:8]})'

  def _where(self, index: int) -> str:
    return f'{self.name}, split {self.split}: record {index}'

  def _text(self, record: Mapping[str, Any], index: int, field: str) -> str:
    stored = self.fields[field]
    try:
      text = schema.as_text(record.get(stored), field)
    except UnicodeDecodeError as error:
      raise DataError(
        f'{self._where(index)} in {self._opened.place} is not UTF-8 in field'
        f' {stored!r} ({error}); {self._opened.remedy}'
      ) from error
    if text is None:
      which = schema.as_text(record.get(self.fields.get('id', '')), 'id')
      raise DataError(
        f'{self._where(index)} ({which or "no id"}) in {self._opened.place} has'
        f' no text in field {stored!r}; {self._opened.remedy}'
      )
    return text


def load(
  name: str,
  split: str,
  data_dir: str | None = None,
  *,
  fields: Mapping[str, str] | None = None,
  splits: Mapping[str, str] | None = None,
  bad_records: str = 'error',
) -> Source:
  """Opens a split of a data set.

  Args:
    name: a key of BUILDERS, which the first call on a machine prepares;
      'tfds:NAME', prepared before, as array_record; 'jsonl:PATH' with {split}
      in it, or of a folder of SPLIT.jsonl; 'hf:FOLDER' as `datasets` saves a
      DatasetDict to disk.
    split: train, validation or test.
    data_dir: where TFDS keeps its data (None is its own default, the
      environment's TFDS_DATA_DIR or else ~/tensorflow_datasets), and where
      relative paths start (None is the current folder).
    fields: canonical name -> stored name, for data sets that are not in
      BUILDERS; see `schema.resolve`.
    splits: split -> what it is called in a data set that is not in BUILDERS,
      if not the same; of TFDS a part as well, such as 'train[95%:]'.
    bad_records: for jsonl alone: 'error' stops at the first, 'skip' leaves
      them out, counts them in `metadata['dropped']` and stops above 1 %.

  Raises:
    ConfigError: an argument is wrong.
    DataError: what it is made from is missing or of another version, what was
      prepared is damaged, or records are bad.
    HostError: data_dir cannot be written, or a package is missing.
  """
  schema.check_known('split', split, SPLITS)
  schema.check_known('policy for bad records', bad_records, jsonl.POLICIES)
  splits = schema.renamed_splits(splits)
  kind, _, place = name.partition(':')
  if bad_records != 'error' and kind != 'jsonl':
    raise ConfigError(
      f'bad_records {bad_records!r} is for {KINDS["jsonl"]}, not for {name}'
    )
  if kind == 'tfds':
    opened = catalogue.open_tfds(place, split, data_dir, fields, splits)
  elif kind in KINDS:
    path = schema.local_path(place, data_dir)
    called = splits.get(split, split)
    if kind == 'jsonl':
      opened = jsonl.open_jsonl(name, called, path, fields, bad_records)
    else:
      opened = catalogue.open_hf(name, called, path, fields)
  else:
    schema.check_known('data set', name, [*BUILDERS, *KINDS.values()])
    called = splits.get(split, split)
    other = called.partition('[')[0] != split
    if other or schema.named(fields):
      raise ConfigError(
        f'{name} has its own fields and splits; they can be named for'
        f' {", ".join(KINDS.values())} only; of {name} a part can be taken,'
        f' such as {split}[:10%]'
      )
    opened = _open_packaged(name, split, called, data_dir)
  return Source(opened, name=name, split=split)


def check_disjoint(sources: Sequence[Source]) -> None:
  """Checks that no group is in two splits; 8 bytes of memory for each group.

  Groups that are mere numbers of records cannot be in two splits: such a
  source is not read.

  Raises:
    DataError: some are; names the splits, how many, and one of them.
  """
  stored = [s for s in sources if {'id', 'group'} & set(s.fields)]
  hashes = [
    np.unique(np.fromiter(map(_hash, _groups(source)), np.uint64))
    for source in stored
  ]
  pairs = itertools.combinations(zip(stored, hashes, strict=True), 2)
  for (one, one_G), (other, other_G) in pairs:
    shared = np.intersect1d(one_G, other_G, assume_unique=True)
    if one.split != other.split and len(shared):
      group = next(g for g in _groups(one) if _hash(g) == shared[0])
      raise DataError(
        f'{one.name}: {len(shared)} groups are in {one.split} and in'
        f' {other.split}, such as {group!r}; what is tested was learnt before'
      )


def _groups(source: Source) -> Iterator[str]:
  return map(source.group, range(len(source)))


def _hash(text: str) -> int:
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest)


def _open_packaged(
  name: str, split: str, part: str, data_dir: str | None
) -> schema.Opened:
  # Takes half a second, which those who only import this module save.
  import tensorflow_datasets as tfds

  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  builder = _prepared_builder(name, data_dir)
  metadata = dict(builder.info.metadata or {})
  if metadata.get('package_version') != builder.PACKAGE_VERSION:
    raise DataError(
      f'{builder.data_dir} was made from {builder.PACKAGE}'
      f' {metadata.get("package_version")}, not {builder.PACKAGE_VERSION};'
      ' delete that folder and it is prepared again'
    )
  catalogue.check_splits(name, builder, split, {split: part})
  renamed = BUILDERS[name][2]
  fields = {field: renamed.get(field, field) for field in schema.FIELDS}
  texts, _ = catalogue.stored_fields(builder)
  fields |= {field: field for field in schema.EXTRAS if field in texts}
  records = tfds.data_source(
    f'{builder.name}:{builder.version}',
    split=part,
    data_dir=builder.data_dir_root,
    download=False,
  )
  return schema.Opened(
    records=cast(schema.Records, records),
    fields=fields,
    identity=[
      builder.name,
      str(builder.version),
      part,
      len(records),
      f'{builder.PACKAGE}=={builder.PACKAGE_VERSION}',
    ],
    metadata=metadata,
    place=str(builder.data_dir),
    remedy='delete that folder and it is prepared again',
  )


def _prepared_builder(name: str, data_dir: str | None) -> 'PackagedBuilder':
  """Returns the TFDS builder of a data set that is on disk afterwards."""
  module, class_name, _ = BUILDERS[name]
  builder_class = getattr(
    importlib.import_module(f'pdl_jax.data.builders.{module}'), class_name
  )
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
