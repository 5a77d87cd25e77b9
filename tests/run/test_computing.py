"""The precision that a run computes with: applied, recorded, hashed."""

import importlib.metadata

import jax
import jax.numpy as jnp
import pytest

from configs import summarize
from pdl_jax.config import Settings, run_id
from pdl_jax.errors import ConfigError
from pdl_jax.mesh import make_mesh
from pdl_jax.run.finetune import computing, make_step_config
from pdl_jax.run_folder import environment
from tests import small


def settings(**changes):
  config = summarize.get_config('tiny')
  for key, value in changes.items():
    group, _, name = key.partition('_')
    config[group][name] = value
  return Settings.from_config(config)


@pytest.mark.parametrize('asked', ['', 'highest'])
def test_products_have_the_precision_asked_for(asked):
  mesh = make_mesh((-1, 1, 1))
  with computing(settings(model_matmul_precision=asked), mesh):
    text = jax.jit(jnp.dot).lower(jnp.ones((2, 2)), jnp.ones((2, 2))).as_text()
    recorded = environment({})['jax']['jax_default_matmul_precision']
    assert jax.sharding.get_abstract_mesh() == mesh.abstract_mesh
  assert ('HIGHEST' in text) == bool(asked)
  assert recorded == (asked or None)
  assert jax.config.jax_default_matmul_precision is None


def test_what_changes_numbers_is_hashed_and_memory_is_not():
  plain = settings()
  assert settings(loss_memory_mb=7).hash == plain.hash
  # It is no override without effect either.
  assert run_id(plain.resolved, ['loss.memory_mb']) == 'default'
  for changes in (
    {'model_matmul_precision': 'high'}, {'loss_exp_accuracy': 'highest'},
    {'model_attention_impl': 'splash'},
  ):  # fmt: skip
    assert settings(**changes).hash != plain.hash
  with pytest.raises(ConfigError, match="model.matmul_precision 'low' is not"):
    settings(model_matmul_precision='low')


def test_the_step_is_made_with_the_budget_and_the_accuracy():
  made = settings(loss_memory_mb=7, loss_exp_accuracy='highest')
  fused = make_step_config(made, small.MODEL).loss.fused
  assert (fused.memory_bytes, fused.exp_accuracy) == (7 * 2**20, 'highest')


def test_versions_of_accelerators_are_recorded_where_they_are(monkeypatch):
  assert environment({})['plugins'] == {}
  real = importlib.metadata.version
  monkeypatch.setattr(
    importlib.metadata, 'version',
    lambda name: '0.0.50' if name == 'libtpu' else real(name),
  )  # fmt: skip
  assert environment({})['plugins'] == {'libtpu': '0.0.50'}
