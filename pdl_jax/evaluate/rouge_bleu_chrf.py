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
# Of lower-case text, all that ROUGE sees.
_WORD = re.compile('[a-z0-9]')
_SENTENCE_END = re.compile(r'(?<=[.!?])\s+')
# Scripts, as the names of their characters begin, that put no spaces between
# words.
_UNSPACED = {'CJK', 'HIRAGANA', 'KATAKANA', 'THAI', 'LAO', 'KHMER', 'MYANMAR'}


def _one_sentence_per_line(text: str) -> str:
  return _SENTENCE_END.sub('\n', text)


def rouge_per_item(records: Sequence[Record]) -> dict[str, list[float]]:
  """F-measures in [0, 1], one per record, by ROUGE type.

  An item with several references takes its best F, for each type apart. An
  empty output scores 0; so does ROUGE-2 of a reference of a single word.

  Args:
    records: each with a reference that ROUGE can see.
  """
  # Takes a second or two, which every command would wait for.
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
  """ROUGE F of each output; undefined for a corpus in another script.

  It is undefined where the references of any record are in another script. A
  record whose references have no word in any script (a smiley) is left out:
  which they are does not depend on the outputs.
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
  """Whether a reference has words of which ROUGE sees more than half."""
  return any(_WORD.search(text.lower()) for text in _read(record['references']))


def _read(references: Sequence[str]) -> list[str]:
  """References that ROUGE does not lose half of.

  In another script a digit or a name may be all that it sees, and would be
  compared alone.
  """
  return [text for text in references if not _is_lost(text)]


def _is_lost(text: str) -> bool:
  """Whether half of the letters and digits stand in what ROUGE cannot see."""
  if text.isascii():
    return False
  lost = total = 0
  for word in text.lower().split():
    signs = list(filter(str.isalnum, word))
    total += len(signs)
    if not _WORD.search(word):
      lost += len(signs)
    else:
      # A letter with an accent splits its word, and the rest is compared.
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

  Counts are summed over all records before the one division. BLEU splits words
  as mteval-v13a. Where most letters of the references are of a script without
  spaces it splits Chinese as sacrebleu's zh, and others by character.
  """
  records = inputs.records
  references = [record['references'] for record in records]
  tokenizer = _bleu_tokenizer(itertools.chain.from_iterable(references))
  # Streams: the k-th reference of every record, None where there is none.
  streams = list(map(list, itertools.zip_longest(*references)))
  outputs = [record['text'] for record in records]
  # force: texts may end in ' .' without having been tokenized.
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
  """Whether any reference has 4-grams; no output matters."""
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
