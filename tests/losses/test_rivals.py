"""Rivals: identities with cross-entropy first, then double-precision truths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pdl_jax import cross_entropy, power_law_weights
from pdl_jax.errors import ConfigError
from pdl_jax.losses import dense_losses, token_losses, type_weights
from pdl_jax.losses.core import TokenStats
from pdl_jax.losses.cross_entropy import token_nll
from pdl_jax.losses.reduce import divide, sums

B, L, V, D, C = 3, 5, 7, 4, 9
START = 2
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(B, L, V)) * 3, jnp.float32)
HEAD = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)
WEIGHT = jnp.asarray(RNG.uniform(0.2, 3.0, (B, L)), jnp.float32)
ROW = jnp.asarray(RNG.integers(0, V, (B, C)))
ROW_WHERE = jnp.asarray(RNG.random((B, C)) < 0.8)
LABELS = ROW[:, START : START + L]
EARLIER = dense_losses.earlier_targets(ROW, ROW_WHERE, START, L)
CONTEXT = dense_losses.Context(ROW, EARLIER, HEAD)
ONES = jnp.ones((B, L), jnp.float32)

COUNTS = np.array([1, 0, 5, 40, 300, 7, 1, 900], float)
NEUTRAL = (7, 1)
TABLES = {
  'itf': type_weights.inverse_frequency_weights,
  'face': type_weights.face_weights,
  'class_balanced': type_weights.class_balanced_weights,
  'exponential': type_weights.adaptive_exponential_weights,
  'chi_square': type_weights.adaptive_chi_square_weights,
}
SCALED = [name for name in TABLES if name != 'itf']
STATS = {
  'cross_entropy': token_losses.cross_entropy_terms,
  'focal': token_losses.focal,
  'mile': token_losses.mile,
  'dft': token_losses.dft,
  'mixce': token_losses.mixce,
  'gem': token_losses.gem,
}
DENSE = {
  'unlikelihood': dense_losses.unlikelihood,
  'scale_grad': dense_losses.scale_grad,
  'emo': dense_losses.emo,
}


def dense_stats(logits, labels, temperature=1.0):
  """TokenStats from whole logits, differentiable as `TokenStats` says."""
  z = logits.astype(jnp.float32)
  chosen = jax.nn.one_hot(labels, z.shape[-1], dtype=bool)
  q = jax.nn.softmax(z / temperature, axis=-1)
  return TokenStats(
    log_z=jax.nn.logsumexp(z / temperature, axis=-1),
    label=jnp.where(chosen, z, 0.0).sum(-1),
    average=z.mean(-1),
    expected=jax.lax.stop_gradient((q * z).sum(-1)),
    argmax=z.argmax(-1).astype(jnp.int32),
  )


def from_logits(name, labels=LABELS, weight=WEIGHT, context=CONTEXT, **options):
  """logits -> LossTerms of the rival of that name."""
  if name in DENSE:
    return lambda z: DENSE[name](z, labels, context, weight, **options)
  temperature = options.get('beta', 0.7) if name == 'gem' else 1.0
  return lambda z: STATS[name](
    dense_stats(z, labels, temperature), weight, **options
  )


def total(name, **arguments):
  terms = from_logits(name, **arguments)
  return lambda z: terms(z).loss_BxL.sum()


def softmax64(z):
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def pick(x, labels=LABELS):
  return np.take_along_axis(x, np.asarray(labels)[..., None], -1)[..., 0]


Z64 = np.asarray(LOGITS, np.float64)
P64 = softmax64(Z64)
P = pick(P64)
NLL = -np.log(P)
W64 = np.asarray(WEIGHT, np.float64)
ONE_HOT = np.eye(V)[np.asarray(LABELS)]


def earlier_types(row, where, position):
  """The distinct targets before a position, in plain Python."""
  return {int(row[c]) for c in range(position) if where[c]}


def known64():
  """True at the types among the earlier targets, [B, L, V]."""
  found = np.zeros((B, L, V), bool)
  for b in range(B):
    for i in range(L):
      types = earlier_types(ROW[b], ROW_WHERE[b], START + i)
      found[b, i, list(types)] = True
  return found


KNOWN = known64()


def close(found, expected, rtol=2e-5, atol=2e-6):
  np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


# -- by type ------------------------------------------------------------------


@pytest.mark.parametrize('exponent', [0.0, 0.4, 1.0])
def test_itf_is_pdl_with_epsilon_zero(exponent):
  found = type_weights.inverse_frequency_weights(
    COUNTS, special_ids=NEUTRAL, exponent=exponent
  )
  expected = power_law_weights(
    COUNTS, alpha=exponent, epsilon=0.0, unseen='min_count', special_ids=NEUTRAL
  )
  assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def test_itf_formula():
  counts = np.array([1, 4, 9, 0.0])
  found = type_weights.inverse_frequency_weights(
    counts, special_ids=(), exponent=0.5
  )
  close(found, 14 / 6 * np.array([1, 1 / 2, 1 / 3, 1]))


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('itf', {'exponent': 0.0}),
    ('class_balanced', {'beta': 0.0}),
    ('exponential', {'max_weight': 1.0}),
    ('chi_square', {'max_weight': 1.0}),
  ],
)
def test_a_setting_at_its_limit_gives_ones(name, options):
  found = TABLES[name](COUNTS, special_ids=NEUTRAL, **options)
  assert found.dtype == jnp.float32
  assert (np.asarray(found) == 1).all()


def test_face_formula():
  found = type_weights.face_weights(np.array([0, 1, 2, 4.0]), special_ids=())
  close(found, np.array([1, 3 / 4, 1 / 2, 0]) * 4 / 2.25)


def test_class_balanced_formula():
  found = type_weights.class_balanced_weights(
    np.array([0, 1, 2, 3.0]), special_ids=(), beta=0.5
  )
  raw = np.array([1, 1, 0.5 / 0.75, 0.5 / 0.875])
  close(found, raw * 4 / raw.sum())


def test_class_balanced_goes_to_inverse_frequency():
  found = type_weights.class_balanced_weights(
    COUNTS[2:7], special_ids=(), beta=1 - 1e-14
  )
  raw = 1 / COUNTS[2:7]
  close(found, raw * 5 / raw.sum())


@pytest.mark.parametrize(
  ('name', 'power'), [('exponential', 0), ('chi_square', 2)]
)
def test_adaptive_formula(name, power):
  # Seen and not neutral: 1, 5, 40, 300, 7, 1; the lower median is 5.
  found = TABLES[name](COUNTS, special_ids=NEUTRAL, decay=0.5)
  others = [0, 2, 3, 4, 5, 6]
  ratio = COUNTS[others] / 5
  u = ratio**power * np.exp(-0.5 * ratio)
  close(found[np.array(others)], 1 + (math.e - 1) * u / u.max())


def test_chi_square_is_heaviest_at_two_over_decay():
  counts = np.array([1, 10, 20, 30, 40.0])
  found = type_weights.adaptive_chi_square_weights(
    counts, special_ids=(), decay=2.0
  )
  assert int(found.argmax()) == 2
  assert float(found[2]) == pytest.approx(math.e)


@pytest.mark.parametrize('name', TABLES)
def test_unseen_types_weigh_what_once_seen_ones_do(name):
  counts = np.array([0, 1, 3, 30, 300.0])
  found = TABLES[name](counts, special_ids=())
  if name == 'face':
    assert found[0] > found[1]  # The formula is finite at 0.
  else:
    assert found[0] == found[1]


@pytest.mark.parametrize('name', TABLES)
def test_rarer_weighs_more(name):
  found = TABLES[name](np.array([2, 4, 8, 16.0]), special_ids=())
  falling = np.diff(np.asarray(found)) < 0
  assert falling.tolist() == (
    [False, True, True] if name == 'chi_square' else [True, True, True]
  )


@pytest.mark.parametrize('name', TABLES)
def test_neutral_types_weigh_one_and_leave_the_others_alone(name):
  found = np.asarray(TABLES[name](COUNTS, special_ids=NEUTRAL))
  assert (found[list(NEUTRAL)] == 1).all()
  others = [i for i in range(8) if i not in NEUTRAL]
  close(found[others], TABLES[name](COUNTS[others], special_ids=()))


@pytest.mark.parametrize('name', ['face', 'class_balanced'])
@pytest.mark.parametrize('neutral', [(), NEUTRAL])
def test_published_scale_is_a_mean_of_one_over_types(name, neutral):
  found = np.asarray(TABLES[name](COUNTS, special_ids=neutral), np.float64)
  assert found.mean() == pytest.approx(1, rel=1e-6)
  running = np.average(found, weights=COUNTS)
  assert running < 0.9  # What the docstrings warn of.


@pytest.mark.parametrize('name', SCALED)
@pytest.mark.parametrize('neutral', [(), NEUTRAL])
def test_running_tokens_weigh_one_on_average(name, neutral):
  options = {'special_ids': neutral, 'normalize': 'corpus_mean'}
  found = np.asarray(TABLES[name](COUNTS, **options), np.float64)
  assert np.average(found, weights=COUNTS) == pytest.approx(1, rel=1e-6)
  published = np.asarray(TABLES[name](COUNTS, special_ids=neutral))
  others = [i for i in range(8) if i not in neutral and published[i] > 0]
  ratio = found[others] / published[others]
  close(ratio, np.full_like(ratio, ratio[0]))


@pytest.mark.parametrize('normalize', ['published', 'corpus_mean'])
@pytest.mark.parametrize(
  'counts',
  [
    np.zeros(4),
    np.array([0, 0, 9, 0.0]),
    np.full(4, 3.0),
    np.array([0, 1, 1e9, 2e12]),
  ],
  ids=['nothing', 'one type', 'all alike', 'wide'],
)
@pytest.mark.parametrize('name', TABLES)
def test_every_weight_is_finite(name, counts, normalize):
  options = {} if name == 'itf' else {'normalize': normalize}
  for neutral in ((), (2,), (0, 1, 2, 3)):
    found = TABLES[name](counts, special_ids=neutral, **options)
    assert np.isfinite(found).all()
    assert (np.asarray(found) >= 0).all()
  assert (np.asarray(found) == 1).all()


@pytest.mark.parametrize('name', ['exponential', 'chi_square'])
def test_a_large_decay_does_not_underflow(name):
  found = TABLES[name](COUNTS, special_ids=NEUTRAL, decay=1e5)
  assert float(found.max()) == pytest.approx(math.e)


def test_a_schedule_of_exponents_may_be_traced():
  weights = lambda x: type_weights.inverse_frequency_weights(
    COUNTS, special_ids=(), exponent=x
  )
  close(jax.jit(weights)(0.3), weights(0.3))


@pytest.mark.parametrize('name', TABLES)
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'frequency_V': np.array([1, -2.0])}, r'shape \(2,\) with 1 negative'),
    ({'frequency_V': np.array([np.nan, np.inf])}, 'with 2 negative or non-fin'),
    ({'frequency_V': np.ones((2, 2))}, r'got shape \(2, 2\)'),
    ({'special_ids': [8]}, 'special_ids has 8, outside the 8 types'),
    ({'special_ids': [-1]}, 'special_ids has -1, outside the 8 types'),
  ],
)
def test_bad_tables_are_refused(name, arguments, message):
  valid = {'frequency_V': COUNTS, 'special_ids': NEUTRAL}
  with pytest.raises(ConfigError, match=message):
    TABLES[name](**{**valid, **arguments})


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('itf', {'exponent': -1.0}, r'exponent must be a finite number >= 0'),
    ('itf', {'exponent': 'big'}, "exponent .* got 'big'"),
    ('class_balanced', {'beta': 1.0}, r'beta must be in \[0, 1\), got 1.0'),
    ('class_balanced', {'beta': -0.1}, 'beta .* got -0.1'),
    ('exponential', {'decay': -1.0}, r'decay .* got -1\.0'),
    ('exponential', {'max_weight': 0.5}, r'max_weight .* \[1, inf\), got 0.5'),
    ('chi_square', {'decay': np.nan}, 'decay .* got nan'),
    ('chi_square', {'max_weight': np.inf}, 'max_weight .* got inf'),
    ('face', {'normalize': 'none'}, "'none' is not one of published, corpus_m"),
    ('class_balanced', {'normalize': 'mean'}, "'mean' is not one of"),
    ('exponential', {'normalize': 'mean'}, "'mean' is not one of"),
  ],
)
def test_bad_settings_of_tables_are_refused(name, options, message):
  with pytest.raises(ConfigError, match=message):
    TABLES[name](COUNTS, special_ids=NEUTRAL, **options)


# -- logit adjustment ---------------------------------------------------------


def test_logit_adjustment_bias_is_the_log_prior():
  found = type_weights.logit_adjustment_bias(np.array([0, 1, 2, 6.0]), tau=0.5)
  assert found.dtype == jnp.float32
  close(found, 0.5 * np.log(np.array([1, 1, 2, 6]) / 10))


def test_logit_adjustment_at_tau_zero_is_cross_entropy():
  bias = type_weights.logit_adjustment_bias(COUNTS[:V], tau=0.0)
  assert (np.asarray(bias) == 0).all()
  assert cross_entropy(LOGITS + bias[None, None], LABELS) == cross_entropy(
    LOGITS, LABELS
  )


def test_training_with_the_prior_is_undone_by_decoding():
  """The best logits for CE on z + bias are those of p without the prior."""
  prior = COUNTS[2:7] / COUNTS[2:7].sum()
  bias = type_weights.logit_adjustment_bias(COUNTS[2:7])
  close(jax.nn.softmax(jnp.zeros(5) + bias), prior)
  close(jax.nn.softmax(jnp.log(prior) - bias), np.full(5, 0.2))


def test_traced_tau():
  bias = lambda tau: type_weights.logit_adjustment_bias(COUNTS, tau=tau)
  close(jax.jit(bias)(0.7), bias(0.7))


@pytest.mark.parametrize(
  ('counts', 'tau', 'message'),
  [
    (np.zeros(3), 1.0, 'none of the 3 token types was counted'),
    (np.array([1, -1.0]), 1.0, '1 negative'),
    (COUNTS, -1.0, r'tau .* got -1\.0'),
  ],
)
def test_bad_priors_are_refused(counts, tau, message):
  with pytest.raises(ConfigError, match=message):
    type_weights.logit_adjustment_bias(counts, tau=tau)


# -- identities with cross-entropy --------------------------------------------


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('cross_entropy', {}),
    ('focal', {'gamma': 0.0}),
    ('mile', {'gamma': 0.0}),
    ('mixce', {'eta': 1.0}),
    ('unlikelihood', {'alpha': 0.0}),
    ('scale_grad', {'gamma': 1.0}),
  ],
)
def test_a_setting_at_its_limit_is_cross_entropy(name, options):
  def plain(logits):
    return (WEIGHT * token_nll(logits, LABELS)).sum()

  terms = from_logits(name, **options)(LOGITS)
  assert (terms.weight_BxL == WEIGHT).all()
  close(terms.loss_BxL, WEIGHT * token_nll(LOGITS, LABELS), rtol=1e-6)
  found = jax.grad(total(name, **options))(LOGITS)
  close(found, jax.grad(plain)(LOGITS), rtol=1e-5, atol=1e-6)


def test_nothing_before_the_first_target_is_cross_entropy():
  nothing = CONTEXT._replace(earlier_BxLxC=jnp.zeros_like(EARLIER))
  expected = WEIGHT * token_nll(LOGITS, LABELS)
  for name in ('unlikelihood', 'scale_grad'):
    found = from_logits(name, context=nothing)(LOGITS)
    close(found.loss_BxL, expected)


def test_emo_has_the_value_of_cross_entropy():
  found = from_logits('emo')(LOGITS)
  close(found.loss_BxL, WEIGHT * token_nll(LOGITS, LABELS))


def test_emo_of_orthogonal_types_measures_one_minus_p():
  """With E_v orthonormal D is 1 - p."""
  context = CONTEXT._replace(head_DxV=3 * jnp.eye(V))
  found = jax.grad(total('emo', context=context))(LOGITS)
  slope = 0.5 + 0.5 * NLL * P / (1 - P)
  close(found, (W64 * slope)[..., None] * (P64 - ONE_HOT))


@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0])
def test_mixce_lies_between_dft_and_cross_entropy(eta):
  found = from_logits('mixce', eta=eta)(LOGITS).loss_BxL
  ce = from_logits('cross_entropy')(LOGITS).loss_BxL
  dft = from_logits('dft')(LOGITS).loss_BxL
  close(found, eta * ce + (1 - eta) * dft, rtol=1e-6)


def test_gem_at_beta_one_is_cross_entropy_less_entropy():
  found = from_logits('gem', beta=1.0)(LOGITS).loss_BxL
  entropy = -(P64 * np.log(P64)).sum(-1)
  close(found, W64 * (NLL - entropy))
  gradient = jax.grad(total('gem', beta=1.0))(LOGITS)
  close(gradient, W64[..., None] * (P64 - ONE_HOT))


@pytest.mark.parametrize('beta', [0.4, 0.7, 1.0, 2.0])
def test_gem_is_its_dense_form(beta):
  def dense(logits):
    q = jax.lax.stop_gradient(jax.nn.softmax(logits / beta, axis=-1))
    log_p = jax.nn.log_softmax(logits, axis=-1)
    label = jnp.take_along_axis(log_p, LABELS[..., None], axis=-1)
    return WEIGHT * (q * (log_p - label)).sum(-1)

  close(from_logits('gem', beta=beta)(LOGITS).loss_BxL, dense(LOGITS))
  found = jax.grad(total('gem', beta=beta))(LOGITS)
  close(found, jax.grad(lambda z: dense(z).sum())(LOGITS))
  q = softmax64(Z64 / beta)
  close(found, W64[..., None] * (q - ONE_HOT))


@pytest.mark.parametrize('gamma', [0.05, 0.5, 1.0])
def test_scale_grad_is_cross_entropy_on_shifted_logits(gamma):
  def shifted(logits):
    z = logits + jnp.where(KNOWN, 0.0, math.log(gamma))
    return WEIGHT * token_nll(z, LABELS)

  found = from_logits('scale_grad', gamma=gamma)(LOGITS).loss_BxL
  close(found, shifted(LOGITS))
  gradient = jax.grad(total('scale_grad', gamma=gamma))(LOGITS)
  close(gradient, jax.grad(lambda z: shifted(z).sum())(LOGITS))


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('z_loss', [0.0, 1e-2])
def test_cross_entropy_terms_are_token_nll(smoothing, z_loss):
  options = {'label_smoothing': smoothing, 'z_loss': z_loss}
  expected = WEIGHT * token_nll(LOGITS, LABELS, **options)
  close(from_logits('cross_entropy', **options)(LOGITS).loss_BxL, expected)
  found = jax.grad(total('cross_entropy', **options))(LOGITS)
  plain = lambda z: (WEIGHT * token_nll(z, LABELS, **options)).sum()
  close(found, jax.grad(plain)(LOGITS))


def test_options_at_zero_leave_no_trace():
  stats = dense_stats(LOGITS, LABELS)

  def program(**options):
    terms = token_losses.cross_entropy_terms
    loss = lambda stats: terms(stats, WEIGHT, **options)
    return str(jax.make_jaxpr(loss)(stats))

  plain = program()
  assert plain == program(label_smoothing=0, z_loss=0.0)
  assert plain.count('sub') == 1
  assert 'square' not in plain and 'integer_pow' not in plain
  traced = lambda e, c: token_losses.cross_entropy_terms(
    stats, WEIGHT, label_smoothing=e, z_loss=c
  )
  found = jax.jit(traced)(0.2, 0.01).loss_BxL
  close(found, traced(0.2, 0.01).loss_BxL)


# -- double-precision truths --------------------------------------------------


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0, 3.5])
def test_focal_formula(gamma):
  found = from_logits('focal', gamma=gamma)
  close(found(LOGITS).loss_BxL, W64 * (1 - P) ** gamma * NLL)
  slope = (1 - P) ** gamma + gamma * (1 - P) ** (gamma - 1) * P * NLL
  gradient = jax.grad(total('focal', gamma=gamma))(LOGITS)
  close(gradient, (W64 * slope)[..., None] * (P64 - ONE_HOT))


@pytest.mark.parametrize('gamma', [0.5, 1.0, 2.0])
def test_mile_formula(gamma):
  factor = (1 - (P64 * np.log(P64)).sum(-1)) ** gamma
  found = from_logits('mile', gamma=gamma)(LOGITS)
  close(found.loss_BxL, W64 * factor * NLL)
  close(found.weight_BxL, W64 * factor)
  gradient = jax.grad(total('mile', gamma=gamma))(LOGITS)
  close(gradient, (W64 * factor)[..., None] * (P64 - ONE_HOT))


def test_mile_factors_have_a_global_mean_of_one():
  """The published form: factors over their mean, averaged over tokens."""
  factor = 1 - (P64 * np.log(P64)).sum(-1)
  expected = (factor / factor.mean() * NLL).mean()
  found = divide(sums(from_logits('mile', weight=ONES)(LOGITS)))
  assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('name', ['dft', 'mixce'])
def test_detached_factors(name):
  factor = P if name == 'dft' else 0.5 + 0.5 * P
  found = from_logits(name)(LOGITS)
  close(found.loss_BxL, W64 * factor * NLL)
  close(found.weight_BxL, W64)
  gradient = jax.grad(total(name))(LOGITS)
  close(gradient, (W64 * factor)[..., None] * (P64 - ONE_HOT))


def unlikelihood64(z, alpha=1.0):
  p = softmax64(z)
  penalty = -np.log(np.maximum(1 - p, 1e-5)) * (KNOWN & (ONE_HOT == 0))
  return W64 * (-np.log(pick(p)) + alpha * penalty.sum(-1))


def scale_grad64(z, gamma=0.5):
  scaled = softmax64(z) * np.where(KNOWN, 1.0, gamma)
  return -W64 * np.log(pick(scaled) / scaled.sum(-1))


def difference(truth, z, step=1e-5):
  """Central differences of the sum, in double precision."""
  gradient = np.zeros_like(z)
  for at in np.ndindex(z.shape):
    up, down = z.copy(), z.copy()
    up[at] += step
    down[at] -= step
    gradient[at] = (truth(up).sum() - truth(down).sum()) / (2 * step)
  return gradient


@pytest.mark.parametrize(
  ('name', 'truth', 'options'),
  [
    ('unlikelihood', unlikelihood64, {}),
    ('unlikelihood', unlikelihood64, {'alpha': 0.3}),
    ('scale_grad', scale_grad64, {}),
    ('scale_grad', scale_grad64, {'gamma': 0.2}),
  ],
)
def test_losses_on_logits(name, truth, options):
  found = from_logits(name, **options)(LOGITS)
  close(found.loss_BxL, truth(Z64, **options))
  assert (found.weight_BxL == WEIGHT).all()
  gradient = jax.grad(total(name, **options))(LOGITS)
  expected = difference(lambda z: truth(z, **options), Z64)
  close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_emo_formula():
  head = np.asarray(HEAD, np.float64)
  unit = head / np.linalg.norm(head, axis=0)
  label = unit[:, np.asarray(LABELS)]  # [D, B, L]

  def distance(z):
    mean = np.einsum('blv,dv->bld', softmax64(z), unit)
    return 1 - np.einsum('dbl,bld->bl', label, mean)

  ratio = NLL / distance(Z64)

  def detached(z):
    return 0.5 * W64 * (ratio * distance(z) - np.log(pick(softmax64(z))))

  close(from_logits('emo')(LOGITS).loss_BxL, detached(Z64))
  gradient = jax.grad(total('emo'))(LOGITS)
  close(gradient, difference(detached, Z64), rtol=1e-4, atol=1e-5)


def test_emo_gives_the_head_no_gradient():
  def loss(head):
    context = CONTEXT._replace(head_DxV=head)
    return total('emo', context=context)(LOGITS)

  assert (jax.grad(loss)(HEAD) == 0).all()


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('cross_entropy', {'label_smoothing': 0.1, 'z_loss': 0.01}),
    ('focal', {}),
    ('focal', {'gamma': 0.5}),
    ('unlikelihood', {}),
    ('scale_grad', {}),
  ],
)
def test_numerical_gradients(name, options):
  loss = total(name, **options)
  check_grads(loss, (LOGITS,), order=1, eps=1e-2, rtol=1e-2, atol=1e-2)


# -- earlier targets ----------------------------------------------------------


@pytest.mark.parametrize('start', [0, START, 6])
def test_earlier_targets_are_the_distinct_ones_before(start):
  traced = jax.jit(dense_losses.earlier_targets, static_argnums=3)
  for earlier_targets in (dense_losses.earlier_targets, traced):
    earlier = earlier_targets(ROW, ROW_WHERE, start, 3)
    assert earlier.shape == (B, 3, C)
    for b in range(B):
      for i in range(3):
        found = np.asarray(ROW[b])[np.asarray(earlier[b, i])]
        assert len(set(found)) == len(found)
        assert set(found) == earlier_types(ROW[b], ROW_WHERE[b], start + i)


def test_earlier_targets_mark_first_occurrences():
  labels = jnp.array([[5, 2, 5, 2, 9]])
  where = jnp.array([[0, 1, 1, 1, 1]])
  found = dense_losses.earlier_targets(labels, where, 0, 5)[0]
  expected = np.zeros((5, 5), bool)
  expected[2:, 1] = True  # 2, from the position after it
  expected[3:, 2] = True  # 5: the first one is no target
  np.testing.assert_array_equal(found, expected)


def test_what_masked_labels_hold_does_not_matter():
  dirty = jnp.where(ROW_WHERE, ROW, -100)
  earlier = dense_losses.earlier_targets(dirty, ROW_WHERE, START, L)
  np.testing.assert_array_equal(earlier, EARLIER)
  context = dense_losses.Context(dirty, earlier, HEAD)
  for name in DENSE:
    clean = jax.value_and_grad(total(name))(LOGITS)
    found = jax.value_and_grad(total(name, context=context))(LOGITS)
    for a, b in zip(clean, found, strict=True):
      np.testing.assert_array_equal(a, b)


def test_chunks_of_a_row_give_what_the_whole_row_gives():
  logits = jnp.asarray(RNG.normal(size=(B, C, V)), jnp.float32)
  weight = jnp.ones((B, C))
  for loss in DENSE.values():
    parts = [
      loss(
        logits[:, at : at + 3], ROW[:, at : at + 3],
        dense_losses.Context(
          ROW, dense_losses.earlier_targets(ROW, ROW_WHERE, at, 3), HEAD
        ),
        weight[:, at : at + 3],
      ).loss_BxL
      for at in range(0, C, 3)
    ]
    earlier = dense_losses.earlier_targets(ROW, ROW_WHERE, 0, C)
    whole = loss(logits, ROW, dense_losses.Context(ROW, earlier, HEAD), weight)
    close(jnp.concatenate(parts, axis=1), whole.loss_BxL, rtol=1e-6)


# -- extremes -----------------------------------------------------------------

SETTINGS = [
  *((name, {}) for name in (*STATS, *DENSE)),
  ('focal', {'gamma': 0.5}),
  ('focal', {'gamma': 0.01}),
  ('mile', {'gamma': 0.5}),
  ('scale_grad', {'gamma': 1e-3}),
]


@pytest.mark.parametrize(('name', 'options'), SETTINGS)
@pytest.mark.parametrize('scale', [100.0, 1e4])
def test_finite_at_extreme_logits(name, options, scale):
  certain = jnp.asarray(ONE_HOT, jnp.float32)
  for pattern in (certain, -certain, jnp.sign(LOGITS)):
    terms = from_logits(name, **options)
    found = terms(scale * pattern)
    gradient = jax.grad(total(name, **options))(scale * pattern)
    for x in (*found, gradient):
      assert np.isfinite(x).all()


@pytest.mark.parametrize(('name', 'options'), SETTINGS)
def test_a_certain_and_right_prediction_has_no_gradient(name, options):
  """As p -> 1 through every size of 1 - p that fp32 can hold."""
  for scale in (5.0, 10.0, 16.0, 17.0, 20.0, 40.0, 80.0):
    logits = scale * jnp.asarray(ONE_HOT, jnp.float32)
    loss = total(name, weight=ONES, **options)
    gradient = np.asarray(jax.grad(loss)(logits))
    assert np.isfinite(gradient).all()
    if scale >= 20:
      assert np.abs(gradient).max() < 2e-3


@pytest.mark.parametrize('name', DENSE)
def test_finite_where_all_logits_are_zero(name):
  zero = jnp.zeros((B, L, V))
  labels = jnp.zeros((B, L), int)
  for earlier in (jnp.zeros_like(EARLIER), jnp.ones_like(EARLIER)):
    context = CONTEXT._replace(earlier_BxLxC=earlier)
    loss = total(name, labels=labels, context=context)
    value, gradient = jax.value_and_grad(loss)(zero)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_unlikelihood_stops_at_the_clamp():
  logits = jnp.zeros((1, 1, 3)).at[0, 0, 1].set(50.0)
  context = dense_losses.Context(
    jnp.array([[1, 2]]), jnp.array([[[True, False]]]), HEAD
  )
  loss = lambda z: dense_losses.unlikelihood(
    z, jnp.array([[2]]), context, jnp.ones((1, 1))
  ).loss_BxL.sum()
  assert float(loss(logits)) == pytest.approx(50 - math.log(1e-5))
  close(jax.grad(loss)(logits)[0, 0], [0, 1, -1])


@pytest.mark.parametrize('head', [jnp.zeros((D, V)), jnp.ones((D, V))])
def test_emo_of_a_head_without_distances(head):
  """All columns zero (every cosine 0), or all alike (D is 0)."""
  context = CONTEXT._replace(head_DxV=head)
  value, gradient = jax.value_and_grad(total('emo', context=context))(LOGITS)
  plain = (W64 * NLL).sum()
  if head.any():
    assert float(value) == pytest.approx(plain / 2, rel=1e-5)
    close(gradient, 0.5 * W64[..., None] * (P64 - ONE_HOT))
  else:
    assert float(value) == pytest.approx(plain, rel=1e-5)
    assert np.isfinite(gradient).all()


def test_emo_costs_nothing_at_the_label_and_never_less():
  # Columns of one direction have a cosine of 1, give or take rounding.
  alike = [HEAD[:, v : v + 1] * jnp.linspace(0.3, 5, V)[None] for v in range(V)]
  for head in (HEAD, *alike):
    cost = np.asarray(dense_losses._costs(head, LABELS))
    assert (pick(cost) == 0).all()
    assert (cost >= 0).all()


@pytest.mark.parametrize('name', DENSE)
def test_bfloat16_logits_are_computed_in_float32(name):
  logits = LOGITS.astype(jnp.bfloat16)
  found = from_logits(name)(logits)
  assert found.loss_BxL.dtype == jnp.float32
  expected = from_logits(name)(logits.astype(jnp.float32))
  np.testing.assert_array_equal(found.loss_BxL, expected.loss_BxL)


@pytest.mark.parametrize('name', [*STATS, *DENSE])
def test_the_weight_of_the_type_multiplies_every_loss(name):
  plain = from_logits(name, weight=ONES)(LOGITS)
  found = from_logits(name)(LOGITS)
  close(found.loss_BxL, WEIGHT * plain.loss_BxL, rtol=1e-6)
  close(found.weight_BxL, WEIGHT * plain.weight_BxL, rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'setting'),
  [
    ('focal', 'gamma'), ('mile', 'gamma'), ('mixce', 'eta'), ('gem', 'beta'),
    ('unlikelihood', 'alpha'), ('scale_grad', 'gamma'),
  ],
)
def test_settings_may_be_traced(name, setting):
  gradient = lambda x: jax.grad(total(name, **{setting: x}))(LOGITS)
  close(jax.jit(gradient)(0.6), gradient(0.6))


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('cross_entropy', {'label_smoothing': 1.0}, 'label_smoothing must be in'),
    ('cross_entropy', {'z_loss': -1.0}, 'z_loss must be in'),
    ('focal', {'gamma': -1.0}, r'gamma .* got -1\.0'),
    ('focal', {'gamma': 'two'}, "gamma .* got 'two'"),
    ('mile', {'gamma': np.inf}, 'gamma .* got inf'),
    ('mixce', {'eta': 1.5}, r'eta must be in \[0, 1\], got 1.5'),
    ('mixce', {'eta': -0.5}, r'eta .* got -0\.5'),
    ('gem', {'beta': 0.0}, r'beta must be in \(0, inf\), got 0.0'),
    ('unlikelihood', {'alpha': -1.0}, r'alpha .* got -1\.0'),
    ('scale_grad', {'gamma': 0.0}, r'gamma must be in \(0, 1\], got 0.0'),
    ('scale_grad', {'gamma': 1.1}, r'gamma .* got 1\.1'),
  ],
)
def test_bad_settings_are_refused(name, options, message):
  stats = dense_stats(LOGITS, LABELS)
  with pytest.raises(ConfigError, match=message):
    if name in DENSE:
      from_logits(name, **options)(LOGITS)
    else:
      STATS[name](stats, WEIGHT, **options)


@pytest.mark.parametrize('rare', [0.065, 1.0])
def test_a_type_never_counted_is_no_commoner_than_the_rarest(rare):
  """Also in the fractional counts of a mix."""
  counts = np.array([59.0, 51.0, rare, 0.0, 0.53 if rare < 1 else 7.0])
  weights = np.asarray(
    type_weights.class_balanced_weights(counts, special_ids=(), beta=0.99)
  )
  bias = np.asarray(type_weights.logit_adjustment_bias(counts))
  assert weights[3] == weights[2] == weights.max()
  assert bias[3] == bias[2] == bias.min()
