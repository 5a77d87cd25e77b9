"""Bans tokens that may not come next, whatever the model says."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from pdl_jax.generate.settings import DecodeSettings


def repeated(tokens_BxT: Array, index: Array, size: int, vocab: int) -> Array:
  """Finds tokens that would complete an n-gram which a row already holds.

  Only generated tokens are compared: the prompt may be repeated.

  Args:
    tokens_BxT: generated so far, in columns below `index`.
    index: scalar, the number of tokens so far.
    size: n; 1 finds every token generated before.

  Returns:
    [B, V], True at tokens that would repeat.
  """
  batch, limit = tokens_BxT.shape
  known = size - 1
  # Column j of `same`: the n-gram from j begins like the unfinished one.
  same_BxT = jnp.ones((batch, limit), bool)
  for offset in range(known):
    last_B = jnp.take(tokens_BxT, index - known + offset, axis=1, mode='clip')
    same_BxT &= jnp.roll(tokens_BxT, -offset, axis=1) == last_B[:, None]
  ends = jnp.arange(limit) + known
  same_BxT &= (ends < index)[None]
  next_BxT = jnp.roll(tokens_BxT, -known, axis=1)
  rows_Bx1 = jnp.arange(batch)[:, None]
  return jnp.zeros((batch, vocab), bool).at[rows_Bx1, next_BxT].max(same_BxT)


def ban(
  logits_BxV: Array,
  tokens_BxT: Array,
  index: Array,
  settings: DecodeSettings,
  stop_ids: Sequence[int],
) -> Array:
  """Sets the logits of tokens that would repeat or end too early to -inf."""
  vocab = logits_BxV.shape[1]
  if settings.no_repeat_ngram:
    again_BxV = repeated(tokens_BxT, index, settings.no_repeat_ngram, vocab)
    logits_BxV = jnp.where(again_BxV, -jnp.inf, logits_BxV)
  if settings.min_new_tokens and stop_ids:
    stops_V = jnp.zeros(vocab, bool).at[jnp.asarray(stop_ids)].set(True)
    early_V = stops_V & (index < settings.min_new_tokens)
    logits_BxV = jnp.where(early_V[None], -jnp.inf, logits_BxV)
  return logits_BxV


def is_stop(tokens: Array, stop_ids: Sequence[int]) -> Array:
  """Returns True where a token ends its row."""
  found = jnp.zeros(tokens.shape, bool)
  for stop in stop_ids:
    found |= tokens == stop
  return found
