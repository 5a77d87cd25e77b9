from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pdl_jax.errors import ConfigError
from pdl_jax.mesh import (
  MeshSettings,
  check_batch,
  constrain,
  make_mesh,
  partition_spec,
  put_batch,
  shardings,
)
from pdl_jax.model import lm
from tests.tiny_model import CONFIG, PARAMS, tiny_tokens

CUBE = (2, 2, 2)


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    ((8, 1, 1), (8, 1, 1)),
    (CUBE, CUBE),
    ((-1, 1, 1), (8, 1, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 4, -1), (1, 4, 2)),
    ((8, 1, -1), (8, 1, 1)),
  ],
)
def test_mesh(shape, expected):
  mesh = make_mesh(shape)
  assert tuple(mesh.shape.items()) == tuple(
    zip(('data', 'fsdp', 'tensor'), expected, strict=True)
  )
  assert mesh.axis_types == (AxisType.Auto,) * 3


def test_mesh_of_some_devices():
  mesh = make_mesh((1, 2, -1), jax.devices()[4:])
  assert {device.id for device in mesh.devices.flat} == {4, 5, 6, 7}


@pytest.mark.parametrize(
  'shape', [(2, 2, 1), (16, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, -1, 1),
            (-2, -4, 1), (2, -4, -1)],
)
def test_a_mesh_that_does_not_fit_is_refused(shape):
  a, b, c = shape
  with pytest.raises(ConfigError) as error:
    make_mesh(shape)
  assert f'mesh data {a} x fsdp {b} x tensor {c} ' in str(error.value)
  assert 'the 8 devices' in str(error.value)


def test_partition_spec():
  found = partition_spec('batch', 'length', 'activation')
  assert found == P(('data', 'fsdp'), None, None)
  assert partition_spec('vocab', 'embed') == P('tensor', 'fsdp')
  assert partition_spec(None, 'mlp') == P(None, 'tensor')


def fake(slices, platform='tpu'):
  """Devices as the number of the slice, or process, of each says."""
  return [
    SimpleNamespace(platform=platform, slice_index=each, process_index=each)
    for each in slices
  ]


@pytest.mark.parametrize(
  ('settings', 'devices', 'words'),
  [
    (MeshSettings(slices=2), fake([0, 0, 0]),
     'mesh.data 3 is not a multiple of mesh.slices 2'),
    (MeshSettings(1, fsdp=-1, slices=2), fake([0, 0, 1, 1]),
     'mesh.data 1 is not a multiple of mesh.slices 2'),
    (MeshSettings(slices=0), fake([0, 0]), 'multiple of mesh.slices 0'),
    (MeshSettings(), fake([0, 0, 1, 1]),
     'mesh.slices 1, but the devices are in 2 slices, of 2, 2 devices'),
    (MeshSettings(slices=2), fake([0, 0, 0, 1]), 'in 2 slices, of 3, 1 dev'),
    (MeshSettings(slices=4), fake([0, 0, 1, 1], 'cpu'),
     'mesh.slices 4, but the devices are in 2 processes, of 2, 2 devices'),
  ],
)  # fmt: skip
def test_slices_that_do_not_fit_are_refused(settings, devices, words):
  with pytest.raises(ConfigError, match=words) as error:
    settings.make(devices)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'names', [('heads', 'mlp'), ('batch', 'embed'), ('vocab', None, 'kv_heads')]
)
def test_two_axes_on_one_mesh_axis_are_refused(names):
  with pytest.raises(ConfigError, match='use one mesh axis twice') as error:
    partition_spec(*names)
  assert str(names) in str(error.value)


def test_every_parameter_and_activation_has_a_rule():
  axes = lm.logical_axes(CONFIG)
  specs = jax.tree.map(lambda names: partition_spec(*names), axes)
  attention = specs['blocks'][0]['attention']
  assert attention['query'] == P(None, 'fsdp', 'tensor', None)
  assert attention['output'] == P(None, 'tensor', None, 'fsdp')
  assert specs['embed_VxD'] == P('tensor', 'fsdp')


def test_parameters_are_split_as_the_table_says():
  mesh = make_mesh(CUBE)
  placed = shardings(mesh, lm.logical_axes(CONFIG), PARAMS)
  params = jax.device_put(PARAMS, placed)
  assert params['embed_VxD'].addressable_shards[0].data.shape == (32, 16)
  query = params['blocks'][0]['attention']['query']
  assert query.addressable_shards[0].data.shape == (2, 16, 2, 8)


def test_an_axis_that_does_not_divide_names_the_parameter():
  mesh = make_mesh((1, 2, 4))
  with pytest.raises(ConfigError) as error:
    shardings(mesh, lm.logical_axes(CONFIG), PARAMS)
  assert str(error.value) == (
    'blocks/0/attention/key: axis kv_heads of 2 does not divide over 4 '
    '(tensor) devices; choose another mesh'
  )


def test_check_batch():
  mesh = make_mesh(CUBE)
  for batch, grad_accum_steps in ((4, 1), (8, 2), (24, 3)):
    check_batch(mesh, 'train.batch_size', batch, grad_accum_steps)
  with pytest.raises(ConfigError) as error:
    check_batch(mesh, 'train.batch_size', 8, 4)
  parts = ('batch_size 8', '4 micro-batches', 'over 4 ', 'multiple of 16')
  for part in parts:
    assert part in str(error.value)


def test_put_batch():
  mesh = make_mesh(CUBE)
  rows = {'tokens': tiny_tokens(8, 3), 'where': np.ones(8, bool)}
  placed = put_batch(rows, mesh)
  for name, array in rows.items():
    assert placed[name].dtype == array.dtype
    np.testing.assert_array_equal(placed[name], array)
    assert placed[name].addressable_shards[0].data.shape[0] == 2


def test_constrain():
  x = jnp.ones((4, 6, 8))
  assert constrain(x, 'batch', 'length', 'mlp') is x
  pin = jax.jit(lambda x: constrain(x, 'batch', 'length', 'mlp'))
  with jax.set_mesh(make_mesh(CUBE)):
    assert pin(x).addressable_shards[0].data.shape == (1, 6, 4)
