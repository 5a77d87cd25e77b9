"""pdl_jax: what fine-tuning losses do to rare words, in JAX.

These names need jax and numpy alone. Reading order: losses (terms, reduce,
cross_entropy, power_law, linear), frequency, model/api, step, train, job.
"""

from pdl_jax.losses.cross_entropy import cross_entropy
from pdl_jax.losses.power_law import pdl_loss, power_law_weights
from pdl_jax.losses.reduce import divide
from pdl_jax.losses.terms import LossTerms, Sums, TokenLoss

__all__ = [
  'LossTerms',
  'Sums',
  'TokenLoss',
  'cross_entropy',
  'divide',
  'pdl_loss',
  'power_law_weights',
]
