"""What a preview is made of: plain values, ready to be shown."""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np

Kind = Literal['weight', 'bias', 'none']


class PreviewExample(NamedTuple):
  """A training example; the target ends with the end of turn."""

  id: str
  prompt: str
  target_ids: list[int]


class Token(NamedTuple):
  """A token, or a type.

  Attributes:
    id: of its type.
    raw: its bytes; those of a whole target are its text in UTF-8.
    text: the same to be read, on one line.
    special: a control token, not text.
    count: in the training targets.
    rank: 1 is the commonest type, equals in the order of their ids; None for a
      type never counted.
    value: weight, or bias in nats; None where the loss has neither.
    level: of colour, -4 to 4; see `scale.levels`.
  """

  id: int
  raw: bytes
  text: str
  special: bool
  count: float
  rank: int | None
  value: float | None
  level: int


class ShownExample(NamedTuple):
  """An example; `mean` is the mean value of its target tokens."""

  id: str
  prompt: str
  target: str
  tokens: tuple[Token, ...]
  mean: float | None


class Distribution(NamedTuple):
  """Of the values of all types.

  Attributes:
    low, middle, high: minimum, median and maximum over the counted types.
    mean: of a running token of the corpus.
    effective_share: effective sample size as a share of the tokens; None for
      a bias.
    unseen: types never counted.
    unseen_value: their median; None if there is none.
  """

  low: float
  middle: float
  high: float
  mean: float
  effective_share: float | None
  unseen: int
  unseen_value: float | None


class Bucket(NamedTuple):
  """Types that occur about as often.

  Attributes:
    name: of evaluate.perplexity.BUCKETS.
    types: how many.
    token_share: of the running tokens.
    weight_share: of the sum of all running tokens' weights; None without
      weights.
    mean: value of a running token of the bucket; None if it has none.
  """

  name: str
  types: int
  token_share: float
  weight_share: float | None
  mean: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Preview:
  """A loss on a corpus and on some of its examples.

  Attributes:
    loss: its name.
    settings: what it reads, by key below `loss`.
    kind: what its tables hold: weights, a bias of the logits (nats), or
      nothing that is known before a model has run.
    notes: sentences on what the numbers do not say.
    corpus: data set and split that were counted.
    tokenizer: its name.
    tokens: counted.
    types: counted at least once.
    distribution: None for kind 'none', as the next three.
    heaviest, lightest: counted types, equals in the order of their ids; of a
      bias, the lowest are the heaviest.
    values_R: of the counted types, by rank.
    buckets: of frequency.
    examples: as they were given.
  """

  loss: str
  settings: dict[str, Any]
  kind: Kind
  notes: tuple[str, ...]
  corpus: str
  tokenizer: str
  tokens: int
  types: int
  distribution: Distribution | None
  heaviest: tuple[Token, ...]
  lightest: tuple[Token, ...]
  values_R: np.ndarray
  buckets: tuple[Bucket, ...]
  examples: tuple[ShownExample, ...]
