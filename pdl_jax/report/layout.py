"""Defines what a report shows, apart from Markdown, LaTeX, HTML and SVG.

A report has parts, often one per task. A part has one table, with a row per
system and a column per metric, in the unit that is shown (percent, F x100).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

from pdl_jax.evaluate.registry import Metric
from pdl_jax.report.statistics import Difference, Spread, over_seeds

# done: measured on every seed; partly: on some; the others on none.
State = Literal['done', 'partly', 'missing', 'failed', 'diverged']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column(Metric):
  """A metric, with the definition that its records name.

  Attributes:
    reference: value of the human texts, if any, in the unit shown.
    over_documents: whether the metric is a function of sums over documents, so
      intervals cover documents and seeds; otherwise only seeds.
  """

  reference: float | None
  over_documents: bool


@dataclasses.dataclass(frozen=True)
class Entry:
  """A metric of a system.

  Attributes:
    by_seed: seed -> value; empty if nothing was measured.
    difference: this system minus the baseline; for better='reference', the
      difference of the distances |value - reference|. Its p is Holm-adjusted
      over all rows and columns of the table. None for the baseline, or if
      either is missing.
    best: best of its column, or not significantly different from the best.
    alone: best, and no other system is.
  """

  by_seed: Mapping[int, float] = dataclasses.field(default_factory=dict)
  difference: Difference | None = None
  best: bool = False
  alone: bool = False

  @functools.cached_property
  def spread(self) -> Spread | None:
    """Mean and deviation over seeds; None if nothing was measured."""
    return over_seeds(list(self.by_seed.values())) if self.by_seed else None


@dataclasses.dataclass(frozen=True)
class Row:
  """A system.

  Attributes:
    note: why it is not done, e.g. 'missing: seed 1, 2'; '' if it is.
    seeds: those it should have.
    entries: column key -> entry, for all columns.
    settings: dotted key -> value that distinguishes rows; figures put these on
      their axes.
    chosen: whether it was picked on validation.
    nats_by_count: bucket of training counts ('0', '1', '2-9', ...) -> seed ->
      nats per token, in the order of the buckets; empty if not measured.
    by_count: bucket -> nats per token minus the baseline's, with interval.
      Empty for the baseline, and if runs kept no sums by training count.
    curves: seed -> (step, validation nats per token), in order of steps.
  """

  label: str
  state: State
  note: str
  seeds: tuple[int, ...]
  entries: Mapping[str, Entry]
  settings: Mapping[str, float | str]
  is_baseline: bool
  chosen: bool
  nats_by_count: Mapping[str, Mapping[int, float]]
  by_count: Mapping[str, Difference]
  curves: Mapping[int, tuple[tuple[int, float], ...]]

  @property
  def measured_seeds(self) -> set[int]:
    """Seeds with a value in any column."""
    return {seed for entry in self.entries.values() for seed in entry.by_seed}

  @property
  def compared(self) -> bool:
    """Whether it is compared with the baseline and differs from it."""
    found = [entry.difference for entry in self.entries.values()]
    return any(x is not None and not x.identical for x in found)


@dataclasses.dataclass(frozen=True)
class Part:
  """One table and its figures.

  Attributes:
    name: short, for file names, e.g. 'dialogue'.
    documents: number evaluated with each seed.
    groups: number of groups (speeches, books, services) that the documents come
      from; intervals resample these.
    split: where the documents are from, e.g. 'chitchat/test'.
    tokens_by_count: bucket of training counts -> target tokens measured.
  """

  name: str
  title: str
  columns: tuple[Column, ...]
  rows: tuple[Row, ...]
  documents: int
  groups: int
  split: str
  notes: tuple[str, ...]
  tokens_by_count: Mapping[str, int]

  @property
  def baseline(self) -> Row | None:
    """The row that the others are compared with."""
    return next((row for row in self.rows if row.is_baseline), None)


@dataclasses.dataclass(frozen=True)
class Line:
  """A figure of metrics against a setting, one panel per metric.

  It shows each seed as a point, their mean, and a band of one sample standard
  deviation. The baseline and the human texts are lines.
  """

  x: str
  metrics: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Frontier:
  """A figure of one metric against another, one point per system and humans.

  With `log`, equal ratios are equally far apart on both axes.
  """

  x: str
  y: str
  log: bool = False


@dataclasses.dataclass(frozen=True)
class ByCount:
  """A figure of nats per token minus the baseline's, by training count."""


@dataclasses.dataclass(frozen=True)
class HeatMap:
  """A figure of a metric over two settings, with numbers in the cells."""

  x: str
  y: str
  metric: str


@dataclasses.dataclass(frozen=True)
class Curves:
  """A figure of validation nats per token against step, one line per run."""


Figure = Line | Frontier | ByCount | HeatMap | Curves


@dataclasses.dataclass(frozen=True)
class Report:
  """What an experiment found; `command` repeats it.

  Each figure is drawn for each part.
  """

  name: str
  question: str
  command: str
  parts: tuple[Part, ...]
  figures: tuple[Figure, ...]
