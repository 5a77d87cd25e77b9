"""Rotary frequencies, and how they are stretched to longer contexts."""

import math

import numpy as np

from pdl_jax.model.config import RopeScaling


def frequencies(
  base: float, pairs: int, scaling: RopeScaling
) -> np.ndarray:
  """g_i = base**(-i / P), [P], stretched; computed in fp64, kept in fp32.

  Args:
    base: of the frequencies.
    pairs: P, half of the width of a head.
    scaling: linear: g / factor. llama3: the share of g that is kept grows
      from 0 to 1 with the turns over the original context, between `low` and
      `high`. yarn: the same with a ramp in i between the dims whose turns are
      `high` and `low`.
  """
  plain_P = base ** (-np.arange(pairs) / pairs)
  if scaling.kind == 'linear':
    return (plain_P / scaling.factor).astype(np.float32)
  kept_P = np.ones(pairs)
  if scaling.kind == 'llama3':
    turns_P = scaling.original * plain_P / (2 * math.pi)
    kept_P = (turns_P - scaling.low) / (scaling.high - scaling.low)
  if scaling.kind == 'yarn':
    first, last = _ramp(base, pairs, scaling)
    kept_P = 1 - (np.arange(pairs) - first) / max(last - first, 1e-3)
  kept_P = np.clip(kept_P, 0, 1)
  mixed_P = kept_P * plain_P + (1 - kept_P) * plain_P / scaling.factor
  return mixed_P.astype(np.float32)


def _ramp(
  base: float, pairs: int, scaling: RopeScaling
) -> tuple[float, float]:
  """Dims whose frequency makes `high` and `low` turns."""

  def dim(turns: float) -> float:
    longest = scaling.original / (turns * 2 * math.pi)
    return pairs * math.log(longest) / math.log(base)

  first, last = dim(scaling.high), dim(scaling.low)
  if scaling.whole_dims:
    first, last = math.floor(first), math.ceil(last)
  return max(first, 0), min(last, 2 * pairs - 1)
