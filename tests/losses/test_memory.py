"""The budget of the loss's tiles, and the accuracy of log Z."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.losses.fused import plan
from pdl_jax.losses.fused.api import (
  FusedConfig,
  linear_pdl_loss,
  linear_token_stats,
)
from pdl_jax.losses.settings import LossSettings
from pdl_jax.run.loss_tables import make_loss

GB = 2**30


@pytest.mark.parametrize(
  'stats, budget',
  [
    ({'bytes_limit': 32 * GB}, 2 * GB),
    ({'bytes_limit': 95 * GB}, 4 * GB),  # No more than saves much.
    (None, GB),
  ],
)
def test_the_budget_is_a_share_of_the_devices_memory(
  monkeypatch, stats, budget
):
  assert plan.device_budget() == 88 * 2**20
  device = types.SimpleNamespace(platform='tpu', memory_stats=lambda: stats)
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert plan.device_budget() == budget


def test_a_mesh_of_devices_that_are_not_here_has_unknown_memory(monkeypatch):
  monkeypatch.setattr(plan, 'platform', lambda: 'tpu')
  here = types.SimpleNamespace(
    platform='gpu', memory_stats=lambda: {'bytes_limit': 80 * GB}
  )
  monkeypatch.setattr(jax, 'local_devices', lambda: [here])
  assert plan.device_budget() == GB


def test_a_group_has_8192_rows_at_most_of_a_large_vocabulary():
  tokens, _ = plan.plan_tiles(32_768, 131_072, 4 * GB, keep=True)
  assert tokens == 8192


def test_the_setting_is_in_mib_and_reaches_the_tiles():
  assert make_loss(LossSettings()).tile_bytes == 88 * 2**20
  assert make_loss(LossSettings(memory_mb=3)).tile_bytes == 3 * 2**20
  with pytest.raises(ConfigError, match='loss.memory_mb must be >= 0, got -1'):
    LossSettings(memory_mb=-1)


@pytest.fixture
def inputs():
  random = np.random.default_rng(0)
  hidden, head = (random.normal(size=s).astype('f') for s in ((9, 4), (4, 40)))
  return jnp.asarray(hidden), jnp.asarray(head), jnp.arange(9)


@pytest.mark.parametrize('method', plan.METHODS)
def test_accuracy_reaches_every_exp_and_log(inputs, method):
  hidden, head, labels = inputs

  def made(accuracy):
    config = FusedConfig(method, exp_accuracy=accuracy)

    def loss(hidden, head):
      return linear_pdl_loss(hidden, head, labels, None, config=config)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))

  def asked(accuracy):
    text = str(jax.make_jaxpr(made(accuracy))(hidden, head))
    return set(re.findall(r'= (exp|log)\b(?:\[\s*accuracy=([\w.]*))?', text))

  best = 'AccuracyMode.HIGHEST'
  assert asked('highest') == {('exp', best), ('log', best)}
  assert asked('') == {('exp', ''), ('log', '')}
  one, other = (made(accuracy)(hidden, head) for accuracy in ('', 'highest'))
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_an_unknown_accuracy_is_refused(inputs):
  with pytest.raises(ConfigError, match=r"exp_accuracy 'high' is not one of"):
    linear_token_stats(*inputs, config=FusedConfig(exp_accuracy='high'))
  with pytest.raises(ConfigError, match='loss.exp_accuracy'):
    LossSettings(exp_accuracy='high')
