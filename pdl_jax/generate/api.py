"""From prompts to generated tokens: the public functions."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from pdl_jax.errors import ConfigError
from pdl_jax.generate.beams import beam_search
from pdl_jax.generate.sampling import greedy_or_sample
from pdl_jax.generate.settings import DecodeSettings
from pdl_jax.model import decoding
from pdl_jax.model.config import ModelConfig

Tree = Any


class Generated(NamedTuple):
  """What was generated from each prompt.

  Attributes:
    tokens_BxT: int32; after the end of a row, the first stop id, or 0.
    lengths_B: tokens of each row, its stop token included; 0 for a row
      without a prompt.
    log_probs_BxT: log p of each token under the model itself, in nats: no
      temperature, truncation, ban or bias; 0 after the end.
  """

  tokens_BxT: Array
  lengths_B: Array
  log_probs_BxT: Array


def hash_ids(ids: Sequence[str]) -> np.ndarray:
  """Hashes each text to uint32 [B, 2], the same in every process."""
  hashes = [hashlib.sha256(name.encode()).digest()[:8] for name in ids]
  return np.frombuffer(b''.join(hashes), '<u4').astype(np.uint32).reshape(-1, 2)


def row_keys(
  seed: int, hashes_Bx2: ArrayLike, samples_B: ArrayLike
) -> Array:
  """Makes the key of each row from the seed, its record and its sample.

  Args:
    seed: that of the sampling.
    hashes_Bx2: `hash_ids` of the records' ids.
    samples_B: which sample of its record each row is, from 0.

  Returns:
    keys_B, typed; step t of a row uses fold_in(key, t).
  """

  def one(hash_2: Array, sample: Array) -> Array:
    key = jax.random.key(seed, impl='threefry2x32')
    for word in (hash_2[0], hash_2[1], sample):
      key = jax.random.fold_in(key, word)
    return key

  return jax.vmap(one)(jnp.asarray(hashes_Bx2), jnp.asarray(samples_B))


def generate(
  model: ModelConfig,
  params: Tree,
  prompts_BxP: Array,
  filled_BxP: Array,
  keys_B: Array | None,
  *,
  settings: DecodeSettings,
  max_new_tokens: int,
  stop_ids: tuple[int, ...],
  bias_V: Array | None = None,
) -> Generated:
  """Reads prompts and continues them, until a stop token or the limit.

  Args:
    model: shape of the model.
    params: with any groups of layers.
    prompts_BxP: prompts padded on the left. A row without any real token
      comes back empty.
    filled_BxP: True at real tokens.
    keys_B: made by `row_keys`; needed to sample alone.
    settings: how tokens are chosen; static under jit.
    max_new_tokens: T, the stop token included. `settings.max_new_tokens` is
      for the caller, who knows the data.
    stop_ids: each of them ends a row; without any, all rows reach the limit.
    bias_V: added to the logits before the choice (post-hoc logit adjustment).

  Raises:
    ConfigError: sampling without keys; bans that could leave no token.
  """
  size = prompts_BxP.shape[1] + max_new_tokens
  hidden_BxD, cache = decoding.prefill(
    model, params, prompts_BxP, filled_BxP, size
  )
  return extend(
    model, params, hidden_BxD, cache, keys_B, settings=settings,
    max_new_tokens=max_new_tokens, stop_ids=stop_ids, bias_V=bias_V,
  )  # fmt: skip


def extend(
  model: ModelConfig,
  params: Tree,
  hidden_BxD: Array,
  cache: decoding.Cache,
  keys_B: Array | None,
  *,
  settings: DecodeSettings,
  max_new_tokens: int,
  stop_ids: tuple[int, ...],
  bias_V: Array | None = None,
) -> Generated:
  """Continues prompts that `model.decoding.prefill` has read.

  The cache must have P + `max_new_tokens` slots. The loop ends as soon as
  every row has.
  """
  _check(settings, keys_B, max_new_tokens, stop_ids, model.vocab_size)
  start = (model, params, hidden_BxD, cache)
  how = (settings, max_new_tokens, stop_ids, bias_V)
  if settings.method == 'beam':
    return Generated(*beam_search(*start, *how))
  return Generated(*greedy_or_sample(*start, keys_B, *how))


def _check(
  settings: DecodeSettings,
  keys_B: Array | None,
  limit: int,
  stop_ids: tuple[int, ...],
  vocab: int,
) -> None:
  if settings.method == 'sample' and keys_B is None:
    raise ConfigError('decode.method sample needs keys_B, see row_keys')
  banned = limit - 1 if settings.no_repeat_ngram else 0
  banned += len(set(stop_ids)) if settings.min_new_tokens else 0
  if banned >= vocab:
    raise ConfigError(
      f'decode.no_repeat_ngram {settings.no_repeat_ngram} and '
      f'decode.min_new_tokens {settings.min_new_tokens} could ban all {vocab} '
      f'tokens within {limit} new ones; generate fewer'
    )
