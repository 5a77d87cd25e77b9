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


def _features(**features):
  return tfds.features.FeaturesDict(features)


class LocalNews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Lines of a file, without a validation split."""

  VERSION = tfds.core.Version('1.2.0')
  FILE = Path()

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=_features(
        text=TEXT,
        head=TEXT,
        number=tfds.features.Scalar(np.int64),
        label=tfds.features.ClassLabel(num_classes=2),
        words=tfds.features.Sequence(TEXT),
      ),
    )

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


class CnnDailymail(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """As the catalogue's, with three articles in it."""

  VERSION = tfds.core.Version('3.4.0')

  def _info(self):
    names = ('article', 'highlights', 'id', 'publisher')
    features = _features(**dict.fromkeys(names, TEXT))
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in sources.SPLITS}

  def _generate_examples(self, split):
    for i in range(3):
      yield i, {
        'article': f'Article {i} of {split}.', 'highlights': f'Point {i}.',
        'id': f'{split}{i}', 'publisher': 'none',
      }  # fmt: skip


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A data_dir with both."""
  folder = tmp_path_factory.mktemp('catalogue')
  LocalNews.FILE = folder / 'lines.txt'
  LocalNews.FILE.write_text(
    ''.join(f'line {i:02} été\n' for i in range(40)), encoding='utf-8'
  )
  for builder_class in (LocalNews, CnnDailymail):
    builder = builder_class(data_dir=folder / 'tfds')
    builder.download_and_prepare(file_format='array_record')
  return str(folder / 'tfds')


PARTS = {'validation': 'train[90%:]', 'train': 'train[:90%]'}
LANGUAGE = {'target': 'text'}
PAIRS = {'source': 'text', 'target': 'head'}
NEWS = {'source': 'article', 'target': 'highlights'}


def test_a_data_set_of_the_catalogue(prepared):
  source = sources.load('tfds:cnn_dailymail', 'test', prepared, fields=NEWS)
  assert len(source) == 3
  record = next(r for r in source if r['id'] == 'test1')
  assert record == {
    'id': 'test1', 'group': 'test1', 'source': 'Article 1 of test.',
    'target': 'Point 1.',
  }  # fmt: skip
  assert source.metadata['dataset'] == 'cnn_dailymail/3.4.0'
  both = [
    source,
    sources.load('tfds:cnn_dailymail:3.4.0', 'train', prepared, fields=NEWS),
  ]
  sources.check_disjoint(both)
  assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_made_up_articles_of_the_real_builder(tmp_path):
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
    source = sources.load('tfds:cnn_dailymail', 'train', fields=NEWS)
    records = list(source)
  assert len(records) == 5
  assert all(r['source'] and r['target'] and r['id'] for r in records)


def test_a_data_set_known_by_its_folder_alone(prepared):
  source = sources.load('tfds:local_news', 'test', prepared, fields=PAIRS)
  assert sorted(r['source'] for r in source) == [
    'line 00 été', 'line 01 été', 'line 02 été',
  ]  # fmt: skip
  assert {r['id'] for r in source} == {'test:0', 'test:1', 'test:2'}
  assert {r['group'] for r in source} == {'test:0', 'test:1', 'test:2'}


def test_language_modelling_has_no_source(prepared):
  source = sources.load('tfds:local_news', 'test', prepared, fields=LANGUAGE)
  assert {r['source'] for r in source} == {''}


def test_integers_may_be_ids_and_groups(prepared):
  fields = PAIRS | {'id': 'number', 'group': 'label'}
  source = sources.load('tfds:local_news', 'train', prepared, fields=fields)
  assert {r['id'] for r in source} == {str(i) for i in range(40)}
  assert {r['group'] for r in source} == {'1'}


def test_parts_of_a_split(prepared):
  def load(split, **parts):
    return sources.load(
      'tfds:local_news', split, prepared, fields=LANGUAGE, splits=parts
    )

  parts = [load(split, **PARTS) for split in ('train', 'validation')]
  assert list(map(len, parts)) == [36, 4]
  texts = {record['target'] for part in parts for record in part}
  assert len(texts) == 40
  assert parts[1].metadata['split'] == 'train[90%:]'
  # Parts of other splits do not matter to one that shares nothing.
  assert len(load('test', **PARTS)) == 3


@pytest.mark.parametrize(
  ('split', 'splits', 'message'),
  [
    ('validation', {}, r"no split 'validation' for .* it has: train, test; "),
    ('validation', {'validation': 'train[90%:]'}, r'train .* share examples'),
    ('train', {'validation': 'train[90%:]'}, r"\('train'\) .* share examples"),
    ('test', PARTS | {'test': 'train[5:7]'}, r"\('train\[5:7\]'\) share"),
    ('train', {'train': 'train[:60%]+train[:1]'}, r'\) and train .* share'),
    ('train', {'train': 'train[30:99]'}, r'incompatible with 40 examples'),
    ('train', {'train': 'train['}, r'Unrecognized split format'),
    ('train', {'train': 'train[40:]'}, r"split 'train\[40:\]' is empty"),
  ],
)
def test_splits_that_will_not_do(prepared, split, splits, message):
  with pytest.raises(ConfigError, match=message):
    sources.load(
      'tfds:local_news', split, prepared, fields=LANGUAGE, splits=splits
    )


@pytest.mark.parametrize('stored', ['number', 'words', 'label', 'texts'])
def test_fields_that_are_no_text(prepared, stored):
  message = f"no text '{stored}', which is to be the target.*: head, text; set"
  with pytest.raises(ConfigError, match=message):
    sources.load('tfds:local_news', 'test', prepared, fields={'target': stored})
  with pytest.raises(ConfigError, match="no text 'target'"):
    sources.load('tfds:local_news', 'test', prepared)
  fields = LANGUAGE | {'id': 'words'}
  with pytest.raises(ConfigError, match="no text 'words', which .* the id"):
    sources.load('tfds:local_news', 'test', prepared, fields=fields)


def test_ids_that_come_twice_are_refused(prepared, tmp_path):
  fields = PAIRS | {'id': 'label'}
  message = "39 of 40 records repeat .* record 1 that of record 0, '1'.*fields"
  with pytest.raises(DataError, match=message):
    sources.load('tfds:local_news', 'train', prepared, fields=fields)
  rows = {'id': ['a', 'b', 'a'], 'target': ['x', 'y', 'z']}
  datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / 'hf' / 'train')
  message = "1 of 3 records repeat .* record 2 that of record 0, 'a'"
  with pytest.raises(DataError, match=message):
    sources.load(f'hf:{tmp_path}/hf', 'train')


def test_torn_files_of_tfds_are_named(prepared, tmp_path):
  for name in ('dataset_info.json', 'metadata.json', 'features.json'):
    for body in (b'', b'null', b'[', b'\xff\xfe'):
      folder = tmp_path / name / str(len(body)) / 'local_news'
      shutil.copytree(Path(prepared, 'local_news'), folder)
      (folder / '1.2.0' / name).write_bytes(body)
      with pytest.raises((ConfigError, DataError), match='cannot be') as error:
        sources.load(
          'tfds:local_news', 'test', str(folder.parent), fields=PAIRS
        )
      assert '\n' not in str(error.value)


def test_fingerprints_tell_parts_and_fields_apart(prepared, tmp_path):
  def fingerprint(split='train', fields=LANGUAGE, **splits):
    return sources.load(
      'tfds:local_news', split, prepared, fields=fields, splits=splits
    ).fingerprint

  assert fingerprint() == fingerprint()
  others = [
    fingerprint(),
    fingerprint('test'),
    fingerprint(fields=PAIRS),
    fingerprint(train='train[:20]'),
    fingerprint(train='train[20:]'),
  ]
  assert len(set(others)) == len(others)


def test_what_is_not_prepared_is_said_at_once(tmp_path, caplog):
  message = (
    rf'not prepared in {tmp_path}/lm1b/1.1.0; prepare it once, .* python -c'
    rf' .*tfds.builder\("lm1b", data_dir="{tmp_path}"\).*"array_record"'
  )
  with caplog.at_level(logging.WARNING):
    with pytest.raises(DataError, match=message) as error:
      sources.load('tfds:lm1b', 'train', str(tmp_path), fields=LANGUAGE)
    assert '\n' not in str(error.value)
  assert not caplog.records
  with pytest.raises(DataError, match=r'tfds.builder\("lm1b"\)'):
    external.open_tfds('lm1b', 'train', None, LANGUAGE, {})


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('no_such_set', 'neither a data set that TFDS knows nor prepared in the'),
    ('huggingface:xsum', 'is no name of a data set'),
    ('', 'is no name of a data set'),
    ('lm1b/no_such', 'cannot be opened: .* no_such not found'),
    ('cnn_dailymail:9.9.9', 'cannot be opened: .* version 9.9.9'),
  ],
)
def test_names_that_tfds_does_not_know(name, message, tmp_path):
  with pytest.raises(ConfigError, match=message) as error:
    sources.load(f'tfds:{name}', 'train', str(tmp_path), fields=LANGUAGE)
  assert '\n' not in str(error.value)


def test_records_of_tensorflow_are_refused(prepared, tmp_path):
  folder = tmp_path / 'local_news' / '1.2.0'
  folder.mkdir(parents=True)
  for file in Path(prepared, 'local_news', '1.2.0').iterdir():
    name = file.name.replace('array_record', 'tfrecord')
    (folder / name).write_bytes(file.read_bytes())
  info = folder / 'dataset_info.json'
  info.write_text(
    info.read_text('utf-8').replace('array_record', 'tfrecord'), 'utf-8'
  )
  message = f'is prepared in {folder} as tfrecord, which .*; delete that folder'
  with pytest.raises(DataError, match=message):
    sources.load('tfds:local_news', 'test', str(tmp_path), fields=LANGUAGE)


def test_a_missing_file_is_named(prepared, tmp_path):
  folder = tmp_path / 'local_news' / '1.2.0'
  folder.mkdir(parents=True)
  for file in Path(prepared, 'local_news', '1.2.0').glob('*.json'):
    (folder / file.name).write_bytes(file.read_bytes())
  source = sources.load(
    'tfds:local_news', 'test', str(tmp_path), fields=LANGUAGE
  )
  message = f'record 2 of 3 in {folder} cannot be read .* prepare it once'
  with pytest.raises(DataError, match=message):
    source[2]


def test_code_that_needs_a_package_says_so(monkeypatch, tmp_path):
  def builder(*_, **__):
    raise ModuleNotFoundError('No module', name='tensorflow')

  monkeypatch.setattr(tfds, 'builder', builder)
  with pytest.raises(HostError, match='needs tensorflow: pip install tensorfl'):
    sources.load('tfds:lm1b', 'train', str(tmp_path), fields=LANGUAGE)


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


def test_a_saved_folder(saved):
  fields = XSUM | {'id': 'n'}
  source = sources.load(f'hf:{saved}', 'train', fields=fields)
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


def test_fingerprints_of_saved_folders(saved, tmp_path):
  def fingerprint(folder, fields=XSUM):
    return sources.load(f'hf:{folder}', 'train', fields=fields).fingerprint

  for name, rows in (('same', ROWS), ('other', ROWS | {'n': [5, 6, 8]})):
    dataset = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / name)
  assert fingerprint(saved) == fingerprint(tmp_path / 'same')
  assert fingerprint(saved) != fingerprint(tmp_path / 'other')
  assert fingerprint(saved) != fingerprint(saved, {'target': 'summary'})


def test_saved_folders_that_will_not_do(saved):
  def load(folder=saved, split='train', fields=XSUM):
    sources.load(f'hf:{folder}', split, fields=fields)

  for stored in ('list', 'n', 'summary_'):
    with pytest.raises(ConfigError, match=f"no text '{stored}'.*: document, "):
      load(fields={'target': stored})
  with pytest.raises(DataError, match='saved/test cannot be opened'):
    load(split='test')
  (saved / 'test').mkdir()
  with pytest.raises(DataError, match='saved/test cannot be opened'):
    load(split='test')
  with pytest.raises(DataError, match='train holds several splits'):
    saved.rename(saved.parent / 'train')
    load(folder=saved.parent)


def test_a_damaged_saved_folder(saved):
  (arrow,) = (saved / 'train').glob('*.arrow')
  arrow.write_bytes(arrow.read_bytes()[:400])
  with pytest.raises(DataError, match='saved/train cannot be opened'):
    sources.load(f'hf:{saved}', 'train', fields=XSUM)


@pytest.mark.parametrize('file', ['state.json', 'dataset_info.json'])
@pytest.mark.parametrize('body', [b'', b'null', b'[]', b'7', b'\xff\xfe'])
def test_a_torn_saved_folder(saved, file, body):
  (saved / 'train' / file).write_bytes(body)
  with pytest.raises(DataError, match='saved/train cannot be opened') as error:
    sources.load(f'hf:{saved}', 'train', fields=XSUM)
  assert '\n' not in str(error.value)


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


def test_a_saved_folder_without_records(saved):
  rows = datasets.Dataset.from_dict({'summary': [], 'document': []})
  for split in ('train', 'test'):
    shutil.rmtree(saved / split, ignore_errors=True)
    rows.save_to_disk(saved / split)
    with pytest.raises(DataError, match=f'split {split} holds no records'):
      sources.load(f'hf:{saved}', split, fields=XSUM)


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


def test_parts_of_a_saved_split(saved):
  def load(split, **splits):
    return sources.load(f'hf:{saved}', split, fields=XSUM, splits=splits)

  cut = {'train': 'train[:1]', 'validation': 'train[1:2]+dev'}
  assert [r['target'] for r in load('train', **cut)] == ['x']
  assert [r['target'] for r in load('validation', **cut)] == ['y', 'y']
  with pytest.raises(ConfigError, match='incompatible with 3 examples'):
    load('train', train='train[:7]')
  with pytest.raises(DataError, match='there are: dev, train; say'):
    load('train', train='test[:7]')
  same = [load(split, test='dev', validation='dev') for split in ('test',)]
  same.append(load('validation', validation='dev'))
  (told,) = sources.same_records(same)
  assert "test ('dev') and validation ('dev') share 1 records" in told


def test_columns_hidden_by_a_format_are_found(tmp_path):
  dataset = datasets.Dataset.from_dict(ROWS).select([0, 1])
  hidden = dataset.with_format('numpy', columns=['n'])
  datasets.DatasetDict(train=hidden).save_to_disk(tmp_path / 'saved')
  fields = XSUM | {'id': 'n'}
  source = sources.load(f'hf:{tmp_path}/saved', 'train', fields=fields)
  assert [r['id'] for r in source] == ['5', '6']


def test_without_the_package(saved, monkeypatch):
  monkeypatch.setattr(
    external.importlib.util, 'find_spec', lambda name: None
  )
  with pytest.raises(HostError, match='not installed: pip install datasets'):
    sources.load(f'hf:{saved}', 'train', fields=XSUM)
