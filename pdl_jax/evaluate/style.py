"""Style transfer: is the style right, and is the content still there?"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sacrebleu.metrics.chrf import CHRF

from pdl_jax.errors import DataError
from pdl_jax.evaluate.registry import Found, Inputs, Metric, mean, register

if TYPE_CHECKING:
  from sklearn.pipeline import Pipeline

WORD_NGRAMS = (1, 2)
CHARACTER_NGRAMS = (3, 4)
HASHED_FEATURES = 2**18


@dataclasses.dataclass(frozen=True)
class StyleClassifier:
  """Tells styles apart by their n-grams; equal data gives an equal classifier.

  Attributes:
    styles: in alphabetical order.
    fingerprint: hash of the training texts and their styles, in any order.
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
    """Learns from labelled texts; their order changes nothing.

    Features are word 1- to 2-grams and, within words, character 3- to 4-grams.
    Each kind is hashed to 2**18 features and weighted by tf-idf. Logistic
    regression has an L2 penalty (C 10) and weights styles evenly. None of the
    texts may be evaluated on.
    """
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
    """Returns the likeliest style of each text."""
    return [str(style) for style in self.pipeline.predict(list(texts))]

  def tested(
    self, texts: Sequence[str], styles: Sequence[str]
  ) -> 'StyleClassifier':
    """Returns a copy with its accuracy on texts of other groups (books)."""
    pairs = zip(self.predict(texts), styles, strict=True)
    return dataclasses.replace(
      self,
      held_out_n=len(texts),
      held_out_accuracy=mean([float(a == b) for a, b in pairs]),
    )

  @property
  def signature(self) -> str:
    """Everything that distinguishes this classifier from another."""
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


def _pipeline() -> 'Pipeline':
  # Imported here: it takes seconds, and other tasks never need it.
  from sklearn.feature_extraction.text import (
    HashingVectorizer,
    TfidfTransformer,
  )
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline, make_union

  features = [
    make_pipeline(
      HashingVectorizer(
        analyzer=analyzer, ngram_range=edges, n_features=HASHED_FEATURES,
        alternate_sign=False,
      ).set_params(norm=None),  # the transformer norms, after its weights
      TfidfTransformer(sublinear_tf=True),
    )
    for analyzer, edges in (
      ('word', WORD_NGRAMS), ('char_wb', CHARACTER_NGRAMS)
    )
  ]  # fmt: skip
  return make_pipeline(
    make_union(*features),
    LogisticRegression(C=10, class_weight='balanced', max_iter=1000),
  )


def _signature(inputs: Inputs) -> str:
  version = importlib.metadata.version('sacrebleu')
  assert inputs.classifier is not None
  return f'{inputs.classifier.signature}; chrF by sacrebleu=={version} CHRF()'


@register(
  Metric(
    'style_accuracy', 'Right style (%)', 'higher', 1, 100, unit='outputs',
    sums=('right_style', 'outputs'), signature=_signature,
    reference_sums=('right_style_references', 'outputs'),
    definition='share in [0, 1] of outputs that the classifier gives the '
    'target style',
  ),
  Metric(
    'source_style_accuracy', 'Right style if copied (%)', digits=1, scale=100,
    unit='outputs', sums=('right_style_sources', 'outputs'),
    signature=_signature,
    definition='share in [0, 1] of sources that the classifier gives the '
    'target style: what copying gets',
  ),
  Metric(
    'style_joint', 'Right style x chrF (%)', 'higher', 2, 100, unit='outputs',
    sums=('right_style_chrf', 'outputs'), signature=_signature,
    definition='mean over items of [the output has the target style] x its '
    'sentence chrF2 against the references / 100, in [0, 1]',
  ),
)  # fmt: skip
def styles(inputs: Inputs) -> Found:
  """Finds which texts have the target style, and how much content they keep."""
  classifier, records = inputs.classifier, inputs.records
  if classifier is None:
    return {}
  for record in records:
    if record.get('style') not in classifier.styles:
      raise DataError(
        f'record {record["id"]!r}: field \'style\' is {record.get("style")!r}; '
        f'the style classifier {classifier.name!r} knows '
        f'{", ".join(classifier.styles)}'
      )

  def right(texts: Sequence[str]) -> list[int]:
    guesses = classifier.predict(texts)
    return [
      int(guess == record['style'])
      for guess, record in zip(guesses, records, strict=True)
    ]

  outputs = right([record['text'] for record in records])
  return {
    'right_style': outputs,
    'right_style_references': right([r['references'][0] for r in records]),
    'right_style_sources': right([record['source'] for record in records]),
    'right_style_chrf': [
      is_right
      * CHRF().sentence_score(record['text'], record['references']).score
      / 100
      for is_right, record in zip(outputs, records, strict=True)
    ],
  }
