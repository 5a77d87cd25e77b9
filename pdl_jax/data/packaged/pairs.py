"""Finds examples that are copies of others."""

import collections
import re
import zlib
from collections.abc import Callable, Iterable, Sequence

from pdl_jax.data.packaged.texts import Example
from pdl_jax.data.schema import SPLITS

MAX_GROUPS = 3  # that may share a target; in more it is boilerplate
SHINGLE_WORDS = 8
MAX_SEEN_SHINGLES = 0.5  # share above which a text is a near-copy


def normalised(text: str) -> str:
  """Returns the lower-case words by which texts are compared."""
  return ' '.join(re.findall(r'\w+', text.casefold()))


def shingles_of(words: Sequence[str]) -> frozenset[int]:
  """Returns the CRC-32 of every SHINGLE_WORDS consecutive words."""
  return frozenset(
    zlib.crc32(' '.join(words[i : i + SHINGLE_WORDS]).encode())
    for i in range(len(words) - SHINGLE_WORDS + 1)
  )


def without_copies(
  made: Iterable[Example | str],
  split_of: Callable[[str], str],
  dropped: collections.Counter[str],
) -> list[Example]:
  """Keeps one of each source, each target and each set of near-copies.

  Train comes first and earlier examples win. So nothing in validation or test
  copies a training example. `made` has examples, or reasons to count.
  """
  examples: list[Example] = []
  for each in made:
    if isinstance(each, Example):
      examples.append(each)
    else:
      dropped[each] += 1
  examples.sort(key=lambda example: SPLITS.index(split_of(example.group)))
  groups = collections.defaultdict(set)
  for example in examples:
    groups[normalised(example.target)].add(example.group)
  kept, sources, targets, seen = [], set(), set(), set()
  for example in examples:
    source, target = normalised(example.source), normalised(example.target)
    shingles = shingles_of(f'{target} {source}'.split())
    if len(groups[target]) > MAX_GROUPS:
      dropped['boilerplate_summary'] += 1
    elif source in sources:
      dropped['duplicate_document'] += 1
    elif target in targets:
      dropped['duplicate_summary'] += 1
    elif len(shingles & seen) > MAX_SEEN_SHINGLES * len(shingles):
      dropped['near_duplicate'] += 1
    else:
      kept.append(example)
      sources.add(source)
      targets.add(target)
      seen |= shingles
  return kept
