"""What a run keeps of each example: sums from which its metrics follow.

A report resamples examples; a metric of a resample is a function of the sums
over the examples drawn (see pdl_jax.report.systems). Metrics that look across
examples, such as distinct-n, have none.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from pdl_jax.evaluate import rare, rouge_bleu_chrf, style
from pdl_jax.evaluate.inputs import (
  Record,
  first_samples,
  samples_by_example,
)
from pdl_jax.run_folder import RunFolder

RARE_PERCENT = 10
_DIGITS = 5

# Metric -> what its statistic reads, in this order; see `items`.
RATIOS = {
  'nats_per_token': ('nats', 'tokens'),
  'rouge1': ('rouge1', 'rouge_outputs'),
  'rouge2': ('rouge2', 'rouge_outputs'),
  'rougeL': ('rougeL', 'rouge_outputs'),
  'rare_precision_10': ('rare_matches', 'rare_generated'),
  'rare_recall_10': ('rare_matches', 'rare_targets'),
  'rare_mass_10': ('rare_generated', 'generated'),
  'length_ratio': ('words', 'target_words'),
  'finish_rate': ('finished', 'outputs'),
  'style_accuracy': ('right_style', 'outputs'),
  'style_joint': ('right_style_chrf', 'outputs'),
}
PERPLEXITY = {'perplexity': ('nats', 'tokens')}
F1 = {'rare_f1_10': ('rare_matches', 'rare_generated', 'rare_targets')}
SUMS = {**RATIOS, **PERPLEXITY, **F1}


def write(
  folder: RunFolder,
  predictions: Mapping[str, Sequence[Record]],
  counts_V: np.ndarray,
  neutral_ids: Sequence[int],
  classifier: style.StyleClassifier | None,
) -> None:
  """Writes items.json: of each set of predictions the sums, and who they are.

  Args:
    folder: of the run.
    predictions: name of a set -> its records.
    counts_V: see `items`.
    neutral_ids: see `items`.
    classifier: see `items`.
  """
  found = {
    name: {
      'examples': fingerprint(records),
      'groups': groups(records),
      'sums': items(records, counts_V, neutral_ids, classifier),
    }
    for name, records in predictions.items()
  }
  folder.write_text('items.json', json.dumps(found) + '\n')


def fingerprint(records: Sequence[Record]) -> str:
  """8 hex digits of what was asked and the targets, in order."""
  whole = [
    (record['source'], record['references'])
    for record in first_samples(records)
  ]
  return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:8]


def groups(records: Sequence[Record]) -> list[int]:
  """A number for the group of each example, in their order.

  Those of one group (a speech, a book, a conversation) are no independent
  draws: a report resamples whole groups. Without groups each is its own.
  """
  names = [
    record.get('group', record['id']) for record in first_samples(records)
  ]
  number = {name: i for i, name in enumerate(dict.fromkeys(names))}
  return [number[name] for name in names]


def items(
  records: Sequence[Record],
  counts_V: np.ndarray,
  neutral_ids: Sequence[int],
  classifier: style.StyleClassifier | None = None,
) -> dict[str, list[float]]:
  """Sums of each example, in the order in which examples first come.

  Args:
    records: prediction records that `evaluate.run.evaluate` accepts.
    counts_V: integers [V], training counts.
    neutral_ids: special tokens, which no rare metric counts.
    classifier: for records with a `style`.

  Returns:
    name -> one number an example: nats and tokens of its target; over its
    outputs, how many, their ROUGE F (with rouge_outputs, those that it can
    read), rare tokens (matched, generated, in the target), all tokens, words,
    target_words, those finished, those of the right style, and their chrF.
  """
  outputs = {id(record): sums for record, sums in zip(
    records, _outputs(records, counts_V, neutral_ids, classifier), strict=True
  )}  # fmt: skip
  found = []
  for samples in samples_by_example(records):
    nats = samples[0]['reference_nll']
    example = {'nats': float(sum(nats)), 'tokens': len(nats)}
    for record in samples:
      for name, value in outputs[id(record)].items():
        example[name] = example.get(name, 0) + value
    found.append(example)
  return {
    name: [_rounded(example[name]) for example in found] for name in found[0]
  }


def _rounded(value: float) -> float:
  return value if isinstance(value, int) else round(value, _DIGITS)


def _outputs(
  records: Sequence[Record],
  counts_V: np.ndarray,
  neutral_ids: Sequence[int],
  classifier: style.StyleClassifier | None,
) -> list[dict[str, float]]:
  rouge = rouge_bleu_chrf.rouge_by_record(records)
  rares = rare.rare_by_record(records, counts_V, RARE_PERCENT, neutral_ids)
  styles: Sequence[style.Item | None] = [None] * len(records)
  if classifier is not None:
    styles = style.style_by_record(records, classifier)
  return [
    {
      'outputs': 1,
      **_rouge_sums(scores),
      'rare_matches': one.matches,
      'rare_generated': one.rare_generated,
      'rare_targets': one.rare_targets,
      'generated': one.generated,
      'words': len(record['text'].split()),
      'target_words': len(record['references'][0].split()),
      'finished': int(record['finish_reason'] == 'stop'),
      **_style_sums(styled),
    }
    for record, scores, one, styled in zip(
      records, rouge, rares, styles, strict=True
    )
  ]


def _rouge_sums(scores: Mapping[str, float] | None) -> dict[str, float]:
  kinds = ('rouge1', 'rouge2', 'rougeL')
  if scores is None:
    return {'rouge_outputs': 0, **dict.fromkeys(kinds, 0)}
  return {'rouge_outputs': 1, **{kind: scores[kind] for kind in kinds}}


def _style_sums(item: style.Item | None) -> dict[str, float]:
  if item is None:
    return {}
  return {
    'right_style': int(item.output_right),
    'right_style_chrf': item.output_right * item.chrf / 100,
  }
