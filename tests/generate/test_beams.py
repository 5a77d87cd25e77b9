"""Beam search against the enumeration of every text."""

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
  NO_STOP,
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


def enumerate_best(prompt, stop, alpha, bias):
  texts = all_texts(stop)
  width = len(prompt) + T
  rows = np.zeros((len(texts), width), np.int32)
  for row, text in zip(rows, texts, strict=True):
    row[: len(prompt) + len(text)] = [*prompt, *text]
  logits = np.asarray(four_logits(rows), np.float64)
  log_p, plain = map(log_softmax, (logits + bias, logits))
  scores = [
    sum(log_p[i, len(prompt) + j - 1, token] for j, token in enumerate(text))
    / ((5 + len(text)) / 6) ** alpha
    for i, text in enumerate(texts)
  ]
  best = int(np.argmax(scores))
  places = np.arange(len(texts[best]))
  reads = len(prompt) - 1 + places
  return list(texts[best]), plain[best, reads, texts[best]]


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
  texts = list(itertools.product(range(4), repeat=T))
  rows = np.array([[*prompt, *text] for text in texts], np.int32)
  log_p = log_softmax(np.asarray(four_logits(rows), np.float64) + bias)
  after = {
    text[:size]: log_p[i, len(prompt) - 1 + size]
    for i, text in enumerate(texts)
    for size in range(T)
  }
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
  for _ in range(150):
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
  for stop in (NO_STOP, (int(free[0][2]), int(free[1][1]))):
    greedy = generate(PROMPTS, stop=stop)
    settings = DecodeSettings('beam', beams=1)
    found = generate(PROMPTS, settings, stop=stop)
    for x, y in zip(found, greedy, strict=True):
      np.testing.assert_array_equal(x, y)


def test_more_beams_find_likelier_texts():
  settings = DecodeSettings('beam', beams=8, length_penalty=0.0)
  greedy = generate(PROMPTS)[2].sum(axis=1)
  found = generate(PROMPTS, settings)[2].sum(axis=1)
  assert (found >= greedy - 1e-5).all()
  assert (found > greedy + 0.1).any()


def test_a_beam_does_not_depend_on_the_others_of_the_batch():
  settings = DecodeSettings('beam', beams=3)
  stop = tuple(range(20))
  tokens, lengths, log_probs = generate(PROMPTS, settings, stop=stop)
  assert len(set(lengths.tolist())) > 1
  order = [2, 0, 3, 1]
  found = generate([PROMPTS[i] for i in order], settings, stop=stop)
  for x, y in zip(found, (tokens, lengths, log_probs), strict=True):
    np.testing.assert_array_equal(x, y[order])


def test_the_penalty_is_that_of_the_paper():
  assert float(length_penalty(1, 0.6)) == 1
  assert float(length_penalty(7, 1.0)) == 2
  assert float(length_penalty(7, 0.5)) == pytest.approx(2**0.5)
