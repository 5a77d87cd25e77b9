"""Every metric of one set of predictions.

`table` has the tables that compare several; they are named here too, so that
callers need one module.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdl_jax.evaluate import (
  diversity,
  extras,
  likelihood,
  rare,
  repetition,
  rouge_bleu_chrf,
  samples,
  style,
)
from pdl_jax.evaluate.inputs import (
  Record,
  check_counts,
  first_samples,
  validate_records,
)
from pdl_jax.evaluate.metric import Metric
from pdl_jax.evaluate.table import (
  format_frequency_table,
  format_reasons,
  format_table,
  format_tables,
)

__all__ = [
  'evaluate',
  'format_frequency_table',
  'format_reasons',
  'format_table',
  'format_tables',
]

RARE_PERCENTS = (1, 5, 10)
NGRAM_ORDERS = (1, 2, 3, 4)


def evaluate(
  records: Sequence[Record],
  counts_V: np.ndarray,
  neutral_ids: Sequence[int],
  classifier: style.StyleClassifier | None = None,
  *,
  dialogue: bool = False,
  windows: bool = False,
  extra_models: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
  """All metrics of one system's predictions, as plain JSON types.

  What tells how varied texts are is measured on the outputs and, under
  `reference_...`, on the first references. Of examples that were sampled
  several times it takes the first sample alone, so that both are as many, and
  so do the likelihoods, which all samples share; the rest takes all outputs.
  How the samples of one example differ stands under `prompt_...`.

  Args:
    records: one object an evaluated example, as in predictions.jsonl.
    counts_V: integers [V], tokens of each type in the training split's targets.
    neutral_ids: special tokens, the stop token among them; the rare-token
      metrics leave them out.
    classifier: for records with a `style`, adds `style.style_metrics`.
    dialogue: adds how often whole texts repeat each other.
    windows: references are cut from a longer text and end anywhere, so that
      there is no finish rate.
    extra_models: see `extras.extra_metrics`.

  Returns:
    `examples` and `outputs`, the numbers of examples and of records;
    `perplexity_by_frequency` and `perplexity_by_mass`, see there; and for every
    other key {value, n, unit, definition[, signature]}: a value is None where
    it is undefined.

  Raises:
    DataError: records, counts or token ids that no metric can be trusted on.
    ConfigError: a neutral id outside [0, V); an extra metric set up wrongly.
    HostError: a package or model of an extra metric is missing.
  """
  validate_records(records)
  counts_V = check_counts(counts_V)
  examples = first_samples(records)
  metrics: dict[str, Metric] = {
    # First, because it may be refused.
    **extras.extra_metrics(records, extra_models or {}),
    'perplexity': likelihood.perplexity(examples),
    'nats_per_token': likelihood.nats_per_token(examples),
    'bits_per_byte': likelihood.bits_per_byte(examples),
    **rouge_bleu_chrf.rouge_where_readable(records),
    **rouge_bleu_chrf.bleu_and_chrf(records),
  }
  variety = _both_sides(examples, dialogue)
  if len(examples) < len(records):
    variety = {key: _of_first(metric) for key, metric in variety.items()}
    variety |= _between_samples(records)
  metrics |= variety
  for percent in RARE_PERCENTS:
    found = rare.rare_metrics(records, counts_V, percent, neutral_ids)
    metrics |= {f'{key}_{percent}': metric for key, metric in found.items()}
  metrics['length_ratio'] = diversity.length_ratio(records)
  if not windows:
    metrics['finish_rate'] = diversity.finish_rate(records)
  metrics['empty_rate'] = diversity.empty_rate(records)
  if classifier is not None:
    metrics |= style.style_metrics(records, classifier)
  return {
    'examples': len(examples),
    'outputs': len(records),
    **{key: metric.to_json() for key, metric in metrics.items()},
    'perplexity_by_frequency': likelihood.perplexity_by_frequency(
      examples, counts_V
    ),
    'perplexity_by_mass': likelihood.perplexity_by_mass(examples, counts_V),
  }


def _of_first(metric: Metric) -> Metric:
  definition = f'{metric.definition}; of the first sample of each example'
  return dataclasses.replace(metric, definition=definition)


def _both_sides(
  records: Sequence[Record], dialogue: bool
) -> dict[str, Metric]:
  """Variety of the outputs, and of the references under `reference_...`."""
  references = _variety(records, _first_reference, dialogue)
  return _variety(records, _output, dialogue) | {
    f'reference_{key}': metric for key, metric in references.items()
  }


def _between_samples(records: Sequence[Record]) -> dict[str, Metric]:
  """Variety of what was generated for the same prompt."""
  sets = samples.sample_sets(records)
  distinct = {
    f'prompt_distinct_{n}': samples.prompt_distinct_n(sets, n)
    for n in NGRAM_ORDERS
  }
  return {**distinct, 'prompt_self_bleu_4': samples.prompt_self_bleu_4(sets)}


def _output(record: Record) -> str:
  return record['text']


def _first_reference(record: Record) -> str:
  return record['references'][0]


def _variety(
  records: Sequence[Record], side: Callable[[Record], str], dialogue: bool
) -> dict[str, Metric]:
  texts = [side(record) for record in records]
  sources = [record['source'] for record in records]
  sample = [side(record) for record in repetition.fixed_sample(records)]
  found: dict[str, Metric] = {}
  for n in NGRAM_ORDERS:
    found |= {
      f'distinct_{n}': diversity.distinct_n(texts, n),
      f'sentence_distinct_{n}': diversity.sentence_distinct_n(texts, n),
      f'hapax_share_{n}': diversity.hapax_share_n(texts, n),
      f'entropy_{n}': diversity.entropy_n(texts, n),
      f'novel_share_{n}': diversity.novel_share_n(texts, sources, n),
      f'rep_{n}': repetition.rep_n(texts, n),
    }
  found['seq_rep_4'] = repetition.seq_rep_n(texts)
  found['self_bleu_4'] = repetition.self_bleu_4(sample)
  found['zipf'] = diversity.zipf(texts)
  if dialogue:
    found['distinct_responses'] = diversity.distinct_responses(texts)
    found['top_response_share'] = diversity.top_response_share(texts)
  return found
