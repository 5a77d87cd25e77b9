"""Adapters: what they compute, what trains, and what they merge into."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.losses import LossTables
from pdl_jax.mesh import make_mesh, put_batch
from pdl_jax.model import lm, lora
from pdl_jax.model.config import AttentionConfig, HeadConfig
from pdl_jax.model.lora import LoRAConfig
from pdl_jax.model.settings import LoRASettings
from pdl_jax.train import state as states
from pdl_jax.train.optimizer import make_optimizer, merge, trainable_mask
from pdl_jax.train.step import loss_sums, train_step
from tests import small
from tests.tiny_model import CONFIG, random_params, tiny_tokens

pytestmark = pytest.mark.usefixtures('quick_compile')
LORA = LoRAConfig(3, 5.0, targets=(*lora.ATTENTION, *lora.MLP))
TABLES = LossTables(jnp.ones(64))
# Every kind of linear layer: without a gate, with biases, a head of its own.
KINDS = {
  'llama': dataclasses.replace(CONFIG, lora=LORA),
  'gpt2': dataclasses.replace(
    CONFIG, gated=False, mlp_bias=True, qkv_bias=True, output_bias=True,
    lora=dataclasses.replace(
      LORA, targets=tuple(x for x in LORA.targets if x != 'gate')
    ),
  ),
  'head': dataclasses.replace(
    CONFIG, head=HeadConfig('dense'),
    lora=dataclasses.replace(LORA, targets=('query', 'down', 'head')),
  ),
}  # fmt: skip


def without(tree):
  """The parameters without those of adapters."""
  if isinstance(tree, tuple):
    return tuple(map(without, tree))
  if not isinstance(tree, dict):
    return tree
  return {k: without(x) for k, x in tree.items() if not lora.is_adapter(k)}


@partial(jax.jit, static_argnums=0)
def logits(config, params, tokens):
  where = jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None]
  return lm.logits(config, params, tokens, *where)


@pytest.mark.parametrize('kind', KINDS)
def test_merged_matrices_do_what_adapters_do(kind):
  config, tokens = KINDS[kind], tiny_tokens(2, 9)
  params = random_params(config)
  plain, merged = lm.without_adapters(config, params)
  found = logits(config, params, tokens)
  expected = logits(plain, merged, tokens)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
  dropped = without(params)
  assert jax.tree.structure(merged) == jax.tree.structure(dropped)
  # They do something.
  none = logits(plain, dropped, tokens)
  assert np.abs(none - expected).max() > 0.1


def test_the_product_is_the_definition_in_fp64():
  """alpha / r A B of one layer, by hand."""
  config = dataclasses.replace(
    CONFIG, lora=LoRAConfig(3, 5.0, targets=('output',))
  )
  params = random_params(config)
  _, merged = lm.without_adapters(config, params)
  old, new = (x['blocks'][0]['attention'] for x in (params, merged))
  a, b = (np.float64(old[f'output_lora_{x}']) for x in 'ab')
  for layer in range(config.layers):
    by_hand = 5.0 / 3 * a[layer].reshape(-1, 3) @ b[layer]
    found = np.float64(new['output'][layer]) - np.float64(old['output'][layer])
    np.testing.assert_allclose(
      found.reshape(-1, config.width), by_hand, atol=1e-6
    )


@pytest.mark.parametrize('kind', KINDS)
def test_a_new_adapter_changes_nothing(kind):
  config, tokens = KINDS[kind], tiny_tokens(2, 9)
  plain = dataclasses.replace(config, lora=lora.NO_LORA)
  params = random_params(plain)
  with_them = lm.extended(config, params, jax.random.key(3))
  np.testing.assert_array_equal(
    logits(config, with_them, tokens), logits(plain, params, tokens)
  )
  for x, y in zip(
    *map(jax.tree.leaves, (without(with_them), params)), strict=True
  ):  # fmt: skip
    assert x is y  # Nothing is copied.
  group = with_them['blocks'][0]['attention']
  a, b = group['query_lora_a'], group['query_lora_b']
  assert not b.any()
  # Uniform up to 1 / sqrt(width), each layer its own.
  bound = config.width**-0.5
  assert 0.9 * bound < np.abs(a).max() <= bound
  assert np.abs(a[0] - a[1]).max() > 0.1 * bound
  wide = with_them['blocks'][0]['mlp'].get('down_lora_a')
  assert 0.8 * config.mlp**-0.5 < np.abs(wide).max() <= config.mlp**-0.5


@cache
def trained(dropout=0.0, seed=0, mesh=(1, 1, 1), grad_accum_steps=1, **changes):
  """A state before and after a step of adapters alone, scalars, the step."""
  adapters = LoRAConfig(2, 4.0, dropout, targets=(*lora.ATTENTION, *lora.MLP))
  model = dataclasses.replace(small.MODEL, lora=adapters, **changes)
  config = small.optimizer_config(
    trainable='lora', grad_accum_steps=grad_accum_steps, warmup_steps=0
  )
  optimizer = make_optimizer(config, 10)
  params = lm.extended(model, small.params(), jax.random.key(1))
  # B is 0 at the start, and then nothing that A is given shows.
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.1 if path[-1].key.endswith('_lora_b') else x, params
  )
  placed = make_mesh(mesh, jax.devices()[: np.prod(mesh)])
  step = jax.jit(partial(train_step, small.step_config(
    model=model, optimizer=optimizer, grad_accum_steps=grad_accum_steps,
    dropout_seed=seed,
  )))  # fmt: skip
  with jax.set_mesh(placed):
    before = states.create(params, model, config, optimizer, placed)
    after, scalars = step(before, put_batch(small.batch(), placed), TABLES)
  return before, after, scalars, step


def test_adapters_alone_train_and_have_moments():
  before, after, *_ = trained()
  names = {
    path[-1].key
    for path, _ in jax.tree_util.tree_leaves_with_path(before.trained)
  }
  assert names == {
    f'{layer}_lora_{x}' for layer in (*lora.ATTENTION, *lora.MLP) for x in 'ab'
  }
  sizes = [x.size for x in jax.tree.leaves(before.opt_state) if x.ndim]
  assert sum(sizes) == 2 * sum(x.size for x in jax.tree.leaves(before.trained))
  jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
  for old, new in zip(
    *map(jax.tree.leaves, (before.trained, after.trained)), strict=True
  ):
    assert (np.abs(new - old) > 0).mean() > 0.9


def test_what_a_head_of_codes_and_complex_attention_have_trains_too():
  config = dataclasses.replace(
    CONFIG, lora=LORA, head=HeadConfig('vq', codebook_size=8),
    attention=AttentionConfig('complex'),
  )
  optimizer = small.optimizer_config(trainable='lora')
  shapes = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
  mask = trainable_mask(optimizer, shapes)
  found = {
    path[-1].key
    for path, trains in jax.tree_util.tree_leaves_with_path(mask) if trains
  }  # fmt: skip
  others = {name for name in found if not lora.is_adapter(name)}
  assert others == {'delta', 'offset', 'codebooks_MxKxS'}
  dense = dataclasses.replace(
    KINDS['head'], attention=AttentionConfig('scaled_rope')
  )
  shapes = jax.eval_shape(partial(lm.init, dense), jax.random.key(0))
  mask = trainable_mask(optimizer, shapes)
  assert mask['head'] == {
    'matrix_VxD': False, 'matrix_VxD_lora_a': True, 'matrix_VxD_lora_b': True
  }  # fmt: skip


def test_dropout_is_of_seed_and_step_and_of_training_alone():
  """The same again at the same step: a resumed run drops what it would."""
  before, first, one, step = trained(0.5)
  again, same = step(before, small.batch(), TABLES)
  assert one['loss'] == same['loss']
  jax.tree.map(np.testing.assert_array_equal, first.trained, again.trained)
  _, later = step(before._replace(step=jnp.int32(1)), small.batch(), TABLES)
  others = later, trained(0.5, seed=1)[2], trained()[2]
  assert len({float(x['loss']) for x in (one, *others)}) == 4
  model = dataclasses.replace(
    CONFIG, lora=dataclasses.replace(LORA, dropout=0.9)
  )
  params, tokens = random_params(model), tiny_tokens(2, 9)
  np.testing.assert_array_equal(
    logits(model, params, tokens), logits(KINDS['llama'], params, tokens)
  )


def test_dropout_keeps_the_mean_and_differs_by_step():
  """Of a model that is linear in what the last layer's adapter adds."""
  model = dataclasses.replace(
    CONFIG, layers=1, lora=LoRAConfig(3, 5.0, 0.3, targets=('down',))
  )
  params, tokens = random_params(model), tiny_tokens(1, 7)
  where = jnp.ones_like(tokens), jnp.arange(7)[None]

  def before_the_norm(key):
    x, _ = lm.run_blocks(model, params, tokens, *where, key)
    return x

  keys = jax.random.split(jax.random.key(0), 1000)
  drawn = jax.lax.map(before_the_norm, keys, batch_size=100)
  expected = before_the_norm(None)
  error = drawn.std(0) / len(keys) ** 0.5
  assert np.abs((drawn.mean(0) - expected) / error).max() < 5
  assert (drawn.std(0) > 0).all()


@pytest.mark.parametrize('mesh', [(2, 2, 2), (1, 8, 1)])
def test_a_mesh_changes_nothing_nor_what_is_dropped(mesh):
  one, split = trained(0.5)[1], trained(0.5, mesh=mesh)[1]
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6),
    split.trained, one.trained,
  )  # fmt: skip


def test_micro_batches_have_one_denominator_and_dropout_of_their_own():
  before, _, scalars, _ = trained(0.5, grad_accum_steps=2)
  adapters = LoRAConfig(2, 4.0, 0.5, targets=(*lora.ATTENTION, *lora.MLP))
  config = small.step_config(
    model=dataclasses.replace(small.MODEL, lora=adapters)
  )
  params = merge(before.trained, before.frozen)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 2)
  sums = jax.jit(partial(loss_sums, config))
  first, second = (
    sums(params, {k: x[a::2] for k, x in small.batch().items()}, TABLES, key)[0]
    for a, key in enumerate(keys)
  )
  expected = (first.num + second.num) / (first.den + second.den)
  np.testing.assert_allclose(scalars['loss'], expected, rtol=1e-6)


def test_frozen_parameters_in_bf16_and_what_trains_in_fp32():
  before, after, scalars, _ = trained(param_dtype='bfloat16')
  dtypes = {x.dtype for x in jax.tree.leaves(before.frozen)}
  assert dtypes == {jnp.dtype('bfloat16')}
  for tree in (before.trained, after.trained):
    assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype('float32')}
  exact = trained()[2]['loss']
  assert 0 < abs(scalars['loss'] - exact) < 0.02
  assert {x.dtype for x in jax.tree.leaves(after.frozen)} == dtypes


def test_the_first_moment_alone_can_be_bf16():
  config = small.optimizer_config(mu_dtype='bfloat16', trainable='all')
  optimizer = make_optimizer(config, 10)
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  made = states.create(small.params(), small.MODEL, config, optimizer, mesh)
  told = states.describe(small.params(), small.MODEL, config, optimizer, mesh)
  for tree in (made, told):
    flat = jax.tree_util.tree_leaves_with_path(tree.opt_state)
    for name, dtype in (('.mu', 'bfloat16'), ('.nu', 'float32')):
      found = {
        x.dtype for path, x in flat if name in jax.tree_util.keystr(path)
      }
      assert found == {jnp.dtype(dtype)}


def test_codes_and_log_frequencies_are_not_rounded():
  model = dataclasses.replace(
    CONFIG, head=HeadConfig('vq', 'unigram', codebook_size=8),
    param_dtype='bfloat16',
  )
  config = small.optimizer_config(trainable='norms')
  params = random_params(dataclasses.replace(model, param_dtype='float32'))
  dtypes = states.dtypes_at_rest(
    model, params, trainable_mask(config, params)
  )
  assert dtypes['head']['prior_V'] == np.float32
  assert dtypes['head']['codes_MxV'] == params['head']['codes_MxV'].dtype
  assert dtypes['embed_VxD'] == jnp.bfloat16
  assert dtypes['norm']['scale'] == np.float32


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'rank': 0}, 'model.lora.rank must be >= 1, got 0'),
    ({'alpha': 0.0}, 'model.lora.alpha must be > 0, got 0.0'),
    ({'dropout': 1.0}, r'model.lora.dropout must be in \[0, 1\), got 1.0'),
    ({'targets': 'query,vlaue'}, "model.lora.targets 'query,vlaue': takes all"),
    ({'targets': ''}, "model.lora.targets ''"),
    ({'targets': 'query,query'}, 'each once'),
  ],
)
def test_bad_settings_are_named(settings, said):
  with pytest.raises(ConfigError, match=said):
    LoRASettings(**settings)


def test_targets_that_a_model_does_not_have_are_named():
  every = LoRASettings().config(gated=False)
  assert 'gate' not in every.targets and 'up' in every.targets
  for target, said in (
    ('gate', 'have no gate'), ('head', 'take model.head=dense')
  ):  # fmt: skip
    asked = LoRASettings(targets=f'query, {target}').config(gated=True)
    with pytest.raises(ConfigError, match=said):
      dataclasses.replace(CONFIG, gated=False, lora=asked)
