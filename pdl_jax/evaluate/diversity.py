"""How varied, how long and how complete the outputs are.

None of these has a best value: read each beside the references' own.
"""

from collections.abc import Sequence

from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.metric import Metric, ratio


def distinct_n(texts: Sequence[str], n: int) -> Metric:
  """Distinct over all n-grams of a corpus, in (0, 1].

  It falls as the corpus grows: compare only at like `Metric.n`, the number of
  n-grams it was taken at. Texts of fewer than n words add nothing; None where
  no text has n words.

  Args:
    texts: the corpus; no n-gram crosses from one text into the next.
    n: words an n-gram, at least 1.

  Raises:
    ConfigError: n below 1.
  """
  if n < 1:
    raise ConfigError(f'distinct-n needs n of at least 1, got {n}')
  ngrams = [
    tuple(words[start : start + n])
    for words in map(str.split, texts)
    for start in range(len(words) - n + 1)
  ]
  return Metric(
    value=ratio(len(set(ngrams)), len(ngrams)),
    n=len(ngrams),
    unit=f'word {n}-grams',
    definition=f'distinct / total {n}-grams of whitespace words over the whole '
    'corpus, in (0, 1], none crossing texts; it falls with the length of the '
    'corpus, given as n',
  )


def output_distinct_n(records: Sequence[Record], n: int) -> Metric:
  """`distinct_n` of the generated texts."""
  return distinct_n([record['text'] for record in records], n)


def reference_distinct_n(records: Sequence[Record], n: int) -> Metric:
  """`distinct_n` of the first references: as many texts as were generated."""
  return distinct_n([record['references'][0] for record in records], n)


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
