"""The configured loss: its frequencies, its tables, and what they will do."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.losses import Loss, LossTables
from pdl_jax.losses.frequency import FrequencyTable, effective_sample_size
from pdl_jax.losses.fused.api import FusedConfig
from pdl_jax.losses.power_law import power_law_weights
from pdl_jax.losses.registry import PLAIN
from pdl_jax.losses.schedule import decay_factor
from pdl_jax.losses.settings import LossSettings

_OWN_KEYS = (
  'alpha', 'epsilon', 'epsilon_policy', 'clip', 'normalize', 'unseen',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Frequencies:
  """Counts that the weights are made from.

  Attributes:
    task: counts of the training targets, or a stored table.
    used: `task`, or its mix with a general corpus.
    words_V: for loss.level word: how often the words of each piece occur.
  """

  task: FrequencyTable
  used: FrequencyTable
  words_V: np.ndarray | None = None


def make_loss(loss: LossSettings) -> Loss:
  """Makes the loss that the step is compiled for; checks its own settings."""
  spec, own = loss.spec, loss.own
  settings: dict[str, Any] = {}
  if spec.terms is not None or spec.on_logits is not None:
    settings = own
  elif any(getattr(loss, name) for name in PLAIN):
    settings = {name: getattr(loss, name) for name in PLAIN}
  made = Loss(spec, settings, loss.reduction, FusedConfig(
    memory_bytes=loss.memory_mb * 2**20 or None, exp_accuracy=loss.exp_accuracy
  ))  # fmt: skip
  try:
    # The settings can be checked here, since they are not traced.
    made.check()
    counts_V = np.ones(2)
    if spec.weights is not None and own:
      spec.weights(counts_V, special_ids=(), **own)
    if spec.bias is not None:
      spec.bias(counts_V, **own)
  except ConfigError as error:
    raise ConfigError(f'loss.{loss.name}: {error}') from None
  return made


def make_tables(
  loss: LossSettings,
  frequencies: Frequencies,
  special_ids: Sequence[int],
  factor: Array | float = 1.0,
) -> LossTables:
  """Makes weights and bias of the configured loss.

  Args:
    special_ids: types that are not weighted.
    factor: from `schedule.decay_factor`; may be traced. It multiplies alpha;
      the weights of other losses are raised to this power.

  Raises:
    ConfigError: the settings give a weight that is not finite.
  """
  spec, own = loss.spec, loss.own
  counts_V = frequencies.used.frequency('count')
  weights_V, bias_V = jnp.ones(counts_V.size, jnp.float32), None
  try:
    if loss.name == 'power_law':
      weights_V = _power_law(loss, frequencies, special_ids, factor)
    elif spec.weights is not None:
      weights_V = spec.weights(counts_V, special_ids=special_ids, **own)
      weights_V = weights_V**factor
    if spec.bias is not None:
      bias_V = spec.bias(counts_V, **own)
  except ConfigError as error:
    if not own:
      raise
    raise ConfigError(f'loss.{loss.name}: {error}') from None
  bad = 0
  if not isinstance(weights_V, Tracer):
    bad = int((~np.isfinite(weights_V)).sum())
  if bad:
    raise ConfigError(
      f'loss {loss.name} gives {bad} of {weights_V.size} token types a weight '
      'that is not finite; never-counted types have frequency 0'
    )
  return LossTables(weights_V, bias_V)


def _power_law(
  loss: LossSettings,
  frequencies: Frequencies,
  special_ids: Sequence[int],
  factor: Array | float,
) -> Array:
  settings = {name: getattr(loss, name) for name in _OWN_KEYS}
  settings['clip'] = loss.clip or None
  settings['alpha'] = loss.alpha * factor
  task, used = frequencies.task, frequencies.used
  frequency_V = frequencies.words_V
  if frequency_V is None:
    frequency_V = used.frequency(loss.unit)
  # For a mix or words, too, the mean weight is per token occurrence.
  same = used is task and frequencies.words_V is None
  mass_V = None if same else task.counts_V
  return power_law_weights(
    frequency_V, special_ids=special_ids, mass_V=mass_V, **settings
  )


def schedule(
  loss: LossSettings, frequencies: Frequencies, special_ids: Sequence[int]
) -> Callable[[LossTables, Array], LossTables] | None:
  """Returns (tables, step) -> tables of that step; None if constant."""
  if loss.schedule == 'constant':
    return None

  def at(tables: LossTables, step: Array) -> LossTables:
    factor = decay_factor(
      step, kind=loss.schedule, start=loss.schedule_start,
      steps=loss.schedule_steps,
    )  # fmt: skip
    now = make_tables(loss, frequencies, special_ids, factor)
    return tables._replace(weights_V=now.weights_V)

  return at


def tilt_bias(
  counts_V: np.ndarray, tilt: float, special_ids: Sequence[int]
) -> Array:
  """Returns the fp32 bias of post-hoc logit adjustment, added in decoding.

    bias(t) = tilt * (mean of log c over token occurrences - log c_t)

  This is arXiv:2007.07314 up to a constant. An average token occurrence gets
  bias 0, as special ids have: end of turn is neither favoured nor suppressed.
  The mean leaves special ids out. A type never counted counts as seen once.
  `tilt` may have any sign.
  """
  counts_V = np.asarray(counts_V, np.float64)
  log_V = np.log(np.where(counts_V == 0, 1.0, counts_V))
  mass_V = counts_V.copy()
  mass_V[list(special_ids)] = 0
  mean = (mass_V * log_V).sum() / max(mass_V.sum(), 1.0)
  bias_V = tilt * (mean - log_V)
  bias_V[list(special_ids)] = 0
  return jnp.asarray(bias_V, jnp.float32)


def describe(
  weights: Array, table: FrequencyTable, tokenizer: Tokenizer
) -> str:
  """Describes what the weights will do, in a few lines for the terminal."""
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
    f'{middle:.4g}, max {high:.4g}; mean per token occurrence {mean:.4g}',
    f'effective sample size: {share:.1%} of the tokens',
    f'heaviest: {tokens(order[:10])}',
    f'lightest: {tokens(order[::-1][:10])}',
  ])
