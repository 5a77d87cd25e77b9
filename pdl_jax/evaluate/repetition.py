"""How much texts repeat themselves, and each other."""

import importlib.metadata
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.metric import Metric, mean, ratio
from pdl_jax.evaluate.ngrams import NGram, ngrams

SELF_BLEU_TEXTS = 200
_SELF_BLEU_ORDER = 4
_SMOOTHING = 0.1  # matches counted for an order without any


def rep_n(texts: Sequence[str], n: int) -> Metric:
  """Share in [0, 1) of running n-grams that their own text had before.

  None where no text has n words.

  Raises:
    ConfigError: n below 1.
  """
  grams = [ngrams(text, n) for text in texts]
  total = sum(map(len, grams))
  distinct = sum(len(set(found)) for found in grams)
  return Metric(
    value=ratio(total - distinct, total),
    n=total,
    unit=f'word {n}-grams',
    definition=f'1 - distinct / total {n}-grams of whitespace words, in '
    '[0, 1), distinct within a text, both summed over the texts',
  )


def seq_rep_n(texts: Sequence[str], n: int = 4) -> Metric:
  """Mean over texts of the share of repeated n-grams, in [0, 1).

  seq-rep-n of Welleck et al., arXiv 1908.04319, there on tokens. Texts of
  fewer than n words are left out; None where all are.

  Raises:
    ConfigError: n below 1.
  """
  grams = [found for text in texts if (found := ngrams(text, n))]
  shares = [1 - len(set(found)) / len(found) for found in grams]
  return Metric(
    value=mean(shares),
    n=len(shares),
    unit='texts',
    definition=f'1 - distinct / total {n}-grams of whitespace words of a text, '
    f'in [0, 1), mean over the texts of at least {n} words',
  )


def fixed_sample(
  records: Sequence[Record], limit: int = SELF_BLEU_TEXTS
) -> list[Record]:
  """At most `limit` records, chosen by what they were asked, not answered.

  The same examples for every system, in whatever order they come and whether
  their ids number samples or not.
  """

  def key(record: Record) -> tuple[int, str]:
    asked = f'{record["source"]}\0{record["references"][0]}'
    return zlib.crc32(asked.encode()), record['id']

  return sorted(records, key=key)[:limit]


def self_bleu_per_text(texts: Sequence[str]) -> list[float]:
  """BLEU-4 in [0, 1] of each text against all others (arXiv 1802.01886).

  As sacrebleu's sentence BLEU on whitespace words: an order without a match
  counts 0.1 matches, a text that shares no word scores 0, and orders longer
  than the text are left out. Time grows with the words, not with the pairs.

  Args:
    texts: at least two, each with at least one word.
  """
  orders = range(1, _SELF_BLEU_ORDER + 1)
  counts = [Counter(g for n in orders for g in ngrams(t, n)) for t in texts]
  top: defaultdict[NGram, tuple[int, int]] = defaultdict(lambda: (0, 0))
  for own in counts:
    for ngram, count in own.items():
      first, second, _ = sorted((*top[ngram], count), reverse=True)
      top[ngram] = (first, second)
  lengths = [len(text.split()) for text in texts]
  return [
    _bleu(own, top, length, _closest(length, lengths[:i] + lengths[i + 1 :]))
    for i, (own, length) in enumerate(zip(counts, lengths, strict=True))
  ]


def _closest(length: int, others: Sequence[int]) -> int:
  return min(others, key=lambda other: (abs(other - length), other))


def _bleu(
  own: Counter[NGram],
  top: defaultdict[NGram, tuple[int, int]],
  length: int,
  reference_length: int,
) -> float:
  correct, total = [0] * _SELF_BLEU_ORDER, [0] * _SELF_BLEU_ORDER
  for ngram, count in own.items():
    first, second = top[ngram]
    # The text's own count is among the two; without it the other one is left.
    among_others = second if count == first else first
    correct[len(ngram) - 1] += min(count, among_others)
    total[len(ngram) - 1] += count
  score = BLEU.compute_bleu(
    correct, total, length, reference_length, 'floor', _SMOOTHING,
    effective_order=True, max_ngram_order=_SELF_BLEU_ORDER,
  )  # fmt: skip
  # Rounding can leave equal texts a hair above 1.
  return min(1.0, score.score / 100)


def self_bleu_4(texts: Sequence[str]) -> Metric:
  """Mean leave-one-out BLEU-4 of a set of texts, in [0, 1]; 1: all the same.

  It grows with the number of texts: give as many of each system. Texts without
  a word are left out; None for fewer than two others.
  """
  worded = [text for text in texts if text.split()]
  scores = self_bleu_per_text(worded) if len(worded) > 1 else []
  return Metric(
    value=mean(scores),
    n=len(scores),
    unit='texts',
    definition='mean BLEU-4 in [0, 1] of a text against all others of the '
    'sample, on whitespace words; sample: the at most '
    f'{SELF_BLEU_TEXTS} records with the smallest CRC-32 of source and first '
    'reference, without those that have no word; it grows with the number '
    'given as n',
    signature=self_bleu_signature(),
  )


def self_bleu_signature() -> str:
  """The package that computes self-BLEU, and its settings."""
  version = importlib.metadata.version('sacrebleu')
  return (
    f'sacrebleu=={version} BLEU-4 case:mixed eff:yes tok:none '
    f'smooth:floor[{_SMOOTHING:.2f}]'
  )
