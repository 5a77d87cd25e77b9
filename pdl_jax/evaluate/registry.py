"""The one list of metrics: how each is measured, shown and resampled.

A metric is a function of sums over examples, or of all texts at once. A
report resamples the sums with the same function; a metric of all texts, such
as distinct-n, has no interval over documents.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pdl_jax import own_files
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.inputs import Record, first_samples

if TYPE_CHECKING:
  from pdl_jax.evaluate.style import StyleClassifier

# What makes reasons recognizable among definitions.
UNDEFINED = 'undefined: '


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What metrics read.

  Attributes:
    records: one object per output, as in predictions.jsonl.
    counts_V: integers [V], tokens of each type in the training targets.
    special_ids: tokens that the metrics of rare tokens leave out.
    classifier: judges styles; None for other tasks.
    dialogue: whether whole texts are compared.
    windows: whether references end anywhere, so that nothing is finished.
  """

  records: Sequence[Record]
  counts_V: np.ndarray
  special_ids: Sequence[int] = ()
  classifier: 'StyleClassifier | None' = None
  dialogue: bool = False
  windows: bool = False

  @functools.cached_property
  def examples(self) -> list[Record]:
    """The first sample of each example."""
    return first_samples(self.records)


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A number that was measured on `n` units; None where it is undefined.

  Attributes:
    value: the number.
    n: how many units it was measured on.
    reason: why it is undefined, where that is not plain.
    signature: package, version and settings, where a package computed it.
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
  """How a number is called, computed and shown.

  Attributes:
    key: its name in results and records.
    label: heading of its column or row.
    better: which value is better; 'reference' is closest to the references'.
    digits: decimals shown.
    scale: factor of what is shown; 100 for percent.
    unit: what `n` counts.
    definition: formula, range and choices, in a sentence or two.
    sums: names of the sums over examples that `value` reads; the first is a
      numerator, the others add up to `n`. () for a metric of all texts.
    reference_sums: the same of the references, whose value is then stored
      under reference_KEY.
    value: sums [..., K] -> metric [...]; zero denominators may give NaN.
    signature: package and settings, if the metric is one of sums.
    rows: where a run's table shows it: always, where some value or reason is
      known, or never.
    with_n: whether the value means little without its n.
    version: what may be compared; it changes when the number would.
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


# A number per output, or one per example: name -> values; or a measurement
# under the key of its metric, which takes the place of that of the sums.
Found = Mapping[str, Sequence[float] | Measurement]
Source = Callable[[Inputs], Found]

METRICS: dict[str, Metric] = {}
SOURCES: list[Source] = []


def register(*metrics: Metric) -> Callable[[Source], Source]:
  """Adds metrics, and the function that measures them or gives their sums.

  Raises:
    ConfigError: a key that is taken.
  """

  def decorate(source: Source) -> Source:
    for metric in metrics:
      if metric.key in METRICS:
        raise ConfigError(f'two metrics are called {metric.key!r}; rename one')
      METRICS[metric.key] = metric
    own_files.note(source)
    SOURCES.append(source)
    return source

  return decorate


def sides(records: Sequence[Record]) -> dict[str, list[str]]:
  """Outputs and first references, by what stands before their names."""
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
  """The mean, or None of no values; their order cannot change it."""
  return math.fsum(values) / len(values) if values else None


def of_sums(
  metric: Metric, names: Sequence[str], sums: Mapping[str, Sequence[float]]
) -> Measurement:
  """The value of a metric over all examples."""
  totals = [math.fsum(sums[name]) for name in names]
  with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
    value = float(metric.value(np.asarray(totals)))
  return Measurement(
    value if math.isfinite(value) else None, round(sum(totals[1:]))
  )


def to_json(
  metric: Metric, found: Measurement, inputs: Inputs
) -> dict[str, Any]:
  """Value, n, unit, definition, and signature and version if there are any."""
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
