"""What an experiment declares: its question, its runs, its metrics."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pdl_jax.evaluate.run  # noqa: F401 (its modules fill METRICS)
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.registry import METRICS, Metric
from pdl_jax.report.layout import Figure

Overrides = Mapping[str, Any]
# Metrics of the output head, whatever was predicted.
HEAD = (
  Metric(
    'head_percent', 'Floats (% of dense)', unit='floats',
    definition='floats that the logits need, a bias and a residual included, '
    'in percent of a dense matrix of vocabulary x width',
  ),
  Metric(
    'head_index_bits', 'Index bits (millions)', unit='floats',
    definition='bits of the codes of all types, and of their order where they '
    'are in tiers, as integers of equal width, in millions',
  ),
)  # fmt: skip
COLUMNS = METRICS | {metric.key: metric for metric in HEAD}


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row: what tells a system from the others.

  Attributes:
    label: its name.
    overrides: what the configuration has instead.
    decode: keys of `decode`, by which the trained model is decoded once more;
      the row shows these predictions.
  """

  label: str
  overrides: Overrides = dataclasses.field(default_factory=dict)
  decode: Overrides = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Start:
  """A run that is made first, and that all variants of a study start from."""

  config: str
  overrides: Overrides = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
  """A table: variants of one job, each with every seed.

  Attributes:
    name: short, for file names.
    title: heading.
    config: file and mode, as --config wants it.
    variants: rows, in order.
    baseline: label of the row that the others are compared with.
    metrics: keys of its columns, in order.
    overrides: what all variants have in common.
    base: what all variants start from; None for what the config says.
    seeds: each variant runs with all of them.
    before: label of a row for the model before fine-tuning; '' for none.
  """

  name: str
  title: str
  config: str
  variants: tuple[Variant, ...]
  baseline: str
  metrics: tuple[str, ...]
  overrides: Overrides = dataclasses.field(default_factory=dict)
  base: Start | None = None
  seeds: tuple[int, ...] = (0, 1, 2)
  before: str = 'before fine-tuning'

  def __post_init__(self):
    labels = [variant.label for variant in self.variants]
    taken = [*labels, self.before]
    if len(set(taken)) < len(taken):
      raise ConfigError(f'study {self.name}: two rows have the same label')
    if self.baseline not in labels:
      raise ConfigError(
        f'study {self.name}: the baseline {self.baseline!r} is none of its '
        f'rows: {", ".join(labels)}'
      )
    if odd := set(self.metrics) - COLUMNS.keys():
      raise ConfigError(
        f'study {self.name}: there is no metric {min(odd)!r}; there are '
        f'{", ".join(COLUMNS)}'
      )

  @property
  def columns(self) -> tuple[Metric, ...]:
    """The metrics, looked up by key."""
    return tuple(COLUMNS[key] for key in self.metrics)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One question, and what answers it.

  Attributes:
    question: one sentence.
    studies: tables, in order.
    figures: drawn for each.
  """

  question: str
  studies: tuple[Study, ...]
  figures: tuple[Figure, ...] = ()
