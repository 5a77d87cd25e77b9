import math

import numpy as np
import pytest
from hypothesis import given, settings

from pdl_jax.evaluate import rouge_bleu_chrf
from pdl_jax.evaluate.registry import Inputs
from pdl_jax.evaluate.rouge_bleu_chrf import ROUGE_TYPES, rouge_per_item
from pdl_jax.evaluate.run import evaluate
from tests.prediction_records import VOCAB, make_record, record_lists


def rouge(records):
  found = evaluate(records, np.ones(VOCAB, int), []).results
  return {kind: found[kind] for kind in ROUGE_TYPES}


def bleu_and_chrf(records):
  return rouge_bleu_chrf.bleu_and_chrf(Inputs(records, np.ones(VOCAB, int)))


def pair(text, *references, name='a'):
  return make_record(name, text=text, references=list(references))


def test_identical_disjoint_and_empty_outputs():
  found = rouge([pair('a rare quokka smiled', 'a rare quokka smiled')])
  assert {metric['value'] for metric in found.values()} == {1.0}
  records = [pair('dog', 'the cat'), pair('', 'the cat', name='b')]
  assert rouge_per_item(records) == {kind: [0, 0] for kind in ROUGE_TYPES}
  assert bleu_and_chrf(records)['chrf'].value == 0


def test_golden_by_hand():
  # 3 of 4 words and 2 of 3 words match; 1 bigram of 3 and of 2; LCS 'the sat'.
  scores = rouge_per_item([pair('the dog cat sat', 'the cat sat')])
  assert scores['rouge1'] == [pytest.approx(6 / 7)]
  assert scores['rouge2'] == [pytest.approx(2 / 5)]
  assert scores['rougeL'] == [pytest.approx(6 / 7)]


def test_order_stems_and_the_best_reference():
  scores = rouge_per_item([pair('sat cat the', 'the cat sat')])
  assert (scores['rouge1'], scores['rougeL']) == ([1.0], [pytest.approx(1 / 3)])
  assert rouge_per_item([pair('deleting tables', 'deleted table')])[
    'rouge1'
  ] == [1]
  # The best one counts for each type apart.
  scores = rouge_per_item([pair('the cat sat', 'sat cat the dog', 'the cat')])
  assert scores['rouge1'] == [pytest.approx(6 / 7)]  # the first reference
  assert scores['rouge2'] == [pytest.approx(2 / 3)]  # the second


def test_mean_over_items_with_its_signature():
  found = rouge([pair('cat', 'cat'), pair('dog', 'cat', name='b')])['rouge1']
  assert (found['value'], found['n'], found['unit']) == (0.5, 2, 'outputs')
  assert found['signature'] == 'rouge-score==0.1.2 use_stemmer=True (Porter)'


@settings(max_examples=30, deadline=None)
@given(record_lists())
def test_copying_the_reference_is_perfect(records):
  copies = [r | {'text': r['references'][0]} for r in records]
  found = rouge(copies)
  assert found['rouge1']['value'] == found['rougeL']['value'] == 1.0
  assert bleu_and_chrf(copies)['chrf'].value == pytest.approx(100)


def test_rouge_golden_of_the_package():
  # tests of rouge-score; LCS over sentences as in the ROUGE paper, 3.2.
  two_sentences = 'w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5'
  scores = rouge_per_item([pair(two_sentences, 'w1 w2 w3 w4 w5')])
  assert scores['rougeLsum'] == [pytest.approx(2 * 0.4 * 0.8 / 1.2)]
  scores = rouge_per_item([pair('testing one', 'testing one two')])
  assert scores['rouge2'] == [pytest.approx(2 / 3)]
  assert scores['rougeL'] == [pytest.approx(4 / 5)]


def test_lsum_is_taken_over_sentences():
  # In one piece only one of the swapped sentences is in order.
  for text in (
    'A b c. D e f!', 'A b c.\n\nD e f!', 'A b c.  \n D e f!'
  ):  # fmt: skip
    scores = rouge_per_item([pair(text, 'D e f! A b c.')])
    assert (scores['rougeLsum'], scores['rougeL']) == ([1.0], [0.5])
  # A number does not end one: its halves would match in any order.
  scores = rouge_per_item([pair('4.2 is', 'is 4.2')])
  assert scores['rougeLsum'] == scores['rougeL'] != [1.0]


def test_another_script_leaves_rouge_undefined_and_says_why():
  records = [pair('cat', 'cat'), pair('猫', '猫が座った', name='b')]
  for metric in rouge(records).values():
    assert (metric['value'], metric['n']) == (None, 0)
    assert '1 of 2 examples are in another script' in metric['definition']
    assert metric['signature'] == rouge(records[:1])['rouge1']['signature']


@pytest.mark.parametrize(
  'reference',
  ['кот 2', '2 猫', '猫2', 'ΑΒΓ 7 x', 'ราคา 20 บาท', '٣٤ 5', 'é è à 2'],
)
def test_a_digit_among_another_script_is_not_compared_alone(reference):
  same = pair(reference, reference)
  for metric in rouge([same]).values():
    assert metric['value'] is None
    assert metric['definition'].startswith('undefined: ')
  # Another reference counts, and by it alone.
  both = pair('the 2', reference, 'the cat')
  assert rouge_per_item([both])['rouge1'] == [0.5]


@pytest.mark.parametrize(
  'reference', ['Été', 'Où ?', 'Việt Nam', 'Straße', 'the cat 猫', 'à la carte']
)
def test_letters_with_accents_are_still_compared(reference):
  found = rouge([pair(reference, reference)])
  assert found['rouge1']['value'] == 1.0


def test_references_without_any_word_are_left_out_and_counted():
  records = [pair('cat', 'cat'), pair('cat', ':-)', name='smile')]
  found = rouge(records)['rouge1']
  assert (found['value'], found['n']) == (1.0, 1)
  assert 'references have no word are left out' in found['definition']
  for metric in rouge(records[1:]).values():
    assert metric['value'] is None
    assert metric['definition'].startswith('undefined: no reference has a word')


def test_bleu_of_texts_too_short_for_it_is_undefined():
  short = pair('the cat sat', 'the cat sat')
  found = bleu_and_chrf([short, pair('a', 'b c', name='b')])
  assert found['bleu'].value is None
  assert found['bleu'].reason.startswith('no reference has the')
  assert 'tok:13a' in found['bleu'].signature
  assert found['chrf'].value > 0
  # What the references hold decides, whatever was generated.
  long = pair('cat', 'the cat sat down', name='b')
  assert bleu_and_chrf([short, long])['bleu'].value == 0
  # Four signs of a script without spaces are enough.
  assert bleu_and_chrf([pair('猫坐垫子', '猫坐垫子')])['bleu'].value > 99


def test_bleu_and_chrf_golden_of_the_package():
  # README and tests of sacrebleu.
  found = bleu_and_chrf([
    pair(
      'The dog bit the man.', 'The dog bit the man.',
      'The dog had bit the man.', name='1',
    ),
    pair(
      "It wasn't surprising.", 'It was not unexpected.',
      'No one was surprised.', name='2',
    ),
    pair(
      'The man had just bitten him.', 'The man bit him first.',
      'The man had bitten the dog.', name='3',
    ),
  ])  # fmt: skip
  assert found['bleu'].value == pytest.approx(48.530827, abs=1e-6)
  assert found['chrf'].value == pytest.approx(59.73, abs=0.005)
  assert found['bleu'].signature == (
    'sacrebleu nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0'
  )
  assert 'nc:6|nw:0' in found['chrf'].signature
  two = [pair('a', 'a'), pair('b', 'c', name='b')]
  for records, value in (
    (two, 50), ([pair('aa', 'ab')], 25), ([pair('a b c', 'abc')], 100)
  ):  # fmt: skip
    assert bleu_and_chrf(records)['chrf'].value == pytest.approx(value)


def test_bleu_is_of_the_corpus_not_a_mean():
  perfect = pair('a rare quokka smiled', 'a rare quokka smiled')
  wrong = pair('x y z w', 'a b c d', name='b')
  assert bleu_and_chrf([perfect])['bleu'].value == pytest.approx(100)
  # Half of the n-grams of each order match.
  assert bleu_and_chrf([perfect, wrong])['bleu'].value == pytest.approx(50)
  assert bleu_and_chrf([wrong])['bleu'].value == 0


def test_each_item_has_its_own_number_of_references():
  few = pair('a b c d e', 'a b c d e f g h i j')
  many = pair('k l m n', 'k l m n', 'k l m n', name='b')
  for order in ([few, many], [many, few]):
    found = bleu_and_chrf(order)['bleu']
    # All n-grams match, which leaves the brevity penalty. An empty second
    # reference of the first record would be the closest in length.
    assert found.value == pytest.approx(100 * math.exp(1 - 14 / 9))
    assert 'nrefs:var' in found.signature


def test_bleu_and_chrf_read_every_script():
  for text, tokenizer in (
    ('猫坐在垫子上面了', 'zh'),
    ('猫がマットにすわった', 'char'),
    ('кот сидел на коврике', '13a'),
    ('the cat 猫 sat', '13a'),
    ('...', '13a'),
  ):
    found = bleu_and_chrf([pair(text, text)])
    assert f'tok:{tokenizer}|' in found['bleu'].signature
    assert found['chrf'].value == pytest.approx(100)
    if len(text) > 3:
      assert found['bleu'].value == pytest.approx(100)
