"""Prompts and calls that the tests of decoding share."""

import dataclasses
from functools import partial

import jax
import numpy as np

from pdl_jax import generate as generation
from pdl_jax.generate import DecodeSettings
from pdl_jax.model.config import ModelConfig
from tests.tiny_model import CONFIG, PARAMS, random_params, tiny_tokens

NEW, WIDTH, NO_STOP = 6, 7, (64,)
PROMPTS = [list(tiny_tokens(n, seed=n)) for n in (5, 2, 7, 1)]
GREEDY = DecodeSettings()

# One layer compiles sooner, where the model does not matter.
ONE = dataclasses.replace(CONFIG, layers=1)
ONE_PARAMS = random_params(ONE)
# Small enough to enumerate every text that it could write.
FOUR = ModelConfig(
  vocab_size=4, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16,
  context=16,
)  # fmt: skip
FOUR_PARAMS = random_params(FOUR)


def left_padded(prompts, width=WIDTH):
  tokens = np.full((len(prompts), width), 3, np.int32)
  filled = np.zeros((len(prompts), width), bool)
  for row, prompt in enumerate(prompts):
    if len(prompt):
      tokens[row, -len(prompt) :] = prompt
      filled[row, -len(prompt) :] = True
  return tokens, filled


@partial(
  jax.jit, static_argnames=('model', 'settings', 'max_new_tokens', 'stop_ids')
)
def compiled(params, tokens, filled, hashes, samples, bias_V, **static):
  keys = generation.row_keys(static['settings'].seed, hashes, samples)
  model = static.pop('model')
  return generation.generate(
    model, params, tokens, filled, keys, bias_V=bias_V, **static
  )


def generate(
  prompts,
  settings=GREEDY,
  new=NEW,
  stop=NO_STOP,
  width=WIDTH,
  ids=None,
  samples=None,
  bias_V=None,
  model=CONFIG,
  params=PARAMS,
):
  """Tokens, lengths and log-probabilities as numpy."""
  ids = [str(prompt) for prompt in prompts] if ids is None else ids
  samples = np.zeros(len(prompts), int) if samples is None else samples
  found = compiled(
    params, *left_padded(prompts, width), generation.hash_ids(ids),
    np.asarray(samples, np.uint32), bias_V, model=model, settings=settings,
    max_new_tokens=new, stop_ids=stop,
  )
  assert found.tokens_BxT.shape == (len(prompts), new)
  return tuple(map(np.asarray, found))
