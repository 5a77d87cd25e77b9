from pdl_jax.evaluate.inputs import first_samples, samples_by_example
from tests.prediction_records import make_record


def names(records):
  return [record['id'] for record in first_samples(records)]


def test_one_sample_an_item_whatever_their_order():
  records = [make_record(name) for name in ('b#1', 'a#0', 'b#0', 'a#10', 'a#2')]
  assert names(records) == ['b#0', 'a#0']
  assert names(records[3:]) == ['a#2']


def test_records_without_samples_stay():
  records = [make_record(name) for name in ('a', 'b', 'a#b', '#', '')]
  assert names(records) == [record['id'] for record in records]


def test_ids_of_a_data_set_are_no_samples():
  # Psalm 1 and psalm 2, not two samples of one item.
  psalms = [
    make_record('psalm#1', prompt='one'), make_record('psalm#2', prompt='two')
  ]  # fmt: skip
  assert names(psalms) == ['psalm#1', 'psalm#2']
  others = [
    make_record('psalm#1', references=['one']),
    make_record('psalm#2', references=['two']),
  ]
  assert names(others) == ['psalm#1', 'psalm#2']


def test_ids_that_look_like_those_of_samples():
  decode = {'method': 'greedy', 'samples': 1}
  own = [make_record(name, decode=decode) for name in ('a', 'a#1', 'a#1#2')]
  assert samples_by_example(own) == [[record] for record in own]
  decode = {'method': 'sample', 'samples': 2}
  names = ('a#0', 'a#1', 'a#1#0', 'a#1#1')
  two = [make_record(name, decode=decode) for name in names]
  assert samples_by_example(two) == [two[:2], two[2:]]
