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
from typing import Any

from pdl_jax.data.packaged import pairs, texts
from pdl_jax.data.packaged.texts import Example
from pdl_jax.data.schema import SPLITS

PACKAGE, VERSION = 'chitchat-dataset', '0.9.0'
MIN_TURNS = 4  # with fewer, nobody answered or went on
MAX_SOURCE_TURNS = 4
MIN_TARGET_WORDS = 4  # an eighth of the turns is shorter: "yeah"
MAX_TURN_WORDS = 90  # one in a hundred is longer: monologues, pasted poems
MAX_CONVERSATIONS = 3  # that may share a reply; in more it is generic

# The published file, 40 MB.
DATASET_SHA256 = (
  'd2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a'
)
# The salt is chosen for 80/10/10 by records (to half a percent); each
# conversation is under a thirtieth of validation or test.
split_of = functools.partial(texts.split_by_hash, salt='15/')

# Lower-case words; one turn in 5,000 has one, since the site was moderated.
# Words that are often harmless ("summa cum laude", "Moby Dick") are not listed.
_PROFANITY = re.compile(
  r'\b(?:ass|asses|assholes?|bastards?|bitch\w*|bullshit\w*|cunts?|damn\w*'
  r'|dickheads?|dumbass\w*|fags?|faggots?|fuck\w*|goddamn\w*|horny|jackass\w*'
  r'|masturbat\w*|motherfuck\w*|nigg(?:a|er)s?|nudes?|piss\w*|porn\w*'
  r'|puss(?:y|ies)|retard\w*|sext|shits?|shitt\w+|sluts?|slutt\w+|stfu|tits'
  r'|twats?|whores?|wtf)\b'
)
# Lower-case clues to a person. First names are found by "my name is" only. No
# alternative begins with \b, which takes twice as long.
_PERSONAL = re.compile(
  r'@\w\w|[a-z\d]_[a-z]|[a-z]{2}\d{4}'  # mail and names of accounts
  r'|https?:|www\.\w|\.(?:com|org|net|edu|gov|io|tv)\b'  # links
  r'|(?<![\d.])\d{3}(?:[) .-]*\d{3}[ .-]*|[ .-])\d{4}(?!\d)'  # telephones
  r"|(?:add|follow) me (?:back )?on\b|my (?:\w+ )?name(?:'s| is)\b"
)


def turns_of(conversation: Mapping[str, Any]) -> list[str]:
  """Joins a speaker's consecutive messages into one turn."""
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
  """Returns why a turn spoils the records that hold it, or None."""
  if len(turn.split()) > MAX_TURN_WORDS:
    return 'turn_too_long'
  lower = turn.casefold()
  if _PROFANITY.search(lower):
    return 'profanity'
  return 'personal_data' if _PERSONAL.search(lower) else None


def replies(
  name: str, turns: Sequence[str], dropped: collections.Counter[str]
) -> Iterator[Example]:
  """Makes a record per turn after the first, or counts why there is none."""
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
      yield Example(f'{name}/{i}', name, source, turns[i])


# Neighbouring records share all turns except one.
@functools.lru_cache(maxsize=32)
def _compared(turn: str) -> tuple[str, frozenset[int]]:
  words = pairs.normalised(turn).split()
  return ' '.join(words), pairs.shingles_of(words)


def without_copies(
  records: Sequence[Example], dropped: collections.Counter[str]
) -> list[Example]:
  """Drops generic replies, equal pairs, and near-copies of other conversations.

  Records of a conversation are adjacent. A reply may recur after another
  source. Earlier records win: with train first, no validation or test record
  copies a training one.
  """
  places = collections.defaultdict(set)
  for record in records:
    places[pairs.normalised(record.target)].add(record.group)
  kept, known, seen = [], set(), set()
  for _, group in itertools.groupby(records, key=lambda record: record.group):
    said = set()
    for record in group:
      turns = map(_compared, (*record.source.split('\n'), record.target))
      words, sets = zip(*turns, strict=True)
      shingles = frozenset().union(*sets)
      if len(places[words[-1]]) > MAX_CONVERSATIONS:
        dropped['generic_target'] += 1
      elif words in known:
        dropped['duplicate'] += 1
      elif len(shingles & seen) > pairs.MAX_SEEN_SHINGLES * len(shingles):
        dropped['near_copy'] += 1
      else:
        kept.append(record)
        known.add(words)
        said |= shingles
    seen |= said
  return kept


def read_replies(
  conversations: Mapping[str, Mapping[str, Any]],
  dropped: collections.Counter[str],
) -> list[Example]:
  """Makes all records: train first, then by conversation and turn."""
  records = []
  order = sorted(conversations, key=lambda c: (SPLITS.index(split_of(c)), c))
  for name in order:
    turns = turns_of(conversations[name])
    if len(turns) < MIN_TURNS:
      dropped['conversation_too_short'] += 1
    else:
      records += replies(name, turns, dropped)
  return without_copies(records, dropped)


@texts.register_text(
  'chitchat',
  dataset='chitchat_dialogue',
  package=PACKAGE,
  package_version=VERSION,
  description=(
    'English small talk of two people, mostly students, written in 2018,'
    ' from the Python package chitchat-dataset: a turn (target) is to be'
    f' written from up to {MAX_SOURCE_TURNS} turns before it (source, one a'
    ' line). Conversations are held out whole, but most people take part'
    ' in several, on both sides of the split. Turns with profanity, links,'
    ' accounts or numbers of people are left out; first names are not.'
  ),
  citation=(
    'Will Myers, Tyler Etchart and Nancy Fulda (2020), Conversational'
    ' Scaffolding: An Analogy-Based Approach to Response Prioritization in'
    f' Open-Domain Dialogs; by way of {PACKAGE} {VERSION}.'
  ),
  license='MIT',
)
def make(dropped: collections.Counter[str]) -> texts.Splits:
  """Makes replies in English small talk from the turns before them."""
  file = texts.package_folder(PACKAGE, VERSION) / 'dataset.json'
  data = texts.read_published(file, DATASET_SHA256, PACKAGE)
  return texts.by_split(read_replies(json.loads(data), dropped), split_of)
