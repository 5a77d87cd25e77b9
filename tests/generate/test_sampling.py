"""Sampling: the right distribution, and nothing but its key decides."""

import jax
import numpy as np
import pytest
from scipy import stats

from pdl_jax.generate import DecodeSettings, hash_ids, row_keys
from pdl_jax.generate.sampling import draw, first_argmax
from pdl_jax.generate.truncation import truncate
from tests.generate.decoding import (
  FOUR,
  FOUR_PARAMS,
  ONE,
  ONE_PARAMS,
  PROMPTS,
  WIDTH,
  compiled,
  generate,
)

pytestmark = pytest.mark.usefixtures('quick_compile')
SAMPLE = DecodeSettings('sample', temperature=1.5, top_p=0.95)
IDS = ['a', 'b', 'c', 'd']


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'temperature': 0.7},
    {'top_k': 5},
    {'top_p': 0.8},
    {'min_p': 0.2},
    {'typical_p': 0.7},
  ],
  ids=str,
)
def test_draws_follow_the_truncated_distribution(changes):
  count, vocab = 20_000, 12
  row = np.random.default_rng(3).normal(size=vocab).astype(np.float32)
  settings = DecodeSettings('sample', **changes)
  kept = np.asarray(truncate(row[None], settings))[0]
  hashes = hash_ids(['x'] * count)
  keys = row_keys(0, hashes, np.arange(count, dtype=np.uint32))
  logits = np.repeat(kept[None], count, axis=0)
  tokens = np.asarray(jax.jit(draw)(logits, keys, 3))
  seen = np.bincount(tokens, minlength=vocab)
  p = np.exp(kept.astype(np.float64) - kept.max())
  expected = count * p / p.sum()
  assert (seen[expected == 0] == 0).all()
  assert (expected > 0).sum() == vocab or changes
  some = expected > 0
  assert stats.chisquare(seen[some], expected[some]).pvalue > 1e-3


def test_whole_texts_follow_the_model():
  """Both tokens of a text, against the product of the model's own."""
  count, stop = 4096, (4,)
  prompts, ids = [[1, 2]] * count, ['x'] * count
  settings = DecodeSettings('sample', seed=5)
  tokens, _, log_probs = generate(
    prompts, settings, new=2, stop=stop, width=2, ids=ids,
    samples=range(count), model=FOUR, params=FOUR_PARAMS,
  )  # fmt: skip
  texts, first, seen = np.unique(
    tokens, axis=0, return_index=True, return_counts=True
  )
  assert len(texts) == 16
  p = np.exp(log_probs[first].astype(np.float64).sum(axis=1))
  assert p.sum() == pytest.approx(1, abs=1e-5)
  assert stats.chisquare(seen, count * p / p.sum()).pvalue > 1e-3


def sample(prompts, ids, **changes):
  found = generate(
    prompts, SAMPLE, ids=ids, model=ONE, params=ONE_PARAMS, **changes
  )
  return found[0]


def test_a_sample_is_that_of_its_record_alone():
  """Whatever its mates, its place, its padding or the size of the batch."""
  tokens = sample(PROMPTS, IDS)
  before = compiled._cache_size()
  order = [2, 0, 3, 1]
  found = sample([PROMPTS[i] for i in order], [IDS[i] for i in order])
  np.testing.assert_array_equal(found, tokens[order])
  mates = sample([PROMPTS[0], [], [7], [8, 9]], ['a', '', 'e', 'f'])
  np.testing.assert_array_equal(mates[0], tokens[0])
  assert compiled._cache_size() == before
  # Wider, and twice as many; then alone.
  eight = sample(PROMPTS * 2, IDS * 2, width=WIDTH + 4)
  np.testing.assert_array_equal(eight, np.tile(tokens, (2, 1)))
  one = sample(PROMPTS[1:2], ['b'])
  np.testing.assert_array_equal(one[0], tokens[1])


def test_seed_record_and_sample_each_change_the_text():
  same, ids, samples = [PROMPTS[0]] * 4, ['a', 'a', 'b', 'a'], [0, 1, 0, 0]
  tokens, again = (sample(same, ids, samples=samples) for _ in range(2))
  assert len({tuple(row) for row in tokens}) == 3
  np.testing.assert_array_equal(tokens[0], tokens[3])
  np.testing.assert_array_equal(again, tokens)
  keys = [
    jax.random.key_data(row_keys(seed, hash_ids(ids), [sample]))
    for seed, ids, sample in (
      (0, ['a'], 0), (1, ['a'], 0), (0, ['b'], 0), (0, ['a'], 1),
    )
  ]
  assert len({tuple(np.asarray(key)[0].tolist()) for key in keys}) == 4


def test_the_hash_of_an_id_is_stable():
  """Other numbers here would change every sample of a stored run."""
  assert hash_ids(['a', 'é']).tolist() == [
    [310482890, 3401391050], [2119539018, 1405301568],
  ]


def test_top_k_of_one_is_greedy():
  greedy, _, _ = generate(PROMPTS)
  found, _, _ = generate(PROMPTS, DecodeSettings('sample', top_k=1))
  np.testing.assert_array_equal(found, greedy)


def test_the_first_of_equal_values_is_taken():
  x = np.array([[1, 3, 3, 0], [-np.inf, -2, -5, -2], [0, 0, 0, 0]], np.float32)
  assert first_argmax(x).tolist() == np.argmax(x, axis=1).tolist()
