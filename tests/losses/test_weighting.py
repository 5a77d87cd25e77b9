import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from pdl_jax import losses, power_law_weights
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.losses import frequency
from pdl_jax.losses.frequency import FrequencyTable
from pdl_jax.losses.settings import LossSettings
from pdl_jax.run import loss_tables
from pdl_jax.run.loss_tables import Frequencies

CONFIG = {**json.loads(base.get_config().loss.to_json()), 'alpha': 0.5}
SETTINGS = LossSettings.from_config(CONFIG)
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
  frequencies = Frequencies(table, table)
  tables = loss_tables.make_tables(loss, frequencies, NEUTRAL)
  return np.asarray(tables.weights_V)


def test_settings_reach_the_formula(table):
  counts = table.counts_V
  options = {'alpha': 0.5, 'epsilon': 1.0, 'special_ids': NEUTRAL}
  np.testing.assert_array_equal(
    make(table), power_law_weights(counts, unseen='min_count', **options)
  )
  plain = make(table, normalize='none', unseen='formula')
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
    make(table, epsilon=0.0, unseen='formula')


@pytest.mark.parametrize('normalize', ['corpus_mean', 'none'])
def test_description_has_the_numbers(table, tokenizer, normalize):
  weights_V = make(table, normalize=normalize)
  text = loss_tables.describe(weights_V, table, tokenizer)
  seen = weights_V[table.counts_V > 0]
  mean = np.average(weights_V, weights=table.counts_V)
  assert f'weights of {len(seen)} counted types' in text
  assert f'min {seen.min():.4g}' in text
  assert f'max {seen.max():.4g}; mean per token occurrence {mean:.4g}\n' in text
  assert (f'{mean:.4g}' == '1') == (normalize == 'corpus_mean')
  heaviest, lightest = text.splitlines()[2:]
  assert f' {seen.max():.3g}' in heaviest.split('  ')[0]
  assert f' {seen.min():.3g}' in lightest.split('  ')[0]


def test_a_loss_with_an_infinite_weight_is_refused(table, monkeypatch):
  def inverse(frequency_V, *, special_ids):
    with np.errstate(divide='ignore'):
      return 1 / frequency_V

  monkeypatch.setitem(losses.LOSSES, 'dft', losses.LossSpec(weights=inverse))
  with pytest.raises(ConfigError, match='dft gives .* not finite'):
    make(table, name='dft')


def changed(**changes):
  return dataclasses.replace(SETTINGS, **changes)


def test_every_loss_has_its_keys_in_the_config():
  for name, spec in losses.LOSSES.items():
    assert not set(spec.read) - set(CONFIG), name
    part = spec.on_logits or spec.terms or spec.bias or spec.weights
    own = CONFIG.get(name, {})
    if name in ('power_law', 'cross_entropy'):
      assert not own
    else:
      options = [
        option.name
        for option in inspect.signature(part).parameters.values()
        if option.kind is option.KEYWORD_ONLY and option.name != 'special_ids'
      ]
      defaults = {k: inspect.signature(part).parameters[k].default
                  for k in options}  # fmt: skip
      assert own == defaults, name


@pytest.mark.parametrize(
  ('name', 'own', 'message'),
  [
    ('focal', {'gamma': -1.0}, 'loss.focal: gamma must be'),
    ('scale_grad', {'gamma': 0.0}, 'loss.scale_grad: gamma must be'),
    (
      'class_balanced', {'beta': 1.0, 'normalize': 'published'},
      'loss.class_balanced: beta must be',
    ),
  ],
)
def test_settings_of_a_rival_are_checked(name, own, message, table):
  """Before anything is counted, and when tables are made."""
  settings = changed(name=name, rivals={name: own})
  with pytest.raises(ConfigError, match=message):
    loss_tables.make_loss(settings)
  if name == 'class_balanced':
    with pytest.raises(ConfigError, match=message):
      make(table, name=name, rivals={name: own})


def test_logit_adjustment_is_a_bias(table):
  loss = changed(name='logit_adjustment')
  tables = loss_tables.make_tables(loss, Frequencies(table, table), NEUTRAL)
  assert (np.asarray(tables.weights_V) == 1).all()
  prior = np.maximum(table.counts_V, 1) / np.maximum(table.counts_V, 1).sum()
  np.testing.assert_allclose(tables.bias_V, np.log(prior), rtol=1e-6)


def test_a_mix_and_words_keep_the_mean_of_a_running_token(table):
  general = dataclasses.replace(
    table, counts_V=np.roll(table.counts_V, 3), data='e' * 64
  )
  mixed = frequency.mix(table, general, 0.5)
  words_V = np.linspace(1, 50, table.counts_V.size)
  for used, found_V in (
    (Frequencies(table, mixed), mixed.counts_V),
    (Frequencies(table, table, words_V), words_V),
  ):
    made = loss_tables.make_tables(SETTINGS, used, NEUTRAL)
    weights = np.asarray(made.weights_V)[3:]
    ratio = weights / (found_V[3:] + 1) ** -0.5
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    mean = np.average(weights, weights=table.counts_V[3:])
    assert mean == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize('name', ['power_law', 'class_balanced'])
def test_a_schedule_follows_the_step_without_recompiling(table, name):
  loss = changed(
    name=name, schedule='warmup', schedule_start=2, schedule_steps=4
  )
  frequencies = Frequencies(table, table)
  whole = loss_tables.make_tables(loss, frequencies, NEUTRAL)
  at, traces = loss_tables.schedule(loss, frequencies, NEUTRAL), []

  @jax.jit
  def weights(step):
    traces.append(1)
    return at(whole, step).weights_V

  assert loss_tables.schedule(SETTINGS, frequencies, NEUTRAL) is None
  found = [np.asarray(weights(jnp.asarray(step))) for step in range(8)]
  assert len(traces) == 1
  assert (found[0] == 1).all() and (found[2] == 1).all()
  np.testing.assert_allclose(found[6], whole.weights_V, rtol=1e-5)
  if name == 'power_law':
    half = make(table, alpha=0.25)
  else:
    half = np.sqrt(whole.weights_V)
  np.testing.assert_allclose(found[4], half, rtol=1e-5)


def test_a_schedule_needs_weights():
  with pytest.raises(ConfigError, match='focal has none'):
    changed(name='focal', schedule='cross_entropy_first')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'level': 'word', 'unit': 'probability'}, 'loss.unit must be count'),
    (
      {'background_weight': 1.5},
      r'background_weight must be in \[0, 1\], got 1.5',
    ),
    ({'background_weight': 0.5}, 'needs a loss.background_table'),
    ({'label_smoothing': 1.0}, r'label_smoothing must be in \[0, 1\)'),
    ({'z_loss': -1.0}, 'z_loss'),
    ({'schedule': 'ramp'}, "'ramp' is not one of constant"),
    ({'schedule': 'warmup'}, 'loss.schedule .* warmup needs steps of at least'),
    ({'epsilon_policy': 'mean'}, "'mean' is not one of absolute"),
    ({'level': 'sentence'}, "'sentence' is not one of token"),
    ({'level': 'word', 'background_table': 'x.npz'},
    'leave out loss.background'),
    ({'clip': float('inf')}, 'loss.clip must be 0 .* got inf'),
  ],
)
def test_settings_out_of_range_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    changed(**changes)


def test_tilt_is_the_log_prior_but_for_a_constant(table):
  bias = np.asarray(loss_tables.tilt_bias(table.counts_V, 0.5, NEUTRAL))
  seen = np.flatnonzero(table.counts_V[3:]) + 3
  shifted = bias[seen] + 0.5 * np.log(table.counts_V[seen])
  np.testing.assert_allclose(shifted, shifted[0], rtol=1e-5)
  assert np.average(bias[seen], weights=table.counts_V[seen]) == pytest.approx(
    0, abs=1e-6
  )
  assert (bias[list(NEUTRAL)] == 0).all()
  assert bias[table.counts_V == 0].max() == pytest.approx(
    (bias[seen] + 0.5 * np.log(table.counts_V[seen])).max(), rel=1e-5
  )
  np.testing.assert_allclose(
    loss_tables.tilt_bias(table.counts_V, -0.5, NEUTRAL), -bias
  )
  assert not np.asarray(loss_tables.tilt_bias(table.counts_V, 0, NEUTRAL)).any()
