"""Greedy decoding and sampling: one token per row and step, in one loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.generate.constraints import ban, is_stop
from pdl_jax.generate.settings import DecodeSettings
from pdl_jax.generate.truncation import truncate
from pdl_jax.model import decoding, lm
from pdl_jax.model.config import ModelConfig

Tree = Any


class _Carry(NamedTuple):
  index: Array
  cache: decoding.Cache
  tokens_BxT: Array
  log_probs_BxT: Array
  lengths_B: Array
  done_B: Array


def greedy_or_sample(
  model: ModelConfig,
  params: Tree,
  hidden_BxD: Array,
  cache: decoding.Cache,
  keys_B: Array | None,
  settings: DecodeSettings,
  limit: int,
  stop_ids: tuple[int, ...],
  bias_V: Array | None,
) -> tuple[Array, Array, Array]:
  """Returns the arrays of `Generated`; arguments: see `generate.extend`."""
  batch, pad = len(hidden_BxD), stop_ids[0] if stop_ids else 0
  parts = decoding.part_layers(params)
  if settings.method == 'greedy':
    keys_B = None

  def choose(
    hidden_BxD: Array, index: Array, tokens_BxT: Array
  ) -> tuple[Array, Array]:
    logits_BxV = lm.head_logits(model, parts, hidden_BxD)
    scores = logits_BxV if bias_V is None else logits_BxV + bias_V[None]
    scores = ban(scores, tokens_BxT, index, settings, stop_ids)
    if keys_B is None:
      chosen_B = first_argmax(scores)
    else:
      chosen_B = draw(truncate(scores, settings), keys_B, index)
    return chosen_B, token_log_probs(logits_BxV, chosen_B[:, None])[:, 0]

  def append(carry: _Carry, hidden_BxD: Array) -> _Carry:
    index, done_B = carry.index, carry.done_B
    chosen_B, log_p_B = choose(hidden_BxD, index, carry.tokens_BxT)
    chosen_B = jnp.where(done_B, pad, chosen_B)
    return _Carry(
      index + 1,
      carry.cache,
      carry.tokens_BxT.at[:, index].set(chosen_B),
      carry.log_probs_BxT.at[:, index].set(jnp.where(done_B, 0.0, log_p_B)),
      carry.lengths_B + ~done_B,
      done_B | is_stop(chosen_B, stop_ids),
    )

  def unfinished(carry: _Carry) -> Array:
    return (carry.index < limit) & ~carry.done_B.all()

  def step(carry: _Carry) -> _Carry:
    last_B = jnp.take(carry.tokens_BxT, carry.index - 1, axis=1)
    hidden_BxD, cache = decoding.decode_step(model, parts, carry.cache, last_B)
    return append(carry._replace(cache=cache), hidden_BxD)

  start = _Carry(
    jnp.asarray(0),
    cache,
    jnp.full((batch, limit), pad, jnp.int32),
    jnp.zeros((batch, limit)),
    jnp.zeros(batch, jnp.int32),
    ~cache.filled_BxS.any(axis=1),
  )
  # The prompts gave the first state, so T tokens take T - 1 steps.
  end = jax.lax.while_loop(unfinished, step, append(start, hidden_BxD))
  return end.tokens_BxT, end.lengths_B, end.log_probs_BxT


def draw(logits_BxV: Array, keys_B: Array, index: Array) -> Array:
  """Draws one token per row, from its own key and the step alone."""

  def one(key: Array, logits_V: Array) -> Array:
    return jax.random.categorical(jax.random.fold_in(key, index), logits_V)

  return jax.vmap(one)(keys_B, logits_BxV).astype(jnp.int32)


def first_argmax(x_BxV: Array) -> Array:
  """Returns the first argmax, 4 times as fast as jnp.argmax on CPUs."""
  vocab = x_BxV.shape[1]
  top_BxV = x_BxV == x_BxV.max(axis=1, keepdims=True)
  places_BxV = jnp.where(top_BxV, jnp.arange(vocab)[None], vocab - 1)
  return places_BxV.min(axis=1).astype(jnp.int32)


def token_log_probs(logits_BxV: Array, tokens_BxK: Array) -> Array:
  """Returns log p of some tokens, [B, K], in nats."""
  total_B = jax.nn.logsumexp(logits_BxV, axis=-1)
  found_BxK = jnp.take_along_axis(logits_BxV, tokens_BxK, axis=1)
  return found_BxK - total_B[:, None]
