"""Greedy decoding against a loop that reads everything again each step."""

import re
from functools import partial

import jax
import numpy as np
import pytest

from pdl_jax import generate as generation
from pdl_jax.errors import ConfigError
from pdl_jax.generate import DecodeSettings
from pdl_jax.model import decoding, lm
from tests.generate.decoding import (
  GREEDY,
  NEW,
  NO_STOP,
  ONE,
  ONE_PARAMS,
  PROMPTS,
  WIDTH,
  compiled,
  generate,
  left_padded,
)
from tests.tiny_model import CONFIG, PARAMS

pytestmark = pytest.mark.usefixtures('quick_compile')


@jax.jit
def all_logits(tokens):
  length = tokens.shape[1]
  where = np.ones((1, length), int), np.arange(length)[None]
  return lm.logits(CONFIG, PARAMS, tokens, *where)


def read(tokens):
  """logits_LxV; pads on the right, which causality hides: all is one shape."""
  padded = np.zeros((1, WIDTH + NEW), np.int32)
  padded[0, : len(tokens)] = tokens
  return np.asarray(all_logits(padded))[0, : len(tokens)]


def naive(prompt, new, stop):
  tokens, size = list(prompt), len(prompt)
  while len(tokens) < size + new and not set(tokens[size:][-1:]) & set(stop):
    tokens.append(int(np.argmax(read(tokens)[-1])))
  return tokens[size:]


def test_greedy_is_the_naive_loop():
  tokens, lengths, _ = generate(PROMPTS)
  assert lengths.tolist() == [NEW] * 4
  expected = [naive(prompt, NEW, NO_STOP) for prompt in PROMPTS]
  assert tokens.tolist() == expected
  # Otherwise the comparison would say little.
  assert len({tuple(row) for row in expected}) == 4


def log_softmax(logits):
  logits = logits.astype(np.float64)
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@pytest.mark.parametrize(
  'settings',
  [
    GREEDY,
    DecodeSettings('beam', beams=3),
    DecodeSettings('sample', temperature=3.0, top_k=20),
  ],
  ids=lambda settings: settings.method,
)
def test_log_probs_are_those_of_the_full_forward_pass(settings):
  """Which also says that cached and uncached logits agree, with padding."""
  bias = np.random.default_rng(0).normal(size=64).astype(np.float32)
  tokens, _, log_probs = generate(PROMPTS, settings, bias_V=bias)
  for prompt, row, found in zip(PROMPTS, tokens, log_probs, strict=True):
    log_p = log_softmax(read([*prompt, *row])[len(prompt) - 1 : -1])
    np.testing.assert_allclose(found, log_p[np.arange(NEW), row], atol=1e-5)


def test_a_row_does_not_depend_on_the_others():
  for settings, stop in (
    (GREEDY, NO_STOP), (DecodeSettings('beam', beams=3), tuple(range(20)))
  ):  # fmt: skip
    whole = generate(PROMPTS, settings, stop=stop)
    before = compiled._cache_size()
    for order in ([2, 0, 3, 1], [0, 0, 0, 3]):
      mates = [PROMPTS[i] for i in order]
      for x, y in zip(generate(mates, settings, stop=stop), whole, strict=True):
        np.testing.assert_array_equal(x, y[order])
    assert compiled._cache_size() == before
  assert len(set(whole[1].tolist())) > 1


def test_a_row_does_not_depend_on_its_padding_or_the_limit():
  tokens, _, log_probs = generate(PROMPTS)
  wider, lengths, scores = generate(PROMPTS, width=WIDTH + 4, new=3)
  np.testing.assert_array_equal(wider, tokens[:, :3])
  np.testing.assert_allclose(scores, log_probs[:, :3], atol=1e-5)
  assert (lengths == 3).all()


def test_stop_tokens_end_their_row_only():
  free = [naive(prompt, NEW, NO_STOP) for prompt in PROMPTS]
  stop = (free[0][2], free[1][1], 63)
  expected = [naive(prompt, NEW, stop) for prompt in PROMPTS]
  assert {row[-1] for row in expected} >= set(stop[:2])
  assert min(map(len, expected)) < max(map(len, expected))
  tokens, lengths, log_probs = generate(PROMPTS, stop=stop)
  assert lengths.tolist() == [len(row) for row in expected]
  for found, row, scores in zip(tokens, expected, log_probs, strict=True):
    assert found.tolist() == row + [stop[0]] * (NEW - len(row))
    assert (scores[: len(row)] < 0).all()
    assert (scores[len(row) :] == 0).all()


@pytest.mark.parametrize('settings', [GREEDY, DecodeSettings('beam', beams=2)])
def test_rows_without_a_prompt_stay_empty(settings):
  tokens, lengths, _ = generate([PROMPTS[0], [], PROMPTS[2], []], settings)
  full, _, _ = generate(PROMPTS, settings)
  assert lengths.tolist() == [NEW, 0, NEW, 0]
  np.testing.assert_array_equal(tokens[[0, 2]], full[[0, 2]])
  assert (tokens[[1, 3]] == NO_STOP[0]).all()


@pytest.mark.parametrize('settings', [GREEDY, DecodeSettings('beam', beams=2)])
def test_the_loop_ends_with_the_last_row(settings, monkeypatch):
  steps = []
  original = decoding.decode_step

  def counted(*arguments):
    jax.debug.callback(lambda: steps.append(1))
    return original(*arguments)

  monkeypatch.setattr(decoding, 'decode_step', counted)
  starts = (([n], naive([n], 2, NO_STOP)) for n in range(64))
  prompt, second = next((p, new[1]) for p, new in starts if new[0] != new[1])
  bias = np.zeros(64, np.float32)
  # Nothing else can then win, for beams too.
  bias[second] = 1e4 if settings.method == 'beam' else 0
  run = jax.jit(
    partial(
      generation.generate, CONFIG, keys_B=None, settings=settings,
      max_new_tokens=NEW, stop_ids=(second,),
    )
  )
  found = run(PARAMS, *left_padded([prompt] * 2), bias_V=bias)
  jax.effects_barrier()
  expected = 1 if settings.method == 'beam' else 2
  assert found.lengths_B.tolist() == [expected] * 2
  # The prompt gives the first token.
  assert len(steps) == expected - 1


def test_bias_is_added_before_the_choice():
  """Post-hoc logit adjustment: at every step, and to nothing else."""
  bias = np.zeros(CONFIG.vocab_size, np.float32)
  bias[7] = 1e4
  tokens, _, _ = generate(PROMPTS, bias_V=bias)
  assert (tokens == 7).all()
  none, _, scores = generate(PROMPTS, bias_V=np.zeros_like(bias))
  plain, _, log_probs = generate(PROMPTS)
  np.testing.assert_array_equal(none, plain)
  np.testing.assert_array_equal(scores, log_probs)


def ngrams(row, size):
  return [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]


@pytest.mark.parametrize(
  ('size', 'method'),
  [
    (2, {'method': 'greedy'}),
    (2, {'method': 'beam', 'beams': 3}),
    (1, {'method': 'sample', 'temperature': 0.2}),
  ],
  ids=lambda x: x['method'] if isinstance(x, dict) else None,
)
def test_no_ngram_comes_twice(size, method):
  bias = np.full(64, -1e3, np.float32)
  bias[:30] = np.linspace(0, 1, 30)  # Few tokens: much would repeat.
  run = partial(
    generate, PROMPTS, new=24, bias_V=bias, model=ONE, params=ONE_PARAMS
  )
  free, _, _ = run(DecodeSettings(**method))
  rows, _, _ = run(DecodeSettings(**method, no_repeat_ngram=size))
  for row in rows.tolist():
    assert len(set(ngrams(row, size))) == len(ngrams(row, size))
  assert any(
    len(set(ngrams(row, size))) < len(ngrams(row, size))
    for row in free.tolist()
  )


def test_bans_of_ngrams_are_the_definition():
  random = np.random.default_rng(0)
  for size in (1, 2, 3, 4):
    for index in (0, 1, 2, 5, 9):
      tokens = random.integers(0, 3, (5, 9)).astype(np.int32)
      found = generation.repeated(tokens, index, size, 4)
      for row, mask in zip(tokens[:, :index].tolist(), found, strict=True):
        again = [
          len(row) >= size - 1
          and (*row[len(row) - size + 1 :], v) in ngrams(row, size)
          for v in range(4)
        ]
        assert np.asarray(mask).tolist() == again


def test_the_prompt_may_be_repeated():
  bias = np.zeros(64, np.float32)
  bias[PROMPTS[0]] = 1e3
  settings = DecodeSettings(no_repeat_ngram=1)
  different = set(PROMPTS[0])
  tokens, _, _ = generate(
    PROMPTS[:1], settings, new=len(different), bias_V=bias, model=ONE,
    params=ONE_PARAMS,
  )  # fmt: skip
  assert set(tokens[0].tolist()) == different


@pytest.mark.parametrize(
  ('method', 'least'), [('greedy', 4), ('sample', 1), ('beam', NEW)]
)
def test_no_row_ends_before_its_least_length(method, least):
  bias, stop = np.zeros(64, np.float32), (5, 9)
  bias[list(stop)] = 1e3
  tokens, lengths, _ = generate(
    PROMPTS, DecodeSettings(method, min_new_tokens=least), stop=stop,
    bias_V=bias, model=ONE, params=ONE_PARAMS,
  )  # fmt: skip
  # The first token at which it may end, it does.
  assert (lengths == min(least + 1, NEW)).all()
  assert not np.isin(tokens[:, :least], stop).any()
  assert np.isin(tokens[:, least:], stop).all()


@pytest.mark.parametrize(
  ('settings', 'new', 'message'),
  [
    ({'method': 'sample'}, 2, 'decode.method sample needs keys_B'),
    ({'no_repeat_ngram': 1}, 65, 'decode.no_repeat_ngram 1 .* all 64 tokens'),
  ],
)
def test_what_cannot_work_is_refused(settings, new, message):
  with pytest.raises(ConfigError, match=message):
    jax.eval_shape(
      partial(
        generation.generate, CONFIG, PARAMS, *left_padded(PROMPTS), None,
        settings=DecodeSettings(**settings), max_new_tokens=new, stop_ids=(),
      )
    )


@pytest.mark.usefixtures('full_compile')
@pytest.mark.parametrize('settings', [GREEDY, DecodeSettings('beam', beams=2)])
def test_no_step_copies_the_cache(settings):
  """In the loop, nothing of a layer's cache but what is written anew."""
  layers, batch = CONFIG.layers, 4
  run = jax.jit(
    partial(
      generation.extend, CONFIG, settings=settings, max_new_tokens=NEW,
      stop_ids=(),
    )
  )  # fmt: skip
  start = partial(decoding.prefill, CONFIG, size=WIDTH + NEW)
  state = jax.eval_shape(start, PARAMS, *left_padded(PROMPTS))
  program = run.lower(PARAMS, *state, None).compile().as_text()
  rows = batch * (settings.beams if settings.method == 'beam' else 1)
  shapes = (f'f32[{rows},2,8,{WIDTH + NEW}]', f'f32[{rows},2,{WIDTH + NEW},8]')
  copied = [
    line
    for line in program.splitlines()
    if re.search(r'= \S+ copy\(', line)
    and any(f'= {shape}' in line for shape in shapes)
  ]
  # Those that bring the prompts' cache to the loop.
  assert len(copied) <= 2 * layers
