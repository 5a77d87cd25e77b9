"""Greedy generation with a key-value cache, in one compiled loop."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.model import api
from pdl_jax.model.config import ModelConfig

Tree = Any


def greedy(
  model: ModelConfig,
  params: Tree,
  prompts_BxP: Array,
  filled_BxP: Array,
  *,
  max_new_tokens: int,
  stop_id: int,
  bias_V: Array | None = None,
) -> tuple[Array, Array]:
  """The likeliest token at every step, until the stop token.

  Args:
    model: shape of the model.
    params: with one group of layers (`api.join_blocks`).
    prompts_BxP: prompts padded on the left; rows without any real token come
      back empty.
    filled_BxP: True at real tokens.
    max_new_tokens: T, the stop token included.
    stop_id: ends a row.
    bias_V: added to the logits before the choice (post-hoc logit adjustment).

  Returns:
    tokens_BxT, `stop_id` after the end; lengths_B, the stop token included.
    The loop ends as soon as every row has.
  """
  batch, length = prompts_BxP.shape
  logits, cache = api.prefill(
    model, params, prompts_BxP, filled_BxP, length + max_new_tokens
  )
  tokens_BxT = jnp.full((batch, max_new_tokens), stop_id, jnp.int32)
  done_B = ~filled_BxP.any(axis=1)
  lengths_B = jnp.zeros(batch, jnp.int32)

  def unfinished(carry: tuple) -> Array:
    index, _, _, _, _, done_B = carry
    return (index < max_new_tokens) & ~done_B.all()

  def step(carry: tuple) -> tuple:
    index, logits, cache, tokens_BxT, lengths_B, done_B = carry
    tilted = logits if bias_V is None else logits + bias_V[None]
    chosen_B = jnp.argmax(tilted, axis=-1).astype(jnp.int32)
    chosen_B = jnp.where(done_B, stop_id, chosen_B)
    tokens_BxT = tokens_BxT.at[:, index].set(chosen_B)
    lengths_B += ~done_B
    done_B |= chosen_B == stop_id
    logits, cache = api.decode_step(model, params, cache, chosen_B)
    return index + 1, logits, cache, tokens_BxT, lengths_B, done_B

  start = (jnp.asarray(0), logits, cache, tokens_BxT, lengths_B, done_B)
  _, _, _, tokens_BxT, lengths_B, _ = jax.lax.while_loop(
    unfinished, step, start
  )
  return tokens_BxT, lengths_B
