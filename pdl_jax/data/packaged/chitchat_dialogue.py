"""Replies of people who chat in pairs, held out by conversation.

Source: the package chitchat-dataset (MIT), the Chit-Chat Challenge of Brigham
Young University in 2018 (Myers, Etchart and Fulda 2020).
"""

import collections
import functools
import itertools
import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from pdl_jax.data.packaged import packages
from pdl_jax.data.packaged.pairs import (
  MAX_SEEN_SHINGLES,
  normalised,
  shingles_of,
)
from pdl_jax.data.schema import SPLITS

MIN_TURNS = 4  # with fewer, nobody answered or nobody went on
MAX_SOURCE_TURNS = 4
MIN_TARGET_WORDS = 4  # an eighth of the turns is shorter: "yeah", "hahaha"
MAX_TURN_WORDS = 90  # one in a hundred is longer: monologues, pasted poems
MAX_CONVERSATIONS = 3  # that may share a reply; in more of them it is generic

# The data as published, 40 MB.
DATASET_SHA256 = (
  'd2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a'
)
# Chosen for 80/10/10 by records (to half a percent), with no conversation that
# makes up a thirtieth of validation or test.
_SPLIT_SALT = 15

# Whole words, in lower case. The site was moderated: one turn in 5,000 has one.
# Words that are often harmless ("summa cum laude", "Moby Dick") are not listed.
_PROFANITY = re.compile(
  r'\b(?:ass|asses|assholes?|bastards?|bitch\w*|bullshit\w*|cunts?|damn\w*'
  r'|dickheads?|dumbass\w*|fags?|faggots?|fuck\w*|goddamn\w*|horny|jackass\w*'
  r'|masturbat\w*|motherfuck\w*|nigg(?:a|er)s?|nudes?|piss\w*|porn\w*'
  r'|puss(?:y|ies)|retard\w*|sext|shits?|shitt\w+|sluts?|slutt\w+|stfu|tits'
  r'|twats?|whores?|wtf)\b'
)
# What leads to a person, in lower case. Of first names only "my name is" is
# found. No alternative begins with \b: that takes twice as long.
_PERSONAL = re.compile(
  r'@\w\w|[a-z\d]_[a-z]|[a-z]{2}\d{4}'  # mail and names of accounts
  r'|https?:|www\.\w|\.(?:com|org|net|edu|gov|io|tv)\b'  # links
  r'|(?<![\d.])\d{3}(?:[) .-]*\d{3}[ .-]*|[ .-])\d{4}(?!\d)'  # telephones
  r"|(?:add|follow) me (?:back )?on\b|my (?:\w+ )?name(?:'s| is)\b"
)


class Reply(NamedTuple):
  """One example."""

  id: str  # conversation and number of the turn
  group: str  # the conversation
  source: str  # up to four turns, one a line; the last is to be answered
  target: str


def split_of(conversation: str) -> str:
  """Assigns a conversation to a split, by a hash that no machine changes."""
  return packages.split_by_hash(f'{_SPLIT_SALT}/{conversation}')


def read_conversations(file: Path) -> dict[str, Mapping[str, Any]]:
  """Reads the package's dataset.json: conversation -> its messages and more.

  Raises:
    DataError: it is missing, or not the file that was published.
  """
  data = packages.read_published(file, DATASET_SHA256, 'chitchat-dataset')
  return json.loads(data)


def turns_of(conversation: Mapping[str, Any]) -> list[str]:
  """What was said in turn: messages of one speaker in a row are one turn."""
  messages = (
    (message['sender'], ' '.join(message['text'].split()))
    for block in conversation['messages']
    for message in block
  )
  written = (message for message in messages if message[1])
  return [
    ' '.join(text for _, text in turn)
    for _, turn in itertools.groupby(written, key=operator.itemgetter(0))
  ]


def why_unfit(turn: str) -> str | None:
  """Names the reason why a turn spoils the records it stands in, if any."""
  if len(turn.split()) > MAX_TURN_WORDS:
    return 'turn_too_long'
  lower = turn.casefold()
  if _PROFANITY.search(lower):
    return 'profanity'
  return 'personal_data' if _PERSONAL.search(lower) else None


def replies(
  name: str, turns: Sequence[str], dropped: collections.Counter[str]
) -> Iterator[Reply]:
  """Makes a record of each turn but the first, or counts why there is none."""
  flaws = [why_unfit(turn) for turn in turns]
  for i in range(1, len(turns)):
    first = max(0, i - MAX_SOURCE_TURNS)
    flaw = next(filter(None, flaws[first : i + 1]), None)
    if len(turns[i].split()) < MIN_TARGET_WORDS:
      dropped['target_too_short'] += 1
    elif flaw:
      dropped[flaw] += 1
    else:
      source = '\n'.join(turns[first:i])
      yield Reply(f'{name}/{i}', name, source, turns[i])


class _Compared(NamedTuple):
  """What turns are compared by."""

  words: str
  shingles: frozenset[int]  # of each eight words in a row


# Neighbouring records share all turns but one.
@functools.lru_cache(maxsize=32)
def _compared(turn: str) -> _Compared:
  words = normalised(turn).split()
  return _Compared(' '.join(words), shingles_of(words))


def without_copies(
  records: Sequence[Reply], dropped: collections.Counter[str]
) -> list[Reply]:
  """Drops generic replies, equal pairs, and near-copies of other conversations.

  A reply may occur again, after another source. Earlier records win, so that
  with train first no record of validation or test is a copy of a training one.

  Args:
    records: those of a conversation in a row.
    dropped: where the reasons are counted.
  """
  places = collections.defaultdict(set)
  for record in records:
    places[normalised(record.target)].add(record.group)
  kept, pairs, seen = [], set(), set()
  for _, group in itertools.groupby(records, key=lambda record: record.group):
    said = set()
    for record in group:
      turns = map(_compared, (*record.source.split('\n'), record.target))
      words, sets = zip(*turns, strict=True)
      shingles = frozenset().union(*sets)
      if len(places[words[-1]]) > MAX_CONVERSATIONS:
        dropped['generic_target'] += 1
      elif words in pairs:
        dropped['duplicate'] += 1
      elif len(shingles & seen) > MAX_SEEN_SHINGLES * len(shingles):
        dropped['near_copy'] += 1
      else:
        kept.append(record)
        pairs.add(words)
        said |= shingles
    seen |= said
  return kept


def read_replies(
  conversations: Mapping[str, Mapping[str, Any]],
) -> tuple[list[Reply], dict[str, int]]:
  """Makes the whole data set from the conversations.

  Returns:
    The records (train first, then by conversation and turn), and what was
    dropped for which reason: conversations that are too short, else turns.
  """
  dropped, records = collections.Counter(), []
  order = sorted(conversations, key=lambda c: (SPLITS.index(split_of(c)), c))
  for name in order:
    turns = turns_of(conversations[name])
    if len(turns) < MIN_TURNS:
      dropped['conversation_too_short'] += 1
    else:
      records += replies(name, turns, dropped)
  return without_copies(records, dropped), dict(sorted(dropped.items()))


class ChitchatDialogue(packages.PackagedBuilder):
  """Replies in English small talk, from the turns before them."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {
    '1.0.0': 'From chitchat-dataset 0.9.0.'
  }
  PACKAGE = 'chitchat-dataset'
  PACKAGE_VERSION = '0.9.0'

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        'English small talk of two people, mostly students, written in 2018,'
        ' from the Python package chitchat-dataset: a turn (target) is to be'
        f' written from up to {MAX_SOURCE_TURNS} turns before it (source, one a'
        ' line). Conversations are held out whole, but most people take part'
        ' in several, on both sides of the split. Turns with profanity, links,'
        ' accounts or numbers of people are left out; first names are not.'
      ),
      features=tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in Reply._fields}
      ),
      supervised_keys=('source', 'target'),
      citation=(
        'Will Myers, Tyler Etchart and Nancy Fulda (2020), Conversational'
        ' Scaffolding: An Analogy-Based Approach to Response Prioritization in'
        ' Open-Domain Dialogs; by way of chitchat-dataset'
        f' {self.PACKAGE_VERSION}.'
      ),
      license='MIT',
      metadata=self.report,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    del dl_manager  # everything is in the package
    file = self.package_folder() / 'dataset.json'
    records, dropped = read_replies(read_conversations(file))
    return self.examples_of(packages.by_split(records, split_of), dropped)
