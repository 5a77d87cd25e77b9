"""pdl_jax: what fine-tuning losses do to rare words, in JAX.

These names need jax and numpy alone, which are imported when one of them is
used. Reading order: losses (core, reduce, cross_entropy, power_law, fused),
frequency, model/lm, train/step, train/loop, run/finetune.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from pdl_jax.losses.core import LossTerms, Sums, TokenLoss, TokenStats
  from pdl_jax.losses.cross_entropy import cross_entropy, pdl_loss
  from pdl_jax.losses.fused.api import (
    Axes,
    FusedConfig,
    linear_pdl_loss,
    linear_token_stats,
  )
  from pdl_jax.losses.heads import LinearHead
  from pdl_jax.losses.power_law import power_law_weights
  from pdl_jax.losses.reduce import divide
  from pdl_jax.losses.sentinel import check_backend

__all__ = [
  'Axes',
  'FusedConfig',
  'LinearHead',
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
_HOMES = {
  'core': ('LossTerms', 'Sums', 'TokenLoss', 'TokenStats'),
  'cross_entropy': ('cross_entropy', 'pdl_loss'),
  'fused.api': (
    'Axes', 'FusedConfig', 'linear_pdl_loss', 'linear_token_stats',
  ),
  'heads': ('LinearHead',),
  'power_law': ('power_law_weights',),
  'reduce': ('divide',),
  'sentinel': ('check_backend',),
}


def __getattr__(name: str) -> Any:
  for home, names in _HOMES.items():
    if name in names:
      return getattr(importlib.import_module(f'pdl_jax.losses.{home}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return [*globals(), *__all__]
