"""Numbers out of range are refused, unless they are traced."""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from pdl_jax.errors import ConfigError


def check_number(name: str, value: Any) -> None:
  """Refuses anything that is not a finite number >= 0, unless traced."""
  if isinstance(value, Tracer):
    return
  try:
    # Text that reads like a number would fail later, in the arithmetic.
    number = float('nan') if isinstance(value, str) else float(value)
  except (TypeError, ValueError):
    raise ConfigError(f'{name} must be a number >= 0, got {value!r}') from None
  if not (np.isfinite(number) and number >= 0):
    raise ConfigError(f'{name} must be a finite number >= 0, got {value!r}')


def check_range(
  name: str,
  value: Any,
  low: float,
  high: float,
  *,
  closed_low: bool = True,
  closed_high: bool = True,
) -> None:
  """Refuses numbers outside an interval of the numbers >= 0, unless traced."""
  check_number(name, value)
  if isinstance(value, Tracer):
    return
  above = low <= value if closed_low else low < value
  below = value <= high if closed_high else value < high
  if not (above and below):
    raise ConfigError(
      f'{name} must be in {"[" if closed_low else "("}{low}, {high}'
      f'{"]" if closed_high else ")"}, got {value}'
    )


def is_zero(value: Array | float) -> bool:
  """Whether an option is off: a Python zero leaves no trace in the program."""
  return not isinstance(value, jax.Array) and value == 0
