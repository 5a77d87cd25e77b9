"""Opens parts of splits in TFDS's notation, such as train[:80%]."""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pdl_jax.data import schema
from pdl_jax.data.schema import Source, Span
from pdl_jax.errors import ConfigError, DataError

# A length for which every percentage is a whole number.
_NOMINAL = 10**6


class Chosen:
  """Records of other sequences, chosen by number."""

  def __init__(
    self,
    pieces: Sequence[tuple[schema.Records, Sequence[int] | np.ndarray]],
    blank: Mapping[str, str],
  ):
    """`blank` holds the text of fields that a record lacks."""
    self._pieces, self._blank = pieces, blank
    self._ends = np.cumsum([len(numbers) for _, numbers in pieces])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    which = int(np.searchsorted(self._ends, index, side='right'))
    records, numbers = self._pieces[which]
    number = numbers[index - int(self._ends[which])]  # negative: from the end
    return {**self._blank, **records[int(number)]}


def open_parts(
  name: str, called: str, open_split: Callable[[str], Source]
) -> Source:
  """Opens a split, or disjoint parts of splits: 'train[10:20]+dev'."""
  whole: dict[str, Source] = {}

  def length(split: str) -> int:
    if split not in whole:
      whole[split] = open_split(split)
    return len(whole[split].records)

  found = _ranges(name, called, length)
  spans = tuple(
    Span(json.dumps(list(whole[split].identity)), numbers.start, numbers.stop)
    for split, numbers in found
  )
  if called in whole:
    return dataclasses.replace(whole[called], called=called, spans=spans)
  if any(shared([a], [b]) for a, b in itertools.combinations(spans, 2)):
    raise ConfigError(f'{name}: parts of {called!r} share examples')
  pieces = [whole[split] for split, _ in found]
  if len({frozenset({'id', 'group'} & {*p.fields}) for p in pieces}) > 1:
    raise DataError(
      f'{name}: some of {called!r} have an id or a group and others none; every'
      ' record is to have it, or none'
    )
  merged = {k: v for piece in pieces[::-1] for k, v in piece.fields.items()}
  order = schema.FIELDS + schema.EXTRAS
  fields = {field: merged[field] for field in order if field in merged}
  records = Chosen(
    [(whole[split].records, numbers) for split, numbers in found],
    dict.fromkeys(fields.values(), ''),
  )
  dropped = sum(
    (collections.Counter(o.metadata.get('dropped')) for o in whole.values()),
    collections.Counter(),
  )
  return dataclasses.replace(
    pieces[0],
    records=records,
    fields=fields,
    identity=['parts', *spans, sorted(fields.items())],
    metadata={
      **pieces[0].metadata,
      'split': called,
      'kept': len(records),
      'dropped': dict(dropped),
    },
    called=called,
    spans=spans,
    unique=pieces[0].unique and len(whole) == 1,
  )


def shared(one: Iterable[Span], other: Iterable[Span]) -> int:
  """Counts the records that are in both."""
  return sum(
    max(0, min(a.stop, b.stop) - max(a.start, b.start))
    for a, b in itertools.product(one, other)
    if a.stored == b.stored
  )


def shared_by_name(one: str, other: str) -> bool:
  """Returns whether the names alone show that two parts share records."""
  if one == other:
    return True
  bounds = ':'.join(re.findall(r'\[([^\]]*)', f'{one}+{other}')).split(':')
  if not all(bound == '' or bound.endswith('%') for bound in bounds):
    return False
  first, second = (
    [
      Span(split, numbers.start, numbers.stop)
      for split, numbers in _ranges('data.splits', called, lambda _: _NOMINAL)
    ]
    for called in (one, other)
  )
  return shared(first, second) > 0


def _ranges(
  name: str, called: str, length: Callable[[str], int]
) -> list[tuple[str, range]]:
  if '[' not in called and '+' not in called:
    return [(called, range(length(called)))]
  # The import takes a second; whole splits do without.
  from tensorflow_datasets import core as tfds

  names = (piece.partition('[')[0].strip() for piece in called.split('+'))
  return absolute(name, called, lambda: {
    split: tfds.SplitInfo(
      name=split, shard_lengths=[length(split)], num_bytes=0
    )
    for split in names
  })  # fmt: skip


def absolute(
  name: str, called: str, splits: Callable[[], Mapping[str, Any]],
  split: str = '',
) -> list[tuple[str, range]]:  # fmt: skip
  """Returns the records that a part names: stored split, numbers in it.

  `splits` gives TFDS's facts about them, and is not called for a part that
  cannot be parsed; `split` is what the part is for, if they are all there are.
  """
  from tensorflow_datasets import core as tfds

  try:
    instruction = tfds.ReadInstruction.from_spec(called)
    infos = splits()
    found = [
      (part.splitname, range(*slice(part.from_, part.to).indices(
        infos[part.splitname].num_examples
      )))
      for part in instruction.to_absolute(infos)
    ]  # fmt: skip
  except ConfigError:
    raise
  # TFDS raises either for a split that it cannot parse.
  except (ValueError, NotImplementedError) as error:
    told = str(error).splitlines()[-1]
    known = ', '.join(splits() if split else ())
    advice = f'; it has: {known}; name one in the splits of the data set'
    raise ConfigError(
      f'{name} has no split {called!r}{f" for {split}" if split else ""}'
      f' ({told}){advice if split else ""}; parts are written like'
      " 'train[:80%]', 'train[100:200]' or 'train[:50%]+extra'"
    ) from error
  kept = [(stored, numbers) for stored, numbers in found if numbers]
  if not kept:
    raise ConfigError(f'{name}: split {called!r} is empty')
  return kept
