"""Checks of arguments; traced values cannot be inspected."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from pdl_jax.errors import ConfigError


def number_of(value: Any) -> float:
  """Converts to float; anything else gives NaN, which no range contains."""
  try:
    # Text that reads like a number would fail later, in arithmetic.
    return float('nan') if isinstance(value, str) else float(value)
  except (TypeError, ValueError):
    return float('nan')


def check_number(name: str, value: Any) -> None:
  """Refuses anything except a finite number >= 0, unless traced."""
  if not isinstance(value, Tracer) and not 0 <= number_of(value) < np.inf:
    raise ConfigError(f'{name} must be a finite number >= 0, got {value!r}')


def check_range(name: str, value: Any, interval: str) -> None:
  """Refuses numbers outside an interval, such as '(0, 1]', unless traced."""
  if isinstance(value, Tracer):
    return
  number, (low, high) = number_of(value), map(float, interval[1:-1].split(','))
  above = low <= number if interval[0] == '[' else low < number
  below = number <= high if interval[-1] == ']' else number < high
  if not (above and below):
    raise ConfigError(f'{name} must be in {interval}, got {value}')


def check_positive(name: str, value: Any, *, or_none: bool = False) -> None:
  """Refuses anything except a finite number > 0, or None where allowed."""
  if or_none and value is None:
    return
  if not 0 < number_of(value) < np.inf:
    also = ' or None' if or_none else ''
    raise ConfigError(f'{name} must be > 0{also}, got {value}')


def is_zero(value: Array | float) -> bool:
  """Whether an option is off; a Python zero leaves no trace in the program."""
  return not isinstance(value, jax.Array) and value == 0


def check_array(name: str, x: Any, kind: Any, words: str) -> None:
  """Refuses anything except an array of the wanted kind of numbers."""
  if not hasattr(x, 'dtype') or not hasattr(x, 'shape'):
    raise ConfigError(
      f'{name} must be an array of {words}, got {type(x).__name__}; make one '
      'with jnp.asarray'
    )
  if not jnp.issubdtype(x.dtype, kind):
    raise ConfigError(f'{name} must be {words}, got {x.dtype}')


def check_floats(**arrays: Array | None) -> None:
  """Refuses integers, whose products and sums would silently be rounded."""
  for name, x in arrays.items():
    if x is not None:
      check_array(name, x, jnp.floating, 'floating-point numbers')


def check_mask(where: Array) -> None:
  """Refuses a mask that is not boolean."""
  if not hasattr(where, 'dtype') or where.dtype != bool:
    kind = getattr(where, 'dtype', type(where).__name__)
    raise ConfigError(
      f'where must be True or False, got {kind}; weights of single tokens '
      'would be lost in it'
    )


def check_frequency(
  frequency_V: Array | np.ndarray, name: str = 'frequency_V'
) -> np.ndarray:
  """Refuses anything except one row of finite numbers >= 0."""
  if isinstance(frequency_V, Tracer):
    raise ConfigError(f'{name} cannot be traced; count outside of jax.jit')
  frequency = np.asarray(frequency_V)
  if frequency.dtype.kind not in 'iuf' and frequency.size:
    found = type(frequency_V).__name__
    raise ConfigError(
      f'{name} must be one row of finite numbers >= 0, one a token type; got '
      f'{found if frequency.dtype == object else frequency.dtype}'
    )
  bad = ~np.isfinite(frequency) | (frequency < 0)
  if frequency.ndim != 1 or bad.any():
    raise ConfigError(
      f'{name} must be one row of finite numbers >= 0; got shape '
      f'{frequency.shape} with {int(bad.sum())} negative or non-finite'
    )
  return frequency


def special_types(special_ids: Sequence[int], size: int) -> np.ndarray:
  """Returns a mask that is True at the special types."""
  ids = np.asarray(special_ids)
  if ids.size and not np.issubdtype(ids.dtype, np.integer):
    raise ConfigError(
      f'special_ids must be token ids, got {ids.dtype}; of a mask, give '
      'np.flatnonzero(mask)'
    )
  ids = ids.astype(int)
  outside = ids[(ids < 0) | (ids >= size)]
  if outside.size:
    raise ConfigError(
      f'special_ids has {outside[0]}, outside the {size} types of frequency_V'
    )
  special_V = np.zeros(size, bool)
  special_V[ids] = True
  return special_V


def read_labels(
  labels: Array,
  where: Array | None,
  size: int,
  ignore_index: int | None = None,
) -> tuple[Array, Array | None]:
  """Checks labels and mask, and returns both as every loss reads them.

  Inside `jax.jit` a label outside [0, size) is left to `token_weights` or
  `nan_outside`, which make the loss NaN. A gather would silently take another
  type's numbers.

  Returns:
    labels of at least 32 bits, 0 where masked, and the mask in their shape;
    None if every token counts.
  """
  check_array('labels', labels, jnp.integer, 'integers')
  if where is not None:
    check_mask(where)
    sizes = zip(where.shape[::-1], labels.shape[::-1], strict=False)
    if where.ndim > labels.ndim or any(a not in (1, b) for a, b in sizes):
      raise ConfigError(
        f'where has shape {where.shape}, the labels have {labels.shape}'
      )
  if ignore_index is not None:
    whole = isinstance(ignore_index, int | np.integer)
    if not whole or isinstance(ignore_index, bool):
      raise ConfigError(
        f'ignore_index must be a label or None, got {ignore_index!r}'
      )
  if not isinstance(labels, Tracer):
    known = np.asarray(labels)
    counts = np.ones(known.shape, bool)
    if ignore_index is not None:
      counts = known != ignore_index
    if counts.all():
      ignore_index = None
    bad = counts & ((known < 0) | (known >= size))
    if where is not None and not isinstance(where, Tracer):
      bad &= np.asarray(where)
    if bad.any() and not isinstance(where, Tracer):
      raise ConfigError(
        f'{int(bad.sum())} of {known.size} labels are outside [0, {size}), the '
        f'first is {int(known[bad][0])}; mask them with `where`'
      )
  if labels.dtype.kind == 'u' and labels.dtype.itemsize >= 4:
    # Otherwise a label beyond int32 could wrap to another, e.g. ignore_index.
    labels = jnp.minimum(labels, np.iinfo(np.int32).max)
  if labels.dtype.itemsize < 4 or labels.dtype.kind == 'u':
    # Narrow types cannot hold a vocabulary's size or ignore_index.
    labels = labels.astype(jnp.int32)
  if ignore_index is not None:
    kept = labels != ignore_index
    where = kept if where is None else where & kept
  if where is not None:
    where = jnp.broadcast_to(where, labels.shape)
    labels = jnp.where(where, labels, 0)
  return labels, where


def nan_outside(x: Array, labels: Array, size: int) -> Array:
  """Returns x, but NaN (in derivatives too) at labels outside [0, size)."""
  return x * jnp.where((labels >= 0) & (labels < size), 1.0, jnp.nan)
