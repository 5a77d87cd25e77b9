import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from pdl_jax.evaluate.diversity import (
  SELF_BLEU_TEXTS,
  fixed_sample,
  self_bleu_4,
  self_bleu_per_text,
)
from tests.prediction_records import TEXTS, WORDS, make_record

CORPORA = st.lists(
  st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(' '.join),
  min_size=2,
  max_size=6,
)


def test_self_bleu_golden():
  assert self_bleu_per_text(TEXTS) == pytest.approx([0, 1, 1, 0], abs=1e-6)
  found = self_bleu_4(TEXTS)
  assert (found.value, found.n) == (pytest.approx(0.5), 4)


@settings(max_examples=60, deadline=None)
@given(CORPORA)
def test_self_bleu_is_sentence_bleu_against_all_others(texts):
  bleu = BLEU(
    tokenize='none', smooth_method='floor', effective_order=True, force=True
  )
  expected = [
    bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score / 100
    for i, text in enumerate(texts)
  ]
  assert self_bleu_per_text(texts) == pytest.approx(expected)


@given(CORPORA, st.randoms())
def test_self_bleu_does_not_depend_on_the_order(texts, random):
  shuffled = texts.copy()
  random.shuffle(shuffled)
  assert self_bleu_4(shuffled) == self_bleu_4(texts)


def test_self_bleu_leaves_out_empty_texts_and_needs_two():
  assert self_bleu_4(['the cat', '', 'the cat']).n == 2
  assert self_bleu_4(['the cat', '', 'the cat']).value == pytest.approx(1)
  assert self_bleu_4(['the cat', ' ']).value is None


def asked(records):
  return [record['references'] for record in fixed_sample(records)]


def test_sample_depends_on_what_was_asked_alone():
  records = [
    make_record(str(i), references=[f'reference {i}'])
    for i in range(SELF_BLEU_TEXTS + 50)
  ]
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


def test_sample_of_one_question_is_decided_by_the_ids():
  records = [make_record(name) for name in 'cab']
  assert [r['id'] for r in fixed_sample(records, 2)] == ['a', 'b']
