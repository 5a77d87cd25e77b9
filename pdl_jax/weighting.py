"""Weights from the loss settings and a frequency table, shown and checked."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.frequency import FrequencyTable, effective_sample_size
from pdl_jax.losses import LOSSES
from pdl_jax.losses.cross_entropy import cross_entropy
from pdl_jax.losses.power_law import pdl_loss, power_law_weights
from pdl_jax.settings import LossSettings


def make_weights(
  loss: LossSettings, table: FrequencyTable, neutral_ids: Sequence[int]
) -> Array:
  """weights_V of the configured loss.

  Raises:
    ConfigError: for settings that give a weight that is not finite.
  """
  spec = LOSSES[loss.name]
  settings = {name: getattr(loss, name) for name in spec.settings}
  settings.pop('unit', None)
  if 'clip' in settings:
    settings['clip'] = settings['clip'] or None
  frequency_V = table.frequency(loss.unit)
  weights_V = spec.weights(frequency_V, neutral_ids=neutral_ids, **settings)
  bad = int((~np.isfinite(np.asarray(weights_V))).sum())
  if bad:
    raise ConfigError(
      f'loss {loss.name} gives {bad} of {weights_V.size} token types a weight '
      'that is not finite; never-counted types have frequency 0'
    )
  return weights_V


def describe(
  weights: Array, table: FrequencyTable, tokenizer: Tokenizer
) -> str:
  """What weights_V are about to do, as a few lines for the terminal."""
  weights_V = np.asarray(weights)
  seen = np.flatnonzero(table.counts_V)
  order = seen[np.argsort(-weights_V[seen], kind='stable')]
  low, middle, high = np.quantile(weights_V[seen], [0, 0.5, 1])
  share = effective_sample_size(table.counts_V, weights_V)
  mean = np.average(weights_V, weights=table.counts_V)

  def tokens(ids: np.ndarray) -> str:
    return '  '.join(
      f'{tokenizer.token(int(i))!r} {weights_V[i]:.3g}' for i in ids
    )

  return '\n'.join([
    f'weights of {len(seen)} counted types: min {low:.4g}, median '
    f'{middle:.4g}, max {high:.4g}; mean of a running token {mean:.4g}',
    f'effective sample size: {share:.1%} of the tokens',
    f'heaviest: {tokens(order[:10])}',
    f'lightest: {tokens(order[::-1][:10])}',
  ])


def check_alpha_zero(table: FrequencyTable, labels: np.ndarray) -> str:
  """Proves on this table and these labels that alpha 0 is cross-entropy.

  Returns:
    one line for the terminal.

  Raises:
    AssertionError: if one bit differs, which would be our bug.
  """
  weights_V = power_law_weights(
    table.frequency('count'), alpha=0.0, epsilon=1.0
  )
  key = jax.random.key(0)
  logits = jax.random.normal(key, (len(labels), table.counts_V.size))
  ours = np.asarray(pdl_loss(logits, jnp.asarray(labels), weights_V))
  plain = np.asarray(cross_entropy(logits, jnp.asarray(labels)))
  if ours != plain:
    raise AssertionError(f'alpha 0 gives {ours}, cross-entropy {plain}')
  return (
    f'self-check: alpha 0 equals cross-entropy bit for bit on {len(labels)} '
    f'target tokens ({plain:.6f} nats under random logits)'
  )
