"""How varied texts are, and how much they repeat themselves and each other.

None of these metrics has a best value: read each beside the references' own.
Words are separated by white space; case and punctuation stay. Of an example
that was sampled several times, the first sample is measured.
"""

import dataclasses
import importlib.metadata
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from sacrebleu.metrics.bleu import BLEU

from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.inputs import Record, samples_by_example
from pdl_jax.evaluate.registry import (
  Found,
  Inputs,
  Measurement,
  Metric,
  mean,
  register,
)

NGram = tuple[str, ...]
SELF_BLEU_TEXTS = 200
_SELF_BLEU_ORDER = 4
_SMOOTHING = 0.1  # matches counted for an order without any


def ngrams(text: str, n: int) -> list[NGram]:
  """The n-grams of the words of one text, in order.

  Raises:
    ConfigError: n below 1.
  """
  if n < 1:
    raise ConfigError(f'n-grams need n of at least 1, got {n}')
  words = text.split()
  return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


def _corpus_ngrams(texts: Sequence[str], n: int) -> Counter[NGram]:
  return Counter(ngram for text in texts for ngram in ngrams(text, n))


def distinct_n(texts: Sequence[str], n: int) -> Measurement:
  """Distinct over all n-grams of a corpus, in (0, 1].

  arXiv 1510.03055 divides by the generated tokens; here it is by the n-grams
  there are. Compare only at like n.
  """
  counts = _corpus_ngrams(texts, n)
  total = counts.total()
  return Measurement(len(counts) / total if total else None, total)


def hapax_share_n(texts: Sequence[str], n: int) -> Measurement:
  """Share in [0, 1] of running n-grams whose type occurs once."""
  counts = _corpus_ngrams(texts, n)
  total, once = counts.total(), sum(count == 1 for count in counts.values())
  return Measurement(once / total if total else None, total)


def entropy_n(texts: Sequence[str], n: int) -> Measurement:
  """Entropy in bits of the n-grams of a corpus, in [0, log2(their number)]."""
  counts = _corpus_ngrams(texts, n)
  total = counts.total()
  bits = [c / total * math.log2(total / c) for c in counts.values()]
  return Measurement(math.fsum(bits) if bits else None, total)


def sentence_distinct_n(text: str, n: int) -> float | None:
  """Distinct over all n-grams of one text, in (0, 1]; None without any."""
  found = ngrams(text, n)
  return len(set(found)) / len(found) if found else None


def novel_n(text: str, source: str, n: int) -> tuple[int, int]:
  """How many running n-grams the source has not, and how many there are.

  (0, 0) without a source.
  """
  words = source.split()
  if not words:
    return 0, 0
  found = ngrams(text, n)
  # Of a source as long as a book only what may be asked for is kept.
  asked = set(found)
  shifted = (words[i:] for i in range(n))
  known = asked.intersection(zip(*shifted, strict=False))
  return sum(ngram not in known for ngram in found), len(found)


def distinct_responses(texts: Sequence[str]) -> Measurement:
  """Share in (0, 1] of distinct whole texts, white space evened out."""
  whole = {' '.join(text.split()) for text in texts}
  n = len(texts)
  return Measurement(len(whole) / n if n else None, n)


def top_response_share(texts: Sequence[str]) -> Measurement:
  """Share in (0, 1] of the texts that are the most common whole text."""
  counts = Counter(' '.join(text.split()) for text in texts)
  n = len(texts)
  return Measurement(max(counts.values()) / n if n else None, n)


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


def self_bleu_4(texts: Sequence[str]) -> Measurement:
  """Mean leave-one-out BLEU-4 of a set of texts, in [0, 1]; 1: all the same.

  Texts without a word are left out; None for fewer than two others.
  """
  worded = [text for text in texts if text.split()]
  scores = self_bleu_per_text(worded) if len(worded) > 1 else []
  return Measurement(mean(scores), len(scores))


def sample_sets(records: Sequence[Record]) -> list[list[str]]:
  """The texts of each example that was sampled more than once."""
  return [
    [record['text'] for record in samples]
    for samples in samples_by_example(records)
    if len(samples) > 1
  ]


def prompt_distinct_n(sets: Sequence[Sequence[str]], n: int) -> Measurement:
  """Mean over prompts of `distinct_n` of its samples, in (0, 1].

  Prompts none of whose samples has n words are left out.
  """
  found = [distinct_n(texts, n).value for texts in sets]
  shares = [share for share in found if share is not None]
  return Measurement(mean(shares), len(shares))


def prompt_self_bleu_4(sets: Sequence[Sequence[str]]) -> Measurement:
  """Mean over prompts of `self_bleu_4` of its samples, in [0, 1].

  Prompts with fewer than two samples that have a word are left out.
  """
  found = [self_bleu_4(texts).value for texts in sets]
  scores = [score for score in found if score is not None]
  return Measurement(mean(scores), len(scores))


def _bleu_signature(_: Inputs) -> str:
  version = importlib.metadata.version('sacrebleu')
  return (
    f'sacrebleu=={version} BLEU-4 case:mixed eff:yes tok:none '
    f'smooth:floor[{_SMOOTHING:.2f}]'
  )


Corpus = Callable[[Sequence[str]], Measurement]


def _on_both_sides(inputs: Inputs, measures: dict[str, Corpus]) -> Found:
  """Measures of the outputs and, under reference_KEY, of the references."""
  outputs = [record['text'] for record in inputs.examples]
  references = [record['references'][0] for record in inputs.examples]
  return {
    key: measure(outputs) for key, measure in measures.items()
  } | {
    f'reference_{key}': measure(references)
    for key, measure in measures.items()
  }  # fmt: skip


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
  """How varied the n-grams of the whole corpus are."""
  return _on_both_sides(inputs, {
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
  """How alike the texts of a sample are."""
  chosen = dataclasses.replace(inputs, records=fixed_sample(inputs.examples))
  return _on_both_sides(chosen, {'self_bleu_4': self_bleu_4})


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
  """How much the samples of one prompt differ (arXiv 2004.02990)."""
  sets = sample_sets(inputs.records)
  if not sets:
    return {}
  return {
    **{f'prompt_distinct_{n}': prompt_distinct_n(sets, n) for n in (1, 2)},
    'prompt_self_bleu_4': prompt_self_bleu_4(sets),
  }


@register(
  Metric(
    'seq_rep_4', 'Repeated 4-grams (%)', 'reference', 1, 100, unit='texts',
    sums=('repeated_4', 'texts_4'),
    reference_sums=('reference_repeated_4', 'reference_texts_4'),
    definition='1 - distinct / total 4-grams of whitespace words of a text, in '
    '[0, 1), mean over the texts of at least 4 words',
  ),
  Metric(
    'sentence_distinct_2', 'Distinct-2 of a text', 'reference', 3,
    rows='never', unit='texts', sums=('distinct_2', 'texts_2'),
    reference_sums=('reference_distinct_2', 'reference_texts_2'),
    definition='distinct / total 2-grams of whitespace words of a text, in '
    '(0, 1], mean over the texts of at least 2 words',
  ),
  Metric(
    'novel_share_2', 'Novel bigrams (%)', 'reference', 1, 100,
    unit='word 2-grams', sums=('novel_2', 'novel_of_2'),
    reference_sums=('reference_novel_2', 'reference_novel_of_2'),
    definition='2-grams of whitespace words that do not occur in the source of '
    'their text / all 2-grams, in [0, 1], summed over the texts that have a '
    'source',
  ),
)  # fmt: skip
def within_texts(inputs: Inputs) -> Found:
  """How much each text repeats itself, and takes from its source.

  Repetition is seq-rep-n of Welleck et al., arXiv 1908.04319, there on tokens.
  """
  found: dict[str, list[float]] = {}
  for side, text_of in (
    ('', lambda record: record['text']),
    ('reference_', lambda record: record['references'][0]),
  ):
    texts = [text_of(record) for record in inputs.examples]
    for key, n in (('distinct', 2), ('repeated', 4)):
      shares = [sentence_distinct_n(text, n) for text in texts]
      found[f'{side}texts_{n}'] = [int(x is not None) for x in shares]
      found[f'{side}{key}_{n}'] = [
        0 if x is None else x if key == 'distinct' else 1 - x for x in shares
      ]
    pairs = [
      novel_n(text, record['source'], 2)
      for text, record in zip(texts, inputs.examples, strict=True)
    ]
    found[f'{side}novel_2'] = [novel for novel, _ in pairs]
    found[f'{side}novel_of_2'] = [total for _, total in pairs]
  return found


@register(
  Metric(
    'distinct_responses', 'Distinct responses (%)', 'reference', 1, 100,
    unit='texts',
    definition='distinct whole texts / all texts, in (0, 1], white space '
    'evened out; it falls with the number given as n',
  ),
  Metric(
    'top_response_share', 'Commonest response (%)', 'reference', 1, 100,
    unit='texts',
    definition='occurrences of the most common whole text / all texts, in '
    '(0, 1], white space evened out',
  ),
)  # fmt: skip
def responses(inputs: Inputs) -> Found:
  """How often whole texts repeat each other, in dialogue."""
  if not inputs.dialogue:
    return {}
  return _on_both_sides(inputs, {
    'distinct_responses': distinct_responses,
    'top_response_share': top_response_share,
  })
