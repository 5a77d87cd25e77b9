"""Data sets of TFDS and of Hugging Face, prepared here from made-up text."""

import logging
import pickle
import shutil
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest
import tensorflow_datasets as tfds

from pdl_jax.data import external, sources
from pdl_jax.errors import ConfigError, DataError, HostError

TEXT = tfds.features.Text()


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
  def refuse(*_):
    raise AssertionError('a data set touched the network')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)


class LocalNews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Lines of a file, without a validation split."""

  VERSION = tfds.core.Version('1.2.0')
  FILE = Path()

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({
        'text': TEXT, 'head': TEXT,
        'number': tfds.features.Scalar(np.int64),
        'label': tfds.features.ClassLabel(num_classes=2),
        'words': tfds.features.Sequence(TEXT),
      }),
    )  # fmt: skip

  def _split_generators(self, dl_manager):
    lines = self.FILE.read_text('utf-8').splitlines()
    return {'train': self._examples(lines), 'test': self._examples(lines[:3])}

  def _generate_examples(self):
    raise NotImplementedError

  def _examples(self, lines):
    for i, line in enumerate(lines):
      yield i, {
        'text': line, 'head': line[:6], 'number': i, 'label': 1, 'words': ['a'],
      }  # fmt: skip


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A data_dir with it."""
  folder = tmp_path_factory.mktemp('catalogue')
  LocalNews.FILE = folder / 'lines.txt'
  LocalNews.FILE.write_text(
    ''.join(f'line {i:02} été\n' for i in range(40)), encoding='utf-8'
  )
  builder = LocalNews(data_dir=folder / 'tfds')
  builder.download_and_prepare(file_format='array_record')
  return str(folder / 'tfds')


PARTS = {'validation': 'train[90%:]', 'train': 'train[:90%]'}
LANGUAGE = {'target': 'text'}
PAIRS = {'source': 'text', 'target': 'head'}
NEWS = {'source': 'article', 'target': 'highlights'}


@pytest.fixture
def news(prepared):
  """Loads a split of LocalNews."""

  def load(split='test', fields=LANGUAGE, folder=prepared, **splits):
    return sources.load(
      'tfds:local_news', split, str(folder), fields=fields, splits=splits
    )

  return load


def refused(error, message, load, *arguments, **more):
  """In one line."""
  with pytest.raises(error, match=message) as found:
    load(*arguments, **more)
  assert '\n' not in str(found.value)


def test_made_up_articles_of_the_catalogue(tmp_path):
  builder = tfds.builder('cnn_dailymail', data_dir=tmp_path)
  infos = [
    tfds.core.SplitInfo(name=split, shard_lengths=[5], num_bytes=0,
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir=builder.data_dir, dataset_name='cnn_dailymail', split=split,
        filetype_suffix='array_record'))
    for split in sources.SPLITS
  ]  # fmt: skip
  builder.info.set_file_format('array_record', override=True)
  builder.info.set_splits(tfds.core.SplitDict(infos))
  Path(builder.data_dir).mkdir(parents=True)
  builder.info.write_to_directory(builder.data_dir)
  with tfds.testing.mock_data(num_examples=5, data_dir=str(tmp_path)):
    source = sources.load('tfds:cnn_dailymail:3.4.0', 'train', fields=NEWS)
    records = list(source)
  assert source.metadata['dataset'] == 'cnn_dailymail/3.4.0'
  assert len(records) == 5
  assert all(r['source'] and r['target'] and r['id'] for r in records)
  # It has ids.
  assert all(r['id'] == r['group'] != 'train:0' for r in records)


def test_a_data_set_known_by_its_folder_alone(news):
  source = news(fields=PAIRS)
  assert sorted(r['source'] for r in source) == [
    'line 00 été', 'line 01 été', 'line 02 été',
  ]  # fmt: skip
  ids = {'test:0', 'test:1', 'test:2'}
  assert {r['id'] for r in source} == {r['group'] for r in source} == ids
  sources.check_disjoint([source, news('train', PAIRS)])
  assert pickle.loads(pickle.dumps(source))[2] == source[2]
  # Language modelling has no source.
  assert {r['source'] for r in news()} == {''}
  # Integers may be ids and groups.
  source = news('train', PAIRS | {'id': 'number', 'group': 'label'})
  assert {r['id'] for r in source} == {str(i) for i in range(40)}
  assert {r['group'] for r in source} == {'1'}


def test_parts_of_a_split(news):
  parts = [news(split, **PARTS) for split in ('train', 'validation')]
  assert list(map(len, parts)) == [36, 4]
  assert len({record['target'] for part in parts for record in part}) == 40
  assert parts[1].metadata['split'] == 'train[90%:]'
  # Parts of other splits do not matter to one that shares nothing.
  assert len(news('test', **PARTS)) == 3


def test_splits_that_will_not_do(news):
  for split, splits, message in (
    ('validation', {}, r"no split 'validation' for .* it has: train, test; "),
    ('validation', {'validation': 'train[90%:]'}, r'train .* share examples'),
    ('train', {'validation': 'train[90%:]'}, r"\('train'\) .* share examples"),
    ('test', PARTS | {'test': 'train[5:7]'}, r"\('train\[5:7\]'\) share"),
    ('train', {'train': 'train[:60%]+train[:1]'}, r'\) and train .* share'),
    ('train', {'train': 'train[30:99]'}, r'incompatible with 40 examples'),
    ('train', {'train': 'train['}, r'Unrecognized split format'),
    ('train', {'train': 'train[40:]'}, r"split 'train\[40:\]' is empty"),
  ):
    with pytest.raises(ConfigError, match=message):
      news(split, **splits)


def test_fields_that_are_no_text(news, prepared):
  for stored in ('number', 'words', 'label', 'texts'):
    refused(
      ConfigError,
      f"no text '{stored}', which is to be the target.*: head, text; set",
      news, fields={'target': stored},
    )  # fmt: skip
  refused(
    ConfigError, "no text 'target'", sources.load, 'tfds:local_news', 'test',
    prepared,
  )  # fmt: skip
  message = "no text 'words', which .* the id"
  refused(ConfigError, message, news, fields=LANGUAGE | {'id': 'words'})


def test_ids_that_come_twice_are_refused(news, tmp_path):
  message = "39 of 40 records repeat .* record 1 that of record 0, '1'.*fields"
  refused(DataError, message, news, 'train', PAIRS | {'id': 'label'})
  rows = {'id': ['a', 'b', 'a'], 'target': ['x', 'y', 'z']}
  datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / 'hf' / 'train')
  message = "1 of 3 records repeat .* record 2 that of record 0, 'a'"
  refused(DataError, message, sources.load, f'hf:{tmp_path}/hf', 'train')


def test_files_of_tfds_that_are_torn_missing_or_of_tensorflow(
  news, prepared, tmp_path
):
  whole = Path(prepared, 'local_news')
  for name in ('dataset_info.json', 'metadata.json', 'features.json'):
    for body in (b'', b'null', b'[', b'\xff\xfe'):
      folder = tmp_path / name / str(len(body)) / 'local_news'
      shutil.copytree(whole, folder)
      (folder / '1.2.0' / name).write_bytes(body)
      refused(
        (ConfigError, DataError), 'cannot be', news, fields=PAIRS,
        folder=folder.parent,
      )  # fmt: skip
  folder = tmp_path / 'missing' / 'local_news'
  shutil.copytree(whole, folder, ignore=lambda *_: [
    file.name for file in whole.glob('*/*array_record*')
  ])  # fmt: skip
  source = news(folder=folder.parent)
  message = f'record 2 of 3 in {folder}/1.2.0 cannot be read .* prepare it once'
  with pytest.raises(DataError, match=message):
    source[2]
  folder = tmp_path / 'tensorflow' / 'local_news' / '1.2.0'
  folder.mkdir(parents=True)
  for file in (whole / '1.2.0').iterdir():
    name = file.name.replace('array_record', 'tfrecord')
    (folder / name).write_bytes(
      file.read_bytes().replace(b'array_record', b'tfrecord')
      if name == 'dataset_info.json' else file.read_bytes()
    )  # fmt: skip
  message = f'is prepared in {folder} as tfrecord, which .*; delete that folder'
  refused(DataError, message, news, folder=folder.parents[1])


def test_fingerprints_tell_parts_and_fields_apart(news):
  assert news('train').fingerprint == news('train').fingerprint
  others = [
    news('train'), news('test'), news('train', PAIRS),
    news('train', train='train[:20]'), news('train', train='train[20:]'),
  ]  # fmt: skip
  assert len({source.fingerprint for source in others}) == len(others)


def test_what_is_not_prepared_is_said_at_once(tmp_path, caplog):
  message = (
    rf'not prepared in {tmp_path}/lm1b/1.1.0; prepare it once, .* python -c'
    rf' .*tfds.builder\("lm1b", data_dir="{tmp_path}"\).*"array_record"'
  )
  with caplog.at_level(logging.WARNING):
    refused(
      DataError, message, sources.load, 'tfds:lm1b', 'train', str(tmp_path),
      fields=LANGUAGE,
    )  # fmt: skip
  assert not caplog.records
  with pytest.raises(DataError, match=r'tfds.builder\("lm1b"\)'):
    external.open_tfds('lm1b', 'train', None, LANGUAGE, {})


def test_names_that_tfds_does_not_know(tmp_path):
  for name, message in (
    ('no_such_set', 'neither a data set that TFDS knows nor prepared in the'),
    ('huggingface:xsum', 'is no name of a data set'),
    ('', 'is no name of a data set'),
    ('lm1b/no_such', 'cannot be opened: .* no_such not found'),
    ('cnn_dailymail:9.9.9', 'cannot be opened: .* version 9.9.9'),
  ):
    refused(
      ConfigError, message, sources.load, f'tfds:{name}', 'train',
      str(tmp_path), fields=LANGUAGE,
    )  # fmt: skip


def test_code_that_needs_a_package_says_so(monkeypatch, saved):
  def builder(*_, **__):
    raise ModuleNotFoundError('No module', name='tensorflow')

  monkeypatch.setattr(tfds, 'builder', builder)
  message = 'needs tensorflow: pip install tensorfl'
  refused(HostError, message, sources.load, 'tfds:lm1b', 'train', str(saved))
  monkeypatch.setattr(
    external.importlib.util, 'find_spec', lambda name: None
  )
  message = 'not installed: pip install datasets'
  refused(HostError, message, sources.load, f'hf:{saved}', 'train')


ROWS = {
  'document': ['a', 'bé', None], 'summary': ['x', 'y', 'z'], 'n': [5, 6, 7],
  'list': [['q'], [], []],
}  # fmt: skip
XSUM = {'source': 'document', 'target': 'summary'}


@pytest.fixture
def saved(tmp_path):
  """A DatasetDict of train and dev."""
  dataset = datasets.Dataset.from_dict(ROWS)
  both = datasets.DatasetDict(train=dataset, dev=dataset.select([1]))
  both.save_to_disk(tmp_path / 'saved')
  return tmp_path / 'saved'


@pytest.fixture
def load(saved):
  """Loads a split of it, or of another folder."""

  def load(split='train', fields=XSUM, folder=saved, **splits):
    return sources.load(f'hf:{folder}', split, fields=fields, splits=splits)

  return load


def test_a_saved_folder(saved, load, tmp_path):
  fields = XSUM | {'id': 'n'}
  source = load(fields=fields)
  assert (len(source), source[1]) == (
    3, {'id': '6', 'group': '6', 'source': 'bé', 'target': 'y'},
  )  # fmt: skip
  with pytest.raises(DataError, match=r"2 \(7\) in .* no text in field 'docum"):
    source[2]
  dev = sources.load(
    'hf:saved', 'validation', str(saved.parent), fields=fields,
    splits={'validation': 'dev'},
  )  # fmt: skip
  assert [dev[0]] == [source[1]]
  with pytest.raises(DataError, match="1 groups .* '6'"):
    sources.check_disjoint([source, dev])
  assert pickle.loads(pickle.dumps(source))[0] == source[0]
  # Columns hidden by a format are found.
  dataset = datasets.Dataset.from_dict(ROWS).select([0, 1])
  hidden = dataset.with_format('numpy', columns=['n'])
  datasets.DatasetDict(train=hidden).save_to_disk(tmp_path / 'hidden')
  found = load(fields=fields, folder=tmp_path / 'hidden')
  assert [r['id'] for r in found] == ['5', '6']


def test_fingerprints_of_saved_folders(load, tmp_path):
  for name, rows in (('same', ROWS), ('other', ROWS | {'n': [5, 6, 8]})):
    dataset = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / name)
  assert load().fingerprint == load(folder=tmp_path / 'same').fingerprint
  for other in (
    load(folder=tmp_path / 'other'), load(fields={'target': 'summary'})
  ):  # fmt: skip
    assert load().fingerprint != other.fingerprint


def test_saved_folders_that_will_not_do(saved, load):
  for stored in ('list', 'n', 'summary_'):
    message = f"no text '{stored}'.*: document, "
    refused(ConfigError, message, load, fields={'target': stored})
  refused(DataError, 'saved/test cannot be opened', load, 'test')
  (saved / 'test').mkdir()
  refused(DataError, 'saved/test cannot be opened', load, 'test')
  saved.rename(saved.parent / 'train')
  message = 'train holds several splits'
  refused(DataError, message, load, folder=saved.parent)


def test_torn_files_of_a_saved_folder(saved, load):
  folder = saved / 'train'
  (arrow,) = folder.glob('*.arrow')
  bodies = [b'', b'null', b'[]', b'7', b'\xff\xfe']
  spoilt = [(arrow, arrow.read_bytes()[:400])]
  spoilt += [
    (folder / file, body)
    for file in ('state.json', 'dataset_info.json') for body in bodies
  ]  # fmt: skip
  for path, body in spoilt:
    whole = path.read_bytes()
    path.write_bytes(body)
    refused(DataError, 'saved/train cannot be opened', load)
    path.write_bytes(whole)
  assert len(load()) == 3


def test_flipped_bytes_of_a_saved_folder(tmp_path):
  """Where they point outside of the file, reading would end the process."""
  rows = {'target': [f'text {i}' for i in range(50)]}
  datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / 'train')
  (arrow,) = (tmp_path / 'train').glob('*.arrow')
  whole, told = arrow.read_bytes(), ''
  for place in range(0, len(whole), 23):
    flipped = bytearray(whole)
    flipped[place] ^= 255
    arrow.write_bytes(bytes(flipped))
    try:
      sources.load(f'hf:{tmp_path}', 'train')
    except (DataError, ConfigError) as error:
      told += str(error)
  assert 'Offset' in told and 'UTF8' in told


def test_a_saved_folder_without_records(saved, load):
  rows = datasets.Dataset.from_dict({'summary': [], 'document': []})
  for split in ('train', 'test'):
    shutil.rmtree(saved / split, ignore_errors=True)
    rows.save_to_disk(saved / split)
    refused(DataError, f'split {split} holds no records', load, split)


def test_what_to_do_without_a_saved_split(saved, tmp_path, monkeypatch):
  def message(name, split='validation', error=DataError):
    with pytest.raises(error) as found:
      sources.load(name, split, fields=XSUM)
    assert '\n' not in str(found.value)
    return str(found.value)

  assert 'there are: dev, train; say' in message(f'hf:{saved}')
  one = datasets.Dataset.from_dict(ROWS)
  one.save_to_disk(tmp_path / 'one')
  assert 'one is one split of its own' in message(f'hf:{tmp_path}/one')
  hub = message('hf:abisee/cnn_dailymail')
  assert 'nothing is fetched from the Hugging Face hub' in hub
  assert (
    'load_dataset("abisee/cnn_dailymail").save_to_disk("abisee/cnn_dailymail")'
  ) in hub
  monkeypatch.chdir(saved.parent)
  told = message('saved', error=ConfigError)
  assert 'type --config.data.name=hf:saved (' in told
  Path('lines').mkdir()
  Path('lines', 'train.jsonl').touch()
  for name in ('lines', 'lines/train.jsonl', str(Path.cwd() / 'lines')):
    told = message(name, error=ConfigError)
    assert f'type --config.data.name=jsonl:{name} (' in told
  told = message('hf', error=ConfigError)
  assert told == 'data.name=hf names no place: hf:FOLDER'


def test_parts_of_a_saved_split(load):
  cut = {'train': 'train[:1]', 'validation': 'train[1:2]+dev'}
  assert [r['target'] for r in load('train', **cut)] == ['x']
  assert [r['target'] for r in load('validation', **cut)] == ['y', 'y']
  message = 'incompatible with 3 examples'
  refused(ConfigError, message, load, train='train[:7]')
  message = 'there are: dev, train; say'
  refused(DataError, message, load, train='test[:7]')
  same = [
    load('test', test='dev', validation='dev'),
    load('validation', validation='dev'),
  ]
  (told,) = sources.same_records(same)
  assert "test ('dev') and validation ('dev') share 1 records" in told
