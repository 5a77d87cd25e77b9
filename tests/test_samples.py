import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdl_jax.evaluate.diversity import (
  distinct_n,
  prompt_distinct_n,
  prompt_self_bleu_4,
  sample_sets,
  self_bleu_4,
)
from tests.prediction_records import TEXTS, WORDS, make_record

SETS = st.lists(
  st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(' '.join),
    min_size=2,
    max_size=5,
  ),
  min_size=1,
  max_size=4,
)


def test_equal_samples_of_different_prompts():
  """Varied over prompts, and the same again to each of them."""
  sets = [[text] * 3 for text in ('the cat sat on', 'a rare quokka smiled')]
  assert prompt_self_bleu_4(sets).value == pytest.approx(1)
  assert prompt_distinct_n(sets, 1).value == pytest.approx(1 / 3)


def test_different_samples_that_are_equal_for_all_prompts():
  sets = [['the cat sat on', 'a rare quokka smiled']] * 3
  assert prompt_self_bleu_4(sets).value == 0
  assert prompt_distinct_n(sets, 2).value == 1


@given(SETS, st.integers(1, 4))
def test_of_one_prompt_it_is_the_metric_of_a_corpus(sets, n):
  for texts in sets:
    one = prompt_distinct_n([texts], n)
    assert one.value == distinct_n(texts, n).value
    assert prompt_self_bleu_4([texts]).value == pytest.approx(
      self_bleu_4(texts).value
    )


@given(SETS)
def test_every_prompt_counts_alike(sets):
  values = [prompt_self_bleu_4([texts]).value for texts in sets]
  found = prompt_self_bleu_4(sets)
  assert found.value == pytest.approx(sum(values) / len(values))
  assert found.n == len(sets)
  values = [prompt_distinct_n([texts], 1).value for texts in sets]
  assert prompt_distinct_n(sets, 1).value == pytest.approx(
    sum(values) / len(values)
  )


def test_golden():
  found = prompt_self_bleu_4([TEXTS, TEXTS[1:3]])
  assert (found.value, found.n) == (pytest.approx((0.5 + 1) / 2), 2)
  distinct = prompt_distinct_n([TEXTS, TEXTS[1:3]], 2)
  assert distinct.value == pytest.approx((14 / 21 + 5 / 10) / 2)


def test_what_is_left_out():
  sets = [['the cat', '', 'the cat'], ['the', ' '], ['', '']]
  found = prompt_self_bleu_4(sets)
  assert (found.value, found.n) == (pytest.approx(1), 1)
  distinct = prompt_distinct_n(sets, 2)
  assert (distinct.value, distinct.n) == (0.5, 1)
  assert prompt_self_bleu_4(sets[1:]).value is None
  assert prompt_distinct_n(sets[1:], 2).value is None
  assert prompt_self_bleu_4([]).value is None


def test_sets_are_the_samples_of_an_example():
  records = [
    make_record(name, text=name)
    for name in ('b#1', 'a#0', 'c', 'b#0', 'a#10', 'a#2')
  ]
  assert sample_sets(records) == [['b#0', 'b#1'], ['a#0', 'a#2', 'a#10']]
