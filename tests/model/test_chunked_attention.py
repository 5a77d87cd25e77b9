"""Attention in blocks: the numbers of all scores at once, without them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.mesh import make_mesh
from pdl_jax.model import chunked_attention, lm
from pdl_jax.model.kernels import LONG, chosen
from tests.model.test_attention import VARIANTS, model, moved, packed

pytestmark = pytest.mark.usefixtures('quick_compile')


def chunked(config):
  return dataclasses.replace(config, attention_impl='chunked')


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Three blocks, the last filled up; windows of 3 reach over their ends."""
  monkeypatch.setattr(chunked_attention, 'BLOCK', 4)


def equal(a, b):
  """Within fp32 rounding of sums of terms as large as the largest value."""
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-12)


def states_and_gradients(config, params):
  tokens, segments, positions = packed()

  @jax.jit
  def run(params):
    def states(params):
      x = lm.hidden(config, params, tokens, segments, positions)
      return jnp.where(segments[..., None] > 0, x, 0)

    x, pull = jax.vjp(states, params)
    return x, *pull(jnp.sin(jnp.arange(x.size)).reshape(x.shape))

  return run(params)


@pytest.mark.parametrize('name', VARIANTS)
def test_states_and_gradients_are_those_of_all_scores_at_once(name):
  params = moved(VARIANTS[name])
  expected = states_and_gradients(VARIANTS[name], params)
  found = states_and_gradients(chunked(VARIANTS[name]), params)
  jax.tree.map(equal, found, expected)


def packed_is_alone(config):
  """Checks that a document in a packed row is that document alone."""
  params = moved(config)
  tokens, segments, positions = packed()
  x = lm.hidden(config, params, tokens, segments, positions)
  for document in (slice(0, 4), slice(4, 8)):
    alone = lm.hidden(
      config, params, tokens[:1, document], segments[:1, document],
      positions[:1, document],
    )  # fmt: skip
    np.testing.assert_allclose(x[:1, document], alone, atol=1e-5)


def test_a_packed_document_is_that_document_alone():
  packed_is_alone(chunked(VARIANTS['gemma']))


def test_a_mesh_gives_the_states_of_one_device():
  config = chunked(model(kv_heads=2))
  params = moved(config)
  expected = states_and_gradients(config, params)
  with jax.set_mesh(make_mesh((2, 2, 2))):
    found = states_and_gradients(config, params)
  jax.tree.map(equal, found, expected)


@pytest.mark.parametrize('impl', ['xla', 'chunked'])
def test_no_array_has_a_row_and_a_column_for_every_token(impl):
  config = model(attention_impl=impl)
  shape = jax.ShapeDtypeStruct((1, 61), int)

  def loss(params, *inputs):
    return lm.hidden(config, params, *inputs).sum()

  lowered = jax.jit(jax.grad(loss)).lower(moved(config), *[shape] * 3)
  # Filled up to blocks: 64.
  square = re.compile(r'tensor<(\d+x)*(61x61|64x64)x')
  assert bool(square.search(lowered.as_text())) == (impl == 'xla')


def test_auto_is_by_the_length_of_a_row():
  assert [chosen(model(), x) for x in (LONG, LONG + 1)] == ['xla', 'chunked']
  assert chosen(chunked(model()), 1) == 'chunked'
  assert chosen(model(attention_impl='xla'), 10**6) == 'xla'
  with pytest.raises(ConfigError, match=r"model.attention_impl 'flash' is not"):
    model(attention_impl='flash')
