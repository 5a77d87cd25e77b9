"""One measured number, with everything needed to quote it."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Metric:
  """A value, what it was measured on, and how.

  Attributes:
    value: the number, or None where it is undefined; never 0 for a missing one.
    n: how many units the value was measured on.
    unit: what `n` counts, e.g. 'tokens', 'words', 'examples'.
    definition: formula, scale and choices, in one sentence or two.
    signature: package, version and settings, where a package computed it.
  """

  value: float | None
  n: int
  unit: str
  definition: str
  signature: str | None = None

  def to_json(self) -> dict[str, Any]:
    """Plain types; the signature only where there is one."""
    fields = dataclasses.asdict(self)
    if self.signature is None:
      del fields['signature']
    return fields


def ratio(numerator: float, denominator: int) -> float | None:
  """numerator / denominator, or None where there is nothing to divide by."""
  return numerator / denominator if denominator else None


def mean(values: Sequence[float]) -> float | None:
  """The mean, or None of no values; the order of them cannot change it."""
  return ratio(math.fsum(values), len(values))


def exp_or_none(nats: float | None) -> float | None:
  """exp(nats); None for None and above the largest float (709.78 nats)."""
  if nats is None or nats > math.log(sys.float_info.max):
    return None
  return math.exp(nats)
