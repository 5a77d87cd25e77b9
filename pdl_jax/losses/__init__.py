"""The losses: per-token terms, one reduction, one registry.

Reading order: terms, reduce, cross_entropy, power_law, linear.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdl_jax.losses.power_law import power_law_weights


class LossSpec(NamedTuple):
  """A loss the main job can train with, as a weight per token type.

  Attributes:
    weights: (frequency_V, *, neutral_ids, **settings) -> weights_V, finite for
      every type: never-counted ones have frequency 0. It decides what the
      neutral ids (specials, end of turn) weigh; a mean of 1 over running tokens
      keeps the meaning of the learning rate.
    settings: names of the config keys below `loss` that it reads; the others
      do not change the run. 'unit' is that of frequency_V and is not passed on.
  """

  weights: Callable[..., Array]
  settings: tuple[str, ...]


def _ones(frequency_V: Array, **_: object) -> Array:
  return jnp.ones(frequency_V.shape, jnp.float32)


LOSSES = {
  'power_law': LossSpec(
    power_law_weights,
    ('alpha', 'epsilon', 'unit', 'clip', 'normalize', 'unseen'),
  ),
  'cross_entropy': LossSpec(_ones, ()),
}
