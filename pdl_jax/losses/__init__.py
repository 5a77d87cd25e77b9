"""Losses: per-token terms, one reduction, one registry.

Importing this package registers the losses of the library. Reading order:
core, reduce, cross_entropy, registry, power_law, schedule; type_weights,
token_losses, dense_losses (rivals); heads, loss, fused/api.
"""

# Tables and --help_config show the losses in this order.
from pdl_jax.losses import power_law  # isort: skip # noqa: F401
from pdl_jax.losses import type_weights  # isort: skip # noqa: F401
from pdl_jax.losses import token_losses  # isort: skip # noqa: F401
from pdl_jax.losses import dense_losses  # isort: skip # noqa: F401
from pdl_jax.losses.heads import Head
from pdl_jax.losses.loss import Loss, LossTables, head_nll
from pdl_jax.losses.registry import LOSSES, LossSpec, register

__all__ = [
  'LOSSES', 'Head', 'Loss', 'LossSpec', 'LossTables', 'head_nll', 'register',
]  # fmt: skip
