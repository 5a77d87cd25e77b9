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

  Divide once, at the end, with `reduce.divide`.
  """

  num: Array
  den: Array

  def __add__(self, other: 'Sums') -> 'Sums':
    return Sums(self.num + other.num, self.den + other.den)


class TokenStats(NamedTuple):
  """What the logits z of a token say of its label y; each [...], fp32.

  A loss that needs no more than this never sees an array of the vocabulary's
  size. q is softmax(z / T), with T = 1 unless the loss asks for another
  temperature.

  Attributes:
    log_z: log sum_v exp(z_v / T); differentiable.
    label: z_y; differentiable.
    average: mean_v z_v; differentiable.
    expected: sum_v q_v z_v; detached, no gradient flows through it.
    argmax: the v of the largest z_v, int32, the first of equals; detached.
  """

  log_z: Array
  label: Array
  average: Array
  expected: Array
  argmax: Array

  @property
  def nll(self) -> Array:
    """-log p(y) in nats, at T = 1."""
    return self.log_z - self.label

  @property
  def entropy(self) -> Array:
    """Of p, in nats, at T = 1; treat as detached (stop_gradient)."""
    return self.log_z - self.expected


TokenLoss = Callable[[Array, Array], LossTerms]
StatsLoss = Callable[..., LossTerms]
"""(stats, weight, **settings) -> LossTerms: a loss of `TokenStats` alone.

`weight` is that of the token's type. The gradient is taken through log_z,
label and average; what a paper detaches goes through jax.lax.stop_gradient.
"""
