"""The real texts as they are prepared: what they hold, and that nothing leaks.

Each is made from an installed package, or from the Debian index.
"""

import collections
import hashlib
import json
import re

import pytest

from pdl_jax.data import sources
from pdl_jax.data.packaged import bible_styles, debian_synopses, pairs

pytestmark = pytest.mark.slow
# What Debian's last release of bookworm gives.
DEBIAN = 'bookworm 2026-07-11 769b43d74ef3'
# Records of each split; a digest of all of them in order, with which a text's
# version changes; of the eight words in a row of a held-out record the share
# that stands in earlier splits: at most, and on average; what is left out.
SPEECHES = {
  'not_an_annual_message': 12, 'note_of_the_editors': 410,
  'paragraph_of_others': 96,
}  # fmt: skip
EXPECTED = {
  'botocore': ((17749, 2406, 2286), 'c26cfd7d7adde064', 0.5, 0.02, {
    'boilerplate_summary': 778, 'document_not_prose': 343,
    'document_too_short': 252399, 'duplicate_document': 7832,
    'duplicate_summary': 3437, 'empty': 93818, 'near_duplicate': 4283,
    'summary_is_a_label': 148, 'summary_not_a_sentence': 536,
    'summary_too_long': 19, 'summary_too_short': 939,
  }),
  'bible': ((47452, 6046, 5966), '9238b855f8403db7', 0.5, 0.004, {
    'boilerplate_summary': 4, 'chapter_counts_otherwise': 51,
    'duplicate_document': 232, 'duplicate_summary': 203, 'gap': 100,
    'lengths_differ': 59, 'near_duplicate': 286, 'psalm_heading': 88,
    'same_in_both': 283, 'too_long': 17, 'too_short': 47,
  }),
  'debian': ((21364, 2575, 2633), 'b70527e2ca90e70b', 0.5, 0.03, {
    'boilerplate_summary': 4, 'description_too_short': 3802,
    'duplicate_document': 118, 'duplicate_summary': 172, 'near_duplicate': 630,
    'nothing_of_its_own': 139, 'synopsis_in_description': 2314,
    'synopsis_too_long': 76, 'synopsis_too_short': 342,
  }),
  'chitchat': ((87497, 10830, 10838), 'fdca21d5eeb44b15', 0.5, 0.01, {
    'conversation_too_short': 3926, 'duplicate': 2, 'generic_target': 709,
    'near_copy': 50, 'personal_data': 690, 'profanity': 112,
    'target_too_short': 15437, 'turn_too_long': 4388,
  }),
  'sotu_time': ((187, 20, 30), '6060eb7448a38546', 0.012, 0.0015, SPEECHES),
  'sotu_interleaved':
    ((187, 26, 24), '739739890019d095', 0.045, 0.01, SPEECHES),
}  # fmt: skip

# What is in no record.
ODD = {
  'botocore': r'</?(?:p|li|ul|ol|code|b|i|a|dd|dt|dl|note|important)>|:$',
  'bible': r'[\[\]\\<>*+\d’æ\n]| [,.;:!?)]|\( |\.\.',
  'sotu_time': r'[\[\]]|--', 'sotu_interleaved': r'[\[\]]|--',
}  # fmt: skip


@pytest.fixture(scope='module', params=EXPECTED)
def text(request, data_dir):
  """Its name, and its splits, read."""
  name = request.param
  if name == 'debian' and debian_synopses.version_here() != DEBIAN:
    pytest.skip(f'{debian_synopses.COMMAND} has not fetched {DEBIAN} here')
  return name, {
    split: list(sources.load(name, split, str(data_dir)))
    for split in sources.SPLITS
  }


def test_content_changes_only_with_the_version(text, data_dir):
  name, splits = text
  sizes, digest, _, _, dropped = EXPECTED[name]
  source = sources.load(name, 'test', str(data_dir))
  assert source.metadata['dropped'] == dropped
  assert tuple(map(len, splits.values())) == sizes
  found = hashlib.sha256(json.dumps(list(splits.values())).encode())
  version = sources.TEXTS[name].version
  assert (version, found.hexdigest()[:16]) == ('1.0.0', digest)


def test_the_fingerprint_is_that_of_records_already_made(data_dir):
  source = sources.load('botocore', 'test', str(data_dir))
  assert source.fingerprint == (
    'dca07f6b14d80c1e49cc9891a1ecd668ccc2f0c43b343baa989c4d6b46c41225'
  )


def test_a_verse_shares_more_words_with_its_own_than_with_the_next(data_dir):
  def words(text):
    return {w for w in re.findall(r'\w+', text.casefold()) if len(w) > 3}

  def overlap(kings, basics):
    rows = zip(kings, basics, strict=True)
    return sum(len(k & b) / max(1, len(k | b)) for k, b in rows)

  chapters = collections.defaultdict(list)
  for split in sources.SPLITS:
    for record in sources.load('bible', split, str(data_dir)):
      book, chapter, verse, style = record['id'].split('/')
      if style == bible_styles.BASIC:
        row = int(verse), words(record['source']), words(record['target'])
        chapters[book, chapter].append(row)
  assert len(chapters) > 1000
  for chapter, verses in chapters.items():
    if len(verses) >= 6:
      _, kings, basics = zip(*sorted(verses), strict=True)
      own = overlap(kings, basics)
      assert own > overlap(kings, basics[1:] + basics[:1]), chapter
      assert own > overlap(kings, basics[-1:] + basics[:-1]), chapter


def test_the_text_is_clean(text):
  name, splits = text
  odd = re.compile(ODD.get(name, '$^'))
  for record in (record for rows in splits.values() for record in rows):
    for part in filter(None, (record['source'], record['target'])):
      assert not odd.search(part)
      lines = part.split('\n')
      assert all(line == ' '.join(line.split()) != '' for line in lines)


def test_no_group_is_in_two_splits_and_no_text_occurs_twice(text):
  name, splits = text
  for field in ('id', 'group'):
    values = [{r[field] for r in rows} for rows in splits.values()]
    assert len(set.union(*values)) == sum(map(len, values))
  records = [record for rows in splits.values() for record in rows]
  assert len({record['id'] for record in records}) == len(records)
  if name == 'chitchat':  # A reply may occur again, after other turns.
    texts = [tuple(map(pairs.normalised, turns_of(r))) for r in records]
    assert len(set(texts)) == len(texts)
    return
  for part in ('target',) if name.startswith('sotu') else ('source', 'target'):
    texts = {(r.get('style'), pairs.normalised(r[part])) for r in records}
    assert len(texts) == len(records)


def turns_of(record):
  return [*record['source'].split('\n'), record['target']]


def shingles(name, record):
  if record.get('style') == 'king_james':
    return set()  # The same words are in the record of the other direction.
  texts = [f'{record["target"]} {record["source"]}']
  if name == 'chitchat':
    texts = turns_of(record)
  words = (pairs.normalised(text).split() for text in texts)
  return {hash(tuple(w[i : i + 8])) for w in words for i in range(len(w) - 7)}


def test_no_held_out_record_is_a_near_copy_of_an_earlier_one(text):
  name, splits = text
  seen, shares = set(), []
  for split, records in splits.items():
    found = [shingles(name, record) for record in records]
    if split != 'train':
      shares += [len(some & seen) / len(some) for some in found if some]
    seen.update(*found)
  *_, most, mean, _ = EXPECTED[name]
  assert max(shares) <= most
  assert sum(shares) / len(shares) <= mean
