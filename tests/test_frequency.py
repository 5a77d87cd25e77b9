import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdl_jax import frequency
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.frequency import FrequencyTable

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


@pytest.mark.parametrize(('ids', 'shown'), [([1, 7], '1..7'), ([-1], '-1..-1')])
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


def test_save_and_load(tmp_path):
  table, path = make_table(), tmp_path / 'frequency.npz'
  table.save(path)
  found = load(path)
  assert found.fingerprint == table.fingerprint
  assert found.data_name == 'verses'
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


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_a_table_of_an_evaluation_split_is_refused(tmp_path, split):
  path = tmp_path / 'frequency.npz'
  make_table(split=split).save(path)
  with pytest.raises(DataError, match=f'the {split} split of verses'):
    load(path)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
  with pytest.raises(DataError, match='there is no frequency table'):
    load(tmp_path / 'absent.npz')
  path = tmp_path / 'foreign.npz'
  for content in (b'', b'text', json.dumps({}).encode()):
    path.write_bytes(content)
    with pytest.raises(DataError, match='not a frequency table'):
      load(path)
  np.savez(path, counts_V=np.zeros(V))
  with pytest.raises(DataError, match='not a frequency table'):
    load(path)
  np.savez(path, counts_V=np.zeros(V), meta=json.dumps({'split': 'train'}))
  with pytest.raises(DataError, match='not a frequency table'):
    load(path)


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


def test_effective_sample_size():
  counts = np.array([10, 1, 1])
  size = frequency.effective_sample_size
  assert size(counts, np.full(3, 2.5)) == pytest.approx(1)
  # One token of twelve carries everything.
  assert size(counts, np.array([0.0, 0.0, 1.0])) == pytest.approx(1 / 12)
  # (10 * 0.1 + 2)**2 / (10 * 0.01 + 2) / 12.
  found = size(counts, np.array([0.1, 1.0, 1.0]))
  assert found == pytest.approx(9 / 2.1 / 12)
