"""Sources: a packaged text, prepared once, and what can go wrong."""

import pickle
import shutil
import subprocess
import sys

import grain
import pytest

from pdl_jax.data import packaged_builder, schema, sources
from pdl_jax.data.packaged import texts
from pdl_jax.errors import ConfigError, DataError, HostError

# Of a split with 40 records, wherever and whenever it is prepared.
GOLDEN = '0d06c9da849092af81f7bbd0c76876a161a40a432a00f904a2b97db422fa744a'


@pytest.fixture(scope='module')
def place(register, tmp_path_factory):
  """Where a text of 40 records a split is prepared."""
  register(40, fields=texts.OWN_NAMES | {'target': 'summary'})
  folder = tmp_path_factory.mktemp('prepared')
  sources.load('mine', 'test', str(folder))
  return folder


@pytest.fixture(scope='module')
def splits(place):
  """Every split of it, as a source."""
  return {s: sources.load('mine', s, str(place)) for s in sources.SPLITS}


@pytest.fixture
def copy(place, tmp_path):
  """A copy that may be damaged: the folder of the version."""
  shutil.copytree(place, tmp_path / 'copy')
  return tmp_path / 'copy' / 'made_up' / '1.2.3'


def _load_copy(copy, split='test'):
  return sources.load('mine', split, str(copy.parent.parent))


def test_a_source_is_a_sequence(splits):
  source = splits['test']
  records = [source[i] for i in range(len(source))]
  assert source[-1] == records[-1] and list(source) == records
  with pytest.raises(IndexError):
    source[len(source)]
  assert pickle.loads(pickle.dumps(source))[3] == source[3]
  dataset = grain.MapDataset.source(source).seed(7).shuffle()
  assert len({dataset[i]['id'] for i in range(len(source))}) == len(source)
  assert source.fields == texts.OWN_NAMES | {'target': 'summary'}


def test_the_fingerprint_does_not_depend_on_the_place(splits, copy):
  assert splits['test'].fingerprint == GOLDEN
  assert _load_copy(copy).fingerprint == GOLDEN
  assert len({source.fingerprint for source in splits.values()}) == 3


def test_unknown_names_are_met_with_the_nearest(tmp_path):
  with pytest.raises(ConfigError, match="'botocor'; did you mean 'botocore'"):
    sources.load('botocor', 'test', str(tmp_path))
  with pytest.raises(ConfigError, match="'valid'; did you mean 'validation'"):
    sources.load('botocore', 'valid', str(tmp_path))


def test_what_the_host_lacks_is_one_line(place, tmp_path, monkeypatch):
  file = tmp_path / 'file'
  file.touch()
  with pytest.raises(HostError, match=f'data_dir {file}'):
    sources.load('mine', 'test', str(file))

  def full(self, **kwargs):
    raise RuntimeError('write() failed: No space left on device; at 7\nmore')

  builder = packaged_builder.TextBuilder
  monkeypatch.setattr(builder, 'download_and_prepare', full)
  message = f'in the data_dir {tmp_path}: write.. failed: No space left .* free'
  with pytest.raises(HostError, match=message) as error:
    sources.load('mine', 'test', str(tmp_path))
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
  file.write_bytes(file.read_bytes()[:-1000])
  with pytest.raises(DataError, match=r'record 9 of 40 in \S+ cannot be'):
    _load_copy(copy)[9]


def _source(records, fields, split='train', name='made_up'):
  return schema.Source(
    records=records, fields=fields, identity=[name, split], metadata={},
    place='there', remedy='mend it', name=name, split=split,
  )  # fmt: skip


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
  # Groups are the ids if there are none.
  one, other = (
    _source([{'id': i} for i in ids], {'id': 'id'}, split)
    for split, ids in (('train', 'ab'), ('test', 'bc'))
  )
  with pytest.raises(DataError, match="1 groups .* 'b'"):
    sources.check_disjoint([one, other])


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


@pytest.mark.parametrize(('arguments', 'message'), [
  ({'fields': {'target': 'text'}}, 'mine has its own fields and splits'),
  ({'splits': {'test': 'held_out'}}, 'mine has its own fields and splits'),
  ({'splits': {'test': 'train[:10%]'}}, 'mine has its own fields and splits'),
  ({'splits': {'tests': 'held_out'}}, "'tests'; did you mean 'test'"),
  ({'splits': {'test': 'test[:0%]'}}, r"split 'test\[:0%\]' is empty"),
  ({'splits': {'test': 'test[:x%]'}}, r"mine has no split 'test\[:x%\]'"),
  ({'bad_records': 'skip'}, "'skip' is for jsonl:PATH, not for mine"),
  ({'bad_records': 'ignore'}, "no policy for bad records 'ignore'"),
])  # fmt: skip
def test_arguments_that_will_not_do(place, arguments, message):
  with pytest.raises(ConfigError, match=message):
    sources.load('mine', 'test', str(place), **arguments)


def test_a_part_of_a_packaged_split(place, splits):
  def part(name, **more):
    return sources.load(
      'mine', 'test', str(place), splits={'test': name}, **more
    )

  first, second = part('test[:50%]'), part('test[50%:]')
  whole = [record['id'] for record in splits['test']]
  assert [r['id'] for r in first] + [r['id'] for r in second] == whole
  prints = {s.fingerprint for s in (first, second, splits['test'])}
  assert len(prints) == 3
  # What says nothing new is accepted.
  assert part('test', fields={'source': ''}).fingerprint == GOLDEN


def test_the_loser_of_a_race_reads_what_the_winner_prepared(
  place, tmp_path, monkeypatch
):
  def beaten(self, **kwargs):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    raise OSError('Directory not empty')

  builder = packaged_builder.TextBuilder
  monkeypatch.setattr(builder, 'download_and_prepare', beaten)
  assert len(sources.load('mine', 'test', str(tmp_path))) == 40


def test_importing_sources_imports_no_library_of_data_sets():
  code = (
    'import sys, pdl_jax.data.sources;'
    'sys.exit(bool({"tensorflow_datasets", "datasets"} & set(sys.modules)))'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
