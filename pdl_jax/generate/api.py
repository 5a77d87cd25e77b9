"""The public functions, from prompts to generated tokens."""

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
  """The tokens generated from each prompt.

  Attributes:
    tokens_BxT: int32; after the end of a row, the first stop id, or 0.
    lengths_B: tokens per row, stop token included; 0 without a prompt.
    log_probs_BxT: log p of each token in nats, 0 after the end. It is that of
      the model: without temperature, truncation, bans and bias.
  """

  tokens_BxT: Array
  lengths_B: Array
  log_probs_BxT: Array


def hash_ids(ids: Sequence[str]) -> np.ndarray:
  """Hashes texts to uint32 [B, 2], the same in every process."""
  hashes = [hashlib.sha256(name.encode()).digest()[:8] for name in ids]
  return np.frombuffer(b''.join(hashes), '<u4').astype(np.uint32).reshape(-1, 2)


def row_keys(
  seed: int, hashes_Bx2: ArrayLike, samples_B: ArrayLike
) -> Array:
  """Makes the key of each row from the seed, its record and its sample.

  `hashes_Bx2` are `hash_ids` of the records' ids; `samples_B` number the
  samples of a record from 0. The keys are typed; step t of a row uses
  fold_in(key, t).
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
  """Reads prompts and continues them until a stop token or the limit.

  Args:
    model: config of the model.
    params: its parameters, with any groups of layers.
    prompts_BxP: prompts padded on the left; rows without a token stay empty.
    filled_BxP: True at real tokens.
    keys_B: keys of `row_keys`; only sampling needs them.
    settings: how tokens are chosen; static under jit.
    max_new_tokens: T, the stop token included; `settings` has one for callers.
    stop_ids: each ends a row; without any, all rows reach the limit.
    bias_V: added to the logits before the choice (post-hoc logit adjustment).

  Raises:
    ConfigError: keys for sampling are missing, or bans could leave no token.
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

  The cache must have P + `max_new_tokens` slots. The loop stops once all rows
  have ended.
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
