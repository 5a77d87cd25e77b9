"""What a loaded model makes of fixed tokens, to see if it is the same again."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdl_jax.mesh import constrain
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig

_LENGTH, _SHOWN = 16, 4
# Logits are kept to so many decimals: rounding moves a digit after these.
_DECIMALS = 2


class Fingerprint(NamedTuple):
  """What a model in fp32 makes of fixed tokens.

  Attributes:
    digest: 8 hex digits of the rounded logits. Equal digests are equal models;
      on another machine a value on the edge may round otherwise.
    tokens: what was read.
    logits: the first few of the last token.
    norm: L2 norm of all logits of the last token.
  """

  digest: str
  tokens: list[int]
  logits: list[float]
  norm: float

  def near(self, other: 'Fingerprint') -> bool:
    """Whether both can be of one model, except for rounding."""
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
    # Every process has to see all of them.
    return constrain(logits_V, None)

  logits_V = np.asarray(last(params), np.float64)
  rounded = np.round(logits_V, _DECIMALS) + 0.0
  return Fingerprint(
    hashlib.sha256(rounded.tobytes()).hexdigest()[:8],
    tokens.tolist(),
    np.round(logits_V[:_SHOWN], 4).tolist(),
    round(float(np.linalg.norm(logits_V)), 4),
  )

