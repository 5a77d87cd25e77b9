"""Every loss of the registry in the train step: it learns, on any mesh."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from pdl_jax.losses import LOSSES
from pdl_jax.losses.frequency import FrequencyTable
from pdl_jax.losses.settings import LossSettings
from pdl_jax.mesh import make_mesh, put_batch
from pdl_jax.run import loss_tables
from pdl_jax.run.loss_tables import Frequencies
from pdl_jax.train import state
from pdl_jax.train.step import gradient_sums, train_step
from tests import small

pytestmark = pytest.mark.usefixtures('quick_compile')

CONFIG = json.loads(base.get_config().loss.to_json())
SETTINGS = LossSettings.from_config(CONFIG)
COUNTS = np.random.default_rng(2).zipf(1.5, 64).clip(0, 500)
COUNTS[5] = 0
TABLE = FrequencyTable(COUNTS, 't' * 64, 't', 'd' * 64, 'd', 'train')


def configured(name, **changes):
  settings = dataclasses.replace(SETTINGS, name=name, **changes)
  loss = loss_tables.make_loss(settings)
  tables = loss_tables.make_tables(settings, Frequencies(TABLE, TABLE), (0,))
  return small.step_config(loss=loss), tables


def start(mesh, config):
  return state.create(
    small.params(), small.MODEL, small.optimizer_config(), config.optimizer,
    mesh,
  )  # fmt: skip


# Losses by type differ in their tables alone: one program.
BY_TYPE = [name for name, spec in LOSSES.items() if spec.weights]
OTHERS = [[name] for name in LOSSES if name not in BY_TYPE]


@pytest.mark.parametrize('names', [BY_TYPE, *OTHERS], ids=lambda x: x[0])
def test_overfits_one_batch(names):
  config, _ = configured(names[0])
  step = jax.jit(partial(train_step, config), donate_argnums=0)
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  for name in names:
    _, tables = configured(name)
    with jax.set_mesh(mesh):
      current, plain = start(mesh, config), []
      for _ in range(80):
        current, scalars = step(current, small.batch(), tables)
        plain.append(float(scalars['plain_loss']))
    assert plain[0] > 3
    # FACE gives the commonest type no weight at all: nothing teaches it.
    assert plain[-1] < (1.0 if name == 'face' else 0.4)
    assert int(current.skipped) == 0


@pytest.mark.parametrize(
  'name', ['logit_adjustment', 'gem', 'unlikelihood', 'emo']
)
def test_gradients_on_a_mesh_are_those_of_one_device(name, monkeypatch):
  # Several chunks of the losses on logits.
  monkeypatch.setattr('pdl_jax.losses.loss.CHUNK_ELEMENTS', 8 * 64 * 4)
  config, tables = configured(name)
  found = []
  for shape, devices in (((1, 1, 1), 1), ((2, 2, 2), 8)):
    mesh = make_mesh(shape, jax.devices()[:devices])
    with jax.set_mesh(mesh):
      begun = start(mesh, config)
      placed = put_batch(small.batch(), mesh)
      run = jax.jit(partial(gradient_sums, config))
      grads = run(begun.trained, begun.frozen, placed, tables)
    found.append(jax.tree.map(np.asarray, grads))

  def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())

  jax.tree.map(close, found[1], found[0])


def test_label_smoothing_and_z_loss_reach_the_step():
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  losses = []
  for changes in ({}, {'label_smoothing': 0.1}, {'z_loss': 0.01}):
    config, tables = configured('cross_entropy', **changes)
    with jax.set_mesh(mesh):
      begun = start(mesh, config)
      _, scalars = train_step(config, begun, small.batch(), tables)
    losses.append((float(scalars['loss']), float(scalars['plain_loss'])))
  (plain, _), (smooth, plain_1), (z, plain_2) = losses
  assert plain == pytest.approx(plain_1, rel=1e-6)
  assert plain == pytest.approx(plain_2, rel=1e-6)
  assert abs(smooth - plain) > 1e-3
  assert z > plain + 1e-3


def test_alpha_zero_is_cross_entropy_bit_for_bit():
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  found = []
  for name in ('power_law', 'cross_entropy'):
    config, tables = configured(name, alpha=0.0)
    with jax.set_mesh(mesh):
      run = jax.jit(partial(gradient_sums, config))
      begun = start(mesh, config)
      found.append(run(begun.trained, begun.frozen, small.batch(), tables))
  jax.tree.map(np.testing.assert_array_equal, *found)
  assert jnp.isfinite(found[0][1][0].num)
