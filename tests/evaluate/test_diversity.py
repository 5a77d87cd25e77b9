import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from pdl_jax.evaluate.diversity import (
  SELF_BLEU_TEXTS,
  distinct_n,
  entropy_n,
  fixed_sample,
  hapax_share_n,
  self_bleu_4,
  self_bleu_per_text,
  within_prompts,
)
from pdl_jax.evaluate.registry import Inputs
from tests.prediction_records import TEXTS, WORDS, make_record

CORPORA = st.lists(st.lists(st.sampled_from(WORDS)).map(' '.join))
WORDED = st.lists(
  st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(' '.join),
  min_size=2,
  max_size=6,
)


def test_golden_beside_the_number_of_ngrams():
  for n, value, total in (
    (1, 0.56, 25), (2, 0.666667, 21), (3, 0.764706, 17), (4, 0.769231, 13),
  ):  # fmt: skip
    found = distinct_n(TEXTS, n)
    assert (found.value, found.n) == (pytest.approx(value, abs=1e-6), total)
  for measure, value in ((hapax_share_n, 0.380952), (entropy_n, 3.689704)):
    found = measure(TEXTS, 2)
    assert (found.value, found.n) == (pytest.approx(value, abs=1e-6), 21)


def test_ngrams_never_cross_texts():
  assert distinct_n(['a b', 'c d'], 2).n == 2
  assert distinct_n(['a', 'b', 'c'], 2).value is None


@pytest.mark.parametrize('measure', [distinct_n, hapax_share_n, entropy_n])
def test_of_nothing_is_none_not_zero(measure):
  for texts in ([], [''], ['   ']):
    found = measure(texts, 1)
    assert (found.value, found.n) == (None, 0)


@given(CORPORA, st.integers(1, 4))
def test_ranges_and_what_doubling_does(texts, n):
  distinct, entropy = distinct_n(texts, n), entropy_n(texts, n)
  if entropy.value is None:
    assert distinct.value is distinct_n(texts * 2, n).value is None
    return
  assert 0 <= hapax_share_n(texts, n).value <= distinct.value <= 1
  assert distinct.value > 0
  assert distinct_n(texts * 2, n).value == pytest.approx(distinct.value / 2)
  assert hapax_share_n(texts * 2, n).value == 0
  assert 0 <= entropy.value <= math.log2(entropy.n) + 1e-12
  assert entropy_n(texts * 2, n).value == pytest.approx(entropy.value)


def test_entropy_of_even_types_is_their_logarithm():
  assert entropy_n(['a b c d e f g h'], 1).value == pytest.approx(3)
  assert math.copysign(1, entropy_n(['a a a'], 1).value) == 1


@settings(max_examples=60, deadline=None)
@given(WORDED, st.randoms())
def test_self_bleu_is_sentence_bleu_against_all_others(texts, random):
  bleu = BLEU(
    tokenize='none', smooth_method='floor', effective_order=True, force=True
  )
  expected = [
    bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score / 100
    for i, text in enumerate(texts)
  ]
  assert self_bleu_per_text(texts) == pytest.approx(expected)
  shuffled = texts.copy()
  random.shuffle(shuffled)
  assert self_bleu_4(shuffled) == self_bleu_4(texts)


def test_self_bleu_golden_without_empty_texts():
  assert self_bleu_per_text(TEXTS) == pytest.approx([0, 1, 1, 0], abs=1e-6)
  found = self_bleu_4(TEXTS)
  assert (found.value, found.n) == (pytest.approx(0.5), 4)
  found = self_bleu_4(['the cat', '', 'the cat'])
  assert (found.value, found.n) == (pytest.approx(1), 2)
  assert self_bleu_4(['the cat', ' ']).value is None


def test_sample_depends_on_what_was_asked_alone():
  records = [
    make_record(str(i), references=[f'reference {i}'])
    for i in range(SELF_BLEU_TEXTS + 50)
  ]

  def asked(records):
    return [record['references'] for record in fixed_sample(records)]

  chosen = asked(records)
  assert len(chosen) == SELF_BLEU_TEXTS
  other = [
    r | {'text': 'another', 'id': f'{r["id"]}#0'} for r in reversed(records)
  ]  # fmt: skip
  assert asked(other) == chosen
  assert len(fixed_sample(records[:7])) == 7
  # Not the first ones, which may be of one kind.
  first = [record['references'] for record in records[: len(chosen)]]
  assert sorted(first) != sorted(chosen)
  # One question is decided by the ids.
  records = [make_record(name) for name in 'cab']
  assert [r['id'] for r in fixed_sample(records, 2)] == ['a', 'b']


def by_prompt(sets):
  """What `within_prompts` finds of the samples of several prompts."""
  records = [
    make_record(f'{i}#{k}', prompt=f'{i}', text=text)
    for i, texts in enumerate(sets)
    for k, text in enumerate(texts)
  ]
  found = within_prompts(Inputs(records, np.ones(1, int)))
  distinct = [found[f'prompt_distinct_{n}'] for n in (1, 2)]
  return *distinct, found['prompt_self_bleu_4']


def test_samples_within_prompts():
  # Varied over prompts, and the same again to each of them.
  sets = [[text] * 3 for text in ('the cat sat on', 'a rare quokka smiled')]
  one, _, bleu = by_prompt(sets)
  assert (one.value, bleu.value) == (pytest.approx(1 / 3), pytest.approx(1))
  _, two, bleu = by_prompt([['the cat sat on', 'a rare quokka smiled']] * 3)
  assert (two.value, bleu.value) == (1, 0)
  _, two, bleu = by_prompt([TEXTS, TEXTS[1:3]])
  assert two.value == pytest.approx((14 / 21 + 5 / 10) / 2)
  assert (bleu.value, bleu.n) == (pytest.approx((0.5 + 1) / 2), 2)


def test_prompts_for_which_it_is_undefined_are_left_out():
  sets = [['the cat', '', 'the cat'], ['the', ' '], ['', '']]
  _, two, bleu = by_prompt(sets)
  assert (bleu.value, bleu.n) == (pytest.approx(1), 1)
  assert (two.value, two.n) == (0.5, 1)
  _, two, bleu = by_prompt(sets[1:])
  assert two.value is bleu.value is None
  assert within_prompts(Inputs([make_record()], np.ones(1, int))) == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDED, min_size=1, max_size=4))
def test_every_prompt_counts_alike(sets):
  one, two, bleu = by_prompt(sets)
  for found, measure in (
    (one, lambda texts: distinct_n(texts, 1)),
    (two, lambda texts: distinct_n(texts, 2)),
    (bleu, self_bleu_4),
  ):
    values = [measure(texts).value for texts in sets]
    values = [value for value in values if value is not None]
    assert found.n == len(values)
    if values:
      assert found.value == pytest.approx(sum(values) / len(values))
