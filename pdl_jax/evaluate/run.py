"""Every metric of one set of predictions, and the sums behind it."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# isort: off
# A run's table shows metrics in the order in which they are registered.
from pdl_jax.evaluate import likelihood
from pdl_jax.evaluate import rouge_bleu_chrf
from pdl_jax.evaluate import style
from pdl_jax.evaluate import diversity
from pdl_jax.evaluate import repetition
from pdl_jax.evaluate import rare
from pdl_jax.evaluate import length

# isort: on
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.inputs import Record, check_counts, validate_records
from pdl_jax.evaluate.registry import (
  METRICS,
  SOURCES,
  Inputs,
  Measurement,
  of_sums,
  to_json,
)

REGISTERED = (
  likelihood, rouge_bleu_chrf, style, diversity, repetition, rare, length,
)  # fmt: skip
_DIGITS = 5


class Evaluation(NamedTuple):
  """Results of a set of predictions, and what items.json keeps of it."""

  results: dict[str, Any]
  items: dict[str, Any]


def evaluate(
  records: Sequence[Record],
  counts_V: np.ndarray,
  special_ids: Sequence[int],
  classifier: style.StyleClassifier | None = None,
  *,
  dialogue: bool = False,
  windows: bool = False,
) -> Evaluation:
  """Measures one system's predictions by all metrics, as plain JSON types.

  Variety is measured on the outputs and, under `reference_...`, on the first
  references. Its metrics and the likelihoods read the first sample of each
  example. `Inputs` describes the arguments.

  Returns:
    results: `examples` and `outputs`, the numbers of examples and of records;
      `perplexity_by_frequency`; and for every metric
      {value, n, unit, definition[, signature]}.
    items: `examples` (8 hex digits of what was asked), `groups` (a number per
      example) and `sums` (name -> a number per example).

  Raises:
    DataError: records, counts or token ids that no metric can be trusted on.
  """
  validate_records(records)
  inputs = Inputs(
    records, check_counts(counts_V), special_ids, classifier, dialogue, windows
  )
  found, sums = _measure(inputs)
  results: dict[str, Any] = {
    'examples': len(inputs.examples), 'outputs': len(records)
  }  # fmt: skip
  for key, metric in METRICS.items():
    if metric.sums and key not in found and set(metric.sums) <= sums.keys():
      found[key] = of_sums(metric, metric.sums, sums)
    if metric.reference_sums and set(metric.reference_sums) <= sums.keys():
      found[f'reference_{key}'] = of_sums(metric, metric.reference_sums, sums)
    for name in (key, f'reference_{key}'):
      if name in found:
        results[name] = to_json(metric, found[name], inputs)
  results['perplexity_by_frequency'] = likelihood.by_frequency(sums)
  items = {
    'examples': fingerprint(inputs.examples),
    'groups': groups(inputs.examples),
    'sums': {name: list(map(_rounded, of)) for name, of in sums.items()},
  }
  return Evaluation(results, items)


def _measure(
  inputs: Inputs,
) -> tuple[dict[str, Measurement], dict[str, list[float]]]:
  found: dict[str, Measurement] = {}
  sums: dict[str, list[float]] = {}
  places = {id(record): at for at, record in enumerate(inputs.records)}
  outputs = [[places[id(record)] for record in x] for x in inputs.samples]
  for source in SOURCES:
    for name, value in source(inputs).items():
      if isinstance(value, Measurement):
        found[name] = value
      elif len(value) == len(inputs.examples) != len(inputs.records):
        sums[name] = list(value)
      elif len(value) == len(inputs.records):
        sums[name] = [_sum([value[at] for at in each]) for each in outputs]
      else:
        raise ConfigError(
          f'{name!r}, which {source.__name__} measures, has {len(value)} '
          f'numbers for {len(inputs.records)} outputs; give one per output'
        )
  return found, sums


def _sum(values: Sequence[float]) -> float:
  whole = all(isinstance(value, int) for value in values)
  return sum(values) if whole else math.fsum(values)


def _rounded(value: float) -> float:
  return value if isinstance(value, int) else round(value, _DIGITS)


def fingerprint(examples: Sequence[Record]) -> str:
  """Hashes sources and references, in order, to 8 hex digits."""
  whole = [(record['source'], record['references']) for record in examples]
  return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:8]


def groups(examples: Sequence[Mapping[str, Any]]) -> list[int]:
  """Numbers the group of each example; without groups each is its own.

  Examples of one group (a speech, a book, a conversation) are not independent
  draws, so reports resample whole groups.
  """
  names = [record.get('group', record['id']) for record in examples]
  number = {name: i for i, name in enumerate(dict.fromkeys(names))}
  return [number[name] for name in names]
