"""Greedy decoding against a loop that reads everything again each step."""

from functools import partial

import jax
import numpy as np

from pdl_jax import decode
from pdl_jax.model import api
from tests.tiny_model import CONFIG, PARAMS, tiny_tokens

NEW, WIDTH, NO_STOP = 6, 7, 64
PROMPTS = [list(tiny_tokens(n, seed=n)) for n in (5, 2, 7, 1)]


@jax.jit
def all_logits(tokens):
  length = tokens.shape[1]
  where = np.ones((1, length), int), np.arange(length)[None]
  return api.logits(CONFIG, PARAMS, tokens, *where)


def naive(prompt, new, stop):
  """Pads on the right, which causality hides, so that all is one shape."""
  tokens, size = list(prompt), len(prompt)
  while len(tokens) < size + new and tokens[size:][-1:] != [stop]:
    padded = np.zeros((1, WIDTH + NEW), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = all_logits(padded)[0, len(tokens) - 1]
    tokens.append(int(np.argmax(logits)))
  return tokens[size:]


def left_padded(prompts):
  tokens = np.full((len(prompts), WIDTH), 9, np.int32)
  filled = np.zeros((len(prompts), WIDTH), bool)
  for row, prompt in enumerate(prompts):
    if prompt:
      tokens[row, -len(prompt) :] = prompt
      filled[row, -len(prompt) :] = True
  return tokens, filled


@partial(jax.jit, static_argnames=('new', 'stop'))
def compiled(tokens, filled, new, stop):
  return decode.greedy(
    CONFIG, PARAMS, tokens, filled, max_new_tokens=new, stop_id=stop
  )


def generate(prompts, new=NEW, stop=NO_STOP):
  tokens, lengths = compiled(*left_padded(prompts), new=new, stop=stop)
  assert tokens.shape == (len(prompts), new)
  return np.asarray(tokens), np.asarray(lengths)


def test_greedy_is_the_naive_loop():
  tokens, lengths = generate(PROMPTS)
  assert lengths.tolist() == [NEW] * 4
  expected = [naive(prompt, NEW, NO_STOP) for prompt in PROMPTS]
  assert tokens.tolist() == expected
  # Otherwise the comparison would say little.
  assert len({tuple(row) for row in expected}) == 4


def test_a_row_does_not_depend_on_the_others():
  before = compiled._cache_size()
  tokens, _ = generate(PROMPTS)
  for order in ([2, 0, 3, 1], [0, 0, 0, 3]):
    found, _ = generate([PROMPTS[i] for i in order])
    np.testing.assert_array_equal(found, tokens[order])
  assert compiled._cache_size() - before <= 1


def test_the_stop_token_ends_its_row_only():
  free = [naive(prompt, NEW, NO_STOP) for prompt in PROMPTS]
  stop = free[0][2]
  expected = [naive(prompt, NEW, stop) for prompt in PROMPTS]
  assert min(map(len, expected)) < max(map(len, expected))
  tokens, lengths = generate(PROMPTS, stop=stop)
  assert lengths.tolist() == [len(row) for row in expected]
  for found, row in zip(tokens.tolist(), expected, strict=True):
    assert found == row + [stop] * (NEW - len(row))


def test_rows_without_a_prompt_stay_empty():
  tokens, lengths = generate([PROMPTS[0], [], PROMPTS[2], []])
  full, _ = generate(PROMPTS)
  assert lengths.tolist() == [NEW, 0, NEW, 0]
  np.testing.assert_array_equal(tokens[[0, 2]], full[[0, 2]])
  assert (tokens[[1, 3]] == NO_STOP).all()


def test_max_new_tokens_only_cuts():
  tokens, lengths = generate(PROMPTS, new=3)
  full, _ = generate(PROMPTS)
  np.testing.assert_array_equal(tokens, full[:, :3])
  assert (lengths == 3).all()


def test_the_loop_ends_with_the_last_row(monkeypatch):
  steps = []
  original = api.decode_step

  def counted(*arguments):
    jax.debug.callback(lambda: steps.append(1))
    return original(*arguments)

  monkeypatch.setattr(api, 'decode_step', counted)
  first = naive(PROMPTS[0], 1, NO_STOP)[0]
  _, lengths = jax.jit(
    partial(decode.greedy, CONFIG, max_new_tokens=NEW, stop_id=first)
  )(PARAMS, *left_padded([PROMPTS[0]] * 2))
  jax.effects_barrier()
  assert lengths.tolist() == [1, 1]
  assert len(steps) == 1


def test_bias_is_added_before_the_choice():
  """Post-hoc logit adjustment: at every step, and to nothing else."""
  bias = np.zeros(CONFIG.vocab_size, np.float32)
  bias[7] = 1e4
  run = jax.jit(
    partial(decode.greedy, CONFIG, PARAMS, max_new_tokens=3, stop_id=NO_STOP)
  )
  tokens, _ = run(*left_padded(PROMPTS), bias_V=bias)
  assert (np.asarray(tokens) == 7).all()
  none, _ = run(*left_padded(PROMPTS), bias_V=np.zeros_like(bias))
  plain, _ = run(*left_padded(PROMPTS))
  np.testing.assert_array_equal(none, plain)
