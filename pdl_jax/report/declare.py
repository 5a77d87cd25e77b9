"""What an experiment declares: its question, its runs, its metrics."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pdl_jax.errors import ConfigError
from pdl_jax.report.layout import Figure

Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A column.

  Attributes:
    key: in the results of a run.
    label: heading.
    better: what is better; 'reference' is closest to the human texts.
    digits: decimals shown.
    scale: of what is shown; 100 for percent.
  """

  key: str
  label: str
  better: Literal['higher', 'lower', 'reference', 'none']
  digits: int = 2
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row: what tells a system from the others.

  Attributes:
    label: its name.
    overrides: of the configuration.
    decode: keys of `decode`, by which the trained model is decoded once more;
      the row is then of these predictions.
  """

  label: str
  overrides: Overrides = dataclasses.field(default_factory=dict)
  decode: Overrides = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Start:
  """A run that is made first, and that all variants of a study start from.

  Attributes:
    config: file and mode.
    overrides: of it.
  """

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
    metrics: columns.
    overrides: of all variants.
    base: what all variants start from; None: what the config says.
    seeds: of each variant.
    before: label of a row for the model before fine-tuning; '' for none.
  """

  name: str
  title: str
  config: str
  variants: tuple[Variant, ...]
  baseline: str
  metrics: tuple[Metric, ...]
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
