"""Packaged data sets: the real one, prepared once, and what can go wrong."""

import hashlib
import pickle
import re
import shutil
import subprocess
import sys

import grain
import pytest

from pdl_jax.data import sources
from pdl_jax.data.builders import botocore_summaries, pairs
from pdl_jax.errors import ConfigError, DataError, HostError

GOLDEN = 'dca07f6b14d80c1e49cc9891a1ecd668ccc2f0c43b343baa989c4d6b46c41225'


@pytest.fixture(scope='module')
def splits(data_dir):
  """Every split of it, as a source."""
  return {
    split: sources.load('botocore', split, str(data_dir))
    for split in sources.SPLITS
  }


@pytest.fixture(scope='module')
def records(splits):
  """Every split of it, read."""
  return {split: list(map(source.__getitem__, range(len(source))))
          for split, source in splits.items()}  # fmt: skip


@pytest.fixture
def copy(data_dir, tmp_path):
  """A copy that may be damaged: the folder of the version."""
  shutil.copytree(data_dir, tmp_path / 'copy')
  return tmp_path / 'copy' / 'botocore_summaries' / '1.0.0'


def _load_copy(copy, split='test'):
  return sources.load('botocore', split, str(copy.parent.parent))


def test_nothing_leaks_between_splits(records):
  for field in ('id', 'group'):
    values = [{r[field] for r in rows} for rows in records.values()]
    assert len(set.union(*values)) == sum(map(len, values))
  for field in ('document', 'summary'):
    texts = [pairs.normalised(r[field]) for s in records for r in records[s]]
    assert len(set(texts)) == len(texts)


def test_no_held_out_pair_is_a_near_copy_of_a_training_pair(records):
  def shingles(record):
    words = pairs.normalised(
      f'{record["summary"]} {record["document"]}'
    ).split()
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

  seen = set().union(*map(shingles, records['train']))
  shares = [
    len(shingles(record) & seen) / len(shingles(record))
    for split in ('validation', 'test')
    for record in records[split]
  ]
  assert max(shares) <= 0.5
  assert sum(shares) / len(shares) < 0.02  # measured: 0.015


def test_sizes_and_lengths(records, splits):
  counts = {split: len(rows) for split, rows in records.items()}
  assert counts == {'train': 17749, 'validation': 2406, 'test': 2286}
  assert splits['test'].metadata['kept'] == counts
  assert splits['test'].metadata['groups'] == {
    split: len({r['group'] for r in rows}) for split, rows in records.items()
  }
  for record in (r for rows in records.values() for r in rows):
    assert tuple(record) == sources.FIELDS
    assert 4 <= len(record['summary'].split()) <= 48
    assert len(record['document'].split()) >= 20


def test_content_changes_only_with_the_version(records):
  # When this fails on purpose, the builder needs a new VERSION.
  rows = [tuple(r.values()) for split in records.values() for r in split]
  digest = hashlib.sha256(repr(rows).encode()).hexdigest()
  assert (botocore_summaries.BotocoreSummaries.VERSION, digest[:16]) == (
    '1.0.0',
    '784be14b98229f6f',
  )


def test_the_text_is_clean(records):
  rows = [r for split in records.values() for r in split]
  texts = [f'{r["summary"]} {r["document"]}' for r in rows]
  tag = re.compile(r'</?(?:p|li|ul|ol|code|b|i|a|dd|dt|dl|note|important)>')
  assert not [text for text in texts if tag.search(text) or '  ' in text]
  assert not [r for r in rows if r['summary'].endswith(':')]
  assert not [r for r in rows if r['document'].endswith(':')]
  unbracketed = [re.sub(r'\([^)]*\)', '', text) for text in texts]
  assert not [t for t in unbracketed if '. For more information' in t]


def test_a_service_is_in_one_group_and_a_group_in_its_split(records):
  group_of = {}
  for split, rows in records.items():
    for record in rows:
      assert botocore_summaries.split_of(record['group']) == split
      service = record['id'].split('/')[0]
      assert group_of.setdefault(service, record['group']) == record['group']
  assert group_of['docdb'] == group_of['neptune'] == group_of['rds']


def test_a_source_is_a_sequence(splits, records):
  source = splits['test']
  assert source[-1] == records['test'][-1]
  assert list(source) == records['test']
  with pytest.raises(IndexError):
    source[len(source)]
  assert pickle.loads(pickle.dumps(source))[3] == source[3]
  dataset = grain.MapDataset.source(source).seed(7).shuffle()
  assert len({dataset[i]['id'] for i in range(len(source))}) == len(source)


def test_the_fingerprint_does_not_depend_on_the_place(splits, copy):
  assert splits['test'].fingerprint == GOLDEN
  assert _load_copy(copy).fingerprint == GOLDEN
  assert len({source.fingerprint for source in splits.values()}) == 3


def test_unknown_names_are_met_with_the_nearest(tmp_path):
  with pytest.raises(ConfigError, match="'botocor'; did you mean 'botocore'"):
    sources.load('botocor', 'test', str(tmp_path))
  with pytest.raises(ConfigError, match="'valid'; did you mean 'validation'"):
    sources.load('botocore', 'valid', str(tmp_path))


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  with pytest.raises(HostError, match=f'data_dir {file}'):
    sources.load('botocore', 'test', str(file))


def test_a_damaged_file_is_named(copy):
  file = next(copy.glob('*-test.array_record*'))
  file.write_bytes(file.read_bytes()[:500_000])
  with pytest.raises(DataError, match=r'record 9 of 2286 in \S+ cannot be'):
    _load_copy(copy)[9]


def test_data_of_another_package_version_is_refused(copy):
  file = copy / 'metadata.json'
  file.write_text(file.read_text().replace('1.44.5', '1.43.0'))
  with pytest.raises(DataError, match=r'botocore 1.43.0, not 1.44.5; delete'):
    _load_copy(copy)


def test_a_missing_field_is_named():
  record = {'id': b'x/y', 'group': b'x', 'document': b'd', 'summary': None}
  source = sources.Source(
    [record], name='botocore', split='train', fingerprint='', metadata={},
    folder='there',
  )  # fmt: skip
  with pytest.raises(DataError, match=r"0 \(x/y\) has no field 'summary'"):
    source[0]
  del record['id']
  with pytest.raises(DataError, match=r"0 \(no id\) has no field 'id'"):
    source[0]


def test_the_loser_of_a_race_reads_what_the_winner_prepared(
  data_dir, tmp_path, monkeypatch
):
  def beaten(self, **kwargs):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    raise OSError('Directory not empty')

  monkeypatch.setattr(
    botocore_summaries.BotocoreSummaries, 'download_and_prepare', beaten
  )
  assert len(sources.load('botocore', 'test', str(tmp_path))) == 2286


def test_importing_sources_imports_no_tfds():
  code = (
    'import sys, pdl_jax.data.sources;'
    'sys.exit("tensorflow_datasets" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
