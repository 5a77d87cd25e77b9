"""Declares an experiment: its question, runs and metrics."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pdl_jax.evaluate.run  # noqa: F401 (its modules fill METRICS)
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.registry import METRICS, Metric
from pdl_jax.report.layout import Figure

Overrides = Mapping[str, Any]
# Metrics of the output head, which do not depend on the predictions.
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
  """A row of a table: one system.

  Attributes:
    overrides: config values that differ from the study's.
    decode: keys of `decode` for decoding the trained model again; the row then
      shows these predictions.
  """

  label: str
  overrides: Overrides = dataclasses.field(default_factory=dict)
  decode: Overrides = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Start:
  """A run that is made first, from which all variants of a study start."""

  config: str
  overrides: Overrides = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
  """A table: variants of one job, each with every seed.

  Attributes:
    name: short, for file names.
    config: file and mode, as for --config.
    baseline: label of the row that the others are compared with.
    metrics: keys of COLUMNS.
    overrides: config values that all variants share.
    base: the run that all variants start from; None leaves it to the config.
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
  """One question in one sentence, and the tables and figures that answer it.

  Each figure is drawn for each study.
  """

  question: str
  studies: tuple[Study, ...]
  figures: tuple[Figure, ...] = ()
