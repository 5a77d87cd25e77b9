"""Style transfer: is the style right, and is the content still there?"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sacrebleu.metrics.chrf import CHRF

from pdl_jax.errors import DataError
from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.metric import Metric, mean

if TYPE_CHECKING:
  from sklearn.pipeline import Pipeline

WORD_NGRAMS = (1, 2)
CHARACTER_NGRAMS = (3, 4)
HASHED_FEATURES = 2**18


@dataclasses.dataclass(frozen=True)
class StyleClassifier:
  """Tells styles apart by their n-grams; the same data gives the same one.

  Attributes:
    name: of the data it learned from, for the record.
    styles: that it knows, in alphabetic order.
    n: texts that it learned from.
    fingerprint: of these texts and their styles, in any order.
    pipeline: the features and the regression.
    held_out_n: texts that it was tested on.
    held_out_accuracy: in [0, 1]; None until `tested`.
  """

  name: str
  styles: tuple[str, ...]
  n: int
  fingerprint: str
  pipeline: 'Pipeline'
  held_out_n: int = 0
  held_out_accuracy: float | None = None

  @classmethod
  def fit(
    cls, texts: Sequence[str], styles: Sequence[str], *, name: str
  ) -> 'StyleClassifier':
    """Learns from labelled texts; the order of them changes nothing.

    Word 1- to 2-grams and, within words, character 3- to 4-grams, each hashed
    to 2**18 features and weighted by tf-idf; logistic regression with an L2
    penalty (C 10), styles weighted evenly.

    Args:
      texts: of all styles; none of them to be evaluated on.
      styles: of each text.
      name: of the data, for the record.

    Raises:
      DataError: another number of styles than of texts, or fewer than two.
    """
    _check_pairs(texts, styles)
    known = tuple(sorted(set(styles)))
    if len(known) < 2:
      raise DataError(
        f'the style classifier {name!r} needs texts of two styles or more, got '
        f'{len(texts)} texts of {list(known)}'
      )
    pairs = sorted(zip(texts, styles, strict=True))
    pipeline = _pipeline()
    pipeline.fit([text for text, _ in pairs], [style for _, style in pairs])
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    return cls(name, known, len(pairs), digest[:16], pipeline)

  def predict(self, texts: Sequence[str]) -> list[str]:
    """The likeliest style of each text."""
    return [str(style) for style in self.pipeline.predict(list(texts))]

  def tested(
    self, texts: Sequence[str], styles: Sequence[str]
  ) -> 'StyleClassifier':
    """The same classifier with its accuracy on texts it never saw.

    Args:
      texts: of other books (groups) than it learned from.
      styles: of each text.

    Raises:
      DataError: another number of styles than of texts, or no texts.
    """
    _check_pairs(texts, styles)
    pairs = zip(self.predict(texts), styles, strict=True)
    return dataclasses.replace(
      self,
      held_out_n=len(texts),
      held_out_accuracy=mean([float(a == b) for a, b in pairs]),
    )

  @property
  def signature(self) -> str:
    """Everything that tells this classifier from another."""
    version = importlib.metadata.version('scikit-learn')
    accuracy = 'unmeasured'
    if self.held_out_accuracy is not None:
      accuracy = f'{self.held_out_accuracy:.4f} (n={self.held_out_n})'
    return (
      f'scikit-learn=={version} LogisticRegression on hashed tf-idf of word '
      f'{_dashed(WORD_NGRAMS)}-grams and character {_dashed(CHARACTER_NGRAMS)}'
      f'-grams; data {self.name} {self.fingerprint} (n={self.n}); styles '
      f'{",".join(self.styles)}; held-out accuracy {accuracy}'
    )


def _dashed(edges: tuple[int, int]) -> str:
  return f'{edges[0]}-{edges[1]}'


def _check_pairs(texts: Sequence[str], styles: Sequence[str]) -> None:
  if len(texts) != len(styles) or not texts:
    raise DataError(
      f'{len(texts)} texts with {len(styles)} styles; a style classifier needs '
      'at least one text, and one style for each'
    )


def _pipeline() -> 'Pipeline':
  # Imported here: it takes seconds, and other tasks never need it.
  from sklearn.feature_extraction.text import (
    HashingVectorizer,
    TfidfTransformer,
  )
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline, make_union

  hashed = lambda analyzer, edges: make_pipeline(  # noqa: E731
    HashingVectorizer(
      analyzer=analyzer, ngram_range=edges, n_features=HASHED_FEATURES,
      alternate_sign=False,
    ).set_params(norm=None),  # the transformer norms, after its weights
    TfidfTransformer(sublinear_tf=True),
  )  # fmt: skip
  return make_pipeline(
    make_union(
      hashed('word', WORD_NGRAMS), hashed('char_wb', CHARACTER_NGRAMS)
    ),
    LogisticRegression(C=10, class_weight='balanced', max_iter=1000),
  )


def style_metrics(
  records: Sequence[Record], classifier: StyleClassifier
) -> dict[str, Metric]:
  """Style and content of transferred texts, overall and by target style.

  Args:
    records: prediction records with a field `style`, that of the target.
    classifier: trained on other texts than these.

  Returns:
    style_accuracy of the outputs, reference_style_accuracy and
    source_style_accuracy (the floor: what copying gets), in [0, 1];
    style_chrf against the references, style_source_chrf against the source,
    source_style_chrf of the source against the references (copying again), in
    [0, 100]; style_joint and source_style_joint, the mean over items of
    [style right] x chrF / 100, in [0, 1]. Then all of them again for each
    target style, as KEY_to_STYLE.

  Raises:
    DataError: a record without a style, or one that the classifier has not
      learned.
  """
  _check_styles(records, classifier)
  items = style_by_record(records, classifier)
  found = _metrics(items, classifier, '')
  for style in sorted({record['style'] for record in records}):
    own = [item for item in items if item.style == style]
    of_style = _metrics(own, classifier, f'; targets in {style} alone')
    found |= {f'{key}_to_{style}': of_style[key] for key in of_style}
  return found


def _check_styles(
  records: Sequence[Record], classifier: StyleClassifier
) -> None:
  for record in records:
    if record.get('style') not in classifier.styles:
      raise DataError(
        f'record {record["id"]!r}: field \'style\' is {record.get("style")!r}; '
        f'the style classifier {classifier.name!r} knows '
        f'{", ".join(classifier.styles)}'
      )


@dataclasses.dataclass(frozen=True)
class Item:
  """Of one record, whether each text has the style, and chrF of pairs."""

  style: str
  output_right: bool
  reference_right: bool
  source_right: bool
  chrf: float
  source_chrf: float
  copy_chrf: float


def style_by_record(
  records: Sequence[Record], classifier: StyleClassifier
) -> list[Item]:
  """What `style_metrics` takes its means over, one a record."""
  sides = (
    [record['text'] for record in records],
    [record['references'][0] for record in records],
    [record['source'] for record in records],
  )
  guesses = zip(*map(classifier.predict, sides), strict=True)
  return [
    Item(
      record['style'],
      *(guess == record['style'] for guess in guessed),
      chrf=_chrf(record['text'], record['references']),
      source_chrf=_chrf(record['text'], [record['source']]),
      copy_chrf=_chrf(record['source'], record['references']),
    )
    for record, guessed in zip(records, guesses, strict=True)
  ]


def _chrf(text: str, references: Sequence[str]) -> float:
  return CHRF().sentence_score(text, references).score


def _metrics(
  items: Sequence[Item], classifier: StyleClassifier, where: str
) -> dict[str, Metric]:
  def metric(values: Sequence[float], definition: str) -> Metric:
    return Metric(
      mean(values), len(values), 'outputs', definition + where, signature
    )

  def joint(right: Sequence[bool], chrf: Sequence[float], who: str) -> Metric:
    values = [r * c / 100 for r, c in zip(right, chrf, strict=True)]
    return metric(
      values,
      f'mean over items of [{who} has the target style] x its sentence chrF2 '
      'against the references / 100, in [0, 1]',
    )

  version = importlib.metadata.version('sacrebleu')
  signature = f'{classifier.signature}; chrF by sacrebleu=={version} CHRF()'
  right = {
    'outputs': [item.output_right for item in items],
    'references': [item.reference_right for item in items],
    'sources': [item.source_right for item in items],
  }
  accuracy = {
    who: metric(
      values, f'share in [0, 1] of {who} that the classifier gives the target '
      'style'
    )
    for who, values in right.items()
  }  # fmt: skip
  chrf = [item.chrf for item in items]
  copy_chrf = [item.copy_chrf for item in items]
  mean_of = 'mean over items of sentence chrF2, in [0, 100], of'
  return {
    'style_accuracy': accuracy['outputs'],
    'reference_style_accuracy': accuracy['references'],
    'source_style_accuracy': accuracy['sources'],
    'style_chrf': metric(chrf, f'{mean_of} outputs against the references'),
    'style_source_chrf': metric(
      [item.source_chrf for item in items],
      f'{mean_of} outputs against their sources',
    ),
    'source_style_chrf': metric(
      copy_chrf, f'{mean_of} sources against the references'
    ),
    'style_joint': joint(right['outputs'], chrf, 'the output'),
    'source_style_joint': joint(right['sources'], copy_chrf, 'the source'),
  }
