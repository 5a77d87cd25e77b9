"""What the seeds of an experiment allow to be said, and which system is best.

Small pure functions over one number a seed or one number a system; intervals
over documents and seeds are in `bootstrap`.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np
from scipy import stats

from pdl_jax.errors import ConfigError, DataError

Name = TypeVar('Name', bound=Hashable)
# 'higher', 'lower', or the value to be closest to, e.g. that of the references.
Direction = Literal['higher', 'lower'] | float

# The exact test visits 2 ** seeds sign patterns.
MOST_SEEDS = 16


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean and sample standard deviation (n - 1) over `n` seeds.

  `std` is None for a single seed: its spread is unknown, not 0.
  """

  mean: float
  std: float | None
  n: int


def over_seeds(name: str, values_S: Sequence[float]) -> Spread:
  """Mean and spread of one number a seed; their order changes nothing.

  Args:
    name: of the system, for the error.
    values_S: one finite value a seed.

  Raises:
    DataError: no value, or one that is not finite.
  """
  n = len(values_S)
  if not n:
    raise DataError(f'system {name!r} has no seed; nothing to average')
  _check_finite(name, values_S)
  std = statistics.stdev(values_S) if n > 1 else None
  return Spread(mean=statistics.fmean(values_S), std=std, n=n)


# Above it a p says nothing.
LEVEL = 0.05


def half_interval(values_S: Sequence[float] | np.ndarray) -> float:
  """Half the width of the 95 % t interval of a mean over two seeds or more."""
  n = len(values_S)
  quantile = float(stats.t.ppf(0.975, n - 1))
  return quantile * float(np.std(values_S, ddof=1)) / math.sqrt(n)


def seed_floor(seeds: int) -> float:
  """The smallest two-sided p that `seeds` paired seeds can give: 2 / 2^n.

  With all differences of one sign, only the two patterns of equal signs are as
  extreme as what was seen. Three paired seeds cannot reach p < .25, five
  cannot reach p < .0625; six are the first to pass .05.
  """
  return min(1.0, 2.0 / 2**seeds)


def unpaired_seed_floor(seeds_a: int, seeds_b: int) -> float:
  """The same for seeds that are no pairs: 2 / (a + b choose a), at most 1."""
  return min(1.0, 2.0 / math.comb(seeds_a + seeds_b, seeds_a))


def sign_flip_p(
  names: tuple[str, str], a_S: Sequence[float], b_S: Sequence[float]
) -> float:
  """Exact two-sided permutation test over paired seeds, in [floor, 1].

  If the two systems do not differ, the sign of each seed's difference is a
  fair coin: p is twice the share of the 2^n sign patterns whose mean
  difference is at least as extreme, on the side that was seen. Never below
  `seed_floor(n)`.

  Args:
    names: of the two systems, for the errors.
    a_S: the first system, one value a seed.
    b_S: the second system at the same seeds, in the same order.

  Raises:
    ConfigError: more than `MOST_SEEDS` seeds.
    DataError: no seeds, different numbers of them, or a value that is not
      finite.

  Source: Fisher, The Design of Experiments, 1935, section 21.
  """
  if len(a_S) != len(b_S) or not len(a_S):
    raise DataError(
      f'systems {names[0]!r} and {names[1]!r} have {len(a_S)} and {len(b_S)} '
      'seeds; the paired test wants the same seeds of both, at least one'
    )
  if len(a_S) > MOST_SEEDS:
    raise ConfigError(
      f'{len(a_S)} paired seeds: the exact test takes at most {MOST_SEEDS}; '
      'read the interval of the hierarchical bootstrap instead'
    )
  for name, values_S in zip(names, (a_S, b_S), strict=True):
    _check_finite(name, values_S)
  if len(a_S) == 1:
    # Both signs are equally extreme; SciPy wants two pairs.
    return 1.0
  found = stats.permutation_test(
    (difference_of(np.asarray(a_S, float), np.asarray(b_S, float)),),
    lambda flipped, axis: np.mean(flipped, axis=axis),
    permutation_type='samples',
    n_resamples=2 ** len(a_S),
    vectorized=True,
  )
  return float(found.pvalue)


def difference_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a - b, any shape; exactly 0 where only the rounding of sums differs.

  Two ways to add the same numbers differ in their last bits; a sign test would
  take that for a difference. NaN for two infinities, without a warning.
  """
  with np.errstate(invalid='ignore'):
    difference = a - b
  rounding = np.isfinite(difference) & np.isclose(a, b, rtol=1e-12, atol=0.0)
  return np.where(rounding, 0.0, difference)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
  """Step-down adjustment of the p values of all compared cells.

  The i-th smallest of m (from 0) is multiplied by m - i, never falls below its
  predecessor and never exceeds 1. A cell at or below .05 afterwards keeps the
  chance of any false claim in the table at or below .05, however the
  cells depend on each other.

  Args:
    p_values: cell -> raw p value in [0, 1], of every comparison that was made.

  Returns:
    cell -> adjusted p value, in the order given.

  Raises:
    DataError: a p value outside [0, 1], or NaN.

  Source: Holm, Scandinavian Journal of Statistics 6, 1979.
  """
  for name, p in p_values.items():
    if not 0 <= p <= 1:
      raise DataError(f'comparison {name!r}: p value {p} is not in [0, 1]')
  adjusted, largest = dict(p_values), 0.0
  for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
    largest = max(largest, min(1.0, p_values[name] * (len(p_values) - i)))
    adjusted[name] = largest
  return adjusted


def distance(value: float, reference: float) -> float:
  """How far from the reference (e.g. the human texts), >= 0."""
  return abs(value - reference)


def best_of(
  values: Mapping[Name, float | None],
  direction: Direction,
  digits: int,
  tied: Callable[[Name, Name], bool],
) -> tuple[Name, ...]:
  """The best system, followed by all that cannot be told from it.

  Tied with the best is a system whose value, or distance to the target, is the
  same at the digits shown, and one for which `tied` says so.

  Args:
    values: system -> its mean; None for a missing one, which never wins.
    direction: 'higher', 'lower', or the target value to be closest to.
    digits: decimals that the table shows.
    tied: (best, other) -> True where the interval of their difference holds 0,
      or is not known; asked only about systems that look different.

  Returns:
    Names, the best first, the others in the order given; one name only is an
    undisputed winner. Empty where nothing was measured.

  Raises:
    ConfigError: `direction` is another word, or not a finite number.
    DataError: a value that is not finite.
  """
  measured = {name: v for name, v in values.items() if v is not None}
  for name, value in measured.items():
    if not math.isfinite(value):
      raise DataError(
        f'system {name!r}: its mean is {value}; show it as failed, pass None'
      )
  loss = {name: _loss(value, direction) for name, value in measured.items()}
  if not loss:
    return ()
  best = min(loss, key=lambda name: loss[name])

  def is_tied(name: Name) -> bool:
    return any(
      round(shown[name], digits) == round(shown[best], digits)
      for shown in (measured, loss)
    ) or tied(best, name)

  return (best, *(name for name in loss if name != best and is_tied(name)))


def _loss(value: float, direction: Direction) -> float:
  """What the best system has least of."""
  if direction == 'higher':
    return -value
  if direction == 'lower':
    return value
  if isinstance(direction, str) or not math.isfinite(direction):
    raise ConfigError(
      f"direction {direction!r}: 'higher', 'lower' or a finite target is wanted"
    )
  return distance(value, direction)


def _check_finite(name: str, values_S: Sequence[float]) -> None:
  """Name the first seed without a finite value."""
  for index, value in enumerate(values_S):
    if not math.isfinite(value):
      raise DataError(
        f'system {name!r}: the value of seed {index + 1} of {len(values_S)} is '
        f'{value}; show it as failed and leave it out of the comparison'
      )
