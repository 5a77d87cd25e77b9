"""The records of one study, looked up by row and seed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.evaluate.registry import Metric
from pdl_jax.report.collect import Record
from pdl_jax.report.declare import Study
from pdl_jax.report.layout import State
from pdl_jax.report.systems import System

# Fingerprint -> metric -> unit, definition and signature.
Definitions = Mapping[str, Mapping[str, Mapping[str, Any]]]
# What has to be the same in all rows of a table.
_SHARED = ('split', 'examples', 'tokenizer')


def has_sums(record: Record, metric: Metric) -> bool:
  """Whether the metric follows from what a record keeps of its examples."""
  return bool(metric.sums) and set(metric.sums) <= set(record['items'])


class Measured:
  """What the runs of a study left behind.

  Attributes:
    study: as declared.
    labels: of its rows, in order.
    by_row: row -> seed -> record, of runs that ended in whatever way.
    done: the same of those that finished, by ascending seed.
  """

  def __init__(
    self, study: Study, records: Sequence[Record], definitions: Definitions
  ):
    """Raises: DataError, if these records cannot stand in one table."""
    self.study, self._definitions = study, definitions
    self.labels = [variant.label for variant in study.variants]
    if study.before:
      self.labels.insert(0, study.before)
    self.by_row: dict[str, dict[int, Record]] = {}
    for record in records:
      self.by_row.setdefault(record['row'], {})[record['seed']] = record
    self.done = {
      row: {s: r for s, r in sorted(found.items()) if r['state'] == 'done'}
      for row, found in self.by_row.items()
    }
    self._check()

  @property
  def first(self) -> Record | None:
    """Any record of a finished run."""
    return next(self.all_done(), None)

  def all_done(self) -> Iterator[Record]:
    """Of finished runs, row by row."""
    for label in self.labels:
      yield from self.done.get(label, {}).values()

  def _check(self) -> None:
    if odd := set(self.by_row) - set(self.labels):
      raise DataError(
        f'study {self.study.name}: a record is of the row {min(odd)!r}, which '
        'is not declared'
      )
    first = self.first
    for record in self.all_done():
      assert first is not None
      who = (
        f'study {self.study.name}: rows {first["row"]!r} and {record["row"]!r} '
        f'(seed {record["seed"]})'
      )
      for what in _SHARED:
        if record[what] != first[what]:
          raise DataError(
            f'{who} differ in {what}: {first[what]} and {record[what]}; they '
            'cannot stand in one table'
          )
      for metric in self.study.columns:
        if metric.key not in record['metrics']:
          known = ', '.join(sorted(record['metrics']))
          raise DataError(
            f'study {self.study.name} declares the metric {metric.key!r}, '
            f'which row {record["row"]!r} (seed {record["seed"]}) has not; '
            f'measured are: {known}'
          )
        if self._compared(first, metric) != self._compared(record, metric):
          raise DataError(
            f'{who} define {metric.key} differently; measure both again with '
            'one version (evaluate)'
          )

  def definition(self, record: Record, metric: Metric) -> Mapping[str, Any]:
    """Unit, definition and signature; empty where it was not measured."""
    if record['definitions'] not in self._definitions:
      raise DataError(
        f'study {self.study.name}, row {record["row"]!r}, seed '
        f'{record["seed"]}: definitions.json has no {record["definitions"]}, '
        'which its record names; git checkout brings it back'
      )
    return self._definitions[record['definitions']].get(metric.key, {})

  def _compared(self, record: Record, metric: Metric) -> tuple[Any, ...]:
    """What has to be the same of two numbers in one column."""
    told = self.definition(record, metric)
    return told.get('signature'), told.get('version', 1)

  def has_sums(self, metric: Metric) -> bool:
    """Whether all records can be resampled; those of old runs may not."""
    return bool(metric.sums) and self.has_sums_of(metric.sums)

  def has_sums_of(self, names: Sequence[str]) -> bool:
    """Whether all records keep sums of these names."""
    return all(set(names) <= set(r['items']) for r in self.all_done())

  def values(self, label: str, metric: Metric) -> dict[int, float]:
    """Seed -> value, scaled; before fine-tuning there is one model."""
    done = self.done.get(label, {})
    if label == self.study.before:
      done = dict(list(done.items())[:1])
    return {
      seed: value * metric.scale
      for seed, record in done.items()
      if (value := record['metrics'].get(metric.key)) is not None
    }

  def record(self, row: str, seed: int) -> Any:
    """Of a finished run, or None; before fine-tuning every seed has it."""
    done = self.done.get(row, {})
    if row == self.study.before and done:
      return next(iter(done.values()))
    return done.get(seed)

  def shared_seeds(self, a: str, b: str, metric: Metric) -> list[int]:
    """Those at which both rows have a value."""
    return [
      seed
      for seed in self.study.seeds
      if all(
        (record := self.record(row, seed)) is not None
        and record['metrics'].get(metric.key) is not None
        for row in (a, b)
      )
    ]

  def seeds_of(self, a: str, b: str) -> int:
    """How many seeds both rows have finished runs of."""
    return sum(
      self.record(a, seed) is not None and self.record(b, seed) is not None
      for seed in self.study.seeds
    )

  def same_items(self, a: str, b: str, seeds: Sequence[int]) -> bool:
    """Whether every number of every example is the same."""
    return all(
      self.record(a, seed)['items'] == self.record(b, seed)['items']
      for seed in seeds
    )

  def system(self, row: str, seeds: Sequence[int], metric: Metric) -> System:
    """The sums behind a metric, of each group of examples and seed.

    Examples of one group are no independent draws.
    """
    sums = [
      [self.record(row, seed)['items'][name] for name in metric.sums]
      for seed in seeds
    ]
    # The same examples in the same order, says the fingerprint.
    groups_D = np.asarray(self.record(row, seeds[0])['groups'])
    member_GxD = (groups_D == np.arange(groups_D.max() + 1)[:, None]) * 1.0
    sums_SxGxK = member_GxD @ np.asarray(sums, float).transpose(0, 2, 1)
    groups = [f'{i:06d}' for i in range(len(member_GxD))]
    return System(row, list(seeds), groups, sums_SxGxK)

  def chosen(self) -> str | None:
    """The row with the lowest validation loss, once all rows are done."""
    ends = {
      label: [record['curve'][-1][1] for record in self.done[label].values()]
      for label in self.labels
      if label != self.study.before
      and len(self.done.get(label, {})) == len(self.study.seeds)
    }
    if len(ends) < len(self.study.variants):
      return None
    return min(ends, key=lambda label: math.fsum(ends[label]))

  def state(self, label: str) -> tuple[State, str]:
    """Of a row, and why it is not done."""
    done, found = self.done.get(label, {}), self.by_row.get(label, {})
    missing = [seed for seed in self.seeds(label) if seed not in done]
    if not missing:
      return 'done', ''
    bad = {s: record for s, record in sorted(found.items()) if s not in done}
    notes = [
      f'seed {seed} {record["state"]}: {record["error"]}'
      for seed, record in bad.items()
    ]
    absent = [str(seed) for seed in missing if seed not in bad]
    if absent:
      notes.append(f'missing: seed {", ".join(absent)}')
    why = '; '.join(notes)
    if done:
      return 'partly', why
    if not bad:
      return 'missing', why
    states = {record['state'] for record in bad.values()}
    return 'diverged' if states == {'diverged'} else 'failed', why

  def seeds(self, label: str) -> tuple[int, ...]:
    """Those wanted of a row; before fine-tuning there is one model."""
    seeds = self.study.seeds
    return seeds[:1] if label == self.study.before else seeds

  def nats_by_count(self, label: str) -> dict[str, dict[int, float]]:
    """Bucket of training counts -> seed -> nats a token."""
    found: dict[str, dict[int, float]] = {}
    for seed, record in self.done.get(label, {}).items():
      for bucket, nats in record['nats_by_count'].items():
        if nats is not None:
          found.setdefault(bucket, {})[seed] = nats
    return found
