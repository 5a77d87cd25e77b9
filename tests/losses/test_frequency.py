import functools
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pdl_jax import power_law_weights
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.losses import frequency
from pdl_jax.losses.frequency import FrequencyTable

V = 7


def make_table(**changes):
  fields = {
    'counts_V': np.array([0, 3, 1, 0, 6, 2, 0]),
    'tokenizer': 'a' * 64,
    'tokenizer_name': 'bpe-a',
    'data': 'd' * 64,
    'data_name': 'verses',
    'split': 'train',
  }
  return FrequencyTable(**{**fields, **changes})


def make_general(**changes):
  return make_table(**{
    'counts_V': np.array([40, 0, 10, 0, 30, 20, 100]),
    'data': 'g' * 64,
    'data_name': 'wiki',
    **changes,
  })


def load(path, **changes):
  ours = {
    'tokenizer': 'a' * 64, 'tokenizer_name': 'bpe-a', 'vocab_size': V,
  }
  return frequency.load(path, **{**ours, **changes})


@given(st.lists(st.lists(st.integers(0, V - 1))))
def test_count_is_a_naive_count(lists):
  found = frequency.count(iter(lists), V)
  assert found.dtype == np.int64
  running = [token for tokens in lists for token in tokens]
  assert found.tolist() == [running.count(token) for token in range(V)]


@pytest.mark.parametrize(('ids', 'shown'), [([1, 7], '0..7'), ([-1], '-1..0')])
def test_ids_outside_the_vocabulary_are_refused(ids, shown):
  with pytest.raises(DataError, match=f'{shown} do not fit .* of 7'):
    frequency.count([[0], ids], V)


def test_units():
  table = make_table()
  assert table.total == 12
  assert table.frequency('count').tolist() == [0, 3, 1, 0, 6, 2, 0]
  assert table.frequency('probability').sum() == pytest.approx(1)
  np.testing.assert_allclose(
    table.frequency('probability') * 12, table.frequency('count')
  )
  with pytest.raises(ConfigError, match="'percent' is not one of count, prob"):
    table.frequency('percent')
  empty = make_table(counts_V=np.zeros(V, int))
  assert empty.frequency('count').sum() == 0
  with pytest.raises(DataError, match='verses: no target token was counted'):
    empty.frequency('probability')


def test_fingerprint_names_everything_that_was_counted():
  prints = {make_table().fingerprint, make_table().fingerprint}
  assert len(prints) == 1
  other_counts = make_table().counts_V.copy()
  other_counts[0] += 1
  for change in (
    {'counts_V': other_counts},
    {'tokenizer': 'b' * 64},
    {'data': 'e' * 64},
    {'split': 'test'},
  ):
    prints.add(make_table(**change).fingerprint)
  assert len(prints) == 5
  narrow = make_table(counts_V=make_table().counts_V.astype(np.int32))
  assert narrow.fingerprint == make_table().fingerprint


def test_fingerprint_of_integer_counts_is_as_it_always_was():
  assert make_table().fingerprint == (
    '2b79d6edc2f591460fc4a9fdb693e09593f9722e31002b0c23d88b8c75f074e1'
  )


def test_fractions_count_in_the_fingerprint():
  halves = make_table(counts_V=make_table().counts_V + 0.5)
  quarters = make_table(counts_V=make_table().counts_V + 0.25)
  assert halves.fingerprint != quarters.fingerprint


def test_save_and_load(tmp_path):
  path = tmp_path / 'frequency.npz'
  for table in (
    make_table(), frequency.mix(make_table(), make_general(), 0.3)
  ):
    table.save(path)
    found = load(path)
    assert found.fingerprint == table.fingerprint
    assert found.data_name == table.data_name
    assert found.total == 12
    assert found.counts_V.dtype == table.counts_V.dtype
    np.testing.assert_array_equal(found.counts_V, table.counts_V)
  assert [file.name for file in tmp_path.iterdir()] == ['frequency.npz']


def test_a_table_of_another_tokenizer_is_refused(tmp_path):
  path = tmp_path / 'frequency.npz'
  make_table().save(path)
  with pytest.raises(DataError) as error:
    load(path, tokenizer='b' * 64, tokenizer_name='bpe-b')
  for part in ('bpe-a (aaaaaaaa, 7', 'bpe-b (bbbbbbbb', 'frequency_table'):
    assert part in str(error.value)
  with pytest.raises(DataError, match='7 types.*this run uses.* 9 types'):
    load(path, vocab_size=9)


def test_a_table_of_an_evaluation_split_is_refused(tmp_path):
  path = tmp_path / 'frequency.npz'
  make_table(split='test').save(path)
  with pytest.raises(DataError, match='the test split of verses'):
    load(path)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
  with pytest.raises(DataError, match='there is no frequency table'):
    load(tmp_path / 'absent.npz')
  path = tmp_path / 'foreign.npz'

  def refused():
    with pytest.raises(DataError, match='not a frequency table'):
      frequency.read(path)

  for content in (b'', b'text', b'{}'):
    path.write_bytes(content)
    refused()
  np.savez(path, counts_V=np.zeros(V))
  refused()
  # A torn meta, and a header that lies about its size.
  for meta in (
    '{"split": "train"}', '[]', '{"tokenizer": ', '{"more": 1}', '[' * 100_000,
    b'\xff\xfe',
  ):  # fmt: skip
    np.savez(path, counts_V=make_table().counts_V, meta=meta)
    refused()
  for shape in ('(999999999999999,)', f'({10**30},)', 'x'):
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + '\n'
    member = b'\x93NUMPY\x01\x00' + bytes([len(header), 0]) + header.encode()
    with zipfile.ZipFile(path, 'w') as file:
      file.writestr('counts_V.npy', member)
      file.writestr('meta.npy', member)
    refused()


@pytest.mark.parametrize(
  ('changes', 'wrong'),
  [
    ({'counts_V': np.array([0, 3, np.nan, 0, 6, 2, 0])}, '1 of 7 counts are'),
    ({'counts_V': np.array([0, 3, -1, 0, 6, 2, 0])}, '1 of 7 counts are neg'),
    ({'counts_V': np.array(['0', 'three'])}, 'of <U5'),
    ({'counts_V': np.ones((7, 1), int)}, r'shape \(7, 1\)'),
    ({'counts_V': np.zeros(V, int)}, 'none of its 7 token types'),
    ({'tokenizer': 5}, 'tokenizer is no text but of type int'),
  ],
)
def test_what_no_run_has_written_is_refused_in_one_line(
  tmp_path, changes, wrong
):
  path = tmp_path / 'frequency.npz'
  make_table(**changes).save(path)
  with pytest.raises(DataError, match=f'not a frequency table .*{wrong}') as e:
    frequency.read(path)
  assert '\n' not in str(e.value)


def test_no_flipped_byte_or_cut_gives_another_table(tmp_path):
  table, path = make_table(), tmp_path / 'frequency.npz'
  table.save(path)
  intact = path.read_bytes()
  damaged = [intact[:size] for size in range(0, len(intact), 50)]
  for index in range(len(intact)):
    flipped = bytearray(intact)
    flipped[index] ^= 0xFF
    damaged.append(bytes(flipped))
  refused = 0
  for content in damaged:
    path.write_bytes(content)
    try:
      assert load(path).fingerprint == table.fingerprint
    except DataError:
      refused += 1
  assert refused > len(damaged) / 2


rows = st.lists(st.integers(0, 10**6), min_size=V, max_size=V)


@given(rows, rows, st.floats(0, 1))
def test_mix_against_the_formula(task_counts, general_counts, share):
  assume(sum(task_counts) and sum(general_counts))
  task = make_table(counts_V=np.array(task_counts))
  general = make_general(counts_V=np.array(general_counts))
  found = frequency.mix(task, general, share)
  expected = [
    (1 - share) * a / task.total + share * b / general.total
    for a, b in zip(task_counts, general_counts, strict=True)
  ]
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-12, atol=1e-300
  )
  close(found.frequency('probability'), expected)
  close(found.frequency('count'), np.multiply(expected, task.total))
  assert found.total == task.total


def test_limits_of_the_share():
  task, general = make_table(), make_general()
  alone = frequency.mix(task, general, 0)
  assert alone.fingerprint == task.fingerprint
  assert alone.counts_V.dtype == np.int64
  # The general corpus at the size of the task.
  other = frequency.mix(task, general, 1.0)
  np.testing.assert_allclose(other.counts_V, general.counts_V * 12 / 200)
  # A table mixed with one of the same proportions keeps its counts.
  same = frequency.mix(task, make_general(counts_V=task.counts_V * 5), 0.4)
  np.testing.assert_allclose(same.counts_V, task.counts_V)


def test_a_mix_names_both_sources_and_the_share():
  task, general = make_table(), make_general()
  found = frequency.mix(task, general, 0.25)
  assert found.data_name == 'verses with 0.25 of wiki'
  # Same counts and names: only the fingerprints of the data differ.
  same = [
    frequency.mix(*pair)
    for pair in (
      (task, general, 0.25),
      (make_table(data='e' * 64), general, 0.25),
      (task, make_general(data='e' * 64), 0.25),
    )
  ]
  assert same[0].fingerprint == found.fingerprint
  assert len({table.fingerprint for table in same}) == 3
  assert len({table.data for table in same}) == 3
  assert all(len(table.data) == 64 for table in same)
  assert frequency.mix(task, general, 0.5).data != found.data
  assert frequency.mix(task, general, 1).fingerprint == (
    frequency.mix(task, general, 1.0).fingerprint
  )


@pytest.mark.parametrize(
  'change',
  [
    {'tokenizer': 'b' * 64, 'tokenizer_name': 'bpe-b'},
    {'tokenizer': 'a' * 63 + 'b'},
    {'counts_V': np.ones(9, int)},
  ],
)
def test_tables_of_other_tokenizers_do_not_mix(change):
  general = make_general(**change)
  with pytest.raises(DataError) as error:
    frequency.mix(make_table(), general, 0)
  message = str(error.value)
  for part in (
    r'verses/train (dddddddd) was counted with tokenizer bpe-a (aaaaaaaa, 7',
    f'wiki/train (gggggggg) was counted with tokenizer '
    f'{general.tokenizer_name} ({general.tokenizer[:8]}, '
    f'{general.counts_V.size} types)',
  ):
    assert part in message
  assert '\n' not in message


@pytest.mark.parametrize('which', [0, 1])
def test_evaluation_splits_are_not_mixed(which):
  tables = [make_table(), make_general()]
  tables[which] = [make_table, make_general][which](split='test')
  for share in (0, 0.5):
    with pytest.raises(DataError, match='only come from train') as error:
      frequency.mix(*tables, share)
    assert f'{tables[which].data_name}/test' in str(error.value)


@pytest.mark.parametrize('share', [-0.1, 1.5, float('nan')])
def test_a_share_outside_its_range_is_refused(share):
  with pytest.raises(ConfigError, match=f'share {share} .* outside') as error:
    frequency.mix(make_table(), make_general(), share)
  assert 'wiki' in str(error.value)
  assert 'verses' in str(error.value)


def test_nothing_counted_cannot_be_mixed():
  empty = np.zeros(V, int)
  for tables in (
    (make_table(counts_V=empty), make_general()),
    (make_table(), make_general(counts_V=empty)),
  ):
    with pytest.raises(DataError, match='no target token was counted'):
      frequency.mix(*tables, 0.5)


# Words and the ids of their pieces; 'aba' has one piece twice, 'a' has two
# spellings, and 6 is in no word.
WORDS = [
  ('aba', (0, 1, 0)), ('a', (0,)), ('a', (2,)), ('b', (1,)), ('cab', (3, 4)),
  ('c', (5,)),
]
documents = st.lists(st.lists(st.sampled_from(WORDS)))


@given(documents)
def test_word_level_is_the_naive_mean_over_occurrences(texts):
  running = [word for words in texts for word, _ in words]
  found = frequency.word_level(iter(texts), V)
  assert found.dtype == np.float64
  for piece in range(V):
    logs = [
      np.log(running.count(word))
      for words in texts
      for word, ids in words
      for number in ids
      if number == piece
    ]
    expected = np.exp(np.mean(logs)) if logs else 0
    assert found[piece] == pytest.approx(expected, rel=1e-12)


@given(documents, st.integers(1, 5))
def test_word_level_of_a_corpus_read_again_is_a_multiple(texts, times):
  once, again = (
    frequency.word_level(texts * n, V) for n in (1, times)
  )
  np.testing.assert_allclose(again, times * once, rtol=1e-12)
  # Neither the order nor the division into texts matters.
  whole = [[word for words in reversed(texts) for word in words]]
  np.testing.assert_allclose(
    frequency.word_level(whole, V), once, rtol=1e-12
  )


def test_golden_word_level():
  texts = [[WORDS[0]] * 4, [WORDS[1]] * 5 + [WORDS[2]] * 3 + [WORDS[5]] * 6]
  found = frequency.word_level(texts, V)
  # Piece 0: eight times in 'aba' (4), five times in 'a' (8, in two spellings).
  expected = [4 ** (8 / 13) * 8 ** (5 / 13), 4, 8, 0, 0, 6, 0]
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_power_law_of_it_is_the_geometric_mean_of_the_word_weights():
  texts = [[WORDS[0]] * 4, [WORDS[1]] * 5, [WORDS[3]] * 2]
  found = power_law_weights(
    frequency.word_level(texts, V), alpha=0.7, epsilon=0.0, normalize='none',
    unseen='neutral',
  )
  word_weight = np.array([4, 5, 2]) ** -0.7
  np.testing.assert_allclose(
    found[:2],
    [
      word_weight[0] ** (8 / 13) * word_weight[1] ** (5 / 13),
      word_weight[0] ** (4 / 6) * word_weight[2] ** (2 / 6),
    ],
    rtol=1e-6,
  )


def test_word_level_memory_does_not_grow_with_the_running_words():
  def peak(texts):
    tracemalloc.start()
    frequency.word_level(([*WORDS] for _ in range(texts)), V)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest

  assert peak(5000) < 2 * peak(50)


def test_word_level_refuses_ids_outside_the_vocabulary():
  for ids in ((1, 7), (-1, 7)):
    with pytest.raises(DataError, match=f'{ids[0]}..7 do not fit .* of 7'):
      frequency.word_level([[('a', (0,)), ('b', ids)]], V)


def test_effective_sample_size():
  counts = np.array([10, 1, 1])
  size = frequency.effective_sample_size
  assert size(counts, np.full(3, 2.5)) == pytest.approx(1)
  # One token of twelve carries everything.
  assert size(counts, np.array([0.0, 0.0, 1.0])) == pytest.approx(1 / 12)
  # (10 * 0.1 + 2)**2 / (10 * 0.01 + 2) / 12.
  found = size(counts, np.array([0.1, 1.0, 1.0]))
  assert found == pytest.approx(9 / 2.1 / 12)
