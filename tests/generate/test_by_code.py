"""Choosing a code and then a type: against the logits of all types."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.generate import DecodeSettings, by_code
from pdl_jax.losses.heads import CodeHead
from pdl_jax.model.config import HeadConfig
from tests.generate.decoding import GREEDY, ONE, ONE_PARAMS, PROMPTS, generate

pytestmark = pytest.mark.usefixtures('quick_compile')

V, K, D = 30, 7, 5


def small_head(bias=True):
  random = np.random.default_rng(0)
  codes = random.integers(0, K - 1, V)  # The last code is empty.
  codes[11] = 3
  return CodeHead(
    jnp.asarray(random.normal(size=(K, D)), jnp.float32),
    jnp.asarray(codes, jnp.int32),
    jnp.asarray(random.normal(size=V), jnp.float32) if bias else None,
  )


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_types_are_drawn_with_their_probabilities(bias, temperature):
  head, rows = small_head(bias), 40_000
  hidden = jnp.asarray(np.random.default_rng(1).normal(size=(1, D)))
  logits = head.code_logits(hidden.astype(jnp.float32))
  tables = head.tables(temperature)
  order = by_code.sort_types(head, temperature)
  keys = jax.random.split(jax.random.key(0), rows)
  drawn = by_code.draw(
    head, tables, order, jnp.repeat(logits, rows, axis=0), keys,
    jnp.asarray(3), temperature,
  )  # fmt: skip
  expected = np.asarray(
    jax.nn.softmax(head.logits(hidden.astype(jnp.float32))[0] / temperature)
  )
  found = np.bincount(drawn, minlength=V) / rows
  # Five standard errors of each share.
  error = np.sqrt(expected * (1 - expected) / rows)
  assert (np.abs(found - expected) < 5 * error + 1e-9).all()


def models(bias=True):
  """A model of codes, and the one with the same rows in a matrix."""
  config = dataclasses.replace(
    ONE, head=HeadConfig('vq', 'learned' if bias else 'none', codebook_size=9)
  )
  random = np.random.default_rng(4)
  vocab, width = ONE.vocab_size, ONE.width
  head = {
    'codebooks_MxKxS': np.float32(random.normal(size=(1, 9, width))),
    'codes_MxV': np.int32(random.integers(0, 9, (1, vocab))),
  }
  dense = {'matrix_VxD': head['codebooks_MxKxS'][0][head['codes_MxV'][0]]}
  if bias:
    head['bias_V'] = dense['bias_V'] = np.float32(random.normal(size=vocab))
  kind = HeadConfig('dense', config.head.bias)
  return (
    (config, {**ONE_PARAMS, 'head': head}),
    (dataclasses.replace(ONE, head=kind), {**ONE_PARAMS, 'head': dense}),
  )


@pytest.mark.parametrize('bias', [True, False])
def test_greedy_texts_are_those_of_the_matrix(bias):
  one, other = (
    generate(PROMPTS, model=model, params=params)
    for model, params in models(bias)
  )
  np.testing.assert_array_equal(one[0], other[0])
  np.testing.assert_allclose(one[2], other[2], rtol=1e-5, atol=1e-5)


def test_a_bias_for_the_choice_is_not_in_the_probabilities():
  tilt = np.zeros(ONE.vocab_size, np.float32)
  tilt[17] = 50.0
  (model, params), _ = models()
  tokens, _, log_probs = generate(
    PROMPTS, model=model, params=params, bias_V=tilt
  )
  assert (tokens == 17).all()
  assert log_probs.max() < 0


@pytest.mark.parametrize(
  'changes', [{'no_repeat_ngram': 2}, {'method': 'beam', 'beams': 2}]
)
def test_other_ways_of_decoding_look_at_all_types(changes):
  settings = dataclasses.replace(GREEDY, **changes)
  one, other = (
    generate(PROMPTS, settings, model=model, params=params)
    for model, params in models()
  )
  np.testing.assert_array_equal(one[0], other[0])


def test_log_probabilities_of_a_sample():
  settings = DecodeSettings(method='sample', temperature=0.7)
  (model, params), _ = models()
  assert by_code.suffices(settings)
  for changes in (
    {'top_k': 3}, {'top_p': 0.9}, {'min_p': 0.1}, {'typical_p': 0.9},
    {'no_repeat_ngram': 2}, {'min_new_tokens': 1},
  ):  # fmt: skip
    other = dataclasses.replace(settings, **changes)
    assert not by_code.suffices(other)
  tokens, _, log_probs = generate(
    PROMPTS, settings, model=model, params=params
  )
  again, _, _ = generate(PROMPTS, settings, model=model, params=params)
  np.testing.assert_array_equal(tokens, again)
  assert len(set(tokens[:, 0].tolist())) > 1
  assert np.isfinite(log_probs).all() and (log_probs < 0).all()
