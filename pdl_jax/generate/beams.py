"""Beam search with length normalisation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.generate.constraints import ban, is_stop
from pdl_jax.generate.sampling import token_log_probs
from pdl_jax.generate.settings import DecodeSettings
from pdl_jax.model import decoding, lm
from pdl_jax.model.config import ModelConfig

Tree = Any


class _Texts(NamedTuple):
  """Hypotheses: K live ones per row, or the best complete one."""

  # Summed log-probabilities, over the length penalty if complete; or -inf.
  scores: Array
  tokens: Array  # [..., T], like log_probs
  log_probs: Array
  lengths: Array  # [...], stop token included


class _Carry(NamedTuple):
  """The cache has N = B * K rows; the next step takes `parents_N` from it."""

  index: Array
  cache: decoding.Cache
  live_BxK: _Texts
  parents_N: Array
  best_B: _Texts
  complete_B: Array


def beam_search(
  model: ModelConfig,
  params: Tree,
  hidden_BxD: Array,
  cache: decoding.Cache,
  settings: DecodeSettings,
  limit: int,
  stop_ids: tuple[int, ...],
  bias_V: Array | None,
) -> tuple[Array, Array, Array]:
  """Returns the arrays of `Generated`; arguments: see `generate.extend`.

  A hypothesis Y of log-probability s scores s / ((5 + |Y|) / 6) ** alpha
  (arXiv:1609.08144, eq. 14), where |Y| includes the stop token. s is the
  model's with its bias; bans are not renormalised.

  Each step keeps the likeliest continuations, one per beam that is left of K. A
  continuation that stops is complete and takes its beam with it, so one beam is
  greedy decoding. At the limit all are complete. The best complete hypothesis
  is returned; of equals, the first.

  A row ends early once no live hypothesis can win. As s <= 0 never grows, none
  can score above s / ((5 + T) / 6) ** alpha, with T the limit.
  """
  batch, beams = len(hidden_BxD), settings.beams
  prompt_slots = cache.keys[0].shape[-1] - limit
  longest = length_penalty(limit, settings.length_penalty)

  def can_win(carry: _Carry) -> Array:
    bound_B = carry.live_BxK.scores.max(axis=1) / longest
    return bound_B > carry.best_B.scores

  def append(carry: _Carry, logits_NxV: Array) -> _Carry:
    live = carry.live_BxK
    open_Bx1 = can_win(carry)[:, None]
    live = live._replace(scores=jnp.where(open_Bx1, live.scores, -jnp.inf))
    after, parents_BxK = _continue(
      carry._replace(live_BxK=live), logits_NxV, settings, stop_ids, bias_V
    )
    real_BxK = jnp.isfinite(after.scores)
    stopped_BxK = is_stop(after.tokens[:, :, carry.index], stop_ids) & real_BxK
    ended_BxK = stopped_BxK | (carry.index + 1 == limit)
    scores_BxK = jnp.where(ended_BxK, -jnp.inf, after.scores)
    return _Carry(
      carry.index + 1,
      carry.cache,
      after._replace(scores=scores_BxK),
      (jnp.arange(batch)[:, None] * beams + parents_BxK).reshape(-1),
      _better(carry.best_B, after, ended_BxK, settings.length_penalty),
      carry.complete_B + stopped_BxK.sum(axis=1),
    )

  def unfinished(carry: _Carry) -> Array:
    return (carry.index < limit) & can_win(carry).any()

  def step(carry: _Carry) -> _Carry:
    cache = decoding.take_rows(carry.cache, carry.parents_N, prompt_slots)
    tokens = carry.live_BxK.tokens.reshape(-1, limit)
    last_N = jnp.take(tokens, carry.index - 1, axis=1)
    hidden_NxD, cache = decoding.decode_step(model, parts, cache, last_N)
    logits_NxV = lm.head_logits(model, parts, hidden_NxD)
    return append(carry._replace(cache=cache), logits_NxV)

  parts = decoding.part_layers(params)
  empty_B = ~cache.filled_BxS.any(axis=1)
  first_K = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
  scores_BxK = jnp.where(empty_B[:, None], -jnp.inf, first_K[None])
  nothing = _no_texts((batch, beams), limit, stop_ids)
  start = _Carry(
    jnp.asarray(0),
    decoding.repeat_rows(cache, beams),
    nothing._replace(scores=scores_BxK),
    jnp.arange(batch * beams),
    _no_texts((batch,), limit, stop_ids),
    jnp.zeros(batch, jnp.int32),
  )
  logits_BxV = lm.head_logits(model, parts, hidden_BxD)
  start = append(start, jnp.repeat(logits_BxV, beams, axis=0))
  best = jax.lax.while_loop(unfinished, step, start).best_B
  return best.tokens, best.lengths, best.log_probs


def length_penalty(length: Array | int, alpha: float) -> Array:
  """Returns ((5 + |Y|) / 6) ** alpha (arXiv:1609.08144, eq. 14)."""
  return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def _no_texts(
  shape: tuple[int, ...], limit: int, stop_ids: tuple[int, ...]
) -> _Texts:
  pad = stop_ids[0] if stop_ids else 0
  return _Texts(
    jnp.full(shape, -jnp.inf),
    jnp.full((*shape, limit), pad, jnp.int32),
    jnp.zeros((*shape, limit)),
    jnp.zeros(shape, jnp.int32),
  )


def _continue(
  carry: _Carry,
  logits_NxV: Array,
  settings: DecodeSettings,
  stop_ids: tuple[int, ...],
  bias_V: Array | None,
) -> tuple[_Texts, Array]:
  """Returns the likeliest continuations, and the beam of each, [B, K]."""
  live, index = carry.live_BxK, carry.index
  batch, beams, limit = live.tokens.shape
  wide = min(beams, logits_NxV.shape[1])
  biased = logits_NxV if bias_V is None else logits_NxV + bias_V[None]
  tokens_NxT = live.tokens.reshape(-1, limit)
  allowed = ban(biased, tokens_NxT, index, settings, stop_ids)
  # A beam has at most K of the K best. They are ranked as logits, since close
  # log-probabilities would be equal after rounding in a long sum.
  top_NxW, tokens_NxW = jax.lax.top_k(allowed, wide)
  top_NxW -= jax.nn.logsumexp(biased, axis=1)[:, None]
  total = live.scores[:, :, None] + top_NxW.reshape(batch, beams, wide)
  scores_BxK, places_BxK = jax.lax.top_k(total.reshape(batch, -1), beams)
  parents_BxK = places_BxK // wide
  left_Bx1 = (beams - carry.complete_B)[:, None]

  def pick(x: Array) -> Array:
    return jnp.take_along_axis(x.reshape(batch, -1), places_BxK, axis=1)

  def inherit(x: Array) -> Array:
    return jnp.take_along_axis(x, parents_BxK[:, :, None], axis=1)

  plain_NxW = token_log_probs(logits_NxV, tokens_NxW)
  after = _Texts(
    jnp.where(jnp.arange(beams)[None] < left_Bx1, scores_BxK, -jnp.inf),
    inherit(live.tokens).at[:, :, index].set(pick(tokens_NxW)),
    inherit(live.log_probs).at[:, :, index].set(pick(plain_NxW)),
    jnp.full_like(live.lengths, index + 1),
  )
  return after, parents_BxK


def _better(
  best: _Texts, after: _Texts, ended_BxK: Array, alpha: float
) -> _Texts:
  penalty = length_penalty(after.lengths, alpha)
  scores_BxK = jnp.where(ended_BxK, after.scores / penalty, -jnp.inf)
  winner_B = jnp.argmax(scores_BxK, axis=1)
  wins_B = scores_BxK.max(axis=1) > best.scores

  def choose(old: Array, new: Array) -> Array:
    won = new[jnp.arange(len(winner_B)), winner_B]
    wins = wins_B.reshape(-1, *(1,) * (won.ndim - 1))
    return jnp.where(wins, won, old)

  return _Texts(*map(choose, best, after._replace(scores=scores_BxK)))
