"""ROUGE, BLEU and chrF against the references.

By the packages rouge-score and sacrebleu.
"""

import importlib.metadata
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from pdl_jax.errors import DataError
from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.metric import Metric, mean

ROUGE_TYPES = ('rouge1', 'rouge2', 'rougeL', 'rougeLsum')

_WHAT = {
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


def _one_sentence_a_line(text: str) -> str:
  return _SENTENCE_END.sub('\n', text)


def rouge_per_item(records: Sequence[Record]) -> dict[str, list[float]]:
  """F-measures in [0, 1], one a record and in their order, by ROUGE type.

  An item with several references takes its best F, for each type apart. An
  empty output scores 0; so does ROUGE-2 of a reference of a single word.

  Raises:
    DataError: records whose references hold no word that ROUGE can see.
  """
  # Takes a second or two, which every command would wait for.
  from rouge_score import rouge_scorer

  _check_words(records)
  scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
  scores = [
    scorer.score_multi(
      list(map(_one_sentence_a_line, _read(record['references']))),
      _one_sentence_a_line(record['text']),
    )
    for record in records
  ]
  return {
    kind: [float(score[kind].fmeasure) for score in scores]
    for kind in ROUGE_TYPES
  }


def rouge(records: Sequence[Record]) -> dict[str, Metric]:
  """Mean F-measure over the records, in [0, 1], by ROUGE type.

  Raises:
    DataError: records whose references hold no word that ROUGE can see.
  """
  return {
    kind: _rouge_metric(kind, scores)
    for kind, scores in rouge_per_item(records).items()
  }


def rouge_where_readable(records: Sequence[Record]) -> dict[str, Metric]:
  """`rouge`, for corpora that it may be unable to read.

  None for all types where the references of any record are written in another
  script. Records whose references have no word in any script (a smiley) are
  left out of the mean, and the definition counts them: which they are does not
  depend on the outputs.
  """
  unseen = _unseen(records)
  foreign = sum(
    any(map(str.isalpha, ''.join(record['references']))) for record in unseen
  )
  reason = ''
  if records and len(unseen) == len(records):
    reason = 'undefined: no reference has a word that ROUGE can see (a-z, 0-9)'
  if foreign:
    reason = (
      f'undefined: ROUGE sees only a-z and 0-9, and the references of '
      f'{foreign} of {len(records)} examples are in another script, wholly or '
      'by half'
    )
  if reason:
    return {
      kind: Metric(None, 0, 'examples', reason, _rouge_signature())
      for kind in ROUGE_TYPES
    }
  left_out = {id(record) for record in unseen}
  kept = [record for record in records if id(record) not in left_out]
  note = f'; {len(unseen)} left out, whose references have no word'
  return {
    kind: _rouge_metric(kind, scores, note if unseen else '')
    for kind, scores in rouge_per_item(kept).items()
  }


def rouge_by_record(
  records: Sequence[Record],
) -> list[dict[str, float] | None]:
  """F-measures of each record; None where its references have no word."""
  left_out = {id(record) for record in _unseen(records)}
  kept = [record for record in records if id(record) not in left_out]
  scores = iter(zip(*rouge_per_item(kept).values(), strict=True))
  return [
    None
    if id(record) in left_out
    else dict(zip(ROUGE_TYPES, next(scores), strict=True))
    for record in records
  ]


def _rouge_metric(kind: str, scores: Sequence[float], note: str = '') -> Metric:
  return Metric(
    value=mean(scores),
    n=len(scores),
    unit='examples',
    definition=f'F-measure in [0, 1] of the {_WHAT[kind]} of stemmed [a-z0-9] '
    f'words, best over the references of an item, mean over items{note}',
    signature=_rouge_signature(),
  )


def _rouge_signature() -> str:
  version = importlib.metadata.version('rouge-score')
  return f'rouge-score=={version} use_stemmer=True (Porter)'


def _unseen(records: Sequence[Record]) -> list[Record]:
  """Records without a reference of which ROUGE sees more than a half."""
  return [
    record
    for record in records
    if not any(map(_WORD.search, map(str.lower, _read(record['references']))))
  ]


def _read(references: Sequence[str]) -> list[str]:
  """Those that ROUGE does not lose the half of; where it loses it of all, none.

  Of another script a digit or a name may be all that it sees, and would be
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


def _check_words(records: Sequence[Record]) -> None:
  wordless = _unseen(records)
  if wordless:
    raise DataError(
      f'ROUGE keeps only the characters a-z and 0-9, and the references of '
      f'{len(wordless)} of {len(records)} records have none or lose half of '
      f'theirs (first: {wordless[0]["id"]!r}); it cannot score text in a '
      'non-Latin script: use another metric for such text, and drop '
      'references of punctuation alone'
    )


def bleu_and_chrf(records: Sequence[Record]) -> dict[str, Metric]:
  """BLEU-4, chrF2 and chrF2++ of a corpus, in [0, 100], by sacrebleu.

  Over all records before the one division, against all references of each.
  BLEU splits words as mteval-v13a; where most letters of the references are of
  a script without spaces, Chinese as sacrebleu's zh, others by character. The
  signature says which.
  """
  references = [record['references'] for record in records]
  tokenizer = _bleu_tokenizer(itertools.chain.from_iterable(references))
  scorers = {
    # force: texts may end in ' .' without having been tokenized.
    'bleu': (BLEU(tokenize=tokenizer, force=True), 'BLEU-4, exp smoothing'),
    'chrf': (CHRF(), 'chrF2: F2 of character 1- to 6-grams'),
    'chrf++': (
      CHRF(word_order=2),
      'chrF2++: F2 of character 1- to 6-grams and word 1- to 2-grams',
    ),
  }
  return {
    key: _sacrebleu_metric(scorer, what, records)
    for key, (scorer, what) in scorers.items()
  }


def _sacrebleu_metric(
  scorer: BLEU | CHRF, what: str, records: Sequence[Record]
) -> Metric:
  score = signature = None
  if records:
    # Streams: the k-th reference of every record, None where there is none.
    streams = itertools.zip_longest(*(r['references'] for r in records))
    outputs = [record['text'] for record in records]
    score = scorer.corpus_score(outputs, list(map(list, streams))).score
    signature = f'sacrebleu {scorer.get_signature()}'
  if isinstance(scorer, BLEU) and records and not _has_4_grams(scorer, records):
    reason = (
      'undefined: no reference has the four words that BLEU-4 compares, so '
      'that not even the references themselves would score'
    )
    return Metric(None, 0, 'examples', reason, signature)
  return Metric(
    value=score,
    n=len(records),
    unit='examples',
    definition=f'{what}, in [0, 100], counts summed over the corpus, against '
    'all references of an item',
    signature=signature,
  )


def _has_4_grams(scorer: BLEU, records: Sequence[Record]) -> bool:
  """Whether any reference has; what does depends on no output."""
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
  unspaced = {script for script in scripts if script in _UNSPACED}
  if 2 * sum(scripts[script] for script in unspaced) <= scripts.total():
    return '13a'
  return 'zh' if unspaced == {'CJK'} else 'char'
