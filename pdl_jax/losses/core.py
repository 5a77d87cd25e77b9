"""Types shared by all losses: per-token terms, statistics and sums.

Shape suffixes: B batch, L length, V vocabulary, D width, N tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array


class LossTerms(NamedTuple):
  """Weighted loss w * l in nats, and its weight w, per token in fp32."""

  loss_BxL: Array
  weight_BxL: Array


class Sums(NamedTuple):
  """Numerator and denominator: add them, then use `reduce.divide` once."""

  num: Array
  den: Array

  def __add__(self, other: 'Sums') -> 'Sums':
    return Sums(self.num + other.num, self.den + other.den)


class TokenStats(NamedTuple):
  """Statistics of each token's logits z and label y; each [...], fp32.

  A loss of these alone needs no array of the vocabulary's size.
  q = softmax(z / T); T is 1 unless the loss asks for another temperature.

  Attributes:
    log_z: log sum_v exp(z_v / T); differentiable.
    label: z_y; differentiable.
    average: mean_v z_v; differentiable.
    expected: sum_v q_v z_v; detached.
    argmax: first v with the largest z_v, int32; detached.
  """

  log_z: Array
  label: Array
  average: Array
  expected: Array
  argmax: Array

  @property
  def nll(self) -> Array:
    """-log p(y) in nats; needs T = 1."""
    return self.log_z - self.label

  @property
  def entropy(self) -> Array:
    """Entropy of p in nats; needs T = 1. Treat it as detached."""
    return self.log_z - self.expected


TokenLoss = Callable[[Array, Array], LossTerms]
StatsLoss = Callable[..., LossTerms]
"""(stats, weight, **settings) -> LossTerms: a loss of `TokenStats` alone.

`weight` belongs to the token's type. The gradient flows through log_z, label
and average; apply jax.lax.stop_gradient to what a paper detaches.
"""
