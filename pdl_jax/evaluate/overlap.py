"""ROUGE against the references, by the rouge-score package."""

import importlib.metadata
import math
from collections.abc import Sequence

from rouge_score import rouge_scorer, tokenizers

from pdl_jax.errors import DataError
from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.metric import Metric, ratio

ROUGE_TYPES = ('rouge1', 'rouge2', 'rougeL')

_WHAT = {
  'rouge1': 'clipped unigram overlap',
  'rouge2': 'clipped bigram overlap',
  'rougeL': 'longest common subsequence over the whole text',
}


def rouge_per_item(records: Sequence[Record]) -> dict[str, list[float]]:
  """F-measures in [0, 1], one a record and in their order, by ROUGE type.

  An item with several references takes its best F, for each type apart. An
  empty output scores 0; so does ROUGE-2 of a reference of a single word.

  Raises:
    DataError: records whose references hold no word that ROUGE can see.
  """
  _check_words(records)
  scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
  scores = [scorer.score_multi(r['references'], r['text']) for r in records]
  return {
    kind: [float(score[kind].fmeasure) for score in scores]
    for kind in ROUGE_TYPES
  }


def rouge(records: Sequence[Record]) -> dict[str, Metric]:
  """Mean F-measure over the records, in [0, 1], by ROUGE type.

  Raises:
    DataError: records whose references hold no word that ROUGE can see.
  """
  per_item = rouge_per_item(records)
  return {
    kind: Metric(
      value=ratio(math.fsum(scores), len(scores)),
      n=len(scores),
      unit='examples',
      definition=f'F-measure in [0, 1] of the {_WHAT[kind]} of stemmed '
      '[a-z0-9] words, best over the references of an item, mean over items',
      signature=_signature(),
    )
    for kind, scores in per_item.items()
  }


def _signature() -> str:
  version = importlib.metadata.version('rouge-score')
  return f'rouge-score=={version} use_stemmer=True (Porter)'


def _check_words(records: Sequence[Record]) -> None:
  tokenizer = tokenizers.DefaultTokenizer(use_stemmer=False)
  wordless = [
    record['id']
    for record in records
    if not any(map(tokenizer.tokenize, record['references']))
  ]
  if wordless:
    raise DataError(
      f'ROUGE keeps only the characters a-z and 0-9, and the references of '
      f'{len(wordless)} of {len(records)} records have none (first: '
      f'{wordless[0]!r}); it cannot score text in a non-Latin script: use '
      'another metric for such text, and drop references of punctuation alone'
    )
