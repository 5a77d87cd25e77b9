"""Opens any data set as a random-access sequence of records."""

import dataclasses
import importlib
import itertools
import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pdl_jax.data import external, jsonl, packaged, parts, schema
from pdl_jax.data.packaged.texts import TEXTS
from pdl_jax.data.schema import SPLITS, Source
from pdl_jax.errors import ConfigError, DataError

# Each module registers its texts.
for _module in pkgutil.iter_modules(packaged.__path__, f'{packaged.__name__}.'):
  importlib.import_module(_module.name)
# Kinds of data sets that are not in TEXTS -> how to write them.
KINDS = {'tfds': 'tfds:NAME', 'jsonl': 'jsonl:PATH', 'hf': 'hf:FOLDER'}


def load(
  name: str,
  split: str,
  data_dir: str | None = None,
  *,
  fields: Mapping[str, str] | None = None,
  splits: Mapping[str, str] | None = None,
  bad_records: str = 'error',
) -> Source:
  """Opens a split of a data set; `DataSettings` explains most arguments.

  Args:
    name: a key of TEXTS, which the first call on a machine prepares; or one of
      the KINDS.
    split: train, validation or test.
    data_dir: where TFDS keeps its data, and where relative paths start. None is
      $TFDS_DATA_DIR or ~/tensorflow_datasets, and the current folder.
    fields: canonical name -> stored name; see `schema.resolve`.
    splits: split -> its stored name, or a part of one, such as 'train[95%:]'.
    bad_records: for jsonl alone. 'error' stops at the first; 'skip' counts them
      in `metadata['dropped']` and stops above 1 %.

  Raises:
    ConfigError: an argument is wrong.
    DataError: the data are missing, damaged, of another version, or have bad
      records.
    HostError: data_dir cannot be written, or a package is missing.
  """
  schema.check_known('split', split, SPLITS)
  known = schema.BAD_RECORDS
  schema.check_known('policy for bad records', bad_records, known)
  splits = schema.renamed_splits(splits)
  called = splits.get(split, split)
  kind, _, place = name.partition(':')
  if bad_records != 'error' and kind != 'jsonl':
    raise ConfigError(
      f'bad_records {bad_records!r} is for {KINDS["jsonl"]}, not for {name}'
    )
  if kind == 'tfds':
    source = external.open_tfds(place, split, data_dir, fields, splits)
  elif kind in KINDS:
    if not place:
      raise ConfigError(f'data.name={name} names no place: {KINDS[kind]}')
    path = schema.local_path(place, data_dir)
    if kind == 'jsonl':
      source = jsonl.open_jsonl(name, called, path, fields, bad_records)
    else:
      source = parts.open_parts(
        name, called, lambda each: external.open_hf(name, each, path, fields)
      )
  else:
    _check_no_path(name, data_dir)
    schema.check_known('data set', name, [*TEXTS, *KINDS.values()])
    if called.partition('[')[0] != split or schema.named(fields):
      raise ConfigError(
        f'{name} has its own fields and splits; they can be named for'
        f' {", ".join(KINDS.values())} only; of {name} a part can be taken,'
        f' such as {split}[:10%]'
      )
    # The import takes half a second.
    from pdl_jax.data import packaged_builder

    source = packaged_builder.open_packaged(name, split, called, data_dir)
  source = dataclasses.replace(source, name=name, split=split)
  if not source.unique:
    check_ids(source)
  return source


def _check_no_path(name: str, data_dir: str | None) -> None:
  """Says what to type for a path that is named without its kind."""
  path = schema.local_path(name, data_dir)
  if name in TEXTS or not name or not os.path.exists(path):
    return
  names = os.listdir(path) if os.path.isdir(path) else [path]
  kinds = ['jsonl'] if any(x.endswith('.jsonl') for x in names) else []
  if 'dataset_dict.json' in names or 'state.json' in names:
    kinds = ['hf']
  told = ' or '.join(f'data.name={k}:{name}' for k in kinds or ('jsonl', 'hf'))
  raise ConfigError(
    f'data.name={name} is a path without its kind; type --config.{told}'
    ' (JSON lines, or what `datasets` saved to disk)'
  )


def check_ids(source: Source) -> None:
  """Refuses ids that occur twice, since predictions are kept by id.

  It takes 8 bytes per record. Ids that only number the records are not read.
  """
  if 'id' not in source.fields:
    return
  hashes = map(schema.hashed, map(source.id, range(len(source))))
  repeats, befores = schema.repeats(np.fromiter(hashes, np.uint64))
  if len(repeats):
    at = int(repeats.argmin())
    repeat, before = int(repeats[at]), int(befores[at])
    raise DataError(
      f'{source.name}, split {source.split}: {len(repeats)} of {len(source)}'
      f' records repeat the id of an earlier one, such as record {repeat} that'
      f' of record {before}, {source.id(repeat)!r}, and predictions are kept by'
      ' id; name another field with --config.data.fields.id=FIELD, or number'
      ' the records anew'
    )


def same_records(sources: Sequence[Source]) -> list[str]:
  """Names splits that share records, by where these are stored."""
  return [
    _warning(one.split, one.called, other.split, other.called, f'{count} ')
    for one, other in itertools.combinations(sources, 2)
    if (count := parts.shared(one.spans, other.spans))
  ]


def remarks(sources: Sequence[Source]) -> list[str]:
  """Says how one file was divided, and which splits share records."""
  told = [source.metadata.get('divided', '') for source in sources]
  return [text for text in dict.fromkeys(told) if text] + same_records(sources)


def same_names(name: str, splits: Mapping[str, str]) -> list[str]:
  """Names splits that share records, as far as their names tell."""
  if name.partition(':')[0] not in ('jsonl', 'hf'):
    return []  # The others refuse shared records when opened.
  called = {ours: theirs or ours for ours, theirs in splits.items()}
  return [
    _warning(one, called[one], other, called[other], '')
    for one, other in itertools.combinations(called, 2)
    if parts.shared_by_name(called[one], called[other])
  ]


def _warning(one: str, called: str, other: str, otherwise: str, n: str) -> str:
  what = 'what is measured was learnt before'
  if one != 'train':
    what = 'the model is selected on the records it is tested on'
  return (
    f'warning: {one} ({called!r}) and {other} ({otherwise!r}) share {n}records:'
    f' {what}'
  )


def check_disjoint(sources: Sequence[Source]) -> None:
  """Refuses groups that are in two splits; it takes 8 bytes per group.

  Groups that only number the records are never in two splits, and are not read.
  """
  stored = [s for s in sources if {'id', 'group'} & set(s.fields)]
  hashes = [
    np.unique(np.fromiter(map(schema.hashed, _groups(source)), np.uint64))
    for source in stored
  ]
  pairs = itertools.combinations(zip(stored, hashes, strict=True), 2)
  for (one, one_G), (other, other_G) in pairs:
    shared = np.intersect1d(one_G, other_G, assume_unique=True)
    chosen = 'train' not in (one.split, other.split) and parts.shared(
      one.spans, other.spans
    )  # chosen by split names; `same_records` warns
    if one.split != other.split and len(shared) and not chosen:
      group = next(g for g in _groups(one) if schema.hashed(g) == shared[0])
      raise DataError(
        f'{one.name}: {len(shared)} groups are in {one.split} and in'
        f' {other.split}, such as {group!r}; what is tested was learnt before'
      )


def _groups(source: Source) -> Iterator[str]:
  return map(source.group, range(len(source)))
