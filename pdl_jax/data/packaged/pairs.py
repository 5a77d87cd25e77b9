"""Summarization pairs, and which of them are copies of others."""

import collections
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

MAX_GROUPS = 3  # that may share a summary; in more of them it is boilerplate
SHINGLE_WORDS = 8
MAX_SEEN_SHINGLES = 0.5  # above that a text is the near-copy of earlier ones


class Pair(NamedTuple):
  """One example."""

  id: str
  group: str  # is never split over train, validation and test
  document: str
  summary: str


def normalised(text: str) -> str:
  """Lower-case words alone: what two texts are compared by."""
  return ' '.join(re.findall(r'\w+', text.casefold()))


def shingles_of(words: Sequence[str]) -> frozenset[int]:
  """Each SHINGLE_WORDS words in a row, as their CRC-32; fewer have none."""
  return frozenset(
    zlib.crc32(' '.join(words[i : i + SHINGLE_WORDS]).encode())
    for i in range(len(words) - SHINGLE_WORDS + 1)
  )


def without_copies(
  pairs: list[Pair], dropped: collections.Counter[str]
) -> list[Pair]:
  """Keeps one pair of each document, of each summary and of near-copies.

  Earlier pairs win, so that with train first nothing in validation or test is
  the copy of a training pair. What is left out is counted in `dropped`.
  """
  groups = collections.defaultdict(set)
  for pair in pairs:
    groups[normalised(pair.summary)].add(pair.group)
  kept, documents, summaries, seen = [], set(), set(), set()
  for pair in pairs:
    document, summary = normalised(pair.document), normalised(pair.summary)
    shingles = shingles_of(f'{summary} {document}'.split())
    if len(groups[summary]) > MAX_GROUPS:
      dropped['boilerplate_summary'] += 1
    elif document in documents:
      dropped['duplicate_document'] += 1
    elif summary in summaries:
      dropped['duplicate_summary'] += 1
    elif len(shingles & seen) > MAX_SEEN_SHINGLES * len(shingles):
      dropped['near_duplicate'] += 1
    else:
      kept.append(pair)
      documents.add(document)
      summaries.add(summary)
      seen |= shingles
  return kept
