"""How varied texts are, and how much they resemble each other.

None of these metrics has a best value: compare each with the references'.
Words are split at white space; an example's first sample is measured.
"""

import importlib.metadata
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial

from sacrebleu.metrics.bleu import BLEU

from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.registry import (
  Found,
  Inputs,
  Measurement,
  Metric,
  mean,
  on_both_sides,
  register,
)

NGram = tuple[str, ...]
SELF_BLEU_TEXTS = 200
_ORDERS = 4
_SMOOTHING = 0.1  # matches counted for an order without any


def ngrams(text: str, n: int) -> list[NGram]:
  """Lists the n-grams of the words of a text, in order; n is at least 1."""
  words = text.split()
  return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


def _corpus(texts: Sequence[str], n: int) -> tuple[Counter[NGram], int]:
  """Counts the n-grams of a corpus; none crosses texts."""
  counts = Counter(ngram for text in texts for ngram in ngrams(text, n))
  return counts, counts.total()


def distinct_n(texts: Sequence[str], n: int) -> Measurement:
  """Share of distinct n-grams among all n-grams of a corpus, in (0, 1].

  arXiv 1510.03055 divides by tokens instead. Compare only at similar totals.
  """
  counts, total = _corpus(texts, n)
  return Measurement(len(counts) / total if total else None, total)


def hapax_share_n(texts: Sequence[str], n: int) -> Measurement:
  """Share in [0, 1] of n-gram occurrences whose type occurs once."""
  counts, total = _corpus(texts, n)
  once = sum(count == 1 for count in counts.values())
  return Measurement(once / total if total else None, total)


def entropy_n(texts: Sequence[str], n: int) -> Measurement:
  """Entropy in bits of the n-grams of a corpus, in [0, log2(their number)]."""
  counts, total = _corpus(texts, n)
  bits = [c / total * math.log2(total / c) for c in counts.values()]
  return Measurement(math.fsum(bits) if bits else None, total)


def fixed_sample(
  records: Sequence[Record], limit: int = SELF_BLEU_TEXTS
) -> list[Record]:
  """Chooses at most `limit` records by hash, the same for every system."""

  def key(record: Record) -> tuple[int, str]:
    asked = f'{record["source"]}\0{record["references"][0]}'
    return zlib.crc32(asked.encode()), record['id']

  return sorted(records, key=key)[:limit]


def self_bleu_per_text(texts: Sequence[str]) -> list[float]:
  """BLEU-4 in [0, 1] of each text against all others (arXiv 1802.01886).

  Equals sacrebleu's sentence BLEU on whitespace words. An order without a match
  counts 0.1 matches, and orders longer than the text are left out. A text that
  shares no word scores 0. Needs at least two texts, each with a word.
  """
  orders = range(1, _ORDERS + 1)
  counts = [Counter(g for n in orders for g in ngrams(t, n)) for t in texts]
  top: defaultdict[NGram, tuple[int, int]] = defaultdict(lambda: (0, 0))
  for own in counts:
    for ngram, count in own.items():
      first, second, _ = sorted((*top[ngram], count), reverse=True)
      top[ngram] = (first, second)
  lengths = [len(text.split()) for text in texts]
  scores = []
  for i, own in enumerate(counts):
    others = lengths[:i] + lengths[i + 1 :]
    closest = min(others, key=lambda x: (abs(x - lengths[i]), x))
    correct, total = [0] * _ORDERS, [0] * _ORDERS
    for ngram, count in own.items():
      first, second = top[ngram]
      # If the own count is the largest, the second is that of the others.
      among_others = second if count == first else first
      correct[len(ngram) - 1] += min(count, among_others)
      total[len(ngram) - 1] += count
    score = BLEU.compute_bleu(
      correct, total, lengths[i], closest, 'floor', _SMOOTHING,
      effective_order=True, max_ngram_order=_ORDERS,
    )  # fmt: skip
    # Rounding can leave equal texts a hair above 1.
    scores.append(min(1.0, score.score / 100))
  return scores


def self_bleu_4(texts: Sequence[str]) -> Measurement:
  """Mean leave-one-out BLEU-4 in [0, 1]; None below two texts with words."""
  worded = [text for text in texts if text.split()]
  scores = self_bleu_per_text(worded) if len(worded) > 1 else []
  return Measurement(mean(scores), len(scores))


def _bleu_signature(_: Inputs) -> str:
  version = importlib.metadata.version('sacrebleu')
  return (
    f'sacrebleu=={version} BLEU-4 case:mixed eff:yes tok:none '
    f'smooth:floor[{_SMOOTHING:.2f}]'
  )


@register(
  *(
    Metric(
      f'distinct_{n}', f'Distinct-{n}', 'reference', 3, with_n=True,
      rows='always' if n < 3 else 'never', unit=f'word {n}-grams',
      definition=f'distinct / total {n}-grams of whitespace words over the '
      'whole corpus, in (0, 1], none crossing texts; it falls with the length '
      'of the corpus, given as n',
    )
    for n in (1, 2, 3, 4)
  ),
  Metric(
    'hapax_share_2', 'Bigrams seen once (%)', 'reference', 1, 100,
    rows='never', unit='word 2-grams',
    definition='2-grams of whitespace words that occur once in the whole '
    'corpus / total 2-grams, in [0, 1]; it falls with the number given as n',
  ),
  Metric(
    'entropy_2', 'Entropy of bigrams (bits)', 'reference', rows='never',
    unit='word 2-grams',
    definition='-sum p log2 p in bits, p the share of a type among all 2-grams '
    'of whitespace words of the corpus; it grows with the number given as n',
  ),
)  # fmt: skip
def corpus_ngrams(inputs: Inputs) -> Found:
  """Measures how varied the n-grams of the whole corpus are."""
  return on_both_sides(inputs.examples, {
    **{f'distinct_{n}': partial(distinct_n, n=n) for n in (1, 2, 3, 4)},
    'hapax_share_2': partial(hapax_share_n, n=2),
    'entropy_2': partial(entropy_n, n=2),
  })


@register(Metric(
  'self_bleu_4', 'Self-BLEU-4', 'reference', 3, unit='texts',
  signature=_bleu_signature,
  definition='mean BLEU-4 in [0, 1] of a text against all others of the '
  f'sample, on whitespace words; sample: the at most {SELF_BLEU_TEXTS} records '
  'with the smallest CRC-32 of source and first reference, without those that '
  'have no word; it grows with the number given as n',
))  # fmt: skip
def similar_texts(inputs: Inputs) -> Found:
  """Measures how alike the texts of a sample are."""
  sample = fixed_sample(inputs.examples)
  return on_both_sides(sample, {'self_bleu_4': self_bleu_4})


@register(
  *(
    Metric(
      f'prompt_distinct_{n}', f'Per prompt: distinct-{n}', digits=3,
      unit='prompts',
      definition=f'distinct / total {n}-grams of whitespace words over all '
      'samples of a prompt, in (0, 1], none crossing texts, mean over the '
      f'prompts with a sample of at least {n} words; it falls with the number '
      'and the length of the samples',
    )
    for n in (1, 2)
  ),
  Metric(
    'prompt_self_bleu_4', 'Per prompt: self-BLEU-4', digits=3, unit='prompts',
    signature=_bleu_signature,
    definition='BLEU-4 in [0, 1] of a sample against all others of its prompt, '
    'on whitespace words, mean over the samples of a prompt that have a word, '
    'then over the prompts with at least two; it grows with the number of '
    'samples',
  ),
)  # fmt: skip
def within_prompts(inputs: Inputs) -> Found:
  """Measures how much the samples of one prompt differ (arXiv 2004.02990)."""
  sets = [
    [record['text'] for record in samples]
    for samples in inputs.samples
    if len(samples) > 1
  ]
  if not sets:
    return {}
  found = {}
  for key, measure in (
    ('prompt_distinct_1', partial(distinct_n, n=1)),
    ('prompt_distinct_2', partial(distinct_n, n=2)),
    ('prompt_self_bleu_4', self_bleu_4),
  ):
    values = [measure(texts).value for texts in sets]
    defined = [value for value in values if value is not None]
    found[key] = Measurement(mean(defined), len(defined))
  return found
