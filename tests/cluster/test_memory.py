"""What a step takes of a device, against the compiled step."""

import dataclasses
import functools
from functools import partial

import jax
import pytest

from pdl_jax.cluster import aot, memory
from pdl_jax.cluster.memory import estimate
from pdl_jax.errors import ConfigError
from pdl_jax.mesh import make_mesh
from pdl_jax.model import lm
from pdl_jax.model.config import HeadConfig, ModelConfig
from pdl_jax.train import state
from pdl_jax.train.optimizer import make_optimizer
from pdl_jax.train.rules import RULES
from tests import small

pytestmark = pytest.mark.usefixtures('quick_compile')
OPTIMIZER = small.optimizer_config()
LARGE = ModelConfig(
  vocab_size=128_256, width=4096, layers=32, heads=32, kv_heads=32,
  head_dim=128, mlp=11_008, context=4096, dtype='bfloat16', remat=True,
  head=HeadConfig('dense'),
)  # fmt: skip
MODEL = ModelConfig(
  vocab_size=2048, width=64, layers=4, heads=8, kv_heads=8, head_dim=8,
  mlp=128, context=128, remat=True,
)  # fmt: skip
ROWS, LENGTH = 16, 128


def compiled(model, mesh_shape):
  lowered = aot.lower_step(
    model, OPTIMIZER, make_mesh(mesh_shape), ROWS, LENGTH, LENGTH
  )
  return aot.compile(lowered)[1]


@functools.cache
def of(mesh=(8, 1, 1), targets=LENGTH, remat=True, **optimizer):
  model = dataclasses.replace(MODEL, remat=remat)
  config = small.optimizer_config(**optimizer)
  return estimate(model, config, mesh, ROWS, LENGTH, targets)


@pytest.mark.parametrize('name', RULES)
def test_the_state_is_exact(name):
  """Of the state that training makes, the bytes on one device."""
  mesh, last = (1, 8, 1), {'trainable': 'last_layers', 'last_layers': 1}
  config, placed = small.optimizer_config(name=name, **last), make_mesh(mesh)
  made = state.create(
    small.params(), small.MODEL, config, make_optimizer(config, 9), placed
  )
  found = estimate(small.MODEL, config, mesh, 8, 16, 8)
  held = sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(made)
  )
  assert found.parameters + found.moments == held


def test_the_compiled_step(full_compile):
  """Arguments exact; temporaries within a third."""
  mesh = (2, 2, 2)
  expected, found = compiled(MODEL, mesh), of(mesh)
  assert found.arguments == expected.arguments
  assert found.temporaries == pytest.approx(
    expected.temporaries, rel=1 / 3
  )


def test_a_model_larger_than_this_machine_on_devices_that_are_not_here():
  found = estimate(LARGE, OPTIMIZER, (1, 128, 1), 256, 4096, 4096)
  shapes = jax.eval_shape(partial(lm.init, LARGE), jax.random.key(0))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert found.parameters * 128 == 4 * count
  counters = 4 * 5  # Of the state three, of the optimizer two.
  assert found.moments == 2 * found.parameters + counters
  assert found.gradients == found.parameters
  # A residual stream a layer, bf16, of two rows a device, and what comes out.
  stream = 2 * 2 * 4096 * 4096
  assert 32 * stream < found.activations < 40 * stream
  # The gathered head in bf16 and its gradient in fp32.
  head = LARGE.vocab_size * LARGE.width
  assert (2 + 4) * head < found.loss < (2 + 4 + 4) * head


def test_what_each_optimizer_keeps():
  """Bytes a parameter: two moments, one, or hardly any."""
  share = {
    name: of((1, 8, 1), name=name).moments / of((1, 8, 1)).parameters
    for name in RULES
  }
  assert share['adamw'] == pytest.approx(2, rel=1e-3)
  assert share['lion'] == pytest.approx(1, rel=1e-3)
  assert share['sgd'] == pytest.approx(1, rel=1e-3)
  assert 1 < share['muon'] < 2
  large = dataclasses.replace(LARGE, head=HeadConfig())
  ada = estimate(
    large, small.optimizer_config(name='adafactor'), (1, 128, 1), 256, 4096, 8
  )
  assert ada.moments < 0.05 * ada.parameters


def test_the_axes_of_the_mesh():
  """fsdp splits the state, tensor the head too, data the batch alone."""
  data, fsdp, tensor = of(), of((1, 8, 1)), of((1, 1, 8))
  assert data.parameters == 8 * fsdp.parameters
  assert data.gradients == data.parameters
  assert data.activations == pytest.approx(fsdp.activations, rel=1e-3)
  assert fsdp.loss == data.loss
  assert tensor.activations > data.activations
  assert tensor.parameters < data.parameters / 7


def test_remat_accumulation_targets_and_frozen_layers():
  base, twice, few = of(), of(grad_accum_steps=2), of(targets=8)
  assert of(remat=False).activations > 4 * base.activations
  assert twice.activations == pytest.approx(base.activations / 2, rel=1e-3)
  assert twice.gradients == 2 * base.gradients
  assert twice.inputs == base.inputs
  assert few.loss < base.loss
  assert few.inputs < base.inputs
  part = of(trainable='last_layers', last_layers=1)
  assert part.parameters == base.parameters
  assert part.gradients < base.gradients / 4
  assert part.activations < base.activations


@pytest.mark.parametrize(
  ('mesh', 'rows', 'words'),
  [
    ((1, 3, 1), 6, 'does not divide over 3'),
    ((8, 1, 1), 12, 'use a multiple of 8'),
    ((1, -1, 1), 8, 'at least 1'),
  ],
)
def test_what_does_not_fit_is_refused(mesh, rows, words):
  with pytest.raises(ConfigError, match=words):
    estimate(MODEL, OPTIMIZER, mesh, rows, LENGTH, LENGTH)


def test_the_table_has_every_part():
  text = memory.format_table(of())
  for name in (*dataclasses.asdict(of()), 'total'):
    assert name in text
  assert f'{of().total / 1e9:.3f} GB' in text
