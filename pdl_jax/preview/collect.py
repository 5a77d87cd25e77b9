"""Everything that a preview shows, computed once."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pdl_jax.data.tokenizer import Tokenizer, spelled
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate.likelihood import BUCKETS
from pdl_jax.losses import LOSSES, LossTables, frequency
from pdl_jax.losses.frequency import FrequencyTable, effective_sample_size
from pdl_jax.losses.settings import LossSettings
from pdl_jax.preview import scale
from pdl_jax.preview.content import (
  Bucket,
  Distribution,
  Kind,
  Preview,
  PreviewExample,
  ShownExample,
  Token,
)
from pdl_jax.preview.pieces import visible

# Heaviest and lightest types that are named.
EXTREMES = 10


def collect(
  loss: LossSettings,
  tables: LossTables,
  table: FrequencyTable,
  tokenizer: Tokenizer,
  examples: Sequence[PreviewExample],
) -> Preview:
  """Looks up and sums whatever is to be shown.

  Args:
    loss: settings.
    tables: `weighting.make_tables` of them.
    table: counts of the task's training targets.
    tokenizer: that the table was counted with.
    examples: some of the training split.

  Raises:
    DataError: for an empty table, one of another tokenizer, or an id outside
      the vocabulary.
    ConfigError: if every counted token weighs 0.
  """
  _check_table(table, tokenizer)
  kind = _kind(loss.name)
  counts_V = table.counts_V
  values_V = np.asarray(
    tables.weights_V if tables.bias_V is None else tables.bias_V, np.float64
  )
  mean = float(np.average(values_V, weights=counts_V))
  if kind == 'weight' and not mean:
    raise ConfigError(
      f'loss {loss.name} gives all {table.total} counted tokens weight 0: '
      'there is nothing to learn from'
    )
  lookup = _Lookup(tokenizer, counts_V, values_V, mean, kind)
  heavy = _heavy_first(values_V, counts_V, kind)
  light = _heavy_first(-values_V, counts_V, kind)
  return Preview(
    loss=loss.name,
    settings=_settings(loss),
    kind=kind,
    notes=_notes(loss, kind),
    corpus=f'{table.data_name}/{table.split}',
    tokenizer=tokenizer.name,
    tokens=table.total,
    types=int((counts_V > 0).sum()),
    distribution=_distribution(counts_V, values_V, mean, kind),
    heaviest=tuple(lookup.token(i) for i in heavy[:EXTREMES]),
    lightest=tuple(lookup.token(i) for i in light[:EXTREMES]),
    values_R=values_V[lookup.by_rank] if kind != 'none' else np.zeros(0),
    buckets=_buckets(counts_V, values_V, kind),
    examples=tuple(lookup.example(example) for example in examples),
  )


def _check_table(table: FrequencyTable, tokenizer: Tokenizer) -> None:
  if table.tokenizer != tokenizer.fingerprint:
    raise DataError(
      f'the counts of {table.data_name}/{table.split} are of tokenizer '
      f'{table.tokenizer_name} ({table.tokenizer[:8]}), the examples of '
      f'{tokenizer.name} ({tokenizer.fingerprint[:8]}); count with the latter'
    )
  if not table.total:
    raise DataError(
      f'{table.data_name}/{table.split}: no target token was counted, so '
      'there is nothing to preview'
    )


def _kind(name: str) -> Kind:
  spec = LOSSES[name]
  if spec.bias is not None:
    return 'bias'
  by_token = spec.terms is not None or spec.on_logits is not None
  return 'none' if by_token and spec.weights is None else 'weight'


def _settings(loss: LossSettings) -> dict[str, Any]:
  shared = {key: getattr(loss, key) for key in LOSSES[loss.name].read}
  del shared['name']
  own = loss.rivals.get(loss.name, {})
  named = {f'{loss.name}.{key}': value for key, value in own.items()}
  # Tables that are not given.
  return {k: v for k, v in {**shared, **named}.items() if v != ''}


def _notes(loss: LossSettings, kind: Kind) -> tuple[str, ...]:
  notes = []
  if kind == 'none':
    notes.append(
      f'{loss.name} has no weight per type: how much a token counts depends '
      'on the probabilities that the model gives, and cannot be shown before '
      'the model has run. Only frequencies are shown.'
    )
  if kind == 'bias':
    notes.append(
      f'{loss.name} has no weights: it adds a bias to the logits in training. '
      'A token whose bias is below the mean must be given a higher logit of '
      'its own, as a heavier one would.'
    )
  if loss.schedule != 'constant' and kind == 'weight':
    notes.append(
      f'loss.schedule {loss.schedule}: the weights are shown at full strength.'
    )
  return tuple(notes)


class _Lookup:
  """Tokens and examples from ids."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    counts_V: np.ndarray,
    values_V: np.ndarray,
    mean: float,
    kind: Kind,
  ):
    self._tokenizer = tokenizer
    self._counts_V, self._values_V = counts_V, values_V
    order = np.argsort(-counts_V, kind='stable')
    self.by_rank = order[: int((counts_V > 0).sum())]
    self._rank_V = np.zeros(counts_V.size, int)
    self._rank_V[self.by_rank] = 1 + np.arange(self.by_rank.size)
    self._level_V = _level(values_V, mean, kind)
    self._shown = kind != 'none'

  def token(self, number: int) -> Token:
    raw = self._tokenizer.raw(int(number))
    return Token(
      id=int(number),
      raw=raw,
      text=visible(raw),
      special=int(number) in self._tokenizer.special_ids,
      count=self._counts_V[number].item(),
      rank=int(self._rank_V[number]) or None,
      value=float(self._values_V[number]) if self._shown else None,
      level=int(self._level_V[number]),
    )

  def example(self, example: PreviewExample) -> ShownExample:
    ids = example.target_ids
    # Refuses ids outside the vocabulary.
    frequency.count([ids], self._counts_V.size)
    tokens = tuple(self.token(number) for number in ids)
    return ShownExample(
      id=example.id,
      prompt=example.prompt,
      # A window of a document may end inside a character.
      target=spelled(b''.join(t.raw for t in tokens if not t.special)),
      tokens=tokens,
      mean=float(self._values_V[ids].mean()) if self._shown and ids else None,
    )


def _level(values_V: np.ndarray, mean: float, kind: Kind) -> np.ndarray:
  if kind == 'none':
    return np.zeros(values_V.size, int)
  if kind == 'bias':
    return scale.levels(mean - values_V, kind)
  with np.errstate(divide='ignore'):  # A weight of 0 is the lightest.
    return scale.levels(np.log(values_V / mean), kind)


def _heavy_first(
  values_V: np.ndarray, counts_V: np.ndarray, kind: Kind
) -> np.ndarray:
  """Ids of the counted types; none where the loss has no values."""
  seen = np.flatnonzero(counts_V) if kind != 'none' else np.zeros(0, int)
  sign = 1 if kind == 'bias' else -1
  return seen[np.argsort(sign * values_V[seen], kind='stable')]


def _distribution(
  counts_V: np.ndarray, values_V: np.ndarray, mean: float, kind: Kind
) -> Distribution | None:
  if kind == 'none':
    return None
  seen_V = counts_V > 0
  low, middle, high = np.quantile(values_V[seen_V], [0, 0.5, 1]).tolist()
  share = None
  if kind == 'weight':
    share = effective_sample_size(counts_V, values_V)
  unseen = values_V[~seen_V]
  unseen_value = float(np.median(unseen)) if unseen.size else None
  return Distribution(
    low, middle, high, mean, share, unseen.size, unseen_value
  )


def _buckets(
  counts_V: np.ndarray, values_V: np.ndarray, kind: Kind
) -> tuple[Bucket, ...]:
  starts = [int(re.split(r'\D', name)[0]) for name in BUCKETS]
  bucket_V = np.searchsorted(starts, counts_V, 'right') - 1
  sums = [
    np.bincount(bucket_V, amounts_V, len(BUCKETS))
    for amounts_V in (np.ones_like(values_V), counts_V, counts_V * values_V)
  ]
  weight = sums[2].sum() if kind == 'weight' else None
  return tuple(
    Bucket(
      name=name,
      types=int(types),
      token_share=float(tokens / sums[1].sum()),
      weight_share=float(mass / weight) if weight else None,
      mean=float(mass / tokens) if tokens and kind != 'none' else None,
    )
    for name, types, tokens, mass in zip(BUCKETS, *sums, strict=True)
  )
