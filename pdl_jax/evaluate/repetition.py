"""How much texts repeat themselves, their source, and each other."""

from collections import Counter
from collections.abc import Sequence

from pdl_jax.evaluate.diversity import ngrams
from pdl_jax.evaluate.registry import (
  Found,
  Inputs,
  Measurement,
  Metric,
  on_both_sides,
  register,
  sides,
)


def sentence_distinct_n(text: str, n: int) -> float | None:
  """Share of distinct n-grams in one text, in (0, 1]; None if it has none."""
  found = ngrams(text, n)
  return len(set(found)) / len(found) if found else None


def novel_n(text: str, source: str, n: int) -> tuple[int, int]:
  """Counts n-grams that the source lacks, and all; (0, 0) without a source."""
  words = source.split()
  if not words:
    return 0, 0
  found = ngrams(text, n)
  # A source can be as long as a book: only n-grams of the text are kept.
  asked = set(found)
  shifted = (words[i:] for i in range(n))
  known = asked.intersection(zip(*shifted, strict=False))
  return sum(ngram not in known for ngram in found), len(found)


def _whole_texts(texts: Sequence[str]) -> Counter[str]:
  return Counter(' '.join(text.split()) for text in texts)


def distinct_responses(texts: Sequence[str]) -> Measurement:
  """Share in (0, 1] of distinct whole texts, white space normalized."""
  n = len(texts)
  return Measurement(len(_whole_texts(texts)) / n if n else None, n)


def top_response_share(texts: Sequence[str]) -> Measurement:
  """Share in (0, 1] of the texts that equal the most common one."""
  n = len(texts)
  return Measurement(max(_whole_texts(texts).values()) / n if n else None, n)


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
  """Measures repetition (seq-rep-n, arXiv 1908.04319) and novelty by words."""
  found: dict[str, list[float]] = {}
  sources = [record['source'] for record in inputs.examples]
  for side, texts in sides(inputs.examples).items():
    twos, fours = (
      [sentence_distinct_n(text, n) for text in texts] for n in (2, 4)
    )
    novel = [
      novel_n(text, source, 2)
      for text, source in zip(texts, sources, strict=True)
    ]
    found |= {
      f'{side}texts_2': [int(x is not None) for x in twos],
      f'{side}distinct_2': [x or 0 for x in twos],
      f'{side}texts_4': [int(x is not None) for x in fours],
      f'{side}repeated_4': [0 if x is None else 1 - x for x in fours],
      f'{side}novel_2': [new for new, _ in novel],
      f'{side}novel_of_2': [total for _, total in novel],
    }
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
  """Measures how often whole texts repeat each other, in dialogue."""
  if not inputs.dialogue:
    return {}
  return on_both_sides(inputs.examples, {
    'distinct_responses': distinct_responses,
    'top_response_share': top_response_share,
  })
