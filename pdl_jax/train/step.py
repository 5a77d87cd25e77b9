"""The pure steps: one that trains, one that scores."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pdl_jax.losses import Loss, LossTables, head_nll
from pdl_jax.losses.core import Sums
from pdl_jax.losses.fused.api import CONFIG, FusedConfig
from pdl_jax.losses.reduce import divide
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.train.optimizer import merge
from pdl_jax.train.state import TrainState

Batch = dict[str, Array]
Tree = Any


@dataclasses.dataclass(frozen=True)
class StepConfig:
  """What the compiled step is made for; `schedule` is there to be logged."""

  model: ModelConfig
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  loss: Loss
  grad_accum_steps: int
  dropout_seed: int = 0


def target_hidden(
  model: ModelConfig,
  params: Tree,
  batch: Batch,
  dropout_key: Array | None = None,
) -> Array:
  """Returns hidden_BxTxD at the positions that predict a target token."""
  hidden_BxLxD = lm.hidden(
    model, params, batch['tokens'], batch['segments'], batch['positions'],
    dropout_key,
  )  # fmt: skip
  return jnp.take_along_axis(hidden_BxLxD, batch['reads'][..., None], axis=1)


def loss_sums(
  config: StepConfig,
  params: Tree,
  batch: Batch,
  tables: LossTables,
  dropout_key: Array | None = None,
) -> tuple[Sums, Sums]:
  """Returns weighted and plain Sums; the head is applied at targets only."""
  hidden_BxTxD = target_hidden(config.model, params, batch, dropout_key)
  return config.loss.sums(
    lm.head(config.model, params), hidden_BxTxD, batch['labels'], tables,
    batch['where'],
  )


def gradient_sums(
  config: StepConfig,
  trained: Tree,
  frozen: Tree,
  batch: Batch,
  tables: LossTables,
  dropout_key: Array | None = None,
) -> tuple[Tree, tuple[Sums, Sums]]:
  """Sums the weighted numerator's gradient, and Sums, over micro-batches.

  The caller divides by the one denominator of the global batch. Each
  micro-batch has its own dropout.
  """

  def numerator(
    trained: Tree, batch: Batch, key: Array | None
  ) -> tuple[Array, Any]:
    total = loss_sums(config, merge(trained, frozen), batch, tables, key)
    return total[0].num, total

  gradient = jax.grad(numerator, has_aux=True)
  if config.grad_accum_steps == 1:
    return gradient(trained, batch, dropout_key)

  def split(x: Array) -> Array:
    # Row b * A + a goes to micro-batch a: every device keeps its own rows.
    parts = x.reshape(-1, config.grad_accum_steps, *x.shape[1:])
    return jnp.moveaxis(parts, 1, 0)

  def add(total: Tree, micro: tuple) -> tuple[Tree, None]:
    return jax.tree.map(jnp.add, total, gradient(trained, *micro)), None

  keys = None
  if dropout_key is not None:
    keys = jax.random.split(dropout_key, config.grad_accum_steps)
  micros = (jax.tree.map(split, batch), keys)
  first = gradient(trained, *jax.tree.map(lambda x: x[0], micros))
  rest = jax.tree.map(lambda x: x[1:], micros)
  return jax.lax.scan(add, first, rest)[0]


def train_step(
  config: StepConfig, state: TrainState, batch: Batch, tables: LossTables
) -> tuple[TrainState, dict[str, Array]]:
  """Takes one optimizer step on a global batch; pure.

  A loss or gradient that is not finite leaves parameters and moments as they
  were, and is counted. Returns the next state, and scalars to log.

  Args:
    state: donated by the caller's jit.
    batch: arrays of `data.examples.empty_example`, with a leading batch axis.
  """
  key = None
  if config.model.lora.rank and config.model.lora.dropout:
    # The key depends on the step alone, so a resumed run drops the same.
    key = jax.random.fold_in(jax.random.key(config.dropout_seed), state.step)
  gradients, (weighted, plain) = gradient_sums(
    config, state.trained, state.frozen, batch, tables, key
  )
  gradients = jax.tree.map(
    lambda g: divide(Sums(g, weighted.den)).astype(g.dtype), gradients
  )
  loss, norm = divide(weighted), optax.tree.norm(gradients)
  updates, opt_state = config.optimizer.update(
    gradients, state.opt_state, state.trained
  )
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  good = TrainState(
    step=state.step + 1,
    trained=optax.apply_updates(state.trained, updates),
    frozen=state.frozen,
    opt_state=opt_state,
    skipped=state.skipped,
    skipped_in_row=jnp.zeros_like(state.skipped_in_row),
  )
  bad = state._replace(
    step=state.step + 1,
    skipped=state.skipped + 1,
    skipped_in_row=state.skipped_in_row + 1,
  )
  after = jax.tree.map(lambda a, b: jnp.where(finite, a, b), good, bad)
  return after, {
    'loss': loss,
    'plain_loss': divide(plain),
    'gradient_norm': norm,
    'learning_rate': jnp.asarray(config.schedule(state.step), jnp.float32),
    'target_tokens': plain.den,
    'input_tokens': (batch['segments'] > 0).sum(),
    'positions': jnp.asarray(batch['segments'].size),
    'skipped': after.skipped,
    'skipped_in_row': after.skipped_in_row,
  }


def score_step(
  model: ModelConfig, params: Tree, batch: Batch, fused: FusedConfig = CONFIG
) -> Array:
  """Returns unweighted nll_BxT of targets in nats; 0 where masked."""
  hidden_BxTxD = target_hidden(model, params, batch)
  return head_nll(
    lm.head(model, params), hidden_BxTxD, batch['labels'], batch['where'],
    fused,
  )  # fmt: skip
