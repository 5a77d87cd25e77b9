"""What every loss returns: per-token terms, and sums that close under +.

Shape suffixes: B batch, L length, V vocabulary, D width, N = tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array


class LossTerms(NamedTuple):
  """One loss, per token, in fp32.

  Attributes:
    loss_BxL: already weighted, w * l, in nats.
    weight_BxL: w, what a weighted mean divides by.
  """

  loss_BxL: Array
  weight_BxL: Array


class Sums(NamedTuple):
  """A numerator and a denominator; add them over micro-batches and devices.

  A ratio is not closed under +, these are: divide once, at the end, with
  `reduce.divide`.
  """

  num: Array
  den: Array

  def __add__(self, other: 'Sums') -> 'Sums':
    return Sums(self.num + other.num, self.den + other.den)


TokenLoss = Callable[[Array, Array], LossTerms]
