"""How much the samples of one prompt differ from each other.

A system can be varied over prompts and still say the same to each of them
again, or the reverse: these metrics take the samples of a prompt as a set,
measure each set alone, and average over prompts (Tevet and Berant, arXiv
2004.02990). References have no such value: there is mostly one of them.
"""

import statistics
from collections.abc import Sequence

from pdl_jax.evaluate.inputs import Record, samples_by_example
from pdl_jax.evaluate.metric import Metric, mean
from pdl_jax.evaluate.ngrams import ngrams
from pdl_jax.evaluate.repetition import self_bleu_per_text, self_bleu_signature


def sample_sets(records: Sequence[Record]) -> list[list[str]]:
  """The texts of each example that was sampled more than once."""
  return [
    [record['text'] for record in samples]
    for samples in samples_by_example(records)
    if len(samples) > 1
  ]


def prompt_distinct_n(sets: Sequence[Sequence[str]], n: int) -> Metric:
  """Mean over prompts of distinct over all n-grams of its samples, in (0, 1].

  It falls with the number and the length of the samples. Prompts none of whose
  samples has n words are left out; None where all are.

  Args:
    sets: the samples of each prompt; no n-gram crosses between them.
    n: words an n-gram, at least 1.

  Raises:
    ConfigError: n below 1.
  """
  grams = [[g for text in texts for g in ngrams(text, n)] for texts in sets]
  shares = [len(set(found)) / len(found) for found in grams if found]
  return Metric(
    value=mean(shares),
    n=len(shares),
    unit='prompts',
    definition=f'distinct / total {n}-grams of whitespace words over '
    f'{_size(sets)} of a prompt, in (0, 1], none crossing texts, mean over the '
    f'prompts with a sample of at least {n} words; it falls with the number '
    'and the length of the samples',
  )


def prompt_self_bleu_4(sets: Sequence[Sequence[str]]) -> Metric:
  """Mean over prompts of the self-BLEU-4 of its samples, in [0, 1].

  1: all samples of each prompt are the same. It grows with the number of
  samples. Samples without a word are left out, and so are prompts with fewer
  than two others; None where all are.
  """
  worded = [[text for text in texts if text.split()] for texts in sets]
  scores = [
    statistics.fmean(self_bleu_per_text(texts))
    for texts in worded
    if len(texts) > 1
  ]
  return Metric(
    value=mean(scores),
    n=len(scores),
    unit='prompts',
    definition='BLEU-4 in [0, 1] of a sample against all others of its prompt, '
    f'on whitespace words, mean over {_size(sets)} of a prompt but those '
    'without a word, then over the prompts with at least two; it grows with '
    'the number of samples',
    signature=self_bleu_signature(),
  )


def _size(sets: Sequence[Sequence[str]]) -> str:
  least = min(map(len, sets), default=0)
  most = max(map(len, sets), default=0)
  return f'the {least if least == most else f"{least} to {most}"} samples'
