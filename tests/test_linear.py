"""The chunked linear head: equal to the loss on whole logits, and smaller."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax import divide, pdl_loss
from pdl_jax.errors import ConfigError
from pdl_jax.losses import linear
from pdl_jax.losses.cross_entropy import token_nll
from pdl_jax.losses.linear import linear_token_nll, linear_weighted_sums

B, L, D, V = 3, 10, 8, 23
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(B, L, D)), jnp.float32)
HEAD = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, V, (B, L)))
WHERE = jnp.asarray(RNG.random((B, L)) < 0.7)
WEIGHTS = jnp.asarray(RNG.uniform(0.1, 5, V), jnp.float32)
# Positions a chunk: one chunk, two, uneven ones of 3, 3, 3, 1, and one each.
POSITIONS = pytest.mark.parametrize('positions', [100, 5, 3, 1])


def naive_logits(hidden, head):
  return hidden.astype(jnp.float32) @ head.astype(jnp.float32)


def chunk(monkeypatch, positions, batch=B, vocabulary=V):
  elements = positions * batch * vocabulary
  monkeypatch.setattr(linear, 'CHUNK_ELEMENTS', elements)


@POSITIONS
def test_chunk_counts(monkeypatch, positions):
  chunk(monkeypatch, positions)
  expected = {100: 1, 5: 2, 3: 4, 1: 10}[positions]
  assert linear._chunk_count(LABELS, HEAD) == expected


@pytest.mark.parametrize(
  ('positions', 'reduction'),
  [
    (100, 'weighted_mean'),
    (5, 'weighted_mean'),
    (1, 'weighted_mean'),
    (3, 'weighted_mean'),
    (3, 'token_mean'),
    (3, 'sum'),
  ],
)
def test_value_and_gradient_of_the_naive_loss(
  monkeypatch, positions, reduction
):
  chunk(monkeypatch, positions)
  arguments = (WEIGHTS, WHERE, reduction)

  @jax.jit
  @partial(jax.value_and_grad, argnums=(0, 1))
  def ours(hidden, head):
    weighted, _ = linear_weighted_sums(hidden, head, LABELS, *arguments)
    return divide(weighted)

  @jax.jit
  @partial(jax.value_and_grad, argnums=(0, 1))
  def naive(hidden, head):
    return pdl_loss(
      naive_logits(hidden, head), LABELS, WEIGHTS, where=WHERE,
      reduction=reduction,
    )

  found = jax.tree.leaves(ours(HIDDEN, HEAD))
  expected = jax.tree.leaves(naive(HIDDEN, HEAD))
  for a, b in zip(found, expected, strict=True):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@POSITIONS
def test_sums_without_a_gradient(monkeypatch, positions):
  chunk(monkeypatch, positions)
  weighted, plain = linear_weighted_sums(HIDDEN, HEAD, LABELS, WEIGHTS, WHERE)
  nll = np.where(WHERE, token_nll(naive_logits(HIDDEN, HEAD), LABELS), 0)
  w = np.where(WHERE, np.asarray(WEIGHTS)[LABELS], 0)
  np.testing.assert_allclose(weighted.num, (w * nll).sum(), rtol=1e-5)
  np.testing.assert_allclose(weighted.den, w.sum(), rtol=1e-6)
  np.testing.assert_allclose(plain.num, nll.sum(), rtol=1e-5)
  assert plain.den == WHERE.sum()


def test_forward_of_the_gradient_gives_the_same_sums():
  def loss(hidden):
    sums = linear_weighted_sums(hidden, HEAD, LABELS, WEIGHTS, WHERE)
    return sums[0].num, sums

  _, with_gradient = jax.grad(loss, has_aux=True)(HIDDEN)
  _, without = loss(HIDDEN)
  np.testing.assert_allclose(
    jax.tree.leaves(with_gradient), jax.tree.leaves(without), rtol=1e-6
  )


def test_plain_sum_has_no_gradient():
  plain = lambda h: linear_weighted_sums(h, HEAD, LABELS, WEIGHTS, WHERE)[1].num
  assert (jax.grad(plain)(HIDDEN) == 0).all()


@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_masked_hidden_states_and_labels_may_be_anything(monkeypatch, poison):
  chunk(monkeypatch, 3)

  @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def loss(hidden, head, labels):
    sums = linear_weighted_sums(hidden, head, labels, WEIGHTS, WHERE)
    return sums[0].num, sums

  dirty = jnp.where(WHERE[..., None], HIDDEN, poison)
  wrong = jnp.where(WHERE, LABELS, -100)
  clean, poisoned = loss(HIDDEN, HEAD, LABELS), loss(dirty, HEAD, wrong)
  for a, b in zip(*map(jax.tree.leaves, (clean, poisoned)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_everything_masked():
  @jax.value_and_grad
  def loss(hidden):
    none = jnp.zeros((B, L), bool)
    return divide(linear_weighted_sums(hidden, HEAD, LABELS, WEIGHTS, none)[0])

  value, gradient = loss(HIDDEN * jnp.nan)
  assert value == 0
  assert (gradient == 0).all()


def test_bfloat16_inputs_keep_a_float32_loss(monkeypatch):
  chunk(monkeypatch, 3)
  hidden, head = HIDDEN.astype(jnp.bfloat16), HEAD.astype(jnp.bfloat16)
  ours = lambda h, w: linear_weighted_sums(h, w, LABELS, WEIGHTS, WHERE)[0].num
  naive = lambda h, w: pdl_loss(
    naive_logits(h, w), LABELS, WEIGHTS, where=WHERE, reduction='sum'
  )
  value, gradients = jax.value_and_grad(ours, (0, 1))(hidden, head)
  expected = naive(hidden, head)
  assert value.dtype == jnp.float32
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  wide = [x.astype(jnp.float32) for x in (hidden, head)]
  for a, b in zip(gradients, jax.grad(naive, (0, 1))(*wide), strict=True):
    assert a.dtype == jnp.bfloat16
    off = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
    assert off < 0.01


@POSITIONS
def test_token_nll(monkeypatch, positions):
  chunk(monkeypatch, positions)
  found = jax.jit(linear_token_nll)(HIDDEN, HEAD, LABELS)
  expected = token_nll(naive_logits(HIDDEN, HEAD), LABELS)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_whole_logits_are_never_there(monkeypatch):
  shape = (4, 256, 8, 2048)
  batch, length, _, vocabulary = shape
  chunk(monkeypatch, 16, batch, vocabulary)
  whole = 4 * batch * length * vocabulary
  inputs = (
    jax.ShapeDtypeStruct(shape[:3], jnp.float32),
    jax.ShapeDtypeStruct(shape[2:], jnp.float32),
  )
  labels, where = jnp.zeros(shape[:2], int), jnp.ones(shape[:2], bool)
  weights = jnp.ones(vocabulary)

  def ours(hidden, head):
    return linear_weighted_sums(hidden, head, labels, weights, where)[0].num

  def naive(hidden, head):
    return pdl_loss(
      naive_logits(hidden, head), labels, weights, reduction='sum'
    )

  def temporary(loss):
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs)
    return compiled.compile().memory_analysis().temp_size_in_bytes

  assert temporary(naive) >= whole
  assert temporary(ours) < whole / 4


def test_labels_out_of_range_are_refused():
  labels = LABELS.at[0, 0].set(V)
  everywhere = jnp.ones((B, L), bool)
  with pytest.raises(ConfigError, match='1 of 30 labels .* the first is 23;'):
    linear_weighted_sums(HIDDEN, HEAD, labels, WEIGHTS, everywhere)


def test_a_table_of_another_vocabulary_is_refused():
  with pytest.raises(ConfigError, match=r'shape \(22,\).* 23 types'):
    linear_weighted_sums(HIDDEN, HEAD, LABELS, WEIGHTS[1:], WHERE)


def test_unknown_reduction_is_refused():
  with pytest.raises(ConfigError, match="'none' is not one of weighted_mean"):
    linear_weighted_sums(HIDDEN, HEAD, LABELS, WEIGHTS, WHERE, 'none')
