"""Packaged data sets: the real one, prepared once, and what can go wrong."""

import pickle
import shutil
import subprocess
import sys

import grain
import pytest

from pdl_jax.data import packaged_builder, schema, sources
from pdl_jax.data.packaged import botocore_summaries
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


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
  def full(self, **kwargs):
    raise RuntimeError('write() failed: No space left on device; at 7\nmore')

  builder = packaged_builder.TextBuilder
  monkeypatch.setattr(builder, 'download_and_prepare', full)
  message = f'in the data_dir {tmp_path}: write.. failed: No space left .* free'
  with pytest.raises(HostError, match=message) as error:
    sources.load('botocore', 'test', str(tmp_path))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('file', ['dataset_info', 'metadata', 'features'])
def test_a_torn_description_is_named(copy, file):
  (copy / f'{file}.json').write_bytes(b'{"na')
  message = 'cannot be read .*; delete that folder and it is prepared again'
  with pytest.raises(DataError, match=message) as error:
    _load_copy(copy)
  assert '\n' not in str(error.value)


def test_a_damaged_file_is_named(copy):
  file = next(copy.glob('*-test.array_record*'))
  file.write_bytes(file.read_bytes()[:500_000])
  with pytest.raises(DataError, match=r'record 9 of 2286 in \S+ cannot be'):
    _load_copy(copy)[9]


def test_data_of_another_package_version_is_refused(copy):
  file = copy / 'metadata.json'
  file.write_text(file.read_text('utf-8').replace('1.44.5', '1.43.0'), 'utf-8')
  with pytest.raises(DataError, match=r'botocore 1.43.0, not 1.44.5; delete'):
    _load_copy(copy)


def _source(records, fields, split='train', name='made_up'):
  opened = schema.Opened(
    records=records, fields=fields, identity=[name, split], metadata={},
    place='there', remedy='mend it',
  )  # fmt: skip
  return sources.Source(opened, name=name, split=split)


def test_a_missing_field_is_named():
  fields = {'id': 'id', 'group': 'group', 'target': 'summary'}
  record = {'id': b'x/y', 'group': b'x', 'summary': None}
  source = _source([record], fields)
  with pytest.raises(DataError, match=r"0 \(x/y\) in there has no text in fi"):
    source[0]
  del record['id']
  with pytest.raises(DataError, match=r"\(no id\) .* field 'id'; mend it"):
    source[0]
  record |= {'id': b'x/y', 'summary': b'caf\xe9'}
  with pytest.raises(DataError, match=r"0 in there is not UTF-8 in field 's"):
    source[0]


def test_defaults_of_what_is_not_stored():
  record = {'text': 'words', 'number': 7}
  assert _source([record] * 3, {'target': 'text'}, 'test')[-1] == {
    'id': 'test:2', 'group': 'test:2', 'source': '', 'target': 'words',
  }  # fmt: skip
  assert _source([record], {'id': 'number', 'target': 'text'})[0] == {
    'id': '7', 'group': '7', 'source': '', 'target': 'words',
  }  # fmt: skip
  with pytest.raises(DataError, match="no text in field 'number'"):
    _source([record], {'target': 'number'})[0]
  with pytest.raises(DataError, match="no text in field 'flag'"):
    _source([{'flag': True}], {'id': 'flag'})[0]


def test_extra_fields_come_last():
  record = {'style': b'plain', 'id': b'1', 'text': b'words'}
  fields = {'id': 'id', 'target': 'text', 'style': 'style'}
  source = _source([record], fields)
  assert list(source[0].items())[2:] == [
    ('source', ''), ('target', 'words'), ('style', 'plain'),
  ]  # fmt: skip
  assert repr(source).startswith("Source('made_up', 'train', ")


def test_packaged_fields_are_those_of_the_builder(splits):
  assert splits['test'].fields == {
    'id': 'id', 'group': 'group', 'source': 'document', 'target': 'summary',
  }  # fmt: skip


def test_splits_that_share_no_group_are_disjoint(splits):
  sources.check_disjoint(list(splits.values()))


def test_a_group_in_two_splits_is_named():
  def of(split, groups):
    rows = [{'id': f'{split}{i}', 'group': g} for i, g in enumerate(groups)]
    return _source(rows, {'id': 'id', 'group': 'group'}, split)

  train, validation = of('train', 'aabcd'), of('validation', 'ef')
  sources.check_disjoint([train, validation, of('test', 'xxyz')])
  sources.check_disjoint([train, of('train', 'a')])
  with pytest.raises(DataError, match="1 groups .* train and in test, .*'c'"):
    sources.check_disjoint([train, validation, of('test', 'xcyz')])
  with pytest.raises(DataError, match="2 groups .* as '[bd]'"):
    sources.check_disjoint([train, of('validation', 'bewd')])


def test_groups_are_the_ids_if_there_are_none():
  def of(split, ids):
    return _source([{'id': i} for i in ids], {'id': 'id'}, split)

  with pytest.raises(DataError, match="1 groups .* 'b'"):
    sources.check_disjoint([of('train', 'ab'), of('test', 'bc')])


def test_a_group_is_read_by_itself():
  record = {'id': 'x', 'topic': 'y', 'text': None}
  fields = {'id': 'id', 'target': 'text'}
  assert _source([record], fields).group(-1) == 'x'
  assert _source([record], fields | {'group': 'topic'}).group(0) == 'y'
  assert _source([record], {'target': 'text'}).group(-1) == 'train:0'
  with pytest.raises(IndexError):
    _source([record], fields).group(1)


def test_numbered_records_need_no_reading():
  class Unread(list):
    def __getitem__(self, index):
      raise AssertionError('read')

  unread = Unread([{'text': 'words'}])
  pair = [_source(unread, {'target': 'text'}, s) for s in ('train', 'test')]
  sources.check_disjoint(pair)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'fields': {'target': 'text'}}, 'botocore has its own fields and splits'),
    ({'splits': {'test': 'held_out'}}, 'botocore has its own fields and spl'),
    ({'splits': {'tests': 'held_out'}}, "'tests'; did you mean 'test'"),
    ({'bad_records': 'skip'}, "'skip' is for jsonl:PATH, not for botocore"),
    ({'bad_records': 'ignore'}, "no policy for bad records 'ignore'"),
  ],
)
def test_arguments_that_are_for_other_data_sets(arguments, message):
  with pytest.raises(ConfigError, match=message):
    sources.load('botocore', 'test', **arguments)


def test_arguments_that_say_nothing_new_are_accepted(data_dir):
  same = {split: split for split in sources.SPLITS}
  source = sources.load(
    'botocore', 'test', str(data_dir), fields={'source': ''}, splits=same
  )
  assert source.fingerprint == GOLDEN


def test_a_part_of_a_packaged_split(data_dir, splits):
  def part(name):
    splits = {'test': name}
    return sources.load('botocore', 'test', str(data_dir), splits=splits)

  first, second = part('test[:50%]'), part('test[50%:]')
  whole = [record['id'] for record in splits['test']]
  assert [r['id'] for r in first] + [r['id'] for r in second] == whole
  prints = {s.fingerprint for s in (first, second, splits['test'])}
  assert len(prints) == 3
  with pytest.raises(ConfigError, match=r"split 'test\[:0%\]' is empty"):
    part('test[:0%]')
  with pytest.raises(ConfigError, match='has its own fields and splits'):
    part('train[:10%]')
  with pytest.raises(ConfigError, match=r"botocore has no split 'test\[:x%\]'"):
    part('test[:x%]')


def test_the_loser_of_a_race_reads_what_the_winner_prepared(
  data_dir, tmp_path, monkeypatch
):
  def beaten(self, **kwargs):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    raise OSError('Directory not empty')

  builder = packaged_builder.TextBuilder
  monkeypatch.setattr(builder, 'download_and_prepare', beaten)
  assert len(sources.load('botocore', 'test', str(tmp_path))) == 2286


def test_importing_sources_imports_no_library_of_data_sets():
  code = (
    'import sys, pdl_jax.data.sources;'
    'sys.exit(bool({"tensorflow_datasets", "datasets"} & set(sys.modules)))'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
