"""pdl_jax: what fine-tuning losses do to rare words, in JAX.

These names need jax and numpy alone. Reading order: losses (terms, reduce,
cross_entropy, power_law, linear), frequency, model/api, step, train, job.
"""

from pdl_jax.losses.core import LossTerms, Sums, TokenLoss, TokenStats
from pdl_jax.losses.cross_entropy import cross_entropy
from pdl_jax.losses.fused.api import Axes, linear_pdl_loss, linear_token_stats
from pdl_jax.losses.power_law import pdl_loss, power_law_weights
from pdl_jax.losses.reduce import divide
from pdl_jax.losses.sentinel import check_backend

__all__ = [
  'Axes',
  'LossTerms',
  'Sums',
  'TokenLoss',
  'TokenStats',
  'check_backend',
  'cross_entropy',
  'divide',
  'linear_pdl_loss',
  'linear_token_stats',
  'pdl_loss',
  'power_law_weights',
]
