"""What a report shows, before it is written as Markdown, LaTeX, HTML or SVG.

A report has parts, often one per task. A part has one table, with a row per
system and a column per metric, in the unit that is shown (percent, F x100).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pdl_jax.report.statistics import Difference, Spread

# done: measured on every seed; partly: on some; the others on none.
State = Literal['done', 'partly', 'missing', 'failed', 'diverged']


@dataclasses.dataclass(frozen=True)
class Column:
  """A metric.

  Attributes:
    key: in the results of a run, e.g. 'rougeL'.
    label: heading.
    better: what is better; 'reference' is closest to `reference`.
    digits: decimals that are shown.
    reference: value of the human texts; None where there is none.
    definition: in words, with its unit.
    over_documents: whether differences have an interval over documents and
      seeds; otherwise the metric looks across documents, and only seeds count.
  """

  key: str
  label: str
  better: Literal['higher', 'lower', 'reference', 'none']
  digits: int
  reference: float | None
  definition: str
  over_documents: bool


@dataclasses.dataclass(frozen=True)
class Entry:
  """A metric of a system.

  Attributes:
    by_seed: seed -> value; empty where nothing was measured.
    spread: of them; None where `by_seed` is empty.
    difference: this system minus the baseline, or for better='reference' the
      difference of the distances |value - reference|. Its p is after Holm over
      all rows and columns of the table. None for the baseline, and where either
      is missing.
    best: whether it is the best of its column, alone or among those that are
      not significantly different.
    alone: best, and no other is.
  """

  by_seed: Mapping[int, float] = dataclasses.field(default_factory=dict)
  spread: Spread | None = None
  difference: Difference | None = None
  best: bool = False
  alone: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
  """A system.

  Attributes:
    label: its name, e.g. 'alpha 0.25'.
    state: of its runs.
    note: why it is not done, e.g. 'missing: seed 1, 2'; '' if it is.
    seeds: wanted.
    entries: by key of the column; all columns.
    settings: dotted key -> value of what tells the rows apart; what figures put
      on their axes.
    is_baseline: whether the others are compared with it.
    chosen: whether it was picked on validation.
    nats_by_count: bucket of training counts ('0', '1', '2-9', ...) -> seed ->
      nats per token, in the order of the buckets; empty if not measured.
    by_count: bucket -> its nats per token minus the baseline's, with interval;
      empty for the baseline, and where runs kept no sums by training count.
    curves: seed -> (step, validation nats per token) in order of steps.
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
    """Whether it is another system than the baseline, and compared with it."""
    found = [entry.difference for entry in self.entries.values()]
    return any(x is not None and not x.identical for x in found)


@dataclasses.dataclass(frozen=True)
class Part:
  """One table and its figures.

  Attributes:
    name: short, for file names: 'dialogue'.
    title: heading.
    columns: metrics, in order.
    rows: systems, in order.
    documents: evaluated with each seed.
    groups: that they come from (speeches, books, services), at most as many;
      intervals resample these.
    split: which they are from, e.g. 'chitchat/test'.
    notes: sentences that have to stand below the table.
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
  """Figure: metrics against a setting, a panel a metric.

  Mean over seeds, every seed as a point, a band of one sample standard
  deviation, the baseline and the human texts as lines.
  """

  x: str
  metrics: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Frontier:
  """Figure: one metric against another, a point a system, the humans too.

  Attributes:
    x, y: the metrics.
    log: whether equal ratios are equally far apart on both axes.
  """

  x: str
  y: str
  log: bool = False


@dataclasses.dataclass(frozen=True)
class ByCount:
  """Figure: nats per token minus the baseline's, by training count."""


@dataclasses.dataclass(frozen=True)
class HeatMap:
  """Figure: a metric over two settings, numbers in the cells."""

  x: str
  y: str
  metric: str


@dataclasses.dataclass(frozen=True)
class Curves:
  """Figure: validation nats per token against step, a line a run."""


Figure = Line | Frontier | ByCount | HeatMap | Curves


@dataclasses.dataclass(frozen=True)
class Report:
  """What an experiment found.

  Attributes:
    name: of its folder.
    question: that it asks, in one sentence.
    command: that repeats it.
    parts: in order.
    figures: drawn for each part.
  """

  name: str
  question: str
  command: str
  parts: tuple[Part, ...]
  figures: tuple[Figure, ...]
