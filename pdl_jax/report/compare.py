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
  declared = {study.name for study in experiment.studies}
  for record in records:
    if record['study'] not in declared:
      raise DataError(
        f'{name}: a record is of the study {record["study"]!r}, and declared '
        f'are {", ".join(sorted(declared))}'
      )
  parts = tuple(
    _Table(study, [r for r in records if r['study'] == study.name], definitions)
    .part()
    for study in experiment.studies
  )  # fmt: skip
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
    self._first = self._all[0] if self._all else None
    for record in self._all:
      self._check(record, self._all[0])
    self._columns = {x.key: self._column(x) for x in study.columns}

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
      if value is None or not _has_sums(record, metric.sums):
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
    reference, definition, first = None, 'not measured yet', self._first
    if first is not None:
      reference = first['metrics'].get(f'reference_{metric.key}')
      told = self._definition(first, metric)
      definition = told.get('definition', 'not measured')
      if told.get('signature'):
        definition += f' [{told["signature"]}]'
    return Column(
      metric.key, metric.label, metric.better, metric.digits,
      None if reference is None else reference * metric.scale,
      definition, self._resamples(metric.sums),
    )  # fmt: skip

  def _resamples(self, sums: Sequence[str]) -> bool:
    """Whether all records have these sums; old ones may lack them."""
    return all(_has_sums(record, sums) for record in self._all)

  def part(self) -> Part:
    study, first = self._study, self._first
    compared = {
      (label, metric.key): self._compare(label, study.baseline, metric)
      for label in self._labels
      if label not in (study.before, study.baseline)
      for metric in study.columns
    }
    adjusted = holm({
      place: found.p
      for place, found in compared.items()
      if found is not None and found.p is not None
    })
    best = {metric.key: self._best(metric) for metric in study.columns}

    def entry(label: str, metric: Metric) -> Entry:
      values, place = self._values(label, metric), (label, metric.key)
      difference = compared.get(place)
      if difference is not None:
        value, low, high = (
          None if x is None else x * metric.scale
          for x in (difference.value, difference.low, difference.high)
        )
        p, identical = adjusted.get(place), difference.identical
        difference = Difference(value, low, high, p, identical)
      return Entry(
        values, over_seeds(list(values.values())) if values else None,
        difference, best=label in best[metric.key],
        alone=best[metric.key] == (label,),
      )  # fmt: skip

    chosen = self._chosen()
    rows = tuple(
      self._row(
        label, {metric.key: entry(label, metric) for metric in study.columns},
        chosen=label == chosen,
      )
      for label in self._labels
    )  # fmt: skip
    groups = first['groups'] if first else []
    return Part(
      study.name, study.title, tuple(self._columns.values()), rows,
      len(groups), len(set(groups)), first['split'] if first else study.config,
      tuple(self._notes(chosen)), first['tokens_by_count'] if first else {},
    )  # fmt: skip

  def _row(
    self, label: str, entries: Mapping[str, Entry], *, chosen: bool
  ) -> Row:
    variants = {variant.label: variant for variant in self._study.variants}
    variant, done = variants.get(label, Variant(label)), self._done[label]
    settings = dict(variant.overrides)
    settings |= {f'decode.{key}': v for key, v in variant.decode.items()}
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
      label, *self._state(label), self._seeds(label), entries, settings,
      label == self._study.baseline, chosen, nats, self._by_count(label),
      curves,
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

  def _values(self, label: str, metric: Metric) -> dict[int, float]:
    """Seed -> value, in the unit shown."""
    return {
      seed: value * metric.scale
      for seed, record in self._done[label].items()
      if (value := record['metrics'][metric.key]) is not None
    }

  def _record(self, label: str, seed: int) -> Record | None:
    """The record of a finished run; before fine-tuning all seeds share one."""
    done = self._done[label]
    if label == self._study.before:
      return next(iter(done.values()), None)
    return done.get(seed)

  def _pairs(self, label: str, other: str) -> Iterator[tuple[Record, Record]]:
    for seed in sorted(self._study.seeds):
      pair = self._record(label, seed), self._record(other, seed)
      if pair[0] is not None and pair[1] is not None:
        yield pair[0], pair[1]

  def _compare(
    self, label: str, other: str, metric: Metric
  ) -> Difference | None:
    """A row minus another; None if they cannot be compared."""
    pairs = [
      pair for pair in self._pairs(label, other)
      if all(r['metrics'][metric.key] is not None for r in pair)
    ]  # fmt: skip
    column, target = self._columns[metric.key], None
    if column.better == 'reference':
      if column.reference is None:
        return None
      target = column.reference / metric.scale
    if not pairs:
      return None
    if all(a['items'] == b['items'] for a, b in pairs):
      return Difference(0.0, identical=True)
    if column.over_documents:
      found = _resampled(pairs, metric, target)
    else:
      a_S, b_S = zip(
        *([r['metrics'][metric.key] for r in pair] for pair in pairs),
        strict=True,
      )
      found = seeds_alone(a_S, b_S, target)
    # p is left out where so few seeds could never make it significant.
    few = seed_floor(len(pairs)) > LEVEL
    return dataclasses.replace(found, p=None) if few else found

  def _by_count(self, label: str) -> dict[str, Difference]:
    """Nats per token minus the baseline's, by training count."""
    pairs = list(self._pairs(label, self._study.baseline))
    if label in (self._study.baseline, self._study.before) or not pairs:
      return {}
    found = {
      bucket: _resampled(
        pairs, dataclasses.replace(likelihood.NATS, sums=names), None
      )
      for bucket in likelihood.BUCKETS
      if self._resamples(names := likelihood.sums_of(bucket))
    }
    return {k: v for k, v in found.items() if v.value is not None}

  def _best(self, metric: Metric) -> tuple[str, ...]:
    column = self._columns[metric.key]
    direction = column.better
    if direction == 'reference':
      direction = column.reference
    values = {
      label: list(of.values())
      for label in self._labels
      if (of := self._values(label, metric))
    }
    seeds = [len(v) for k, v in values.items() if k != self._study.before]
    if direction in (None, 'none') or len(seeds) < 2 or min(seeds) < 2:
      return ()  # Either no direction, or too few seeds to rule out chance.

    def is_tied(best: str, other: str) -> bool:
      found = self._compare(best, other, metric)
      return found is None or found.identical or found.holds_zero

    means = {label: over_seeds(of).mean for label, of in values.items()}
    return best_of(means, direction, metric.digits, is_tied)


def _has_sums(record: Record, sums: Sequence[str]) -> bool:
  return bool(sums) and set(sums) <= set(record['items'])


def _resampled(
  pairs: Sequence[tuple[Record, Record]], metric: Metric, target: float | None
) -> Difference:
  """The first records minus the second ones, with an interval."""
  a, b = (_sums(records, metric) for records in zip(*pairs, strict=True))
  return bootstrap(a, b, metric.value, target=target)


def _sums(records: Sequence[Record], metric: Metric) -> np.ndarray:
  """[S, G, K]: the sums behind a metric, per seed and group of examples.

  Examples of one group are not independent draws.
  """
  sums_SxKxD = [[r['items'][name] for name in metric.sums] for r in records]
  groups_D = np.asarray(records[0]['groups'])
  member_GxD = (groups_D == np.arange(groups_D.max() + 1)[:, None]) * 1.0
  return member_GxD @ np.asarray(sums_SxKxD, float).transpose(0, 2, 1)
