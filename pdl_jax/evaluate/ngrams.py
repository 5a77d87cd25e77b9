"""Whitespace words and the n-grams that the metrics of text are made of."""

from pdl_jax.errors import ConfigError

NGram = tuple[str, ...]


def ngrams(text: str, n: int) -> list[NGram]:
  """The n-grams of the whitespace words of one text, in order.

  Case and punctuation stay. A text without spaces is one word, whatever its
  script.

  Args:
    text: any text; one of fewer than n words has no n-gram.
    n: words an n-gram, at least 1.

  Raises:
    ConfigError: n below 1.
  """
  if n < 1:
    raise ConfigError(f'n-grams need n of at least 1, got {n}')
  words = text.split()
  return [
    tuple(words[start : start + n]) for start in range(len(words) - n + 1)
  ]
