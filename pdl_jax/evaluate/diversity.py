"""How varied, how long and how complete texts are.

None of the measures of variety has a best value: read each beside the
references' own.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.metric import Metric, mean, ratio
from pdl_jax.evaluate.ngrams import NGram, ngrams

# Beyond these ranks lie words seen once, whose slope is that of the sample
# size; the limit of Holtzman et al., arXiv 1904.09751.
ZIPF_RANKS = 5000


def _corpus_ngrams(texts: Sequence[str], n: int) -> list[NGram]:
  return [ngram for text in texts for ngram in ngrams(text, n)]


def distinct_n(texts: Sequence[str], n: int) -> Metric:
  """Distinct over all n-grams of a corpus, in (0, 1].

  arXiv 1510.03055 divides by the generated tokens; here it is by the n-grams
  there are.

  It falls as the corpus grows: compare only at like `Metric.n`, the number of
  n-grams it was taken at. Texts of fewer than n words add nothing; None where
  no text has n words.

  Args:
    texts: the corpus; no n-gram crosses from one text into the next.
    n: words an n-gram, at least 1.

  Raises:
    ConfigError: n below 1.
  """
  found = _corpus_ngrams(texts, n)
  return Metric(
    value=ratio(len(set(found)), len(found)),
    n=len(found),
    unit=f'word {n}-grams',
    definition=f'distinct / total {n}-grams of whitespace words over the whole '
    'corpus, in (0, 1], none crossing texts; it falls with the length of the '
    'corpus, given as n',
  )


def sentence_distinct_n(texts: Sequence[str], n: int) -> Metric:
  """Mean over texts of distinct over all n-grams of the text, in (0, 1].

  Blind to texts that repeat each other. Texts of fewer than n words are left
  out; None where all are.

  Raises:
    ConfigError: n below 1.
  """
  grams = [found for text in texts if (found := ngrams(text, n))]
  shares = [len(set(found)) / len(found) for found in grams]
  return Metric(
    value=mean(shares),
    n=len(shares),
    unit='texts',
    definition=f'distinct / total {n}-grams of whitespace words of a text, in '
    f'(0, 1], mean over the texts of at least {n} words',
  )


def hapax_share_n(texts: Sequence[str], n: int) -> Metric:
  """Share in [0, 1] of running n-grams whose type occurs once in the corpus.

  It falls as the corpus grows; None where no text has n words.

  Raises:
    ConfigError: n below 1.
  """
  counts = Counter(_corpus_ngrams(texts, n))
  once = sum(count == 1 for count in counts.values())
  return Metric(
    value=ratio(once, counts.total()),
    n=counts.total(),
    unit=f'word {n}-grams',
    definition=f'{n}-grams of whitespace words that occur once in the whole '
    f'corpus / total {n}-grams, in [0, 1]; it falls with the number given as n',
  )


def entropy_n(texts: Sequence[str], n: int) -> Metric:
  """Entropy in bits of the n-grams of a corpus, in [0, log2(Metric.n)].

  It grows with the corpus; None where no text has n words.

  Raises:
    ConfigError: n below 1.
  """
  counts = Counter(_corpus_ngrams(texts, n))
  total = counts.total()
  bits = [c / total * math.log2(total / c) for c in counts.values()]
  return Metric(
    value=math.fsum(bits) if bits else None,
    n=total,
    unit=f'word {n}-grams',
    definition=f'-sum p log2 p in bits, p the share of a type among all '
    f'{n}-grams of whitespace words of the corpus; it grows with the number '
    'given as n',
  )


def zipf(texts: Sequence[str]) -> Metric:
  """Zipf coefficient: how steeply counts of words fall with their rank.

  s of count ~ rank**-s, near 1 for human text and larger for text of few
  words. None for fewer than two word types.
  """
  counts = Counter(_corpus_ngrams(texts, 1))
  log_counts = np.log(sorted(counts.values(), reverse=True)[:ZIPF_RANKS])
  log_ranks = np.log(np.arange(1, len(log_counts) + 1))
  value = None
  if len(log_counts) > 1:
    centred = log_ranks - log_ranks.mean()
    value = float(-(centred @ log_counts) / (centred @ centred))
  return Metric(
    value=value,
    n=counts.total(),
    unit='words',
    definition='minus the slope of the least-squares line of ln count on ln '
    f'rank over the {ZIPF_RANKS:,} commonest types of whitespace words of the '
    'corpus',
  )


def novel_share_n(
  texts: Sequence[str], sources: Sequence[str], n: int
) -> Metric:
  """Share in [0, 1] of running n-grams of texts that their source has not.

  Pairs without a source are left out; None where no n-gram is left.

  Args:
    texts: outputs or references.
    sources: what each was made from; '' for none.
    n: words an n-gram, at least 1.

  Raises:
    ConfigError: n below 1.
  """
  total = novel = 0
  for text, source in zip(texts, sources, strict=True):
    if source.split():
      found = ngrams(text, n)
      # Of a source as long as a book only what may be asked for is kept.
      words, asked = source.split(), set(found)
      shifted = (words[i:] for i in range(n))
      known = asked.intersection(zip(*shifted, strict=False))
      total += len(found)
      novel += sum(ngram not in known for ngram in found)
  return Metric(
    value=ratio(novel, total),
    n=total,
    unit=f'word {n}-grams',
    definition=f'{n}-grams of whitespace words that do not occur in the source '
    f'of their text / all {n}-grams, in [0, 1], summed over the texts that '
    'have a source',
  )


def distinct_responses(texts: Sequence[str]) -> Metric:
  """Share in (0, 1] of distinct whole texts; it falls with their number."""
  whole = {' '.join(text.split()) for text in texts}
  return Metric(
    value=ratio(len(whole), len(texts)),
    n=len(texts),
    unit='texts',
    definition='distinct whole texts / all texts, in (0, 1], white space '
    'evened out; it falls with the number given as n',
  )


def top_response_share(texts: Sequence[str]) -> Metric:
  """Share in (0, 1] of the texts that are the most common whole text."""
  counts = Counter(' '.join(text.split()) for text in texts)
  return Metric(
    value=ratio(max(counts.values(), default=0), len(texts)),
    n=len(texts),
    unit='texts',
    definition='occurrences of the most common whole text / all texts, in '
    '(0, 1], white space evened out',
  )


def length_ratio(records: Sequence[Record]) -> Metric:
  """Generated over reference words of the corpus, >= 0; 1 is human length."""
  generated = sum(len(record['text'].split()) for record in records)
  reference = sum(len(record['references'][0].split()) for record in records)
  return Metric(
    value=ratio(generated, reference),
    n=reference,
    unit='words',
    definition='whitespace words generated / whitespace words in the targets '
    '(references[0]), both summed over the corpus; n is the targets',
  )


def finish_rate(records: Sequence[Record]) -> Metric:
  """Share in [0, 1] of outputs that stopped before the length limit."""
  finished = sum(record['finish_reason'] == 'stop' for record in records)
  return Metric(
    value=ratio(finished, len(records)),
    n=len(records),
    unit='examples',
    definition='share in [0, 1] of outputs that ended with a stop token '
    'rather than at max_new_tokens',
  )


def empty_rate(records: Sequence[Record]) -> Metric:
  """Share in [0, 1] of outputs without a single word."""
  empty = sum(not record['text'].split() for record in records)
  return Metric(
    value=ratio(empty, len(records)),
    n=len(records),
    unit='examples',
    definition='share in [0, 1] of outputs without a whitespace word',
  )
