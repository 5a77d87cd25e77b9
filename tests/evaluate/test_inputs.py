import numpy as np
import pytest

from pdl_jax.errors import DataError
from pdl_jax.evaluate.inputs import (
  check_counts,
  samples_by_example,
  validate_records,
)
from tests.prediction_records import make_record


def names(records):
  return [samples[0]['id'] for samples in samples_by_example(records)]


def test_one_sample_an_item_whatever_their_order():
  records = [make_record(name) for name in ('b#1', 'a#0', 'b#0', 'a#10', 'a#2')]
  assert names(records) == ['b#0', 'a#0']
  assert names(records[3:]) == ['a#2']
  grouped = samples_by_example(records)
  assert [[x['id'] for x in group] for group in grouped] == [
    ['b#0', 'b#1'], ['a#0', 'a#2', 'a#10'],
  ]  # fmt: skip


def test_other_records_are_no_samples():
  records = [make_record(name) for name in ('a', 'b', 'a#b', '#', '')]
  assert names(records) == [record['id'] for record in records]
  # Psalm 1 and psalm 2, not two samples of one item.
  for field in ('prompt', 'references'):
    psalms = [
      make_record(f'psalm#{n}', **{field: 'one' if n == 1 else 'two'})
      for n in (1, 2)
    ]
    assert names(psalms) == ['psalm#1', 'psalm#2']
  # Of one sample no id is that of a sample, whatever it looks like.
  decode = {'method': 'greedy', 'samples': 1}
  own = [make_record(name, decode=decode) for name in ('a', 'a#1', 'a#1#2')]
  assert samples_by_example(own) == [[record] for record in own]
  decode = {'method': 'sample', 'samples': 2}
  ids = ('a#0', 'a#1', 'a#1#0', 'a#1#1')
  two = [make_record(name, decode=decode) for name in ids]
  assert samples_by_example(two) == [two[:2], two[2:]]


@pytest.mark.parametrize('field', make_record())
def test_missing_field_is_named(field):
  bad = {k: v for k, v in make_record('x').items() if k != field}
  name = 'at position 1' if field == 'id' else "'x'"
  with pytest.raises(DataError, match=f'{name}: there is no field {field}'):
    validate_records([make_record(), bad])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'references': []}, "'x': field 'references' is empty"),
    (
      {'reference_ids': [], 'reference_nll': []},
      "'x': field 'reference_ids' is empty",
    ),
    ({'reference_nll': [1.0]}, "'x': field 'reference_nll' has 1 values for 4"),
    ({'finish_reason': 'eos'}, "'x': field 'finish_reason' is 'eos'"),
    ({'references': 'the cat'}, "'x': references is text, not a list"),
    ({'text': None}, "'x': text is null, not text"),
    ({'token_ids': [1.5]}, r"'x': token_ids\[0\] is a number, not an integer"),
    (
      {'reference_nll': [1.0, None, 1.0, 1.0]},
      r"'x': reference_nll\[1\] is null, not a number",
    ),
    ({'id': 'a'}, "'a': field 'id' comes twice .*position 1"),
  ],
)
def test_bad_record_is_refused(fields, message):
  with pytest.raises(DataError, match=message):
    validate_records([make_record(), make_record('x') | fields])


def test_nothing_to_measure_is_refused():
  with pytest.raises(DataError, match='no prediction records'):
    validate_records([])
  for counts, message in (
    (np.array([0.5, 0.5]), 'not integers'),
    (np.array([1, -2]), 'negative one: -2'),
    (np.ones((2, 2), int), 'shape'),
    (np.array([], int), 'shape'),
  ):
    with pytest.raises(DataError, match=message):
      check_counts(counts)
