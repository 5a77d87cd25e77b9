"""The registry of metrics: how each is measured, shown and resampled.

A metric is a function of sums over examples, or of all texts at once. Reports
resample the sums with the same function. A metric of all texts, such as
distinct-n, has no interval over documents.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pdl_jax import own_files
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.inputs import Record, samples_by_example

if TYPE_CHECKING:
  from pdl_jax.evaluate.style import StyleClassifier

# Tells a reason from a definition.
UNDEFINED = 'undefined: '


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Everything that metrics read.

  Attributes:
    records: one object per output, as in predictions.jsonl.
    counts_V: integers [V], tokens of each type in the training targets.
    special_ids: tokens that the metrics of rare tokens leave out.
    classifier: judges styles; None for other tasks.
    dialogue: whether whole texts are compared.
    windows: whether references end anywhere, so that no output can finish.
  """

  records: Sequence[Record]
  counts_V: np.ndarray
  special_ids: Sequence[int] = ()
  classifier: 'StyleClassifier | None' = None
  dialogue: bool = False
  windows: bool = False

  @functools.cached_property
  def samples(self) -> list[list[Record]]:
    """The records of each example, in the order of their samples."""
    return samples_by_example(self.records)

  @functools.cached_property
  def examples(self) -> list[Record]:
    """The first sample of each: repeated references would tell nothing."""
    return [samples[0] for samples in self.samples]


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A number that was measured on `n` units; None where it is undefined.

  Attributes:
    reason: why the value is undefined, unless that is obvious.
    signature: package, version and settings, if a package computed it.
  """

  value: float | None
  n: int
  reason: str = ''
  signature: str = ''


def ratio(sums: np.ndarray) -> np.ndarray:
  """Sums [..., 2] (numerator, denominator) -> their ratio [...]."""
  return sums[..., 0] / sums[..., 1]


def perplexity(sums: np.ndarray) -> np.ndarray:
  """Sums [..., 2] (nats, tokens) -> exp(nats / tokens) [...]."""
  return np.exp(ratio(sums))


def f1(sums: np.ndarray) -> np.ndarray:
  """Sums [..., 3] (matches, generated, reference) -> micro F1 in [0, 1]."""
  return 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a number is named, computed and shown.

  Attributes:
    better: which value is better; 'reference' is closest to the references'.
    scale: factor of what is shown; 100 for percent.
    unit: what `n` counts.
    definition: formula, range and choices, in a sentence or two.
    sums: names of the sums over examples that `value` reads. The first is the
      numerator, the others add up to `n`. Empty for a metric of all texts.
    reference_sums: the same for the references, stored as reference_KEY.
    value: sums [..., K] -> metric [...]; zero denominators may give NaN.
    signature: package and settings, for a metric of sums.
    rows: whether a run's table shows it always, if a value or reason is known,
      or never.
    with_n: whether the value means little without its n.
    version: changes with the numbers; only equal versions can be compared.
  """

  key: str
  label: str
  better: Literal['higher', 'lower', 'reference', 'none'] = 'none'
  digits: int = 2
  scale: float = 1.0
  _: dataclasses.KW_ONLY
  unit: str
  definition: str
  sums: tuple[str, ...] = ()
  reference_sums: tuple[str, ...] = ()
  value: Callable[[np.ndarray], np.ndarray] = ratio
  signature: Callable[[Inputs], str] | None = None
  rows: Literal['always', 'known', 'never'] = 'known'
  with_n: bool = False
  version: int = 1


# Name -> one number per output or per example. A Measurement under the key of
# its metric replaces the value of the sums.
Found = Mapping[str, Sequence[float] | Measurement]
Source = Callable[[Inputs], Found]

METRICS: dict[str, Metric] = {}
SOURCES: list[Source] = []


def register(*metrics: Metric) -> Callable[[Source], Source]:
  """Adds metrics, and the function that measures them or returns their sums.

  Raises:
    ConfigError: a key is taken.
  """

  def decorate(source: Source) -> Source:
    for metric in metrics:
      if metric.key in METRICS:
        raise ConfigError(f'two metrics are called {metric.key!r}; rename one')
      METRICS[metric.key] = metric
    what = f'metric {", ".join(metric.key for metric in metrics)}'
    SOURCES.append(own_files.explained(what, source, Mapping))
    return source

  return decorate


def sides(records: Sequence[Record]) -> dict[str, list[str]]:
  """Returns outputs and first references, by the prefix of their names."""
  return {
    '': [record['text'] for record in records],
    'reference_': [record['references'][0] for record in records],
  }


def on_both_sides(
  records: Sequence[Record],
  measures: Mapping[str, Callable[[Sequence[str]], Measurement]],
) -> Found:
  """Measures the outputs and, under reference_KEY, the first references."""
  return {
    f'{side}{key}': measure(texts)
    for side, texts in sides(records).items()
    for key, measure in measures.items()
  }


def mean(values: Sequence[float]) -> float | None:
  """Returns the mean, or None without values; their order cannot change it."""
  return math.fsum(values) / len(values) if values else None


def of_sums(
  metric: Metric, names: Sequence[str], sums: Mapping[str, Sequence[float]]
) -> Measurement:
  """Computes a metric from its sums over all examples."""
  totals = [math.fsum(sums[name]) for name in names]
  with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
    value = float(metric.value(np.asarray(totals)))
  return Measurement(
    value if math.isfinite(value) else None, round(sum(totals[1:]))
  )


def to_json(
  metric: Metric, found: Measurement, inputs: Inputs
) -> dict[str, Any]:
  """Returns value, n, unit and definition; signature and version if present."""
  signature = found.signature
  if not signature and metric.signature is not None:
    signature = metric.signature(inputs)
  return {
    'value': found.value, 'n': found.n, 'unit': metric.unit,
    'definition': f'{UNDEFINED}{found.reason}' if found.reason
    else metric.definition,
    **({'signature': signature} if signature else {}),
    **({'version': metric.version} if metric.version > 1 else {}),
  }  # fmt: skip
