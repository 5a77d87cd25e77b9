import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings

from pdl_jax.errors import DataError
from pdl_jax.evaluate.likelihood import BUCKETS
from pdl_jax.evaluate.run import evaluate
from tests.prediction_records import (
  VOCAB,
  count_arrays,
  make_record,
  record_lists,
)

ONES = np.ones(VOCAB, int)


def measure(key, records, counts=ONES):
  return evaluate(records, counts, []).results[key]


def by_frequency(records, counts=ONES):
  return measure('perplexity_by_frequency', records, counts)


def with_nll(nll, name='a', **fields):
  return make_record(
    name, reference_nll=nll, reference_ids=[1] * len(nll), **fields
  )


def test_perplexity_golden():
  records = [with_nll([1.0, 1.0, 1.0]), with_nll([5.0], 'b')]
  found = measure('perplexity', records)
  # exp(8 / 4); a mean of the two means would give exp(3).
  assert found['value'] == pytest.approx(7.389056, abs=1e-6)
  assert (found['n'], found['unit']) == (4, 'tokens')
  assert 'stop tokens included' in found['definition']
  assert measure('nats_per_token', records)['value'] == 2.0


def test_uniform_and_certain_models():
  found = measure('perplexity', [with_nll([math.log(50)] * 7)])
  assert found['value'] == pytest.approx(50)
  records = [with_nll([0.0, 0.0])]
  assert measure('perplexity', records)['value'] == 1.0
  assert measure('bits_per_byte', records)['value'] == 0.0


def test_bits_per_byte_counts_utf8_bytes_of_the_first_reference():
  # 'é' has two bytes; one bit per token, three tokens.
  record = with_nll([math.log(2)] * 3, references=['éa', 'ignored'])
  found = measure('bits_per_byte', [record])
  assert found['value'] == pytest.approx(1.0)
  assert (found['n'], found['unit']) == (3, 'bytes')
  assert 'stop tokens' in found['definition']
  empty = with_nll([1.0], references=[''])
  assert measure('bits_per_byte', [empty])['value'] is None


def test_perplexity_above_the_largest_float_is_none_and_json():
  records = [with_nll([1000.0])]
  assert measure('perplexity', records)['value'] is None
  assert measure('nats_per_token', records)['value'] == 1000.0
  json.dumps(evaluate(records, ONES, []), allow_nan=False)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_likelihood_that_is_not_finite_names_the_record(bad):
  records = [with_nll([1.0]), with_nll([1.0, bad], 'broken')]
  with pytest.raises(DataError, match=r"'broken'.*reference_nll.*token 1 of 2"):
    evaluate(records, ONES, [])


@settings(max_examples=25, deadline=None)
@given(record_lists(), count_arrays())
def test_buckets_add_up_to_the_total(records, counts):
  assume(sum(counts))
  found = by_frequency(records, np.array(counts))
  total = measure('nats_per_token', records)
  buckets = found['buckets'].values()
  n = total['n']
  assert sum(bucket['tokens'] for bucket in buckets) == n == found['n']
  nats = sum(b['tokens'] * b['nats_per_token'] for b in buckets if b['tokens'])
  assert nats == pytest.approx(total['value'] * n, rel=1e-12, abs=1e-12)


def test_buckets_add_up_exactly():
  # Powers of two, so that no division rounds.
  records = [
    make_record(str(i), reference_ids=[i, i], reference_nll=[0.5 * i, 4.0])
    for i in range(VOCAB)
  ]
  counts = np.array([0, 1, 2, 3, 4, 5, 9, 10, 99, 100, 999, 1000])
  buckets = by_frequency(records, counts)['buckets'].values()
  sums = [b['tokens'] * b['nats_per_token'] for b in buckets if b['tokens']]
  assert sum(sums) == 0.5 * 66 + 4.0 * VOCAB


def test_bucket_edges():
  edges = {
    0: '0', 1: '1', 2: '2', 3: '3', 4: '4', 5: '5-9', 9: '5-9', 10: '10-99',
    99: '10-99', 100: '100-999', 999: '100-999', 1000: '1000+', 10**9: '1000+',
  }  # fmt: skip
  for count, bucket in edges.items():
    record = with_nll([1.5], token_ids=[1])
    found = by_frequency([record], np.array([7, count]))
    tokens = {name: b['tokens'] for name, b in found['buckets'].items()}
    assert tokens == {name: int(name == bucket) for name in BUCKETS}


def test_bucket_values_and_empty_buckets():
  record = make_record(
    reference_ids=[1, 2, 2], reference_nll=[4.0, 1.0, 2.0], token_ids=[1]
  )
  found = by_frequency([record], np.array([0, 1, 20]))['buckets']
  assert found['1'] == {
    'tokens': 1, 'nats_per_token': 4.0,
    'perplexity': pytest.approx(math.exp(4)),
  }  # fmt: skip
  assert found['10-99']['perplexity'] == pytest.approx(math.exp(1.5))
  assert found['0'] == {'tokens': 0, 'nats_per_token': None, 'perplexity': None}


@pytest.mark.parametrize('token', [-1, 3])
def test_token_outside_the_counts_is_refused(token):
  record = make_record('x', reference_ids=[token], reference_nll=[1.0])
  with pytest.raises(DataError, match=rf"'x'.*id {token}, outside \[0, 3\)"):
    evaluate([record], np.array([1, 2, 3]), [])
