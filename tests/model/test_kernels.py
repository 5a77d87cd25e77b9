"""Kernels of accelerators: splash as a CPU interprets it, cuDNN as lowered."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from configs import language_model, summarize
from pdl_jax.config import Settings
from pdl_jax.errors import ConfigError
from pdl_jax.mesh import make_mesh
from pdl_jax.model import decoding, kernels, lm
from pdl_jax.model.attention import attend, cached
from pdl_jax.model.chunked_attention import Rule
from pdl_jax.run import finetune
from tests.model.test_attention import VARIANTS, model, moved
from tests.model.test_chunked_attention import (
  equal,
  packed_is_alone,
  states_and_gradients,
)

pytestmark = pytest.mark.usefixtures('quick_compile')
# Longer than a block, and not whole blocks: filled up to 384.
LENGTH = 300
SQUARE = re.compile(r'[\[<](\d+[,x])*(300[,x]300|384[,x]384)[\]x]')


def splash(config):
  return dataclasses.replace(config, attention_impl='splash')


def cudnn(**changes):
  return model(**{
    'dtype': 'bfloat16', 'attention_impl': 'cudnn', 'context': 512, **changes
  })  # fmt: skip


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(kernels, 'INTERPRET', True)


@pytest.fixture
def on(monkeypatch):
  """Says that this process computes on another device."""
  return lambda name: monkeypatch.setattr(jax, 'default_backend', lambda: name)


def loss(config, params, *inputs):
  return lm.hidden(config, params, *inputs).astype(jnp.float32).sum()


@pytest.mark.usefixtures('interpreted')
@pytest.mark.parametrize(
  'name', ['rope', 'complex', 'scaled_rope', 'none', 'gemma']
)
def test_splash_gives_the_numbers_of_all_scores_at_once(name):
  params = moved(VARIANTS[name])
  expected = states_and_gradients(VARIANTS[name], params)
  found = states_and_gradients(splash(VARIANTS[name]), params)
  jax.tree.map(equal, found, expected)


@pytest.mark.usefixtures('interpreted')
@pytest.mark.parametrize('window', [0, 140])
def test_splash_over_several_blocks_is_the_softmax_of_all_scores(window):
  c = splash(model(windows=(window,) * 2))
  random, shape = np.random.default_rng(5), (2, LENGTH)
  q, k, v = (jnp.asarray(random.normal(size=(*shape, n, 8)), jnp.float32)
             for n in (4, 2, 2))  # fmt: skip
  segments = np.repeat([[1, 2, 0], [1, 1, 1]], [130, 150, 20], axis=1)
  places = np.arange(LENGTH)
  back = places[:, None] - places
  mask = (back >= 0) & (back < (window or LENGTH))
  mask = mask[None] & (segments[:, :, None] == segments[:, None])
  rule = Rule(0.3, 4.0, 0)

  @jax.jit
  def expected(q, k, v):
    return attend(q, *cached(k, v), mask, rule.scale, None, rule.softcap)

  @jax.jit
  def found(q, k, v):
    layer = jnp.asarray(window) if window else None
    return kernels.attend(c, q, k, v, jnp.asarray(segments), layer, rule)

  one, pull_one = jax.vjp(expected, q, k, v)
  other, pull_other = jax.vjp(found, q, k, v)
  cotangent = jnp.sin(jnp.arange(one.size)).reshape(one.shape)
  equal(other, one)
  jax.tree.map(equal, pull_other(cotangent), pull_one(cotangent))


@pytest.mark.usefixtures('interpreted')
def test_a_packed_document_is_that_document_alone():
  packed_is_alone(splash(VARIANTS['gemma']))


@pytest.mark.usefixtures('interpreted')
def test_a_mesh_gives_the_states_of_one_device():
  config = splash(VARIANTS['gemma'])
  params, mesh = moved(config), make_mesh((2, 1, 2), jax.devices()[:4])
  expected = states_and_gradients(config, params)
  three_rows = [jax.ShapeDtypeStruct((3, 4), int)] * 3
  with jax.set_mesh(mesh):
    found = states_and_gradients(config, params)
    with pytest.raises(ConfigError, match='3 rows do not divide over 2'):
      jax.eval_shape(partial(lm.hidden, config), params, *three_rows)
  jax.tree.map(equal, found, expected)


@pytest.mark.parametrize('impl', ['xla', 'splash'])
def test_no_array_has_a_row_and_a_column_for_every_token(impl):
  config = model(attention_impl=impl, windows=(140, 0), attention_softcap=4.0)
  shape = jax.ShapeDtypeStruct((1, LENGTH), int)
  gradient = jax.make_jaxpr(jax.grad(loss, 1), static_argnums=0)
  made = gradient(config, moved(config), *[shape] * 3)
  arrays = [str(made), *(str(jnp.shape(x)) for x in made.consts)]
  assert bool(SQUARE.search('\n'.join(arrays))) == (impl == 'xla')
  assert ('splash' in str(made)) == (impl == 'splash')


def test_the_backward_pass_keeps_what_splash_gave():
  config, inputs = splash(model()), [jax.ShapeDtypeStruct((1, LENGTH), int)] * 3
  gradient = jax.jit(jax.grad(loss, 1), static_argnums=0)
  texts = [
    gradient.trace(dataclasses.replace(config, remat=remat), moved(config),
                   *inputs).lower(lowering_platforms=('tpu',)).as_text()
    for remat in (False, True)
  ]  # fmt: skip
  # Forward, and back for queries and for keys; with remat forward again.
  assert [text.count('tpu_custom_call') for text in texts] == [3, 4]


@pytest.fixture
def lowered(monkeypatch):
  """Lowers the gradient of a model for a GPU whose cuDNN is recent."""
  monkeypatch.setattr(
    fused_attention_stablehlo, 'check_cudnn_version', lambda: 91500
  )

  def lower(config, rows=2):
    params = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
    inputs = [jax.ShapeDtypeStruct((rows, LENGTH), int)] * 3
    gradient = jax.jit(jax.grad(loss, 1), static_argnums=0)
    traced = gradient.trace(config, params, *inputs)
    return traced.lower(lowering_platforms=('cuda',)).as_text()

  return lower


def test_cudnn_is_lowered_without_an_array_of_all_scores(lowered):
  text = lowered(cudnn(windows=(140, 0)))
  assert 'fmhaSoftmaxBackward' in text
  assert '\\22sliding_window_length\\22: 140' in text
  assert 'PADDING_CAUSAL' in text
  assert not SQUARE.search(text)


def test_cudnn_is_split_over_a_mesh(lowered):
  with jax.set_mesh(make_mesh((2, 1, 2), jax.devices()[:4])):
    text = lowered(cudnn())
  # One of two rows, and two of four heads.
  assert re.search(r'fmhaSoftmax\(.*tensor<1x300x2x8xbf16>', text)


def test_prompts_are_padded_on_the_left_and_not_given_to_cudnn():
  found = kernels.for_prompts(cudnn())
  assert found == dataclasses.replace(cudnn(), attention_impl='auto')
  assert kernels.for_prompts(splash(model())) == splash(model())
  # Else cuDNN would be asked for here, which the CPU does not have.
  decoding.prefill(
    cudnn(), moved(cudnn()), jnp.ones((1, 4), int), jnp.ones((1, 4), bool), 4
  )


@pytest.mark.parametrize(
  'segments, served',
  [([1, 1, 1], True), ([2, 2, 0], True), ([0, 0, 0], True), ([1, 1, 2], False),
   ([0, 1, 1], False), ([1, 0, 1], False)],
)  # fmt: skip
def test_rows_that_cudnn_would_read_wrongly_are_nan(
  monkeypatch, segments, served
):
  asked = {}

  def plain(q, k, v, **how):
    asked.update(how)
    return jnp.full(q.shape, jnp.inf)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', plain)
  x, where = jnp.ones((1, 3, 4, 8)), jnp.asarray([segments])
  out = kernels.attend(cudnn(), x, x, x, where, None, Rule(1.0, None, 0))
  assert bool(jnp.isnan(out).all()) == (not served)
  if served:  # What a kernel leaves at padding is not used.
    np.testing.assert_array_equal(out[0, :, 0, 0] == 0, where[0] == 0)
    assert asked['query_seq_lengths'] == max(sum(map(bool, segments)), 1)


@pytest.mark.parametrize(
  'make, why',
  [
    (lambda: splash(VARIANTS['alibi']), 'splash adds no bias to scores, and '
     'model.attention alibi has; take chunked'),
    (lambda: cudnn(attention=VARIANTS['alibi'].attention), 'adds no bias'),
    (lambda: cudnn(attention_softcap=4.0), 'no soft cap .* model has 4.0'),
    (lambda: cudnn(dtype='float32'), 'bfloat16, and model.dtype is float32'),
    (lambda: cudnn(head_dim=12), 'multiple of 8 .* the model has 12'),
    (lambda: cudnn(head_dim=512), 'up to 256, and the model has 512'),
    (lambda: kernels.check_device('splash'), 'splash needs a TPU, .* on cpu'),
    (lambda: kernels.check_device('cudnn'), 'cudnn needs a GPU, .* on cpu'),
  ],
)  # fmt: skip
def test_what_a_kernel_cannot_do_is_refused_by_name(make, why):
  with pytest.raises(ConfigError, match=f'model.attention_impl .*{why}'):
    make()


@pytest.mark.parametrize(
  'config, changes, why',
  [
    (language_model, {'attention_impl': 'cudnn', 'dtype': 'bfloat16'},
     'cudnn .* rows of data.task language_model are packed; take chunked'),
    (summarize, {'attention_impl': 'splash'}, 'splash needs a TPU'),
    (summarize, {'attention_impl': 'splash', 'dtype': 'bfloat16',
                 'matmul_precision': 'high'},
     'splash .* leave out model.matmul_precision high, or take chunked'),
  ],
)  # fmt: skip
def test_a_run_is_refused_before_it_reads_anything(config, changes, why):
  asked = config.get_config('tiny')
  asked.model.update(changes)
  with pytest.raises(ConfigError, match=f'model.attention_impl {why}'):
    finetune.mesh_for(Settings.from_config(asked))


def test_auto_is_by_the_device(on):
  half = model(dtype='bfloat16')
  alibi = VARIANTS['alibi']
  assert kernels.for_rows(half, packed=False) == half
  on('tpu')
  lengths = (127, 128, 4096)
  assert [kernels.chosen(model(), x) for x in lengths] == [
    'xla', 'splash', 'splash'
  ]  # fmt: skip
  assert [kernels.chosen(alibi, x) for x in lengths] == [
    'xla', 'xla', 'chunked'
  ]  # fmt: skip
  with jax.default_matmul_precision('highest'):
    assert kernels.chosen(half, 4096) == 'chunked'
    assert kernels.chosen(model(), 4096) == 'splash'
  on('gpu')
  assert kernels.chosen(half, 4096) == 'chunked'
  assert kernels.for_rows(half, packed=False).attention_impl == 'cudnn'
  wide = dataclasses.replace(half, head_dim=256)
  asked = dataclasses.replace(half, attention_impl='xla')
  for config, is_packed in (
    (half, True), (model(), False), (wide, False), (asked, False),
  ):  # fmt: skip
    assert kernels.for_rows(config, is_packed) == config
