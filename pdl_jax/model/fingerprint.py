"""Fingerprints of loaded models: their output on fixed tokens."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdl_jax.mesh import constrain
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig

_LENGTH, _SHOWN = 16, 4
# Decimals of the logits that rounding usually does not change.
_DECIMALS = 2


class Fingerprint(NamedTuple):
  """What a model in fp32 computes for fixed tokens.

  `digest` has 8 hex digits of the rounded logits. Equal digests mean equal
  models; on another machine a value may round differently. `logits` are the
  first few of the last token, and `norm` is the L2 norm of all of them.
  """

  digest: str
  tokens: list[int]
  logits: list[float]
  norm: float

  def near(self, other: 'Fingerprint') -> bool:
    """Whether both can belong to one model, up to rounding."""
    mine, theirs = ([*x.logits, x.norm] for x in (self, other))
    return len(mine) == len(theirs) and bool(
      np.allclose(mine, theirs, rtol=1e-2, atol=2e-2)
    )


def fingerprint(config: ModelConfig, params: dict) -> Fingerprint:
  """Runs the model on a row of fixed tokens."""
  tokens = np.arange(1, _LENGTH + 1) * 7919 % config.vocab_size

  @jax.jit
  def last(params: dict) -> jax.Array:
    row = jnp.asarray(tokens)[None]
    x = lm.hidden(
      config, params, row, jnp.ones_like(row), jnp.arange(_LENGTH)[None]
    )
    logits_V = lm.head_logits(config, params, x[:, -1])[0]
    # Every process needs all logits.
    return constrain(logits_V, None)

  logits_V = np.asarray(last(params), np.float64)
  rounded = np.round(logits_V, _DECIMALS) + 0.0
  return Fingerprint(
    hashlib.sha256(rounded.tobytes()).hexdigest()[:8],
    tokens.tolist(),
    np.round(logits_V[:_SHOWN], 4).tolist(),
    round(float(np.linalg.norm(logits_V)), 4),
  )

