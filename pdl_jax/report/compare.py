"""From the records of an experiment to what its report shows."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.evaluate import likelihood
from pdl_jax.evaluate.registry import Metric, of_sums
from pdl_jax.report import layout
from pdl_jax.report.bootstrap import (
  Difference,
  hierarchical_bootstrap,
  paired_bootstrap,
)
from pdl_jax.report.collect import Record
from pdl_jax.report.declare import Experiment, Variant
from pdl_jax.report.layout import Column, Entry, Part, Row
from pdl_jax.report.measured import Definitions, Measured, has_sums
from pdl_jax.report.statistics import (
  LEVEL,
  best_of,
  distance,
  half_interval,
  holm,
  over_seeds,
  seed_floor,
  sign_flip_p,
)

_SEED = 0


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
  parts = []
  for study in experiment.studies:
    own = [r for r in records if r['study'] == study.name]
    measured = Measured(study, own, definitions)
    check_against_items(measured)
    parts.append(_Table(measured).part())
  return layout.Report(
    name, experiment.question, command, tuple(parts), experiment.figures
  )


def check_against_items(measured: Measured) -> None:
  """Refuses a metric that does not follow from the sums of its examples.

  Raises:
    DataError: with the record and both numbers.
  """
  for record in measured.all_done():
    for metric in measured.study.columns:
      value = record['metrics'].get(metric.key)
      if value is None or not has_sums(record, metric):
        continue
      again = of_sums(metric, metric.sums, record['items']).value
      if again is None or not math.isclose(
        value, again, rel_tol=1e-4, abs_tol=1e-4
      ):
        raise DataError(
          f'study {measured.study.name}, row {record["row"]!r}, seed '
          f'{record["seed"]}: the record says {metric.key} {value:g}, and the '
          f'sums of its examples give {again}; collect it anew'
        )


@dataclasses.dataclass(frozen=True)
class _Compared:
  """A row against another, in one column."""

  difference: Difference | None = None
  identical: bool = False

  def without_p(self) -> '_Compared':
    if self.difference is None:
      return self
    return _Compared(dataclasses.replace(self.difference, p=None))

  @property
  def told_apart(self) -> bool:
    if self.identical or self.difference is None:
      return False
    return not self.difference.holds_zero


class _Table:
  """One study as a table."""

  def __init__(self, measured: Measured):
    self._of, self._study = measured, measured.study
    self._columns = {
      metric.key: self._column(metric) for metric in self._study.columns
    }

  def part(self) -> Part:
    study, first = self._study, self._of.first
    compared = {
      (label, metric.key): self._compare(label, study.baseline, metric)
      for label in self._of.labels
      if label not in (study.before, study.baseline)
      for metric in study.columns
    }
    # So few seeds cannot show anything by p: it is left out.
    compared = {
      (label, key): found.without_p()
      if seed_floor(self._of.seeds_of(label, study.baseline)) > LEVEL
      else found
      for (label, key), found in compared.items()
    }
    adjusted = holm({
      place: found.difference.p
      for place, found in compared.items()
      if found.difference is not None and found.difference.p is not None
    })
    best = {metric.key: self._best(metric) for metric in study.columns}

    def entry(label: str, metric: Metric) -> Entry:
      values = self._of.values(label, metric)
      found = compared.get((label, metric.key), _Compared())
      return Entry(
        by_seed=values,
        spread=over_seeds(label, list(values.values())) if values else None,
        difference=_scaled(found.difference, metric.scale),
        adjusted_p=adjusted.get((label, metric.key)),
        best=label in best[metric.key],
        alone=best[metric.key] == (label,),
        identical=found.identical,
      )

    chosen = self._of.chosen()
    rows = [
      self._row(
        label, {metric.key: entry(label, metric) for metric in study.columns},
        chosen=label == chosen,
      )
      for label in self._of.labels
    ]  # fmt: skip
    return Part(
      study.name, study.title, tuple(self._columns.values()), tuple(rows),
      len(first['groups']) if first else 0,
      len(set(first['groups'])) if first else 0,
      first['split'] if first else study.config,
      tuple(self._notes(chosen)),
      first['tokens_by_count'] if first else {},
    )  # fmt: skip

  def _column(self, metric: Metric) -> Column:
    reference, definition, first = None, 'not measured yet', self._of.first
    if first is not None:
      reference = first['metrics'].get(f'reference_{metric.key}')
      told = self._of.definition(first, metric)
      definition = told.get('definition', 'not measured')
      if told.get('signature'):
        definition += f' [{told["signature"]}]'
    return Column(
      metric.key, metric.label, metric.better, metric.digits,
      None if reference is None else reference * metric.scale,
      definition, self._of.has_sums(metric),
    )  # fmt: skip

  def _row(
    self, label: str, entries: Mapping[str, Entry], *, chosen: bool
  ) -> Row:
    of = self._of
    variants = {variant.label: variant for variant in self._study.variants}
    variant = variants.get(label, Variant(label))
    settings = dict(variant.overrides)
    settings |= {f'decode.{key}': v for key, v in variant.decode.items()}
    curves = {
      seed: tuple((int(step), float(nats)) for step, nats in record['curve'])
      for seed, record in of.done.get(label, {}).items()
      if label != self._study.before
    }
    return Row(
      label, *of.state(label), of.seeds(label), entries, settings,
      label == self._study.baseline, chosen, of.nats_by_count(label),
      self._by_count(label), curves,
    )  # fmt: skip

  def _notes(self, chosen: str | None) -> Iterator[str]:
    done = list(self._of.all_done())
    if chosen is not None:
      yield (
        f'Lowest validation nats a token at the end: {chosen}. The table is of '
        f'{done[0]["split"]}; nothing was chosen on it.'
      )
    if any(record['dirty'] for record in done):
      yield 'Some runs are of code with changes that were not committed.'
    commits = sorted({r['commit'][:8] for r in done if r['commit']})
    if commits:
      yield f'Commits of the runs: {", ".join(commits)}.'

  def _compare(self, label: str, other: str, metric: Metric) -> _Compared:
    """A row minus another, over the seeds that both have."""
    seeds = self._of.shared_seeds(label, other, metric)
    column, target = self._columns[metric.key], None
    if column.better == 'reference' and column.reference is not None:
      target = column.reference / metric.scale
    if not seeds or (column.better == 'reference' and target is None):
      return _Compared()
    if self._of.same_items(label, other, seeds):
      return _Compared(identical=True)
    if not self._of.has_sums(metric):
      values = [
        [self._of.record(row, seed)['metrics'][metric.key] for seed in seeds]
        for row in (label, other)
      ]
      return _Compared(
        _over_seeds_alone((label, other), values[0], values[1], target)
      )
    return _Compared(self._resampled((label, other), seeds, metric, target))

  def _resampled(
    self,
    rows: tuple[str, str],
    seeds: Sequence[int],
    metric: Metric,
    target: float | None,
  ) -> Difference:
    """The first row minus the second, with an interval over documents."""
    a, b = (self._of.system(row, seeds, metric) for row in rows)
    if len(seeds) == 1:
      found = paired_bootstrap(
        a, b, metric.value, seed=_SEED, stretch_documents=True, target=target
      )
      # It counts documents alone: one seed says nothing of the others.
      return dataclasses.replace(found, p=None)
    return hierarchical_bootstrap(
      a, b, metric.value, seed=_SEED, paired_seeds=True, stretch_seeds=True,
      stretch_documents=True, target=target,
    )  # fmt: skip

  def _by_count(self, label: str) -> dict[str, Difference]:
    """Nats per token minus the baseline's, by training count."""
    baseline, of = self._study.baseline, self._of
    seeds = [
      seed for seed in self._study.seeds
      if of.record(label, seed) and of.record(baseline, seed)
    ]  # fmt: skip
    if label in (baseline, self._study.before) or not seeds:
      return {}
    metrics = {
      bucket: dataclasses.replace(likelihood.NATS, sums=names)
      for bucket in likelihood.BUCKETS
      if of.has_sums_of(names := likelihood.sums_of(bucket))
    }
    found = {
      bucket: self._resampled((label, baseline), seeds, metric, None)
      for bucket, metric in metrics.items()
    }
    return {k: v for k, v in found.items() if v.value is not None}

  def _best(self, metric: Metric) -> tuple[str, ...]:
    column = self._columns[metric.key]
    if column.better == 'none':
      return ()
    direction = column.better
    if direction == 'reference':
      if column.reference is None:
        return ()
      direction = column.reference
    measured = {
      label: list(values.values())
      for label in self._of.labels
      if (values := self._of.values(label, metric))
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
    return best_of(
      means, direction, metric.digits,
      lambda best, other: not self._compare(best, other, metric).told_apart,
    )  # fmt: skip


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
  value = float(differences_S.mean())
  if len(differences_S) < 2:
    return Difference(value)
  half = half_interval(differences_S)
  return Difference(
    value, value - half, value + half, sign_flip_p(names, a_S, b_S)
  )


def _scaled(difference: Difference | None, scale: float) -> Difference | None:
  if difference is None:
    return None
  value, low, high = (
    None if end is None else end * scale
    for end in (difference.value, difference.low, difference.high)
  )
  return Difference(value, low, high, difference.p)
