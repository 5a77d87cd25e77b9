"""Lowers the train step of a 7B model, from shapes alone."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from pdl_jax import mesh as logical
from pdl_jax.cluster import aot
from pdl_jax.losses import LOSSES, Loss, LossTables
from pdl_jax.losses.core import Sums
from pdl_jax.losses.fused.kernel import compress
from pdl_jax.losses.fused.plan import Plan
from pdl_jax.losses.fused.tiles import Tokens
from pdl_jax.losses.heads import LinearHead
from pdl_jax.model import lm
from pdl_jax.model.config import HeadConfig, ModelConfig
from pdl_jax.train.optimizer import OptimizerConfig

# Llama 2 7B (arXiv:2307.09288) with the vocabulary of Llama 3.
MODEL = ModelConfig(
  vocab_size=128_256, width=4096, layers=32, heads=32, kv_heads=32,
  head_dim=128, mlp=11_008, context=4096, dtype='bfloat16', remat=True,
  head=HeadConfig('dense'),
)  # fmt: skip
OPTIMIZER = OptimizerConfig(
  learning_rate=3e-4, warmup_steps=2000, schedule='cosine', end_lr_ratio=0.1,
  b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
  grad_accum_steps=1,
  trainable='all', last_layers=0,
)  # fmt: skip
# A million tokens per step; every position is a target.
ROWS, LENGTH = 256, 4096
# Google names a slice by its TensorCores, two per chip: v5p-256 is 128 chips, a
# torus of 4 x 4 x 8 (cloud.google.com/tpu/docs/v5p).
CHIPS, TOPOLOGY = 128, 'v5p:4x4x8'


class DenseLoss(NamedTuple):
  """Weighted cross-entropy of all logits at once, by optax."""

  def sums(
    self, head: LinearHead, hidden_BxTxD: Array, labels_BxT: Array,
    tables: LossTables, where_BxT: Array,
  ) -> tuple[Sums, Sums]:  # fmt: skip
    """As `Loss.sums`."""
    logits = logical.constrain(
      head.logits(hidden_BxTxD), 'batch', 'length', 'vocab'
    )
    nll_BxT = optax.softmax_cross_entropy_with_integer_labels(
      logits, labels_BxT
    )
    weight_BxT = tables.weights_V[labels_BxT]
    return (
      Sums((nll_BxT * weight_BxT).sum(where=where_BxT), weight_BxT.sum()),
      Sums(nll_BxT.sum(where=where_BxT), where_BxT.sum().astype(jnp.float32)),
    )


class NoLoss(NamedTuple):
  """Uses neither head nor vocabulary, for the cost of a step without them."""

  def sums(
    self, head: LinearHead, hidden_BxTxD: Array, labels_BxT: Array,
    tables: LossTables, where_BxT: Array,
  ) -> tuple[Sums, Sums]:  # fmt: skip
    """Returns the sum of squares of the hidden states, in place of a loss."""
    total = jnp.square(hidden_BxTxD.astype(jnp.float32)).sum()
    found = Sums(total, where_BxT.sum().astype(jnp.float32))
    return found, found


LOSS: dict[str, Any] = {
  'linear': Loss(LOSSES['power_law'], {}),
  'dense': DenseLoss(),
  'none': NoLoss(),
}


def lower(
  mesh: Mesh, loss: str, model: ModelConfig, rows: int, length: int
) -> jax.stages.Lowered:
  """Lowers the real train step on a mesh, from shapes: nothing is allocated."""
  return aot.lower_step(
    model, OPTIMIZER, mesh, rows, length, length, LOSS[loss]
  )


def make_mesh(shape: list[int], tpu: bool) -> Mesh:
  """Makes a mesh of fake CPU devices, or of a TPU slice that is not here."""
  if not tpu:
    return logical.make_mesh(shape)
  return logical.make_mesh(shape, aot.devices(TOPOLOGY))


def loss_turns(
  mesh: dict[str, int], model: ModelConfig, rows: int, length: int
) -> list[int]:
  """Returns the turns of the loss's two loops over groups of target tokens.

  The program learns them from its data; here the loss's own code is asked.
  """
  split = mesh['data'] * mesh['fsdp']
  tokens, width = rows * length // split, model.vocab_size // mesh['tensor']
  plan = Plan(masked=True).for_device(tokens, width, keep=True)
  ones = jnp.ones(tokens)
  _, steps, _ = compress(plan, Tokens(ones[:, None], ones, ones, ones > 0))
  return [int(count) for _, _, count in steps]


def parameters(model: ModelConfig) -> int:
  """Counts the parameters."""
  shapes = jax.eval_shape(partial(lm.init, model), jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def model_flops(model: ModelConfig, tokens: int, length: int) -> dict[str, int]:
  """Counts a step on paper: 6 per matrix parameter and token, plus attention.

  Attention multiplies all L x L positions, masked or not. Rematerialised blocks
  run forward once more, except for their last matmul, whose output is unused.
  """
  matrices = parameters(model) - model.vocab_size * model.width
  head = model.vocab_size * model.width
  mixing = 2 * length * model.layers * model.heads * model.head_dim
  last = model.layers * model.mlp * model.width
  again = 2 * (matrices - head - last) + 2 * mixing
  return {
    'blocks': (6 * (matrices - head) + 6 * mixing) * tokens,
    'head': 6 * head * tokens,
    'rematerialised': again * tokens * model.remat,
  }


def shape_of(model: ModelConfig) -> dict[str, Any]:
  """Returns the shape of a model, for the record."""
  keys = ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'mlp')
  return {key: dataclasses.asdict(model)[key] for key in keys}
