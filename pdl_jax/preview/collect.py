"""Computes what a loss will do to some training examples, before any step."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.likelihood import BUCKETS
from pdl_jax.losses import LOSSES, LossTables
from pdl_jax.losses.frequency import FrequencyTable, effective_sample_size
from pdl_jax.losses.settings import LossSettings

# A loss weighs types, adds a bias (nats) to their logits, or does neither.
Kind = Literal['weight', 'bias', 'none']

# How many of the heaviest and the lightest types are named.
EXTREMES = 10

# Levels -4 to 4 tell how far a token is from the mean per token occurrence.
# They begin at these factors, or nats of a bias. Heavier is orange and lighter
# blue, which colour-blind readers can tell apart.
EDGES = {'weight': (1.1, 2, 4, 8), 'bias': (0.1, 1, 2, 4)}


class PreviewExample(NamedTuple):
  """A training example; the target ends with the end of turn."""

  id: str
  prompt: str
  target_ids: list[int]


class Token(NamedTuple):
  """A token of a target, or a type."""

  id: int
  raw: bytes
  special: bool  # A control token, not text.
  count: float  # In the training targets.
  value: float  # Weight, or bias in nats; 1 where the loss has neither.
  level: int  # Of its colour, -4 to 4.


@dataclasses.dataclass(frozen=True, eq=False)
class Preview:
  """A loss on a corpus and on some of its examples."""

  kind: Kind
  title: str  # The loss and what it reads.
  lines: list[str]  # On the loss and on the corpus.
  buckets: list[list[str]]  # The table by count, its header first.
  extremes: dict[str, list[Token]]  # The first counted types of an order.
  counts_T: np.ndarray  # Of the T counted types.
  values_T: np.ndarray
  examples: list[tuple[PreviewExample, list[Token]]]


def collect(
  loss: LossSettings,
  tables: LossTables,
  table: FrequencyTable,
  tokenizer: Tokenizer,
  examples: Sequence[PreviewExample],
) -> Preview:
  """Looks up what to show; ConfigError if all counted tokens weigh 0."""
  kind, counts_V = _kind(loss.name), table.counts_V
  values_V = tables.weights_V if tables.bias_V is None else tables.bias_V
  values_V = np.asarray(values_V, np.float64)
  mean = float(np.average(values_V, weights=counts_V))
  if kind == 'weight' and not mean:
    raise ConfigError(
      f'loss {loss.name} gives all {table.total} counted tokens weight 0: '
      'there is nothing to learn from'
    )
  heavier_V = _heavier(values_V, mean, kind)
  levels_V = _levels(heavier_V, kind)

  def look_up(ids: Iterable[int]) -> list[Token]:
    return [
      Token(
        i, tokenizer.raw(i), i in tokenizer.special_ids, counts_V[i].item(),
        values_V[i].item(), levels_V[i].item(),
      )
      for i in ids
    ]  # fmt: skip

  seen_T = np.flatnonzero(counts_V)
  lines = [
    *_notes(loss, kind),
    f'corpus: {table.data_name}/{table.split}: {table.total:,} target tokens '
    f'of {seen_T.size:,} types, tokenizer {tokenizer.name}',
  ]
  extremes = {}
  if kind != 'none':
    lines += _spread(counts_V, values_V, mean, kind)
    names = ('heaviest', 'lightest')
    if kind == 'bias':
      names = ('lowest bias', 'highest bias')
    for name, sign in zip(names, (-1, 1), strict=True):
      # Ties stay in the order of their ids.
      order_T = np.argsort(sign * heavier_V[seen_T], kind='stable')
      extremes[name] = look_up(seen_T[order_T[:EXTREMES]].tolist())
  return Preview(
    kind, _title(loss), lines, _buckets(counts_V, values_V, kind), extremes,
    counts_V[seen_T], values_V[seen_T],
    [(example, look_up(example.target_ids)) for example in examples],
  )  # fmt: skip


def _kind(name: str) -> Kind:
  spec = LOSSES[name]
  if spec.bias is not None:
    return 'bias'
  by_token = spec.terms is not None or spec.on_logits is not None
  return 'none' if by_token and spec.weights is None else 'weight'


def _heavier(values_V: np.ndarray, mean: float, kind: Kind) -> np.ndarray:
  """Measures types against the mean, in nats; a low bias is heavy."""
  if kind == 'bias':
    return mean - values_V
  with np.errstate(divide='ignore'):  # A weight of 0 is the lightest.
    return np.log(values_V / mean)


def _levels(heavier_V: np.ndarray, kind: Kind) -> np.ndarray:
  edges = EDGES['bias'] if kind == 'bias' else np.log(EDGES['weight'])
  strength_V = np.searchsorted(edges, np.abs(heavier_V), 'right')
  return np.sign(heavier_V).astype(int) * strength_V


def _title(loss: LossSettings) -> str:
  # What is computed, not how.
  keys = [key for key in loss.spec.read if key not in ('name', 'memory_mb')]
  settings = {key: getattr(loss, key) for key in keys}
  for key, value in loss.own.items():
    settings[f'{loss.name}.{key}'] = value
  # A table that is not given has an empty name.
  told = [f'{key}={value}' for key, value in settings.items() if value != '']
  return ' '.join([loss.name, *told])


def _notes(loss: LossSettings, kind: Kind) -> Iterator[str]:
  if kind == 'none':
    yield (
      f'{loss.name} has no weight per type: how much a token counts depends '
      'on the probabilities that the model gives, and cannot be shown before '
      'the model has run. Only frequencies are shown.'
    )
  if kind == 'bias':
    yield (
      f'{loss.name} has no weights: it adds a bias to the logits in training. '
      'A token whose bias is below the mean must be given a higher logit of '
      'its own, as a heavier one would.'
    )
  if loss.schedule != 'constant':
    yield f'loss.schedule {loss.schedule}: weights are shown at full strength.'


def _spread(
  counts_V: np.ndarray, values_V: np.ndarray, mean: float, kind: Kind
) -> Iterator[str]:
  unit = ' nats' if kind == 'bias' else ''
  seen, unseen = values_V[counts_V > 0], values_V[counts_V == 0]
  low, middle, high = np.quantile(seen, [0, 0.5, 1])
  yield (
    f'{kind} of counted types: min {low:.3g}, median {middle:.3g}, '
    f'max {high:.3g}{unit}; mean per token occurrence {mean:.3g}'
  )
  if kind == 'weight':
    share = effective_sample_size(counts_V, values_V)
    yield f'effective sample size: {share:.1%} of the tokens'
  if unseen.size:
    yield (
      f'never counted: {unseen.size:,} types, median {kind} '
      f'{np.median(unseen):.3g}{unit}'
    )


def _buckets(
  counts_V: np.ndarray, values_V: np.ndarray, kind: Kind
) -> list[list[str]]:
  """Sums types, tokens and weight by count in training."""
  starts = [int(re.split(r'\D', name)[0]) for name in BUCKETS]
  bucket_V = np.searchsorted(starts, counts_V, 'right') - 1
  types, tokens, mass = (
    np.bincount(bucket_V, amounts_V, len(BUCKETS))
    for amounts_V in (np.ones_like(values_V), counts_V, counts_V * values_V)
  )
  columns = [
    ('count in training', *BUCKETS),
    ('types', *(f'{n:,.0f}' for n in types)),
    ('share of tokens', *(f'{share:.1%}' for share in tokens / tokens.sum())),
  ]
  if kind == 'weight':
    shares = (f'{share:.1%}' for share in mass / mass.sum())
    columns.append(('share of weight', *shares))
  if kind != 'none':
    pairs = zip(mass, tokens, strict=True)
    means = (f'{total / n:.3g}' if n else '-' for total, n in pairs)
    columns.append((f'mean {kind}', *means))
  return [list(row) for row in zip(*columns, strict=True)]
