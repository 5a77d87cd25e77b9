"""Rivals: identities with cross-entropy first, then double-precision truths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax import power_law_weights
from pdl_jax.errors import ConfigError
from pdl_jax.losses import dense_losses, token_losses, type_weights
from pdl_jax.losses.core import TokenStats
from pdl_jax.losses.cross_entropy import cross_entropy_terms, token_nll
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
  'cross_entropy': cross_entropy_terms,
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


def test_itf_is_pdl_with_epsilon_zero():
  for exponent in (0.0, 0.4, 1.0):
    found = type_weights.inverse_frequency_weights(
      COUNTS, special_ids=NEUTRAL, exponent=exponent
    )
    expected = power_law_weights(
      COUNTS, alpha=exponent, epsilon=0.0, unseen='min_count',
      special_ids=NEUTRAL,
    )
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def test_formulas_of_tables():
  found = TABLES['itf'](np.array([1, 4, 9, 0.0]), special_ids=(), exponent=0.5)
  close(found, 14 / 6 * np.array([1, 1 / 2, 1 / 3, 1]))
  found = TABLES['face'](np.array([0, 1, 2, 4.0]), special_ids=())
  close(found, np.array([1, 3 / 4, 1 / 2, 0]) * 4 / 2.25)
  balanced = TABLES['class_balanced']
  found = balanced(np.array([0, 1, 2, 3.0]), special_ids=(), beta=0.5)
  raw = np.array([1, 1, 0.5 / 0.75, 0.5 / 0.875])
  close(found, raw * 4 / raw.sum())
  # Near beta 1 it is inverse frequency.
  found = balanced(COUNTS[2:7], special_ids=(), beta=1 - 1e-14)
  raw = 1 / COUNTS[2:7]
  close(found, raw * 5 / raw.sum())
  # Seen and not neutral: 1, 5, 40, 300, 7, 1; the lower median is 5.
  others = np.array([0, 2, 3, 4, 5, 6])
  ratio = COUNTS[others] / 5
  for name, power in (('exponential', 0), ('chi_square', 2)):
    found = TABLES[name](COUNTS, special_ids=NEUTRAL, decay=0.5)
    u = ratio**power * np.exp(-0.5 * ratio)
    close(found[others], 1 + (math.e - 1) * u / u.max())
    # A large decay does not underflow.
    found = TABLES[name](COUNTS, special_ids=NEUTRAL, decay=1e5)
    assert float(found.max()) == pytest.approx(math.e)


def test_a_setting_at_its_limit_gives_ones():
  for name, options in (
    ('itf', {'exponent': 0.0}),
    ('class_balanced', {'beta': 0.0}),
    ('exponential', {'max_weight': 1.0}),
    ('chi_square', {'max_weight': 1.0}),
  ):
    found = TABLES[name](COUNTS, special_ids=NEUTRAL, **options)
    assert found.dtype == jnp.float32
    assert (np.asarray(found) == 1).all()


@pytest.mark.parametrize('name', TABLES)
def test_unseen_neutral_and_running_types(name):
  table = TABLES[name]
  found = table(np.array([0, 1, 3, 30, 300.0]), special_ids=())
  if name == 'face':
    assert found[0] > found[1]  # The formula is finite at 0.
  else:
    assert found[0] == found[1]
  # Neutral types weigh one and leave the others alone.
  published = np.asarray(table(COUNTS, special_ids=NEUTRAL))
  assert (published[list(NEUTRAL)] == 1).all()
  others = [i for i in range(8) if i not in NEUTRAL]
  close(published[others], table(COUNTS[others], special_ids=()))
  if name == 'itf':
    return
  for neutral in ((), NEUTRAL):
    options = {'special_ids': neutral}
    scaled = table(COUNTS, **options, normalize='corpus_mean')
    scaled = np.asarray(scaled, np.float64)
    assert np.average(scaled, weights=COUNTS) == pytest.approx(1, rel=1e-6)
    published = np.asarray(table(COUNTS, **options))
    others = [i for i in range(8) if i not in neutral and published[i] > 0]
    ratio = scaled[others] / published[others]
    close(ratio, np.full_like(ratio, ratio[0]))


@pytest.mark.parametrize('name', TABLES)
def test_every_weight_is_finite(name):
  settings = [{}]
  if name != 'itf':
    settings = [{'normalize': x} for x in ('published', 'corpus_mean')]
  for options in settings:
    for counts in ([0] * 4, [0, 0, 9, 0], [3] * 4, [0, 1, 1e9, 2e12]):
      for neutral in ((), (2,), (0, 1, 2, 3)):
        found = TABLES[name](
          np.array(counts, float), special_ids=neutral, **options
        )
        assert np.isfinite(found).all()
        assert (np.asarray(found) >= 0).all()
      assert (np.asarray(found) == 1).all()


@pytest.mark.parametrize('name', TABLES)
def test_bad_tables_are_refused(name):
  valid = {'frequency_V': COUNTS, 'special_ids': NEUTRAL}
  for arguments, message in (
    ({'frequency_V': np.array([1, -2.0])}, r'shape \(2,\) with 1 negative'),
    ({'special_ids': [8]}, 'special_ids has 8, outside the 8 types'),
  ):
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
    ('chi_square', {'max_weight': np.inf}, 'max_weight .* got inf'),
    ('face', {'normalize': 'none'}, "'none' is not one of published, corpus_m"),
    ('class_balanced', {'normalize': 'mean'}, "'mean' is not one of"),
    ('exponential', {'normalize': 'mean'}, "'mean' is not one of"),
  ],
)
def test_bad_settings_of_tables_are_refused(name, options, message):
  with pytest.raises(ConfigError, match=message):
    TABLES[name](COUNTS, special_ids=NEUTRAL, **options)


@pytest.mark.parametrize('rare', [0.065, 1.0])
def test_a_type_never_counted_is_no_commoner_than_the_rarest(rare):
  """Also in the fractional counts of a mix."""
  counts = np.array([59.0, 51.0, rare, 0.0, 0.53 if rare < 1 else 7.0])
  balanced = TABLES['class_balanced'](counts, special_ids=(), beta=0.99)
  weights = np.asarray(balanced)
  bias = np.asarray(type_weights.logit_adjustment_bias(counts))
  assert weights[3] == weights[2] == weights.max()
  assert bias[3] == bias[2] == bias.min()


def test_logit_adjustment_is_the_log_prior():
  biases = type_weights.logit_adjustment_bias
  found = biases(np.array([0, 1, 2, 6.0]), tau=0.5)
  assert found.dtype == jnp.float32
  close(found, 0.5 * np.log(np.array([1, 1, 2, 6]) / 10))
  assert (np.asarray(biases(COUNTS, tau=0.0)) == 0).all()
  traced = jax.jit(lambda tau: biases(COUNTS, tau=tau))
  close(traced(0.7), biases(COUNTS, tau=0.7))
  for counts, tau, message in (
    (np.zeros(3), 1.0, 'none of the 3 token types was counted'),
    (np.array([1, -1.0]), 1.0, '1 negative'),
    (COUNTS, -1.0, r'tau .* got -1\.0'),
  ):
    with pytest.raises(ConfigError, match=message):
      biases(counts, tau=tau)


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


def test_mixce_lies_between_dft_and_cross_entropy():
  ce = from_logits('cross_entropy')(LOGITS).loss_BxL
  dft = from_logits('dft')(LOGITS).loss_BxL
  for eta in (0.0, 0.3, 1.0):
    found = from_logits('mixce', eta=eta)(LOGITS).loss_BxL
    close(found, eta * ce + (1 - eta) * dft, rtol=1e-6)


@pytest.mark.parametrize('beta', [0.4, 1.0, 2.0])
def test_gem_is_its_dense_form(beta):
  q, log_p = softmax64(Z64 / beta), np.log(P64)
  expected = W64 * (q * (log_p - pick(log_p)[..., None])).sum(-1)
  close(from_logits('gem', beta=beta)(LOGITS).loss_BxL, expected)
  found = jax.grad(total('gem', beta=beta))(LOGITS)
  close(found, W64[..., None] * (q - ONE_HOT))


def test_scale_grad_is_cross_entropy_on_shifted_logits():
  for gamma in (0.05, 0.5, 1.0):
    z = LOGITS + jnp.where(KNOWN, 0.0, math.log(gamma))
    found = from_logits('scale_grad', gamma=gamma)(LOGITS).loss_BxL
    close(found, WEIGHT * token_nll(z, LABELS))


@pytest.mark.parametrize(('e', 'c'), [(0.1, 0.0), (0.0, 1e-2), (0.1, 1e-2)])
def test_cross_entropy_terms_in_double_precision(e, c):
  def truth(z):
    log_z = np.log(np.exp(z).sum(-1))
    smooth = (1 - e) * (log_z - pick(z)) + e * (log_z - z.mean(-1))
    return W64 * (smooth + c * log_z**2)

  options = {'label_smoothing': e, 'z_loss': c}
  close(from_logits('cross_entropy', **options)(LOGITS).loss_BxL, truth(Z64))
  found = jax.grad(total('cross_entropy', **options))(LOGITS)
  close(found, difference(truth, Z64), rtol=1e-4, atol=1e-5)


def test_options_at_zero_leave_no_trace():
  stats = dense_stats(LOGITS, LABELS)

  def program(**options):
    terms = cross_entropy_terms
    loss = lambda stats: terms(stats, WEIGHT, **options)
    return str(jax.make_jaxpr(loss)(stats))

  plain = program()
  assert plain == program(label_smoothing=0, z_loss=0.0)
  assert plain.count('sub') == 1
  assert 'square' not in plain and 'integer_pow' not in plain
  traced = lambda e, c: cross_entropy_terms(
    stats, WEIGHT, label_smoothing=e, z_loss=c
  )
  found = jax.jit(traced)(0.2, 0.01).loss_BxL
  close(found, traced(0.2, 0.01).loss_BxL)


# -- double-precision truths --------------------------------------------------


def test_focal_formula():
  for gamma in (0.0, 0.5, 1.0, 3.5):
    found = from_logits('focal', gamma=gamma)
    close(found(LOGITS).loss_BxL, W64 * (1 - P) ** gamma * NLL)
    slope = (1 - P) ** gamma + gamma * (1 - P) ** (gamma - 1) * P * NLL
    gradient = jax.grad(total('focal', gamma=gamma))(LOGITS)
    close(gradient, (W64 * slope)[..., None] * (P64 - ONE_HOT))


def test_detached_factors():
  """Only the factor of MiLe joins the weight that a mean divides by."""
  entropy = -(P64 * np.log(P64)).sum(-1)
  for name, options, factor in (
    ('mile', {'gamma': 0.5}, (1 + entropy) ** 0.5),
    ('mile', {'gamma': 2.0}, (1 + entropy) ** 2),
    ('dft', {}, P),
    ('mixce', {}, 0.5 + 0.5 * P),
  ):
    found = from_logits(name, **options)(LOGITS)
    close(found.loss_BxL, W64 * factor * NLL)
    close(found.weight_BxL, W64 * (factor if name == 'mile' else 1))
    gradient = jax.grad(total(name, **options))(LOGITS)
    close(gradient, (W64 * factor)[..., None] * (P64 - ONE_HOT))


def test_mile_factors_have_a_global_mean_of_one():
  """The published form: factors over their mean, averaged over tokens."""
  factor = 1 - (P64 * np.log(P64)).sum(-1)
  expected = (factor / factor.mean() * NLL).mean()
  found = divide(sums(from_logits('mile', weight=ONES)(LOGITS)))
  assert float(found) == pytest.approx(expected, rel=1e-5)


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
    ('unlikelihood', unlikelihood64, {'alpha': 0.3}),
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


# -- earlier targets ----------------------------------------------------------


def test_earlier_targets_are_the_distinct_ones_before():
  traced = jax.jit(dense_losses.earlier_targets, static_argnums=3)
  for start in (0, START, 6):
    earlier = traced(ROW, ROW_WHERE, start, 3)
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
def test_extreme_logits(name, options):
  """Finite everywhere; no gradient as p -> 1 by all that fp32 can hold."""
  certain = jnp.asarray(ONE_HOT, jnp.float32)
  terms = jax.jit(from_logits(name, weight=ONES, **options))
  gradient = jax.jit(jax.grad(total(name, weight=ONES, **options)))
  for scale in (100.0, 1e4):
    for pattern in (certain, -certain, jnp.sign(LOGITS)):
      for x in (*terms(scale * pattern), gradient(scale * pattern)):
        assert np.isfinite(x).all()
  for scale in (5.0, 10.0, 16.0, 17.0, 20.0, 40.0, 80.0):
    found = np.asarray(gradient(scale * certain))
    assert np.isfinite(found).all()
    if scale >= 20:
      assert np.abs(found).max() < 2e-3


@pytest.mark.parametrize('name', DENSE)
def test_losses_on_logits_of_zeros_and_of_bfloat16(name):
  zero, labels = jnp.zeros((B, L, V)), jnp.zeros((B, L), int)
  for earlier in (jnp.zeros_like(EARLIER), jnp.ones_like(EARLIER)):
    context = CONTEXT._replace(earlier_BxLxC=earlier)
    loss = total(name, labels=labels, context=context)
    for x in jax.value_and_grad(loss)(zero):
      assert np.isfinite(x).all()
  logits = LOGITS.astype(jnp.bfloat16)
  found = from_logits(name)(logits)
  assert found.loss_BxL.dtype == jnp.float32
  expected = from_logits(name)(logits.astype(jnp.float32))
  np.testing.assert_array_equal(found.loss_BxL, expected.loss_BxL)


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


def test_emo_of_a_head_without_distances():
  """All columns zero (every cosine 0), or all alike (D is 0)."""
  plain = (W64 * NLL).sum()
  for head, share in ((jnp.zeros((D, V)), 1), (jnp.ones((D, V)), 0.5)):
    context = CONTEXT._replace(head_DxV=head)
    loss = jax.value_and_grad(total('emo', context=context))
    value, gradient = loss(LOGITS)
    assert float(value) == pytest.approx(share * plain, rel=1e-5)
    if share == 1:
      assert np.isfinite(gradient).all()
    else:
      close(gradient, 0.5 * W64[..., None] * (P64 - ONE_HOT))


def test_emo_costs_nothing_at_the_label_and_never_less():
  # Columns of one direction have a cosine of 1, give or take rounding.
  alike = [HEAD[:, v : v + 1] * jnp.linspace(0.3, 5, V)[None] for v in range(V)]
  for head in (HEAD, *alike):
    cost = np.asarray(dense_losses._costs(head, LABELS))
    assert (pick(cost) == 0).all()
    assert (cost >= 0).all()


@pytest.mark.parametrize('name', [*STATS, *DENSE])
def test_the_weight_of_the_type_multiplies_every_loss(name):
  plain = from_logits(name, weight=ONES)(LOGITS)
  found = from_logits(name)(LOGITS)
  close(found.loss_BxL, WEIGHT * plain.loss_BxL, rtol=1e-6)
  close(found.weight_BxL, WEIGHT * plain.weight_BxL, rtol=1e-6)


def test_settings_may_be_traced():
  for name, setting in (
    ('focal', 'gamma'), ('mile', 'gamma'), ('mixce', 'eta'), ('gem', 'beta'),
    ('unlikelihood', 'alpha'), ('scale_grad', 'gamma'),
  ):  # fmt: skip
    gradient = lambda x, name=name, setting=setting: jax.grad(
      total(name, **{setting: x})
    )(LOGITS)
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
