"""Optimizers by name: the direction of a step, and the keys that each reads.

A direction is a gradient rescaled, such as Adam's m / sqrt(v). Clipping, weight
decay and the learning rate are the same for all, in `optimizer`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from pdl_jax.model import lora

if TYPE_CHECKING:
  from pdl_jax.train.optimizer import OptimizerConfig

Tree = Any


class Rule(NamedTuple):
  """How an optimizer makes its direction, and which of KEYS it reads."""

  make: Callable[['OptimizerConfig'], optax.GradientTransformation]
  keys: tuple[str, ...]


KEYS = ('b1', 'b2', 'eps', 'mu_dtype')


def adam(c: 'OptimizerConfig') -> optax.GradientTransformation:
  """Returns Adam's direction (arXiv:1412.6980)."""
  return optax.scale_by_adam(c.b1, c.b2, c.eps, mu_dtype=c.mu_dtype)


def lion(c: 'OptimizerConfig') -> optax.GradientTransformation:
  """Returns the sign of a momentum (arXiv:2302.06675)."""
  return optax.scale_by_lion(c.b1, c.b2, mu_dtype=c.mu_dtype)


def sgd(c: 'OptimizerConfig') -> optax.GradientTransformation:
  """Returns the momentum g + b1 m."""
  return optax.trace(c.b1, accumulator_dtype=c.mu_dtype)


def adafactor(_: 'OptimizerConfig') -> optax.GradientTransformation:
  """Returns Adafactor's direction (arXiv:1804.04235), layer by layer.

  The second moment of a matrix is a row and a column if both sides are at least
  128. There is no first moment, and steps do not grow with the parameters, so a
  learning rate means what it means for AdamW.
  """
  of_leaf = optax.chain(
    optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
  )

  def stacked(function: Callable) -> Callable:
    # vmap refuses a tree without arrays: perhaps only the head trains.
    by_layer = jax.vmap(function)
    return lambda *trees: (
      by_layer(*trees) if jax.tree.leaves(trees[0]) else function(*trees)
    )

  def kinds(params: Tree) -> Tree:
    return {
      name: jax.tree.map(lambda _, own=name == 'blocks': own, part)
      for name, part in params.items()
    }

  layers = optax.GradientTransformation(
    stacked(of_leaf.init), stacked(of_leaf.update)
  )
  return optax.partition({True: layers, False: of_leaf}, kinds)


def muon(c: 'OptimizerConfig') -> optax.GradientTransformation:
  """Returns orthogonal momenta of the layers' matrices, and Adam's of the rest.

  An update has a root mean square of 0.2, about that of AdamW, so that both
  parts share a learning rate (arXiv:2502.16982).
  """
  return optax.contrib.muon(
    -1.0,  # A direction: the rate and its sign come later.
    beta=c.b1,
    eps=c.eps,
    mu_dtype=c.mu_dtype,
    adam_b1=c.b1,
    adam_b2=c.b2,
    muon_weight_dimension_numbers=matrix_axes,
    consistent_rms=0.2,
  )


def matrix_axes(params: Tree) -> Tree:
  """Returns which axes of a layer's matrix are input and output, or None.

  Leaves are stacked over layers. The output projection has two input axes, any
  other matrix has one; an adapter has those of its matrix, and its rank.
  """

  def axes(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
    name = path[-1].key
    matrix = name.partition('_lora_')[0]
    if path[0].key != 'blocks' or matrix not in lora.TARGETS:
      return None
    split = leaf.ndim - 1 if matrix == 'output' else 2
    return MuonDimensionNumbers(range(1, split), range(split, leaf.ndim))

  return jax.tree_util.tree_map_with_path(axes, params)


RULES = {
  'adamw': Rule(adam, KEYS),
  'adafactor': Rule(adafactor, ()),
  'lion': Rule(lion, ('b1', 'b2', 'mu_dtype')),
  'muon': Rule(muon, KEYS),
  'sgd': Rule(sgd, ('b1', 'mu_dtype')),
}


def unread(name: str) -> set[str]:
  """Returns the keys that an optimizer does not read; none if it is unknown."""
  return {*KEYS} - {*RULES[name].keys} if name in RULES else set()
