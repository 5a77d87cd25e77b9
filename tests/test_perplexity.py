import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdl_jax.errors import DataError
from pdl_jax.evaluate.perplexity import (
  BUCKETS,
  bits_per_byte,
  nats_per_token,
  perplexity,
  perplexity_by_frequency,
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
  assert 'end-of-turn token included' in found.definition
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
  assert 'end-of-turn' in found.definition


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


@given(record_lists(), count_arrays())
def test_buckets_add_up_to_the_total(records, counts):
  found = perplexity_by_frequency(records, np.array(counts))
  total = nats_per_token(records)
  buckets = found['buckets'].values()
  assert sum(bucket['tokens'] for bucket in buckets) == total.n == found['n']
  nats = sum(b['tokens'] * b['nats_per_token'] for b in buckets if b['tokens'])
  assert nats == pytest.approx(total.value * total.n, rel=1e-12, abs=1e-12)


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
