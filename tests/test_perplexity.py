import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdl_jax.errors import DataError
from pdl_jax.evaluate.likelihood import (
  BUCKETS,
  bits_per_byte,
  mass_deciles,
  nats_per_token,
  perplexity,
  perplexity_by_frequency,
  perplexity_by_mass,
)
from tests.prediction_records import (
  VOCAB,
  count_arrays,
  make_record,
  record_lists,
)


def with_nll(nll, name='a', **fields):
  return make_record(
    name, reference_nll=nll, reference_ids=[1] * len(nll), **fields
  )


def test_perplexity_golden():
  records = [with_nll([1.0, 1.0, 1.0]), with_nll([5.0], 'b')]
  found = perplexity(records)
  # exp(8 / 4); a mean of the two means would give exp(3).
  assert found.value == pytest.approx(7.389056, abs=1e-6)
  assert (found.n, found.unit) == (4, 'tokens')
  assert 'stop tokens included' in found.definition
  assert nats_per_token(records).value == 2.0


def test_uniform_model_has_the_vocabulary_size_as_perplexity():
  found = perplexity([with_nll([math.log(50)] * 7)])
  assert found.value == pytest.approx(50)


def test_certain_model_has_perplexity_one_and_no_bits():
  records = [with_nll([0.0, 0.0])]
  assert perplexity(records).value == 1.0
  assert bits_per_byte(records).value == 0.0


def test_bits_per_byte_counts_utf8_bytes_of_the_first_reference():
  # 'é' has two bytes; one bit a token, three tokens.
  record = with_nll([math.log(2)] * 3, references=['éa', 'ignored'])
  found = bits_per_byte([record])
  assert found.value == pytest.approx(1.0)
  assert (found.n, found.unit) == (3, 'bytes')
  assert 'stop tokens' in found.definition


def test_bits_per_byte_of_empty_targets_is_undefined():
  assert bits_per_byte([with_nll([1.0], references=[''])]).value is None


def test_no_records_is_none_not_zero():
  assert perplexity([]).value is None
  assert nats_per_token([]).value is None
  assert bits_per_byte([]).value is None


def test_perplexity_above_the_largest_float_is_none_and_json():
  records = [with_nll([1000.0])]
  assert perplexity(records).value is None
  assert nats_per_token(records).value == 1000.0
  json.dumps(perplexity(records).to_json(), allow_nan=False)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
  'measure',
  [
    perplexity,
    nats_per_token,
    bits_per_byte,
    lambda records: perplexity_by_frequency(records, np.ones(VOCAB, int)),
    lambda records: perplexity_by_mass(records, np.ones(VOCAB, int)),
  ],
)
def test_likelihood_that_is_not_finite_names_the_record(measure, bad):
  records = [with_nll([1.0]), with_nll([1.0, bad], 'broken')]
  with pytest.raises(DataError, match=r"'broken'.*reference_nll.*token 1 of 2"):
    measure(records)


@given(record_lists(), st.randoms())
def test_order_of_records_changes_nothing(records, random):
  shuffled = records.copy()
  random.shuffle(shuffled)
  for measure in (perplexity, nats_per_token, bits_per_byte):
    assert measure(records) == measure(shuffled)


@pytest.mark.parametrize(
  'measure', [perplexity_by_frequency, perplexity_by_mass]
)
@given(record_lists(), count_arrays())
def test_buckets_add_up_to_the_total(measure, records, counts):
  found = measure(records, np.array(counts))
  total = nats_per_token(records)
  buckets = found['buckets'].values()
  assert sum(bucket['tokens'] for bucket in buckets) == total.n == found['n']
  nats = sum(b['tokens'] * b['nats_per_token'] for b in buckets if b['tokens'])
  assert nats == pytest.approx(total.value * total.n, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
  'measure', [perplexity_by_frequency, perplexity_by_mass]
)
def test_buckets_add_up_exactly(measure):
  # Powers of two, so that no division rounds.
  records = [
    make_record(str(i), reference_ids=[i, i], reference_nll=[0.5 * i, 4.0])
    for i in range(VOCAB)
  ]
  counts = np.array([0, 1, 2, 3, 4, 5, 9, 10, 99, 100, 999, 1000])
  buckets = measure(records, counts)['buckets'].values()
  sums = [b['tokens'] * b['nats_per_token'] for b in buckets if b['tokens']]
  assert sum(sums) == 0.5 * 66 + 4.0 * VOCAB


def test_even_counts_fall_into_even_deciles():
  # Four counts with 10 tokens each: middles at 12.5, 37.5, 62.5 and 87.5 %.
  counts = np.array([1] * 10 + [2] * 5 + [5] * 2 + [10, 0, 0])
  assert mass_deciles(counts).tolist() == (
    [2] * 10 + [4] * 5 + [7] * 2 + [9] + [0, 0]
  )
  ten = np.array([11, 12, 13, 14, 15, 16, 17, 18, 19, 20]) + 10_000
  assert mass_deciles(ten).tolist() == list(range(1, 11))


def test_deciles_keep_one_count_together_and_take_the_middle():
  # Two types hold 98 of 100 tokens: their middle is at 51 %.
  assert mass_deciles(np.array([49, 1, 49, 1])).tolist() == [6, 1, 6, 1]
  # The middle of the whole mass is exactly half.
  assert mass_deciles(np.array([3, 3])).tolist() == [6, 6]


def test_deciles_without_any_training_token_are_unseen():
  with np.errstate(all='raise'):
    assert mass_deciles(np.array([0, 0])).tolist() == [0, 0]
  found = perplexity_by_mass(
    [make_record(reference_ids=[1], reference_nll=[2.0])], np.array([0, 0])
  )
  assert found['buckets']['unseen'] == {
    'tokens': 1,
    'nats_per_token': 2.0,
    'perplexity': math.exp(2),
    'counts': [0, 0],
    'training_share': None,
  }


@given(count_arrays(), st.permutations(range(VOCAB)))
def test_deciles_ascend_and_do_not_depend_on_the_order(counts, order):
  counts = np.array(counts)
  deciles = mass_deciles(counts)
  assert mass_deciles(counts[order]).tolist() == deciles[order].tolist()
  assert (np.diff(deciles[np.argsort(counts, kind='stable')]) >= 0).all()
  assert (deciles == 0).tolist() == (counts == 0).tolist()
  assert deciles.max() <= 10


def test_mass_buckets_say_what_training_held():
  counts = np.array([0, 1, 1, 2, 16])
  record = make_record(reference_ids=[1, 3, 4], reference_nll=[4.0, 1.0, 2.0])
  buckets = perplexity_by_mass([record], counts)['buckets']
  assert list(buckets) == ['unseen', *map(str, range(1, 11))]
  # Middles of 1 1, of 2 and of 16 in 20 tokens: 5 %, 15 %, 60 %.
  assert buckets['1'] == {
    'tokens': 1,
    'nats_per_token': 4.0,
    'perplexity': math.exp(4),
    'counts': [1, 1],
    'training_share': 0.1,
  }
  assert (buckets['2']['counts'], buckets['7']['counts']) == ([2, 2], [16, 16])
  assert buckets['7']['training_share'] == 0.8
  assert buckets['3'] == {
    'tokens': 0,
    'nats_per_token': None,
    'perplexity': None,
    'counts': None,
    'training_share': 0.0,
  }


@pytest.mark.parametrize(
  ('count', 'bucket'),
  [
    (0, '0'),
    (1, '1'),
    (2, '2'),
    (3, '3'),
    (4, '4'),
    (5, '5-9'),
    (9, '5-9'),
    (10, '10-99'),
    (99, '10-99'),
    (100, '100-999'),
    (999, '100-999'),
    (1000, '1000+'),
    (10**9, '1000+'),
  ],
)
def test_bucket_edges(count, bucket):
  found = perplexity_by_frequency([with_nll([1.5])], np.array([7, count]))
  tokens = {name: b['tokens'] for name, b in found['buckets'].items()}
  assert tokens == {name: int(name == bucket) for name in BUCKETS}


def test_bucket_values_and_empty_buckets():
  record = make_record(reference_ids=[1, 2, 2], reference_nll=[4.0, 1.0, 2.0])
  found = perplexity_by_frequency([record], np.array([0, 1, 20]))['buckets']
  assert found['1'] == {
    'tokens': 1,
    'nats_per_token': 4.0,
    'perplexity': math.exp(4),
  }
  assert found['10-99']['perplexity'] == pytest.approx(math.exp(1.5))
  assert found['0'] == {'tokens': 0, 'nats_per_token': None, 'perplexity': None}


@pytest.mark.parametrize('token', [-1, 3])
def test_token_outside_the_counts_is_refused(token):
  record = make_record('x', reference_ids=[token], reference_nll=[1.0])
  with pytest.raises(DataError, match=rf"'x'.*id {token}, outside \[0, 3\)"):
    perplexity_by_frequency([record], np.array([1, 2, 3]))
  with pytest.raises(DataError, match=rf"'x'.*id {token}, outside \[0, 3\)"):
    perplexity_by_mass([record], np.array([1, 2, 3]))


@pytest.mark.parametrize(
  ('counts', 'message'),
  [
    (np.array([0.5, 0.5]), 'not integers'),
    (np.array([1, -2]), 'negative one: -2'),
    (np.ones((2, 2), int), 'shape'),
    (np.array([], int), 'shape'),
  ],
)
def test_bad_counts_are_refused(counts, message):
  with pytest.raises(DataError, match=message):
    perplexity_by_frequency([make_record()], counts)
  with pytest.raises(DataError, match=message):
    perplexity_by_mass([make_record()], counts)
