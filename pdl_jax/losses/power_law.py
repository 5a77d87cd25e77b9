"""Power-Law Decay Loss: cross-entropy that gives rare tokens more weight.

    w(t) = 1 / (freq(t) + epsilon) ** alpha
    PDL  = - sum_k w(y_k) log P(y_k | y_<k, x)

Source: arXiv:2505.16900. The paper leaves open whether freq is a count or a
probability, what an unseen type weighs, and how the sum is normalised. Here
each is an argument.
"""

import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.losses.checks import (
  check_frequency,
  check_number,
  number_of,
  special_types,
)
from pdl_jax.losses.registry import register
from pdl_jax.losses.renamed import renamed

UNSEEN = ('formula', 'min_count', 'neutral')
NORMALIZE = ('corpus_mean', 'none')
# Names of version 0.1 -> current names.
_FORMERLY = {'paper': 'formula', 'as_once': 'min_count'}
EPSILON_POLICIES = ('absolute', 'times_median')


@register(
  'power_law',
  keys=(
    'alpha', 'epsilon', 'epsilon_policy', 'unit', 'level', 'clip', 'normalize',
    'unseen',
  ),
)  # fmt: skip
@renamed(neutral_ids='special_ids')
def power_law_weights(
  frequency_V: Array | np.ndarray,
  *,
  alpha: Array | float,
  epsilon: Array | float,
  clip: float | None = None,
  normalize: str = 'corpus_mean',
  special_ids: Sequence[int] = (),
  unseen: str = 'formula',
  epsilon_policy: str = 'absolute',
  mass_V: Array | np.ndarray | None = None,
) -> Array:
  """Returns the weight of each type, w(t) = 1 / (freq(t) + epsilon) ** alpha.

  Args:
    frequency_V: counts or probabilities of the types. An absolute epsilon has
      the same unit: at alpha 1 and epsilon 1e-7 an unseen type weighs 1e7 times
      a once-seen one on counts, 11 times on the probabilities of a
      million-token corpus.
    alpha: decay exponent, >= 0. 0 is cross-entropy, bit for bit; 1 gives all
      types the same total weight. May be traced: a schedule does not recompile,
      and the derivative at 0 is that of the formula.
    epsilon: smoothing constant, >= 0; may be traced. At a traced 0 under
      'formula' unseen types weigh inf (or `clip`), without a derivative.
    clip: largest weight, >= 1; None sets no limit. Under 'corpus_mean' it is a
      ratio to the mean, which stays 1: the other types gain what the heaviest
      lose.
    normalize: 'corpus_mean' scales the weights to a mean of 1 over the token
      occurrences of the corpus, which keeps the meaning of the learning rate;
      'none' is the paper's formula.
    special_ids: types with weight exactly 1 (end of turn, padding, specials),
      left out of the mean.
    unseen: how a type with frequency 0 is weighted: by the 'formula', with the
      frequency of the rarest type seen ('min_count'), or with 1 ('neutral').
    epsilon_policy: 'absolute' adds epsilon itself. 'times_median' adds epsilon
      times the median frequency of seen non-special types (or 1 without any),
      which means the same for counts, probabilities and any corpus size.
    mass_V: token occurrences for 'corpus_mean', if they differ from
      frequency_V: for a mixed or a word-level frequency.

  Returns:
    weights_V, fp32.

  Raises:
    ConfigError: a number out of range, special ids outside [0, V), epsilon 0
      with unseen types under 'formula', or weights that overflow.
  """
  check_number('alpha', alpha)
  check_number('epsilon', epsilon)
  if unseen in _FORMERLY:
    warnings.warn(
      f'unseen={unseen!r} is called {_FORMERLY[unseen]!r} now',
      DeprecationWarning, stacklevel=2,
    )  # fmt: skip
    unseen = _FORMERLY[unseen]
  if clip is not None and not 1 <= number_of(clip) < np.inf:
    raise ConfigError(
      f'clip must be at least 1 (the mean weight) and finite, got {clip}'
    )
  one_of('normalize', normalize, NORMALIZE)
  one_of('unseen', unseen, UNSEEN)
  one_of('epsilon_policy', epsilon_policy, EPSILON_POLICIES)
  frequency_V = check_frequency(frequency_V)
  special_V = special_types(special_ids, frequency_V.size)
  seen_V = frequency_V > 0
  missing = int((~seen_V & ~special_V).sum())
  is_zero = not isinstance(epsilon, Tracer) and float(epsilon) == 0
  if missing and is_zero and unseen == 'formula':
    raise ConfigError(
      f'epsilon 0 gives {missing} of {frequency_V.size} token types, which '
      "were never counted, an infinite weight; use epsilon > 0 or unseen='"
      "min_count'"
    )
  mass_V = frequency_V if mass_V is None else check_frequency(mass_V, 'mass_V')
  if mass_V.shape != frequency_V.shape:
    raise ConfigError(
      f'mass_V has shape {mass_V.shape}, frequency_V {frequency_V.shape}'
    )
  mass_V = jnp.asarray(np.where(special_V, 0, mass_V), jnp.float32)
  base_V = frequency_V.astype(np.float64)
  smoothing = epsilon
  if epsilon_policy == 'times_median':
    counted = base_V[seen_V & ~special_V]
    # A Python float leaves dtypes alone.
    smoothing = epsilon * (float(np.median(counted)) if counted.size else 1.0)
  if unseen != 'formula':
    rarest = base_V[seen_V].min() if seen_V.any() else 1.0
    base_V = np.where(seen_V, base_V, rarest)
  smoothed_V = jnp.asarray(base_V, jnp.float32) + smoothing
  # At frequency 0 and epsilon 0 the weight is infinite. It is inserted where no
  # derivative flows, since that would make all derivatives NaN.
  pole_V = smoothed_V == 0
  power_V = jnp.exp(-alpha * jnp.log(jnp.where(pole_V, 1.0, smoothed_V)))
  weights_V = power_V
  if normalize == 'corpus_mean':
    raw_V = jnp.where(pole_V, jnp.inf, power_V)
    weights_V = _scale(raw_V, mass_V, clip) * power_V
  if clip is not None:
    weights_V = jnp.minimum(weights_V, clip)
  fixed_V = special_V | (~seen_V if unseen == 'neutral' else False)
  weights_V = jnp.where(fixed_V, 1.0, weights_V)
  # At alpha 0 the weight is exactly 1, whatever the rounding of the mean. The
  # difference is 0 and has the derivative of the formula.
  one_V = 1.0 + (weights_V - lax.stop_gradient(weights_V))
  is_plain = jnp.asarray(alpha) == 0
  weights_V = jnp.where(is_plain, one_V, weights_V)
  limit = np.inf if clip is None else clip
  infinite_V = pole_V & ~fixed_V & ~is_plain
  weights_V = jnp.where(infinite_V, limit, weights_V)
  if isinstance(weights_V, Tracer):
    return weights_V
  bad = int((~np.isfinite(np.asarray(weights_V))).sum())
  if bad:
    raise ConfigError(
      f'{bad} of {weights_V.size} weights overflow fp32 at alpha {alpha} and '
      f'epsilon {epsilon}; use a larger epsilon or a smaller alpha'
    )
  return weights_V


def _scale(raw_V: Array, mass_V: Array, clip: float | None) -> Array:
  """Returns the s for which min(s * raw, clip) has mean 1 over occurrences.

  With the k heaviest types at the clip, s is (total - clip * their mass) over
  the weighted mass of the others. Each k bounds s from below and the right k
  attains the bound, so s is the largest bound.
  """
  total = mass_V.sum()
  # An unseen type may have infinite weight here, and 0 * inf is NaN.
  weighted_V = jnp.where(mass_V > 0, mass_V * raw_V, 0.0)
  if clip is None:
    scale = total / weighted_V.sum()
  else:
    order = jnp.argsort(-raw_V)
    heavier_V = jnp.cumsum(mass_V[order]) - mass_V[order]
    others_V = jnp.cumsum(weighted_V[order][::-1])[::-1]
    bounds_V = (total - clip * heavier_V) / others_V
    scale = jnp.where(others_V > 0, bounds_V, 0.0).max()
  return jnp.where(total > 0, scale, 1.0)
