"""ROUGE, BLEU and chrF against the references, by rouge-score and sacrebleu."""

import dataclasses
import importlib.metadata
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.registry import (
  Found,
  Inputs,
  Measurement,
  Metric,
  register,
)

ROUGE_TYPES = {
  'rouge1': 'clipped unigram overlap',
  'rouge2': 'clipped bigram overlap',
  'rougeL': 'longest common subsequence over the whole text',
  'rougeLsum': 'union of longest common subsequences over sentences (split '
  'after . ! ? and white space, and at newlines)',
}
# All that ROUGE sees of lower-case text.
_WORD = re.compile('[a-z0-9]')
_SENTENCE_END = re.compile(r'(?<=[.!?])\s+')
# Scripts without spaces between words, by the start of their character names.
_UNSPACED = {'CJK', 'HIRAGANA', 'KATAKANA', 'THAI', 'LAO', 'KHMER', 'MYANMAR'}


def _one_sentence_per_line(text: str) -> str:
  return _SENTENCE_END.sub('\n', text)


def rouge_per_item(records: Sequence[Record]) -> dict[str, list[float]]:
  """F-measures in [0, 1], one per record, by ROUGE type.

  Each type takes the best F over the references of an item. An empty output
  scores 0; so does ROUGE-2 of a one-word reference. Each record needs a
  reference that ROUGE can see.
  """
  # Imported here: every command would wait a second or two for it.
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
  scores = [
    scorer.score_multi(
      list(map(_one_sentence_per_line, _read(record['references']))),
      _one_sentence_per_line(record['text']),
    )
    for record in records
  ]
  return {
    kind: [float(score[kind].fmeasure) for score in scores]
    for kind in ROUGE_TYPES
  }


def _rouge_signature(_: Inputs) -> str:
  version = importlib.metadata.version('rouge-score')
  return f'rouge-score=={version} use_stemmer=True (Porter)'


@register(*(
  Metric(
    kind, f'ROUGE-{kind.removeprefix("rouge")}', 'higher', 2, 100,
    unit='outputs', sums=(kind, 'rouge_outputs'), signature=_rouge_signature,
    rows='never' if kind == 'rougeLsum' else 'always',
    definition=f'F-measure in [0, 1] of the {what} of stemmed [a-z0-9] words, '
    'best over the references of an item, mean over items; those whose '
    'references have no word are left out',
  )
  for kind, what in ROUGE_TYPES.items()
))  # fmt: skip
def rouge(inputs: Inputs) -> Found:
  """Computes ROUGE F of each output; undefined for another script.

  Records whose references have no word in any script (a smiley) are left out.
  """
  records = inputs.records
  is_kept = [_is_seen(record) for record in records]
  foreign = sum(
    any(map(str.isalpha, ''.join(record['references'])))
    for record, kept in zip(records, is_kept, strict=True)
    if not kept
  )
  reason = ''
  if not any(is_kept):
    reason = 'no reference has a word that ROUGE can see (a-z, 0-9)'
  if foreign:
    reason = (
      f'ROUGE sees only a-z and 0-9, and the references of {foreign} of '
      f'{len(records)} examples are in another script, wholly or by half'
    )
  if reason:
    return dict.fromkeys(ROUGE_TYPES, Measurement(None, 0, reason))
  scores = rouge_per_item(list(itertools.compress(records, is_kept)))
  found: dict[str, list[float]] = {'rouge_outputs': list(map(int, is_kept))}
  for kind, values in scores.items():
    following = iter(values)
    found[kind] = [next(following) if kept else 0 for kept in is_kept]
  return found


def _is_seen(record: Record) -> bool:
  """Whether ROUGE sees words in more than half of a reference."""
  return any(_WORD.search(text.lower()) for text in _read(record['references']))


def _read(references: Sequence[str]) -> list[str]:
  """Drops references of which ROUGE loses half and would compare the rest."""
  return [text for text in references if not _is_lost(text)]


def _is_lost(text: str) -> bool:
  """Whether ROUGE cannot see half of the letters and digits."""
  if text.isascii():
    return False
  lost = total = 0
  for word in text.lower().split():
    signs = list(filter(str.isalnum, word))
    total += len(signs)
    if not _WORD.search(word):
      lost += len(signs)
    else:
      # An accented letter splits its word, and ROUGE compares the rest.
      lost += sum(
        not _WORD.match(unicodedata.normalize('NFD', sign)) for sign in signs
      )
  return 0 < total <= 2 * lost


def _corpus(key: str, label: str, what: str) -> Metric:
  return Metric(
    key, label, 'higher', unit='examples',
    definition=f'{what}, in [0, 100], counts summed over the corpus, against '
    'all references of an item',
  )  # fmt: skip


@register(
  _corpus('bleu', 'BLEU', 'BLEU-4, exp smoothing'),
  _corpus('chrf', 'chrF', 'chrF2: F2 of character 1- to 6-grams'),
)
def bleu_and_chrf(inputs: Inputs) -> dict[str, Measurement]:
  """BLEU-4 and chrF2 of a corpus, in [0, 100], by sacrebleu.

  BLEU splits words as mteval-v13a. If most letters of the references are of a
  script without spaces, it splits Chinese as sacrebleu's zh, and others by
  character.
  """
  records = inputs.records
  references = [record['references'] for record in records]
  tokenizer = _bleu_tokenizer(itertools.chain.from_iterable(references))
  # Streams: the k-th reference of every record, None where there is none.
  streams = list(map(list, itertools.zip_longest(*references)))
  outputs = [record['text'] for record in records]
  # force: a text that ends in ' .' need not be tokenized.
  bleu, chrf = BLEU(tokenize=tokenizer, force=True), CHRF()
  found = {}
  for key, scorer in (('bleu', bleu), ('chrf', chrf)):
    score = scorer.corpus_score(outputs, streams).score
    found[key] = Measurement(
      score, len(records), signature=f'sacrebleu {scorer.get_signature()}'
    )
  if not _has_4_grams(bleu, records):
    reason = (
      'no reference has the four words that BLEU-4 compares, so that not even '
      'the references themselves would score'
    )
    found['bleu'] = dataclasses.replace(
      found['bleu'], value=None, n=0, reason=reason
    )
  return found


def _has_4_grams(scorer: BLEU, records: Sequence[Record]) -> bool:
  """Whether any reference has 4-grams; outputs do not matter."""
  texts = [text for record in records for text in record['references']]
  if any(len(text.split()) >= scorer.max_ngram_order for text in texts):
    return True
  return scorer.corpus_score(texts, [texts]).totals[-1] > 0


def _bleu_tokenizer(texts: itertools.chain[str]) -> str:
  scripts = Counter(
    unicodedata.name(character, '').split(' ')[0]
    for text in texts
    for character in text
    if character.isalpha()
  )
  unspaced = _UNSPACED & scripts.keys()
  if 2 * sum(scripts[script] for script in unspaced) <= scripts.total():
    return '13a'
  return 'zh' if unspaced == {'CJK'} else 'char'
