"""Beam search against the enumeration of every text."""

import functools
import itertools

import jax
import numpy as np
import pytest

from pdl_jax.generate import DecodeSettings
from pdl_jax.generate.beams import length_penalty
from pdl_jax.model import lm
from tests.generate.decoding import (
  FOUR,
  FOUR_PARAMS,
  PROMPTS,
  generate,
)

pytestmark = pytest.mark.usefixtures('quick_compile')
T = 4
FOUR_PROMPTS = [[1, 2, 0], [2], [0, 1, 1, 2], [1, 1]]


@jax.jit
def four_logits(tokens):
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  ones = np.ones(tokens.shape, int)
  return lm.logits(FOUR, FOUR_PARAMS, tokens, ones, positions)


@functools.cache
def next_logits(prompt):
  """fp64 logits after each text of less than T tokens."""
  texts = list(itertools.product(range(4), repeat=T))
  # Padded on the right, which causality hides: all prompts are one shape.
  rows = np.zeros((len(texts), 8), np.int32)
  size = len(prompt)
  rows[:, : size + T] = [[*prompt, *text] for text in texts]
  logits = np.asarray(four_logits(rows), np.float64)
  return {
    text[:done]: logits[i, size - 1 + done]
    for i, text in enumerate(texts) for done in range(T)
  }  # fmt: skip


def all_texts(stop):
  """Every text that ends with a stop token, or at the limit without one."""
  return [
    text
    for size in range(1, T + 1)
    for text in itertools.product(range(4), repeat=size)
    if not set(text[:-1]) & set(stop) and (size == T or text[-1] in stop)
  ]


def log_softmax(logits):
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def log_probs_after(prompt, bias):
  found = next_logits(tuple(prompt))
  return {text: log_softmax(z + bias) for text, z in found.items()}


def by_token(after, text):
  return [after[text[:i]][token] for i, token in enumerate(text)]


def enumerate_best(prompt, stop, alpha, bias):
  after = log_probs_after(prompt, bias)

  def score(text):
    return sum(by_token(after, text)) / ((5 + len(text)) / 6) ** alpha

  best = max(all_texts(stop), key=score)
  return list(best), by_token(log_probs_after(prompt, 0), best)


@pytest.mark.parametrize(
  ('alpha', 'stop'), [(0.0, (3,)), (0.6, (3, 2)), (3.0, (3,))]
)
def test_a_wide_beam_finds_the_best_of_all_texts(alpha, stop):
  settings = DecodeSettings('beam', beams=64, length_penalty=alpha)
  sizes = set()
  for shift in (3.0, 0.0, -1.5):
    bias = np.zeros(4, np.float32)
    bias[list(stop)] = shift
    tokens, lengths, log_probs = generate(
      FOUR_PROMPTS, settings, new=T, stop=stop, width=4, bias_V=bias,
      model=FOUR, params=FOUR_PARAMS,
    )  # fmt: skip
    for prompt, row, found, size in zip(
      FOUR_PROMPTS, tokens, log_probs, lengths, strict=True
    ):
      best, expected = enumerate_best(prompt, stop, alpha, bias)
      assert row[:size].tolist() == best
      np.testing.assert_allclose(found[:size], expected, atol=1e-5)
      sizes.add(size)
  # Otherwise the penalty would have had nothing to decide.
  assert len(sizes) > 1


def plain_beam_search(prompt, stop, alpha, bias, beams):
  """The rules of `beam_search` on lists, never ending early."""
  after = log_probs_after(prompt, bias)
  live, complete = [(0.0, ())], []
  for size in range(1, T + 1):
    continued = [
      (score + after[text][v], (*text, v)) for score, text in live
      for v in range(4)
    ]  # fmt: skip
    taken = sorted(continued, reverse=True)[: beams - len(complete)]
    ended = [x for x in taken if x[1][-1] in stop or size == T]
    complete += [(score / ((5 + size) / 6) ** alpha, x) for score, x in ended]
    live = [x for x in taken if x not in ended]
  return list(max(complete)[1])


def test_a_complete_text_takes_its_beam():
  settings, stop = DecodeSettings('beam', beams=2, length_penalty=3.0), (3,)
  pruned, random = 0, np.random.default_rng(0)
  for _ in range(40):
    bias = random.normal([0, 0, 0, 5], 2).astype(np.float32)
    tokens, lengths, _ = generate(
      FOUR_PROMPTS, settings, new=T, stop=stop, width=4, bias_V=bias,
      model=FOUR, params=FOUR_PARAMS,
    )  # fmt: skip
    for prompt, row, size in zip(FOUR_PROMPTS, tokens, lengths, strict=True):
      found = row[:size].tolist()
      assert found == plain_beam_search(prompt, stop, 3.0, bias, 2)
      pruned += found != enumerate_best(prompt, stop, 3.0, bias)[0]
  # Otherwise all texts were in reach.
  assert pruned


def test_one_beam_is_greedy():
  free, _, _ = generate(PROMPTS)
  stop = (int(free[0][2]), int(free[1][1]))
  greedy = generate(PROMPTS, stop=stop)
  assert greedy[1].min() < greedy[1].max()
  found = generate(PROMPTS, DecodeSettings('beam', beams=1), stop=stop)
  for x, y in zip(found, greedy, strict=True):
    np.testing.assert_array_equal(x, y)


def test_more_beams_find_likelier_texts():
  settings = DecodeSettings('beam', beams=8, length_penalty=0.0)
  greedy = generate(PROMPTS)[2].sum(axis=1)
  found = generate(PROMPTS, settings)[2].sum(axis=1)
  assert (found >= greedy - 1e-5).all()
  assert (found > greedy + 0.1).any()


def test_the_penalty_is_that_of_the_paper():
  assert float(length_penalty(1, 0.6)) == 1
  assert float(length_penalty(7, 1.0)) == 2
  assert float(length_penalty(7, 0.5)) == pytest.approx(2**0.5)
