"""Compares the records of an experiment, for its report."""

import dataclasses
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.evaluate import likelihood
from pdl_jax.evaluate.registry import Metric, of_sums
from pdl_jax.report.collect import Record
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import Column, Entry, Part, Report, Row, State
from pdl_jax.report.statistics import (
  LEVEL,
  Difference,
  Statistic,
  best_of,
  bootstrap,
  holm,
  over_seeds,
  seed_floor,
  seeds_alone,
)

# Fingerprint -> metric -> unit, definition and signature.
Definitions = Mapping[str, Mapping[str, Mapping[str, Any]]]
# What all rows of a table must share.
_SHARED = ('split', 'examples', 'groups', 'tokenizer')


def make_report(
  name: str,
  command: str,
  experiment: Experiment,
  records: Sequence[Record],
  definitions: Definitions,
) -> Report:
  """Compares the records of an experiment, one per row of a table and seed.

  A declared run without a record is shown as missing. Refused are undeclared
  records, metrics that contradict their sums, and tables whose rows differ in
  data, tokenizer or metric definitions.
  """
  found: dict[str, list[Record]] = {x.name: [] for x in experiment.studies}
  for record in records:
    if record['study'] not in found:
      raise DataError(
        f'{name}: a record is of the study {record["study"]!r}, and declared '
        f'are {", ".join(sorted(found))}'
      )
    found[record['study']].append(record)
  parts = tuple(
    _Table(study, found[study.name], definitions).part()
    for study in experiment.studies
  )
  return Report(name, experiment.question, command, parts, experiment.figures)


class _Table:
  def __init__(
    self, study: Study, records: Sequence[Record], definitions: Definitions
  ):
    self._study, self._definitions = study, definitions
    self._labels = [variant.label for variant in study.variants]
    if study.before:
      self._labels.insert(0, study.before)
    # Row -> seed -> record of every run that ended, done or not.
    self._ended: dict[str, dict[int, Record]] = {x: {} for x in self._labels}
    for record in sorted(records, key=lambda record: record['seed']):
      if record['row'] not in self._ended:
        raise DataError(
          f'study {study.name}: a record is of the row {record["row"]!r}, '
          'which is not declared'
        )
      self._ended[record['row']][record['seed']] = record
    self._done = {
      row: {seed: r for seed, r in found.items() if r['state'] == 'done'}
      for row, found in self._ended.items()
    }
    self._all = [r for found in self._done.values() for r in found.values()]
    for record in self._all:
      self._check(record, self._all[0])
    self._columns = tuple(map(self._column, study.columns))

  def _check(self, record: Record, first: Record) -> None:
    """Refuses a record that cannot share a table with the first."""
    row = f'row {record["row"]!r} (seed {record["seed"]})'
    study = f'study {self._study.name}'
    for what in _SHARED:
      if record[what] != first[what]:
        raise DataError(
          f'{study}: row {first["row"]!r} and {row} differ in {what}: '
          f'{reprlib.repr(first[what])} and {reprlib.repr(record[what])}; they '
          'cannot stand in one table'
        )
    for metric in self._study.columns:
      if metric.key not in record['metrics']:
        raise DataError(
          f'{study} declares the metric {metric.key!r}, which {row} has not; '
          f'measured are: {", ".join(sorted(record["metrics"]))}'
        )
      told, wanted = (self._definition(r, metric) for r in (record, first))
      if any(
        told.get(key, unsaid) != wanted.get(key, unsaid)
        for key, unsaid in (('signature', None), ('version', 1))
      ):
        raise DataError(
          f'{study}: row {first["row"]!r} and {row} define {metric.key} '
          'differently; measure both again with one version (evaluate)'
        )
      value = record['metrics'][metric.key]
      if value is None or not self._has_sums(metric.sums, record):
        continue
      again = of_sums(metric, metric.sums, record['items']).value
      if again is None or not math.isclose(
        value, again, rel_tol=1e-4, abs_tol=1e-4
      ):
        raise DataError(
          f'{study}, {row}: the record says {metric.key} {value:g}, and the '
          f'sums of its examples give {again}; collect it anew'
        )

  def _definition(self, record: Record, metric: Metric) -> Mapping[str, Any]:
    """Unit, definition and signature; empty if it was not measured."""
    if record['definitions'] not in self._definitions:
      raise DataError(
        f'study {self._study.name}, row {record["row"]!r}, seed '
        f'{record["seed"]}: definitions.json has no {record["definitions"]}, '
        'which its record names; git checkout brings it back'
      )
    return self._definitions[record['definitions']].get(metric.key, {})

  def _column(self, metric: Metric) -> Column:
    reference, definition = None, 'not measured yet'
    if self._all:
      reference = self._all[0]['metrics'].get(f'reference_{metric.key}')
      told = self._definition(self._all[0], metric)
      definition = told.get('definition', 'not measured')
      if told.get('signature'):
        definition += f' [{told["signature"]}]'
    return Column(
      **{**vars(metric), 'definition': definition},
      reference=None if reference is None else reference * metric.scale,
      # Old records may lack the sums.
      over_documents=self._has_sums(metric.sums, *self._all),
    )

  def _has_sums(self, sums: Sequence[str], *records: Record) -> bool:
    return bool(sums) and all(set(sums) <= r['items'].keys() for r in records)

  def part(self) -> Part:
    study, best = self._study, {x.key: self._best(x) for x in self._columns}
    compared = {
      (label, column.key): found
      for label in self._labels
      if label not in (study.before, study.baseline)
      for column in self._columns
      if (found := self._compare(label, study.baseline, column)) is not None
    }
    adjusted = holm({
      place: found.p
      for place, found in compared.items()
      if found.p is not None
    })

    def entry(label: str, column: Column) -> Entry:
      difference = compared.get((label, column.key))
      if difference is not None:
        p = adjusted.get((label, column.key))
        difference = dataclasses.replace(difference, p=p)
      return Entry(
        self._values(label, column), difference, best=label in best[column.key],
        alone=best[column.key] == (label,),
      )  # fmt: skip

    chosen = self._chosen()
    rows = tuple(
      self._row(
        label, {column.key: entry(label, column) for column in self._columns},
        chosen=label == chosen,
      )
      for label in self._labels
    )  # fmt: skip
    first = self._all[0] if self._all else {
      'groups': [], 'split': study.config, 'tokens_by_count': {},
    }  # fmt: skip
    return Part(
      study.name, study.title, self._columns, rows, len(first['groups']),
      len(set(first['groups'])), first['split'], tuple(self._notes(chosen)),
      first['tokens_by_count'],
    )  # fmt: skip

  def _row(
    self, label: str, entries: Mapping[str, Entry], *, chosen: bool
  ) -> Row:
    variants = {variant.label: variant for variant in self._study.variants}
    variant, done = variants.get(label, Variant(label)), self._done[label]
    decode = {f'decode.{key}': v for key, v in variant.decode.items()}
    nats: dict[str, dict[int, float]] = {}
    for seed, record in done.items():
      for bucket, value in record['nats_by_count'].items():
        if value is not None:
          nats.setdefault(bucket, {})[seed] = value
    curves = {
      seed: tuple((int(step), float(nats)) for step, nats in record['curve'])
      for seed, record in done.items()
      if label != self._study.before
    }
    return Row(
      label, *self._state(label), self._seeds(label), entries,
      {**variant.overrides, **decode}, label == self._study.baseline, chosen,
      nats, self._by_count(label), curves,
    )  # fmt: skip

  def _seeds(self, label: str) -> tuple[int, ...]:
    """The seeds that a row should have; before fine-tuning, only the first."""
    seeds = self._study.seeds
    return seeds[:1] if label == self._study.before else seeds

  def _state(self, label: str) -> tuple[State, str]:
    """The state of a row, and why it is not done."""
    done, ended = self._done[label], self._ended[label]
    missing = [seed for seed in self._seeds(label) if seed not in done]
    if not missing:
      return 'done', ''
    bad = {seed: r for seed, r in ended.items() if seed not in done}
    notes = [
      f'seed {seed} {record["state"]}: {record["error"]}'
      for seed, record in bad.items()
    ]
    absent = [str(seed) for seed in missing if seed not in bad]
    if absent:
      notes.append(f'missing: seed {", ".join(absent)}')
    states = {record['state'] for record in bad.values()}
    if done:
      state = 'partly'
    elif not bad:
      state = 'missing'
    else:
      state = 'diverged' if states == {'diverged'} else 'failed'
    return state, '; '.join(notes)

  def _notes(self, chosen: str | None) -> Iterator[str]:
    if chosen is not None:
      yield (
        f'Lowest validation nats a token at the end: {chosen}. The table is of '
        f'{self._all[0]["split"]}; nothing was chosen on it.'
      )
    if any(record['dirty'] for record in self._all):
      yield 'Some runs are of code with changes that were not committed.'
    commits = sorted({r['commit'][:8] for r in self._all if r['commit']})
    if commits:
      yield f'Commits of the runs: {", ".join(commits)}.'

  def _chosen(self) -> str | None:
    """The row with the lowest validation loss, once all rows are done."""
    ends = {
      variant.label: math.fsum(r['curve'][-1][1] for r in done.values())
      for variant in self._study.variants
      if len(done := self._done[variant.label]) == len(self._study.seeds)
    }
    complete = len(ends) == len(self._study.variants)
    return min(ends, key=lambda label: ends[label]) if complete else None

  def _values(self, label: str, column: Column) -> dict[int, float]:
    """Seed -> value, in the unit shown."""
    return {
      seed: value * column.scale
      for seed, record in self._done[label].items()
      if (value := record['metrics'][column.key]) is not None
    }

  def _pairs(self, label: str, other: str) -> list[tuple[Record, Record]]:
    """Records of both rows by seed; before fine-tuning all seeds share one."""

    def by_seed(row: str) -> dict[int, Record]:
      done = self._done[row]
      if row == self._study.before and done:
        return dict.fromkeys(self._study.seeds, next(iter(done.values())))
      return done

    a, b = by_seed(label), by_seed(other)
    seeds = sorted(self._study.seeds)
    return [(a[seed], b[seed]) for seed in seeds if seed in a and seed in b]

  def _compare(
    self, label: str, other: str, column: Column
  ) -> Difference | None:
    """A row minus another, in the unit shown; None if they have no pair."""
    pairs = [
      pair for pair in self._pairs(label, other)
      if all(r['metrics'][column.key] is not None for r in pair)
    ]  # fmt: skip
    target = None
    if column.better == 'reference':
      if column.reference is None:
        return None
      target = column.reference / column.scale
    if not pairs:
      return None
    if all(a['items'] == b['items'] for a, b in pairs):
      return Difference(0.0, identical=True)
    if column.over_documents:
      found = _resampled(pairs, column.sums, column.value, target)
    else:
      a_S, b_S = zip(
        *([r['metrics'][column.key] for r in pair] for pair in pairs),
        strict=True,
      )
      found = seeds_alone(a_S, b_S, target)
    value, low, high = (
      None if x is None else x * column.scale
      for x in (found.value, found.low, found.high)
    )
    # p is left out where so few seeds could never make it significant.
    few = seed_floor(len(pairs)) > LEVEL
    return Difference(value, low, high, None if few else found.p)

  def _by_count(self, label: str) -> dict[str, Difference]:
    """Nats per token minus the baseline's, by training count."""
    if label in (self._study.baseline, self._study.before):
      return {}
    pairs = self._pairs(label, self._study.baseline)
    found = {
      bucket: _resampled(pairs, names, likelihood.NATS.value)
      for bucket in likelihood.BUCKETS
      if self._has_sums(names := likelihood.sums_of(bucket), *self._all)
      and pairs
    }
    return {k: v for k, v in found.items() if v.value is not None}

  def _best(self, column: Column) -> tuple[str, ...]:
    direction = column.better
    if direction == 'reference':
      direction = column.reference
    values = {
      label: list(of.values())
      for label in self._labels
      if (of := self._values(label, column))
    }
    seeds = [len(v) for k, v in values.items() if k != self._study.before]
    if direction in (None, 'none') or len(seeds) < 2 or min(seeds) < 2:
      return ()  # Either no direction, or too few seeds to rule out chance.

    def is_tied(best: str, other: str) -> bool:
      found = self._compare(best, other, column)
      return found is None or found.identical or found.holds_zero

    means = {label: over_seeds(of).mean for label, of in values.items()}
    return best_of(means, direction, column.digits, is_tied)


def _resampled(
  pairs: Sequence[tuple[Record, Record]],
  names: Sequence[str],
  statistic: Statistic,
  target: float | None = None,
) -> Difference:
  """The first records minus the second ones, with an interval.

  Examples of one group are not independent draws: their sums are added.
  """

  def grouped(records: Sequence[Record]) -> np.ndarray:
    """[S, G, K]: the named sums per seed and group of examples."""
    sums_SxKxD = [[r['items'][name] for name in names] for r in records]
    groups_D = np.asarray(records[0]['groups'])
    member_GxD = (groups_D == np.arange(groups_D.max() + 1)[:, None]) * 1.0
    return member_GxD @ np.asarray(sums_SxKxD, float).transpose(0, 2, 1)

  a, b = map(grouped, zip(*pairs, strict=True))
  return bootstrap(a, b, statistic, target=target)
