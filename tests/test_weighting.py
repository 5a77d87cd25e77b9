import dataclasses

import numpy as np
import pytest

from pdl_jax import losses, power_law_weights, weighting
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.frequency import FrequencyTable
from pdl_jax.settings import LossSettings

SETTINGS = LossSettings(
  name='power_law', alpha=0.5, epsilon=1.0, unit='count', clip=0.0,
  normalize='corpus_mean', unseen='as_once', reduction='weighted_mean',
  frequency_table='',
)
NEUTRAL = (0, 1, 2)


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.train(['a small text to learn from'], 270, 'small')


@pytest.fixture(scope='module')
def table(tokenizer):
  counts_V = np.arange(tokenizer.vocab_size) % 7 * 3
  counts_V[2] = 500
  return FrequencyTable(
    counts_V, tokenizer.fingerprint, tokenizer.name, 'd' * 64, 'data', 'train'
  )


def make(table, **changes):
  loss = dataclasses.replace(SETTINGS, **changes)
  return np.asarray(weighting.make_weights(loss, table, NEUTRAL))


def test_settings_reach_the_formula(table):
  counts = table.counts_V
  options = {'alpha': 0.5, 'epsilon': 1.0, 'neutral_ids': NEUTRAL}
  np.testing.assert_array_equal(
    make(table), power_law_weights(counts, unseen='as_once', **options)
  )
  plain = make(table, normalize='none', unseen='paper')
  np.testing.assert_allclose(plain[3:], (counts[3:] + 1) ** -0.5, rtol=1e-5)
  assert (plain[:3] == 1).all()
  clipped = make(table, alpha=1.5, clip=1.5)
  assert clipped.max() == 1.5 < make(table, alpha=1.5).max()


def test_unit_of_epsilon(table):
  found = make(table, unit='probability', epsilon=1 / table.total)
  np.testing.assert_allclose(found, make(table, epsilon=1.0), rtol=1e-5)
  assert not np.allclose(found, make(table, unit='probability'), rtol=0.01)


def test_cross_entropy_reads_no_other_setting(table):
  found = make(table, name='cross_entropy', alpha=1.5, clip=2.0)
  assert found.shape == table.counts_V.shape
  assert (found == 1).all()


def test_an_infinite_weight_is_refused(table):
  with pytest.raises(ConfigError, match='epsilon 0 gives'):
    make(table, epsilon=0.0, unseen='paper')


@pytest.mark.parametrize('normalize', ['corpus_mean', 'none'])
def test_description_has_the_numbers(table, tokenizer, normalize):
  weights_V = make(table, normalize=normalize)
  text = weighting.describe(weights_V, table, tokenizer)
  seen = weights_V[table.counts_V > 0]
  mean = np.average(weights_V, weights=table.counts_V)
  assert f'weights of {len(seen)} counted types' in text
  assert f'min {seen.min():.4g}' in text
  assert f'max {seen.max():.4g}; mean of a running token {mean:.4g}\n' in text
  assert (f'{mean:.4g}' == '1') == (normalize == 'corpus_mean')
  heaviest, lightest = text.splitlines()[2:]
  assert f' {seen.max():.3g}' in heaviest.split('  ')[0]
  assert f' {seen.min():.3g}' in lightest.split('  ')[0]


def test_self_check_of_alpha_zero(table, monkeypatch):
  labels = np.array([5, 2, 9])
  found = weighting.check_alpha_zero(table, labels)
  assert 'bit for bit on 3 target tokens' in found
  wrong_V = np.linspace(1, 2, table.counts_V.size)
  monkeypatch.setattr(weighting, 'power_law_weights', lambda *_, **__: wrong_V)
  with pytest.raises(AssertionError, match='alpha 0 gives'):
    weighting.check_alpha_zero(table, labels)


def test_a_loss_with_an_infinite_weight_is_refused(table, monkeypatch):
  def inverse(frequency_V, *, neutral_ids):
    with np.errstate(divide='ignore'):
      return 1 / frequency_V

  spec = losses.LossSpec(inverse, ())
  monkeypatch.setitem(losses.LOSSES, 'power_law', spec)
  with pytest.raises(ConfigError, match='power_law gives .* not finite'):
    make(table)
