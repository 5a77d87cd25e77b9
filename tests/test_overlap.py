import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdl_jax.errors import DataError
from pdl_jax.evaluate.overlap import ROUGE_TYPES, rouge, rouge_per_item
from tests.prediction_records import make_record, record_lists


def pair(text, *references, name='a'):
  return make_record(name, text=text, references=list(references))


def test_identical_output_scores_one():
  found = rouge([pair('a rare quokka smiled', 'a rare quokka smiled')])
  assert {kind: metric.value for kind, metric in found.items()} == {
    'rouge1': 1.0,
    'rouge2': 1.0,
    'rougeL': 1.0,
  }


def test_disjoint_and_empty_outputs_score_zero():
  records = [pair('dog', 'the cat'), pair('', 'the cat', name='b')]
  assert rouge_per_item(records) == {kind: [0, 0] for kind in ROUGE_TYPES}


def test_golden_by_hand():
  # 3 of 4 words and 2 of 3 words match; 1 bigram of 3 and of 2; LCS 'the sat'.
  scores = rouge_per_item([pair('the dog cat sat', 'the cat sat')])
  assert scores['rouge1'] == [pytest.approx(6 / 7)]
  assert scores['rouge2'] == [pytest.approx(2 / 5)]
  assert scores['rougeL'] == [pytest.approx(6 / 7)]


def test_rouge_l_needs_order():
  scores = rouge_per_item([pair('sat cat the', 'the cat sat')])
  assert scores['rouge1'] == [1.0]
  assert scores['rougeL'] == [pytest.approx(1 / 3)]


def test_stemmer_is_on():
  assert rouge([pair('deleting tables', 'deleted table')])['rouge1'].value == 1


def test_best_reference_counts_for_each_type_apart():
  record = pair('the cat sat', 'sat cat the dog', 'the cat')
  scores = rouge_per_item([record])
  assert scores['rouge1'] == [pytest.approx(6 / 7)]  # the first reference
  assert scores['rouge2'] == [pytest.approx(2 / 3)]  # the second


def test_mean_over_items_with_its_signature():
  found = rouge([pair('cat', 'cat'), pair('dog', 'cat', name='b')])['rouge1']
  assert (found.value, found.n, found.unit) == (0.5, 2, 'examples')
  assert found.signature == 'rouge-score==0.1.2 use_stemmer=True (Porter)'


def test_no_records_is_none():
  assert rouge([])['rougeL'].value is None


@pytest.mark.parametrize('reference', ['猫が座った', 'кот сидел', '...', ''])
def test_references_that_rouge_cannot_see_are_refused(reference):
  records = [pair('cat', 'cat'), pair('cat', reference, name='unseen')]
  with pytest.raises(DataError, match=r"1 of 2 records.*'unseen'.*non-Latin"):
    rouge_per_item(records)


def test_one_readable_reference_is_enough():
  assert rouge([pair('cat', '猫', 'cat')])['rouge1'].value == 1.0


@settings(max_examples=30)
@given(record_lists(), st.randoms())
def test_order_changes_nothing_and_copying_the_reference_is_perfect(
  records, random
):
  shuffled = records.copy()
  random.shuffle(shuffled)
  assert rouge(records) == rouge(shuffled)
  copies = [r | {'text': r['references'][0]} for r in records]
  found = rouge(copies)
  assert found['rouge1'].value == found['rougeL'].value == 1.0
