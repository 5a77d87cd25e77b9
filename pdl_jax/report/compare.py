"""From the records of an experiment to what its report shows."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from pdl_jax.errors import DataError
from pdl_jax.evaluate import items
from pdl_jax.report import layout, systems
from pdl_jax.report.bootstrap import (
  Difference,
  hierarchical_bootstrap,
  paired_bootstrap,
)
from pdl_jax.report.collect import Record
from pdl_jax.report.experiment import Experiment, Metric, Study, Variant
from pdl_jax.report.layout import Column, Entry, Part, Row
from pdl_jax.report.statistics import (
  best_of,
  distance,
  holm,
  over_seeds,
  sign_flip_p,
)
from pdl_jax.report.systems import Statistic, System

_SEED = 0
_STATISTICS: dict[str, Statistic] = {
  **dict.fromkeys(items.RATIOS, systems.ratio),
  **dict.fromkeys(items.PERPLEXITY, systems.perplexity),
  **dict.fromkeys(items.F1, systems.f1),
}
# What has to be the same in all rows of a table.
_SHARED = ('split', 'examples', 'tokenizer')
Definitions = Mapping[str, Mapping[str, Mapping[str, Any]]]


def make_report(
  name: str,
  command: str,
  experiment: Experiment,
  records: Sequence[Record],
  definitions: Definitions,
) -> layout.Report:
  """Compares what an experiment's records hold.

  Args:
    name: of its folder.
    command: that repeats it.
    experiment: what was declared; a run without a record is shown as missing.
    records: one a row of a table and seed.
    definitions: fingerprint -> metric -> its definition.

  Raises:
    DataError: a record that nothing declares, or rows of one table with other
      data, another tokenizer or other definitions of a metric.
  """
  declared = {study.name for study in experiment.studies}
  for record in records:
    if record['study'] not in declared:
      raise DataError(
        f'{name}: a record is of the study {record["study"]!r}, and declared '
        f'are {", ".join(sorted(declared))}'
      )
  return layout.Report(
    name, experiment.question, command,
    tuple(
      _Table(
        study, [r for r in records if r['study'] == study.name], definitions
      ).part()
      for study in experiment.studies
    ),
    experiment.figures,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Compared:
  """A row against the baseline, in one column."""

  difference: Difference | None
  identical: bool


class _Table:
  """One study with its records."""

  def __init__(
    self,
    study: Study,
    records: Sequence[Record],
    definitions: Definitions,
  ):
    self._study, self._definitions = study, definitions
    self._by_row: dict[str, dict[int, Record]] = {}
    for record in records:
      self._by_row.setdefault(record['row'], {})[record['seed']] = record
    self._done = {
      row: {s: r for s, r in sorted(found.items()) if r['state'] == 'done'}
      for row, found in self._by_row.items()
    }
    self._labels = [variant.label for variant in study.variants]
    if study.before:
      self._labels.insert(0, study.before)
    self._check()

  def _all_done(self) -> Iterator[Record]:
    for label in self._labels:
      yield from self._done.get(label, {}).values()

  def _check(self) -> None:
    """Refuses what cannot stand in one table."""
    study = self._study
    if odd := set(self._by_row) - set(self._labels):
      raise DataError(
        f'study {study.name}: a record is of the row {min(odd)!r}, which is '
        'not declared'
      )
    first = next(self._all_done(), None)
    for record in self._all_done():
      assert first is not None
      for what in _SHARED:
        if record[what] != first[what]:
          raise DataError(
            f'study {study.name}: rows {first["row"]!r} and {record["row"]!r} '
            f'(seed {record["seed"]}) differ in {what}: {first[what]} and '
            f'{record[what]}; they cannot stand in one table'
          )
      for metric in study.metrics:
        one, other = (
          self._definition(r, metric.key) for r in (first, record)
        )
        if one != other:
          raise DataError(
            f'study {study.name}: rows {first["row"]!r} and {record["row"]!r} '
            f'(seed {record["seed"]}) define {metric.key} differently; measure '
            'both again with one version (--evaluate)'
          )

  def _definition(self, record: Record, key: str) -> Mapping[str, Any]:
    return self._definitions[record['definitions']].get(key, {})

  def part(self) -> Part:
    """The table."""
    study = self._study
    first = next(self._all_done(), None)
    columns = tuple(self._column(metric, first) for metric in study.metrics)
    compared = {
      (label, metric.key): self._compare(label, study.baseline, metric, column)
      for label in self._labels
      if label not in (study.before, study.baseline)
      for metric, column in zip(study.metrics, columns, strict=True)
    }
    adjusted = holm({
      place: found.difference.p
      for place, found in compared.items()
      if found.difference is not None
      and found.difference.p is not None
      and not found.identical
    })
    best = {
      metric.key: self._best(metric, column)
      for metric, column in zip(study.metrics, columns, strict=True)
    }

    def entry(label: str, metric: Metric) -> Entry:
      values = self._values(label, metric)
      found = compared.get((label, metric.key), _Compared(None, False))
      winners = best[metric.key]
      return Entry(
        by_seed=values,
        spread=over_seeds(label, list(values.values())) if values else None,
        difference=_scaled(found.difference, metric.scale),
        adjusted_p=adjusted.get((label, metric.key)),
        best=label in winners,
        alone=winners == (label,),
        identical=found.identical,
      )

    chosen = self._chosen()
    rows = tuple(
      self._row(
        label,
        {metric.key: entry(label, metric) for metric in study.metrics},
        chosen=label == chosen,
      )
      for label in self._labels
    )
    return Part(
      study.name, study.title, columns, rows,
      len(first['items']['nats']) if first else 0,
      first['split'] if first else study.config,
      tuple(self._notes(first, chosen)),
    )  # fmt: skip

  def _column(self, metric: Metric, first: Record | None) -> Column:
    reference, definition = None, 'not measured yet'
    if first is not None:
      reference = first['metrics'].get(f'reference_{metric.key}')
      told = self._definition(first, metric.key)
      definition = told.get('definition', 'not measured')
      if told.get('signature'):
        definition += f' [{told["signature"]}]'
    return Column(
      metric.key, metric.label, metric.better, metric.digits,
      None if reference is None else reference * metric.scale,
      definition, metric.key in items.SUMS,
    )  # fmt: skip

  def _row(
    self, label: str, entries: Mapping[str, Entry], *, chosen: bool
  ) -> Row:
    study = self._study
    variant = next(
      (v for v in study.variants if v.label == label), Variant(label)
    )
    done, found = self._done.get(label, {}), self._by_row.get(label, {})
    settings = dict(variant.overrides)
    settings |= {f'decode.{key}': v for key, v in variant.decode.items()}
    # Before fine-tuning there is one model, whatever the seed.
    seeds = study.seeds[:1] if label == study.before else study.seeds
    state, note = _state(seeds, done, found)
    return Row(
      label, state, note, seeds, entries,
      settings, label == study.baseline, chosen, _by_count(done),
      {} if label == study.before else {
        seed: tuple((int(s), float(v)) for s, v in record['curve'])
        for seed, record in done.items()
      },
    )  # fmt: skip

  def _notes(self, first: Record | None, chosen: str | None) -> Iterator[str]:
    if chosen is not None:
      yield (
        f'Lowest validation nats a token at the end: {chosen}. The table is of '
        f'{first["split"] if first else "the held-out split"}; nothing was '
        'chosen on it.'
      )
    if any(record['dirty'] for record in self._all_done()):
      yield 'Some runs are of code with changes that were not committed.'
    commits = sorted({r['commit'][:8] for r in self._all_done() if r['commit']})
    if commits:
      yield f'Commits of the runs: {", ".join(commits)}.'

  def _chosen(self) -> str | None:
    """The row with the lowest validation loss, if all rows are done."""
    ends = {
      label: [record['curve'][-1][1] for record in self._done[label].values()]
      for label in self._labels
      if label != self._study.before
      and self._done.get(label)
      and len(self._done[label]) == len(self._study.seeds)
    }
    if len(ends) < len(self._study.variants):
      return None
    return min(ends, key=lambda label: math.fsum(ends[label]))

  def _values(self, label: str, metric: Metric) -> dict[int, float]:
    """Seed -> value, scaled."""
    done = self._done.get(label, {})
    if label == self._study.before:
      done = dict(list(done.items())[:1])
    return {
      seed: value * metric.scale
      for seed, record in done.items()
      if (value := record['metrics'].get(metric.key)) is not None
    }

  def _compare(
    self, label: str, other: str, metric: Metric, column: Column
  ) -> _Compared:
    """A row minus another, over the seeds that both have."""
    seeds = self._shared_seeds(label, other, metric)
    if not seeds:
      return _Compared(None, identical=False)
    target = None
    if column.better == 'reference':
      if column.reference is None:
        return _Compared(None, identical=False)
      target = column.reference / metric.scale
    values = [
      [self._record(row, seed)['metrics'][metric.key] for seed in seeds]
      for row in (label, other)
    ]
    if metric.key not in items.SUMS:
      return _Compared(
        _over_seeds_alone((label, other), values[0], values[1], target),
        identical=values[0] == values[1],
      )
    a, b = (self._system(row, seeds, metric.key) for row in (label, other))
    statistic = _STATISTICS[metric.key]
    if systems.identical(a, b):
      return _Compared(None, identical=True)
    if len(seeds) == 1:
      found = paired_bootstrap(a, b, statistic, seed=_SEED, target=target)
      # It counts documents alone: one seed says nothing of the others.
      found = dataclasses.replace(found, p=None)
    else:
      found = hierarchical_bootstrap(
        a, b, statistic, seed=_SEED, paired_seeds=True, stretch_seeds=True,
        target=target,
      )  # fmt: skip
    return _Compared(found, identical=False)

  def _shared_seeds(self, a: str, b: str, metric: Metric) -> list[int]:
    return [
      seed
      for seed in self._study.seeds
      if all(
        (record := self._record(row, seed)) is not None
        and record['metrics'].get(metric.key) is not None
        for row in (a, b)
      )
    ]

  def _record(self, row: str, seed: int) -> Any:
    done = self._done.get(row, {})
    if row == self._study.before and done:
      return next(iter(done.values()))
    return done.get(seed)

  def _system(self, row: str, seeds: Sequence[int], key: str) -> System:
    sums = [
      [self._record(row, seed)['items'][name] for name in items.SUMS[key]]
      for seed in seeds
    ]
    sums_SxDxK = np.asarray(sums, float).transpose(0, 2, 1)
    documents = [f'{i:06d}' for i in range(sums_SxDxK.shape[1])]
    return System(row, list(seeds), documents, sums_SxDxK)

  def _best(self, metric: Metric, column: Column) -> tuple[str, ...]:
    if column.better == 'none':
      return ()
    direction = column.better
    if direction == 'reference':
      if column.reference is None:
        return ()
      direction = column.reference
    measured = {
      label: list(values.values())
      for label in self._labels
      if (values := self._values(label, metric))
    }
    seeds = [
      len(values)
      for label, values in measured.items()
      if label != self._study.before
    ]
    if len(seeds) < 2 or min(seeds) < 2:
      return ()  # No choice, or no telling chance from merit.
    means = {
      label: over_seeds(label, values).mean
      for label, values in measured.items()
    }

    def tied(best: str, other: str) -> bool:
      found = self._compare(best, other, metric, column)
      return (
        found.identical
        or found.difference is None
        or found.difference.holds_zero
      )

    return best_of(means, direction, metric.digits, tied)


def _state(
  seeds: Sequence[int],
  done: Mapping[int, Record],
  found: Mapping[int, Record],
) -> tuple[layout.State, str]:
  missing = [seed for seed in seeds if seed not in done]
  if not missing:
    return 'done', ''
  bad = {
    seed: record for seed, record in found.items() if record['state'] != 'done'
  }
  notes = [
    f'seed {seed} {record["state"]}: {record["error"]}'
    for seed, record in sorted(bad.items())
  ]
  absent = [str(seed) for seed in missing if seed not in bad]
  if absent:
    notes.append(f'missing: seed {", ".join(absent)}')
  if done:
    return 'partly', '; '.join(notes)
  states = {record['state'] for record in bad.values()}
  state: layout.State = 'missing'
  if states:
    state = 'diverged' if states == {'diverged'} else 'failed'
  return state, '; '.join(notes)


def _by_count(done: Mapping[int, Record]) -> dict[str, dict[int, float]]:
  found: dict[str, dict[int, float]] = {}
  for seed, record in done.items():
    for bucket, nats in record['nats_by_count'].items():
      if nats is not None:
        found.setdefault(bucket, {})[seed] = nats
  return found


def _over_seeds_alone(
  names: tuple[str, str],
  a_S: Sequence[float],
  b_S: Sequence[float],
  target: float | None,
) -> Difference:
  """A t interval over paired seeds, and the exact test of their signs."""
  if target is not None:
    a_S = [distance(value, target) for value in a_S]
    b_S = [distance(value, target) for value in b_S]
  differences_S = np.subtract(a_S, b_S)
  value, n = float(differences_S.mean()), len(differences_S)
  if n < 2:
    return Difference(value)
  half = stats.t.ppf(0.975, n - 1) * differences_S.std(ddof=1) / math.sqrt(n)
  return Difference(
    value, value - half, value + half, sign_flip_p(names, a_S, b_S)
  )


def _scaled(difference: Difference | None, scale: float) -> Difference | None:
  if difference is None:
    return None
  times = partial(_times, scale=scale)
  return Difference(
    times(difference.value), times(difference.low), times(difference.high),
    difference.p,
  )  # fmt: skip


def _times(value: float | None, scale: float) -> float | None:
  return None if value is None else value * scale
