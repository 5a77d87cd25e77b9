"""JSON lines: round trips, every defect by its line, bounded memory."""

import hashlib
import json
import os
import pickle
import threading
import tracemalloc

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdl_jax.data import json_index, jsonl, sources
from pdl_jax.errors import ConfigError, DataError

FIELDS = {'source': 'article', 'target': 'title'}


def line(number, **changes):
  """The bytes of one good record, or of one with changes."""
  record = {'id': f'r{number}', 'article': f'a {number}', 'title': f't{number}'}
  kept = {k: v for k, v in (record | changes).items() if v is not ...}
  return json.dumps(kept).encode() + b'\n'


def load(path, lines, split='train', **arguments):
  """Writes the lines into PATH/SPLIT.jsonl and opens the folder."""
  (path / f'{split}.jsonl').write_bytes(b''.join(lines))
  arguments = {'fields': FIELDS} | arguments
  return sources.load(f'jsonl:{path}', split, **arguments)


ENCODABLE = st.characters(exclude_categories=['Cs'], exclude_characters='\0')


@settings(deadline=None, max_examples=50)
@given(
  st.lists(
    st.tuples(st.text(ENCODABLE), st.text(ENCODABLE).filter(str.strip)),
    min_size=1,
    max_size=8,
  ),
  st.booleans(),
  st.sampled_from(['\n', '\r\n']),
  st.booleans(),
)
def test_any_text_comes_back(tmp_path_factory, pairs, ascii_, newline, bom):
  path = tmp_path_factory.mktemp('any')
  rows = [
    json.dumps({'source': s, 'target': t}, ensure_ascii=ascii_)
    for s, t in pairs
  ]
  text = '\ufeff' * bom + newline.join(rows)
  source = load(path, [text.encode()], fields=None)
  assert [(r['source'], r['target']) for r in source] == pairs


def test_what_is_harmless(tmp_path):
  plain = list(load(tmp_path, [line(0), line(1)]))
  odd = [b'\xef\xbb\xbf', line(0)[:-1], b'\r\n', line(1)[:-1]]
  for end in ([], [b'\n'], [b'\r\n'], [b'\n', b'  \n', b'\n']):
    assert list(load(tmp_path, odd + end)) == plain


# Reason, what the line is, what is said about it.
DEFECTS = [
  ('not_utf8', b'{"article": "caf\xe9", "title": "t"}\n', r'is not UTF-8'),
  ('not_utf8', '{"title": "t"}\n'.encode('utf-16')[:-1], r'UTF-8|NUL'),
  ('not_json', b'{"article": "a", "title": "t"\n', r'is no JSON'),
  ('not_json', b'[' * 100_000 + b'\n', r'is no JSON'),
  ('not_an_object', b'["a", "t"]\n', r'is a JSON list, not an object'),
  ('not_an_object', b'null\n', r'is a JSON NoneType'),
  ('missing_field', line(9, title=...), r"'title' .*, but article, id; "),
  ('missing_field', line(9, id=...), r"has no field 'id'"),
  ('not_a_string', line(9, title=3), r"has a int as field 'title' \(target\)"),
  ('not_a_string', line(9, article=None), r"has a NoneType as field 'article'"),
  ('not_a_string', line(9, id=True), r"has a bool as field 'id'"),
  ('empty_target', line(9, title=''), r"has an empty field 'title'"),
  ('empty_target', line(9, title=' \n\u00a0'), r"has an empty field 'title'"),
  ('nul', line(9, article='a\0b'), r"has a NUL character in field 'article'"),
  ('nul', b'\0' * 40 + b'\n', r'has a NUL byte in it'),
  ('lone_surrogate', line(9, title='t\ud83d'), r'has half a character in fi'),
  ('duplicate_id', line(1), r'repeats the id of line 2'),
  ('blank_line', b'\n', r'is blank'),
  ('repeated_key', b'{"id": "a", "title": "t", "id": "b"}\n', r"'id' twice"),
]
IDS = [f'{reason}-{i}' for i, (reason, _, _) in enumerate(DEFECTS)]


@pytest.mark.parametrize(('reason', 'bad', 'message'), DEFECTS, ids=IDS)
def test_a_defect_is_named_or_skipped_and_counted(
  tmp_path, reason, bad, message
):
  lines = [line(i) for i in range(99)]
  spoilt = [*lines[:2], bad, *lines[2:]]
  named = rf'train\.jsonl:3: the line.*(?:{message})'
  with pytest.raises(DataError, match=named):
    load(tmp_path, spoilt)
  if bad.startswith(b'\xff\xfe'):
    reason = 'nul'  # what UTF-16 is full of
  source = load(tmp_path, spoilt, bad_records='skip')
  assert source.metadata['dropped'] == {reason: 1}
  assert list(source) == list(load(tmp_path, lines))


def test_a_torn_last_line(tmp_path):
  lines = [line(0), line(1)[:-4]]
  with pytest.raises(DataError, match=r'jsonl:2: the line is torn: the file'):
    load(tmp_path, lines)
  with pytest.raises(DataError, match=r'jsonl:2: the line is not UTF-8'):
    load(tmp_path, [line(0), b'{"title": "caf\xc3'])
  lines = [*(line(i) for i in range(2, 102)), lines[1]]
  source = load(tmp_path, lines, bad_records='skip')
  assert source.metadata['dropped'] == {'torn_line': 1}


def test_too_many_bad_records(tmp_path):
  good = [line(i) for i in range(198)]
  two = [b'{\n', line(999, title='')]
  source = load(tmp_path, [*good, *two], bad_records='skip')
  assert source.metadata['dropped'] == {'not_json': 1, 'empty_target': 1}
  message = (
    r'3 of 201 records are bad \(1 not_json, 2 empty_target\), more than the'
    r' 1% .* the first: \S+train.jsonl:199: the line is no JSON'
  )
  with pytest.raises(DataError, match=message):
    load(tmp_path, [*good, *two, two[1]], bad_records='skip')


def test_blank_lines_are_counted_one_by_one(tmp_path):
  good = [line(i) for i in range(300)]
  lines = [b'\n', b' \n', *good[:-1], b'\n', good[-1], b'\n', b'\n']
  source = load(tmp_path, lines, bad_records='skip')
  assert (len(source), source.metadata['dropped']) == (300, {'blank_line': 3})
  with pytest.raises(DataError, match='jsonl:1: the line is blank'):
    load(tmp_path, lines)


def test_only_the_later_ones_of_an_id_are_left_out(tmp_path):
  lines = [line(i) for i in range(300)]
  lines[100] = line(7, title='second')
  lines[200] = line(7, title='third')
  source = load(tmp_path, lines, bad_records='skip')
  assert (len(source), source[7]['target']) == (298, 't7')
  assert source.metadata['dropped'] == {'duplicate_id': 2}
  lines[0] = b'\n' + lines[0]
  with pytest.raises(DataError, match='jsonl:1: the line is blank'):
    load(tmp_path, lines)


def test_nothing_in_it(tmp_path):
  for lines in ([], [b'\n', b'\n'], [b'\xef\xbb\xbf']):
    with pytest.raises(DataError, match='train.jsonl holds no records'):
      load(tmp_path, lines)


def test_a_line_beyond_all_measure(tmp_path, monkeypatch):
  monkeypatch.setattr(json_index, 'MAX_LINE', 200)
  fits = line(1, title='t' * 120)
  assert len(load(tmp_path, [fits])) == 1
  with pytest.raises(DataError, match=r'jsonl:2: the line is over .* one rec'):
    load(tmp_path, [fits, line(2, title='t' * 200)], bad_records='skip')


def test_fields_that_are_named(tmp_path):
  lines = [
    line(i, id=i + 10, topic=f'g{i // 2}', source='web') for i in range(3)
  ]
  fields = {'target': 'title', 'group': 'topic', 'source': '', 'id': ''}
  assert load(tmp_path, lines, fields=fields)[2] == {
    'id': '12', 'group': 'g1', 'source': '', 'target': 't2',
  }  # fmt: skip
  with pytest.raises(DataError, match=r"jsonl:1: .* no field 'titel' \(target"):
    load(tmp_path, lines, fields={'target': 'titel'})


def test_fields_by_their_own_names(tmp_path):
  full = {'id': 'i', 'group': 'g', 'source': 's', 'target': 't', 'style': 'x'}
  text = json.dumps(full | {'more': 1}).encode()
  assert load(tmp_path, [text], fields=None)[0] == full
  lines = [line(i, id=..., article=..., target=f't{i}') for i in range(3)]
  assert load(tmp_path, lines, fields={'target': ''})[2] == {
    'id': 'train:2', 'group': 'train:2', 'source': '', 'target': 't2',
  }  # fmt: skip


def test_a_field_that_only_later_records_have_is_kept(tmp_path):
  rows = [{'target': f't{i}', 'source': 's'} for i in range(3)]
  rows[0] |= {'more': 1}
  del rows[0]['source']
  rows[2] |= {'style': 'x'}
  lines = [json.dumps(row).encode() + b'\n' for row in rows]
  source = load(tmp_path, lines, fields=None)
  assert [record['style'] for record in source] == ['', '', 'x']
  assert [record['source'] for record in source] == ['', 's', 's']
  assert list(source.fields) == ['source', 'target', 'style']
  assert list(pickle.loads(pickle.dumps(source))) == list(source)
  # The order of the lines does not matter.
  backwards = load(tmp_path, lines[::-1], fields=None)
  assert list(backwards.fields) == list(source.fields)
  assert backwards[0]['style'] == 'x' and backwards[2]['source'] == ''
  # What is not text is no field, wherever it is.
  lines[2] = json.dumps(rows[2] | {'style': 3}).encode()
  with pytest.raises(DataError, match="jsonl:3: .* has a int as field 'style'"):
    load(tmp_path, lines, fields=None)


def test_a_field_that_is_named_must_be_in_every_record(tmp_path):
  lines = [line(i, style='x') for i in range(199)]
  lines[7] = line(7)
  fields = FIELDS | {'style': 'style'}
  with pytest.raises(DataError, match="jsonl:8: .* no field 'style'"):
    load(tmp_path, lines, fields=fields)
  source = load(tmp_path, lines, fields=fields, bad_records='skip')
  assert source.metadata['dropped'] == {'missing_field': 1}
  source = load(tmp_path, lines)
  assert (len(source), source[7]['style'], source[8]['style']) == (199, '', 'x')


@pytest.mark.parametrize('field', ['id', 'group'])
@pytest.mark.parametrize('lacking', [0, 5])
def test_all_records_have_an_id_or_a_group_or_none(tmp_path, field, lacking):
  rows = [{'id': f'r{i}', 'group': f'g{i}', 'target': 't'} for i in range(250)]
  del rows[lacking][field]
  other = 2 if lacking == 0 else 1
  message = (
    f"jsonl:{lacking + 1}: the line has no field '{field}', but line {other}"
    ' has; mend it'
  )
  lines = [json.dumps(row).encode() + b'\n' for row in rows]
  with pytest.raises(DataError, match=message):
    load(tmp_path, lines, fields=None)
  # One that lacks both is one bad record, and no copy of another.
  rows[9] = {'target': 't'}
  rows[lacking] = dict(rows[20])
  del rows[lacking][field]
  lines = [json.dumps(row).encode() + b'\n' for row in rows]
  source = load(tmp_path, lines, fields=None, bad_records='skip')
  assert (len(source), source.metadata['dropped']) == (
    248, {'missing_field': 2},
  )  # fmt: skip
  assert {'r20'} < {record['id'] for record in source}


def test_places(tmp_path):
  (tmp_path / 'dev').mkdir()
  (tmp_path / 'dev' / 'x.jsonl').write_bytes(line(0))
  arguments = {'fields': FIELDS, 'splits': {'validation': 'dev'}}
  name = 'jsonl:{split}/x.jsonl'
  source = sources.load(name, 'validation', str(tmp_path), **arguments)
  assert (source.name, source.split) == (name, 'validation')
  assert source[0]['target'] == 't0'
  arguments['splits'] = {'test': 'x'}
  folder = sources.load(f'jsonl:{tmp_path}/dev', 'test', **arguments)
  assert folder[0] == source[0]


WIDE = r'\.jsonl is UTF-16 .* iconv'


@pytest.mark.parametrize(('files', 'place', 'message'), [
  ({'train.jsonl': line(0), 'dev.jsonl': line(0)}, '',
   'no plain file .*there are: dev, train; .*splits.validation=dev '),
  ({}, '', r'no plain file \S+/validation.jsonl$'),
  ({'validation.jsonl.gz': b''}, '', 'by position: gunzip it first'),
  ({'validation.jsonl.gz': b''}, '/{split}.jsonl.gz', 'gunzip it first'),
  ({'x.jsonl.gz': b''}, '/x.jsonl.gz', 'by position: gunzip it first'),
  *(({'validation.jsonl': line(0).decode().encode(wide)}, '', WIDE)
    for wide in ('utf-16', 'utf-16-le', 'utf-32-be')),
])  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, files, place, message):
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  for policy in ('error', 'skip'):
    with pytest.raises(DataError, match=message):
      sources.load(
        f'jsonl:{tmp_path}{place}', 'validation', fields=FIELDS,
        bad_records=policy,
      )  # fmt: skip


def test_parts_of_a_split_as_in_tfds(tmp_path):
  lines = [line(i) for i in range(41)]
  (tmp_path / 'dev.jsonl').write_bytes(line(50))

  def ids(part):
    source = load(tmp_path, lines, splits={'train': part})
    assert source[-1] == list(source)[-1]
    return [int(record['id'][1:]) for record in source]

  assert ids('train[:80%]') == list(range(33))
  assert ids('train[80%:]') == list(range(33, 41))
  assert ids('train[10:12]') == [10, 11]
  assert ids('train[-2:]') == [39, 40]
  assert ids('train[:2]+train[40:] + dev') == [0, 1, 40, 50]
  whole = load(tmp_path, lines)
  assert (whole.metadata['kept'], whole.metadata['dropped']) == (41, {})
  part = load(tmp_path, lines, splits={'train': 'train[:40]'})
  assert part.fingerprint != whole.fingerprint
  assert part.metadata['kept'] == 40
  assert list(pickle.loads(pickle.dumps(part))) == list(part)


@pytest.mark.parametrize(('part', 'message'), [
  ('train[:80%', "no split 'train.:80%'"),
  ('train[5]', 'only support slice'),
  ('train[:99]', 'incompatible with 41 examples'),
  ('train[4:4]', 'is empty'),
  ('train[9:3]', 'is empty'),
  ('train[:101%]', r'should be in \[-100, 100\]'),
  ('all[:3]', 'does not support slice'),
  ('train[:9]+train[8:]', 'share examples'),
])  # fmt: skip
def test_parts_that_will_not_do(tmp_path, part, message):
  lines = [line(i) for i in range(41)]
  (tmp_path / 'all.jsonl').write_bytes(line(0))
  with pytest.raises(ConfigError, match=message) as error:
    load(tmp_path, lines, splits={'train': part})
  assert '\n' not in str(error.value)


def test_parts_of_two_files_repeat_no_id_and_agree_in_their_fields(tmp_path):
  lines = [line(0), line(1, style='x')]
  both = {'splits': {'train': 'train+dev'}}
  (tmp_path / 'dev.jsonl').write_bytes(line(2))
  assert [r['style'] for r in load(tmp_path, lines, **both)] == ['', 'x', '']
  (tmp_path / 'dev.jsonl').write_bytes(line(1))
  with pytest.raises(DataError, match="1 of 3 records repeat .* 2 .* 1, 'r1'"):
    load(tmp_path, lines, **both)
  (tmp_path / 'dev.jsonl').write_bytes(line(1, id=...))
  with pytest.raises(DataError, match='have an id or a group and others none'):
    load(tmp_path, lines, **both)


@pytest.mark.parametrize('key', ['group', 'id', 'number'])
def test_one_file_is_divided_by_a_hash(tmp_path, key):
  own = {'group': {}, 'id': {'group': ...}, 'number': {'group': ..., 'id': ...}}
  lines = [line(i, **{'group': i // 2} | own[key]) for i in range(1000)]
  file = tmp_path / 'all.jsonl'
  file.write_bytes(b''.join(lines))

  def of(split, **splits):
    return sources.load(f'jsonl:{file}', split, fields=FIELDS, splits=splits)

  found = {split: of(split) for split in sources.SPLITS}
  sources.check_disjoint(list(found.values()))
  assert not sources.same_records(list(found.values()))
  sizes = {split: len(source) for split, source in found.items()}
  assert sum(sizes.values()) == 1000
  assert 870 < sizes['train'] < 930
  assert min(sizes.values()) > 25
  texts = {r['target'] for source in found.values() for r in source}
  assert len(texts) == 1000
  assert len({source.fingerprint for source in found.values()}) == 3
  told = found['test'].metadata['divided']
  assert f'divided by a hash of the {key} (90/5/5): {sizes["train"]} t' in told
  groups = [{r['group'] for r in source} for source in found.values()]
  assert len(set.union(*groups)) == sum(map(len, groups))
  before = [r['target'] for r in found['test']]
  # Fewer lines move none of those that stay.
  file.write_bytes(b''.join(lines[:500]))
  after = [r['target'] for r in of('test')]
  assert 0 < len(after) < len(before) and after == before[: len(after)]
  assert len(of('validation', validation='train[:10]')) == 10
  with pytest.raises(ConfigError, match="split of one file 'dev'"):
    of('validation', validation='dev')


def test_too_few_for_a_split_of_one_file(tmp_path):
  file = tmp_path / 'all.jsonl'
  file.write_bytes(line(0))
  found = []
  for split in sources.SPLITS:
    try:
      found += sources.load(f'jsonl:{file}', split, fields=FIELDS)
    except DataError as error:
      assert f'too few for {split}' in str(error)
  assert len(found) == 1


def test_splits_that_are_the_same_records_are_said(tmp_path):
  lines = [line(i) for i in range(20)]
  for name in ('validation', 'test'):
    load(tmp_path, lines, name)
  bare = [line(i, id=...) for i in range(20)]

  def told(lines, **splits):
    load(tmp_path, lines)
    found = [
      sources.load(f'jsonl:{tmp_path}', split, fields=FIELDS, splits=splits)
      for split in sources.SPLITS
    ]
    said = sources.same_records(found)
    assert all('\n' not in text for text in said)
    return found, said

  name = f'jsonl:{tmp_path}'
  # The files are copies of each other, whatever they are called.
  found, (said,) = told(bare)
  assert "validation ('validation') and test ('test') share 20 records" in said
  assert 'the model is selected on the records it is tested on' in said
  sources.check_disjoint(found[1:])
  same = {'train': 'train', 'validation': 'test', 'test': 'test'}
  _, (said,) = told(bare, **same)
  assert "validation ('test') and test ('test') share 20 records" in said
  (by_name,) = sources.same_names(name, same)
  assert by_name == said.replace('20 ', '')
  cut = {'train': 'train[:80%]', 'validation': 'train[70%:90%]'}
  cut['test'] = 'train[90%:]'
  found, (said,) = told(lines, **cut)
  assert "('train[:80%]') and validation ('train[70%:90%]') share 2 rec" in said
  assert 'learnt before' in said
  assert len(sources.same_names(name, cut)) == 1
  with pytest.raises(DataError, match='2 groups are in train and in valid'):
    sources.check_disjoint(found)
  assert not sources.same_names(name, {'train': 'train[:9]', 'test': 'x'})
  assert not sources.same_names('botocore', same)


def test_the_fingerprint_is_that_of_the_bytes_and_fields(tmp_path):
  lines = [line(i) for i in range(3)]
  here, there = tmp_path / 'here', tmp_path / 'there'
  here.mkdir(), there.mkdir()
  first = load(here, lines)
  digest = hashlib.sha256(b''.join(lines)).hexdigest()
  file = str(here / 'train.jsonl')
  assert jsonl.JsonLines(file, FIELDS, 'error').digest == digest
  assert load(there, lines).fingerprint == first.fingerprint
  others = [
    load(there, lines[::-1]),
    load(there, [*lines, b'\n']),
    load(there, lines, fields={'target': 'title'}),
    load(there, lines, fields={'target': 'article', 'source': 'title'}),
  ]
  assert len({first.fingerprint, *(o.fingerprint for o in others)}) == 5


def test_threads_and_pickles_read_the_same(tmp_path):
  lines = [line(i, title='é' * (i % 97) + str(i)) for i in range(2000)]
  source = load(tmp_path, lines)
  wanted, wrong = list(source), []
  copy = pickle.loads(pickle.dumps(source))
  assert len(pickle.dumps(source)) < 16 * len(lines) + 10_000

  def read(first):
    for i in range(first, len(copy), 5):
      if copy[i] != wanted[i]:
        wrong.append(i)

  threads = [threading.Thread(target=read, args=[i]) for i in range(5)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
  dataset = grain.MapDataset.source(source).seed(3).shuffle()
  options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
  ids = [record['id'] for record in dataset.to_iter_dataset(options)]
  assert sorted(ids) == sorted(record['id'] for record in wanted)
  assert ids != [record['id'] for record in wanted]


def test_a_file_that_changes_is_noticed(tmp_path):
  source = load(tmp_path, [line(i) for i in range(10)])
  pickled = pickle.dumps(source)
  file = tmp_path / 'train.jsonl'
  os.truncate(file, 200)
  with pytest.raises(DataError, match='train.jsonl has changed since'):
    source[9]
  with pytest.raises(DataError, match='train.jsonl has changed since'):
    pickle.loads(pickled)
  file.unlink()
  with pytest.raises(DataError, match='train.jsonl cannot be read'):
    pickle.loads(pickled)


def test_no_file_stays_open(tmp_path):
  before = len(os.listdir('/proc/self/fd'))
  for _ in range(5):
    load(tmp_path, [line(0)])
  assert len(os.listdir('/proc/self/fd')) == before


def test_memory_does_not_grow_with_the_text(tmp_path):
  file = tmp_path / 'large'
  lines = (line(i, title='word ' * 4000) for i in range(1000))
  file.write_bytes(b''.join(lines))
  assert file.stat().st_size > 20e6
  tracemalloc.start()
  records = jsonl.JsonLines(str(file), {'target': 'title'}, 'error')
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert len(records) == 1000
  assert peak < 2e6
