"""The real texts as they are prepared: what they hold, and that nothing leaks.

Each is made from an installed package, or from the Debian index.
"""

import hashlib
import json
import re

import pytest

from pdl_jax.data import sources
from pdl_jax.data.packaged import debian_index, debian_synopses, pairs

pytestmark = pytest.mark.slow
# What Debian's last release of bookworm gives.
DEBIAN = 'bookworm 2026-07-11 769b43d74ef3'
# Records of each split; a digest of all of them in order, with which a text's
# version changes; of the eight words in a row of a held-out record the share
# that stands in earlier splits: at most, and on average.
EXPECTED = {
  'botocore': ((17749, 2406, 2286), 'c26cfd7d7adde064', 0.5, 0.02),
  'bible': ((47452, 6046, 5966), '9238b855f8403db7', 0.5, 0.004),
  'debian': ((21364, 2575, 2633), 'b70527e2ca90e70b', 0.5, 0.03),
  'chitchat': ((87497, 10830, 10838), 'fdca21d5eeb44b15', 0.5, 0.01),
  'sotu_time': ((187, 20, 30), '6060eb7448a38546', 0.012, 0.0015),
  'sotu_interleaved': ((187, 26, 24), '739739890019d095', 0.045, 0.01),
}

# What is in no record.
ODD = {
  'botocore': r'</?(?:p|li|ul|ol|code|b|i|a|dd|dt|dl|note|important)>|:$',
  'bible': r'[\[\]\\<>*+\d’æ\n]| [,.;:!?)]|\( |\.\.',
  'sotu_time': r'[\[\]]|--', 'sotu_interleaved': r'[\[\]]|--',
}  # fmt: skip


@pytest.fixture(scope='module', params=EXPECTED)
def text(request, data_dir):
  """Its name, and its records by split."""
  name = request.param
  if name == 'debian' and debian_synopses.version_here() != DEBIAN:
    pytest.skip(f'{debian_index.COMMAND} has not fetched {DEBIAN} here')
  return name, {
    split: list(sources.load(name, split, str(data_dir)))
    for split in sources.SPLITS
  }


def test_content_changes_only_with_the_version(text):
  name, splits = text
  sizes, digest, *_ = EXPECTED[name]
  assert tuple(map(len, splits.values())) == sizes
  found = hashlib.sha256(json.dumps(list(splits.values())).encode())
  version = sources.TEXTS[name].version
  assert (version, found.hexdigest()[:16]) == ('1.0.0', digest)


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
  *_, most, mean = EXPECTED[name]
  assert max(shares) <= most
  assert sum(shares) / len(shares) <= mean
