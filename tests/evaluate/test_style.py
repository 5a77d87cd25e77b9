import functools

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from pdl_jax.errors import DataError
from pdl_jax.evaluate.run import evaluate
from pdl_jax.evaluate.style import StyleClassifier
from tests.prediction_records import VOCAB, make_record

OLD = ('thou hast a cat', 'he goeth unto the mat', 'thy quokka smileth', 'yea')
NEW = ('you have a cat', 'he goes to the mat', 'your quokka smiles', 'yes')
TEXTS = (*OLD, *NEW)
STYLES = ('old',) * len(OLD) + ('new',) * len(NEW)


@functools.cache
def classifier():
  return StyleClassifier.fit(TEXTS, STYLES, name='pairs')


def transfer(name, source, reference, text, style):
  return make_record(
    name, source=source, references=[reference], text=text, style=style
  )


def chrf(text, reference):
  return CHRF().sentence_score(text, [reference]).score


def test_learns_its_texts_and_the_words_in_them():
  assert classifier().predict(TEXTS) == list(STYLES)
  assert classifier().predict(['thou smileth', 'you have']) == ['old', 'new']
  assert classifier().styles == ('new', 'old')


def test_order_of_the_texts_changes_nothing():
  again = StyleClassifier.fit(TEXTS[::-1], STYLES[::-1], name='pairs')
  assert again.signature == classifier().signature
  probes = ['thou goes', 'a cat', '', 'x']
  assert again.predict(probes) == classifier().predict(probes)
  steps = [c.pipeline.steps[-1][1].coef_ for c in (again, classifier())]
  assert (steps[0] == steps[1]).all()


def test_signature_tells_classifiers_apart():
  signature = classifier().signature
  assert 'scikit-learn==1.9.1 LogisticRegression' in signature
  assert 'pairs' in signature and '(n=8)' in signature
  assert signature.endswith('held-out accuracy unmeasured')
  fewer = StyleClassifier.fit(TEXTS[1:], STYLES[1:], name='pairs')
  assert fewer.fingerprint != classifier().fingerprint
  swapped = StyleClassifier.fit(TEXTS, STYLES[::-1], name='pairs')
  assert swapped.fingerprint != classifier().fingerprint


def test_held_out_accuracy_is_in_the_signature():
  tested = classifier().tested(
    ['thou art', 'you are', 'your hat', 'thy hat'], ['old', 'new', 'new', 'new']
  )
  assert (tested.held_out_accuracy, tested.held_out_n) == (0.75, 4)
  assert tested.signature.endswith('held-out accuracy 0.7500 (n=4)')
  assert classifier().held_out_accuracy is None


def test_useless_training_data_are_refused():
  with pytest.raises(DataError, match="'x' needs texts of two .*2 texts of"):
    StyleClassifier.fit(['a', 'b'], ['old', 'old'], name='x')


def values(records):
  found = evaluate(records, np.ones(VOCAB, int), [], classifier()).results
  return {key: found[key]['value'] for key in found if 'style' in key}


RECORDS = [
  transfer('a', OLD[0], NEW[0], 'you have a dog', 'new'),  # right style
  transfer('b', OLD[1], NEW[1], OLD[1], 'new'),  # a copy of the source
  transfer('c', NEW[2], OLD[2], OLD[2], 'old'),  # perfect
]


def test_metrics_by_hand():
  found = values(RECORDS)
  assert found['style_accuracy'] == pytest.approx(2 / 3)
  assert found['reference_style_accuracy'] == 1
  assert found['source_style_accuracy'] == 0
  kept = chrf('you have a dog', NEW[0]) + 100
  assert found['style_joint'] == pytest.approx(kept / 300)
  found = evaluate(RECORDS, np.ones(VOCAB, int), [], classifier()).results
  metric = found['style_accuracy']
  assert (metric['n'], metric['unit']) == (3, 'outputs')
  assert metric['signature'].startswith(classifier().signature)
  assert 'chrF by sacrebleu' in metric['signature']


def test_copies_score_as_what_they_copy():
  found = values([r | {'text': r['references'][0]} for r in RECORDS])
  assert found['style_accuracy'] == found['reference_style_accuracy']
  assert found['style_joint'] == pytest.approx(1)
  found = values([r | {'text': r['source']} for r in RECORDS])
  assert found['style_accuracy'] == found['source_style_accuracy']


def test_style_that_is_missing_or_unknown_is_refused():
  with pytest.raises(DataError, match="'a': field 'style' is None.*new, old"):
    values([make_record('a')])
  with pytest.raises(DataError, match="'a': field 'style' is 'web'.*'pairs'"):
    values([make_record('a', style='web')])
