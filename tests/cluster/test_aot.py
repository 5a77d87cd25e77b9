"""Programs for TPUs that are not here; make aot has their compiler."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import hlo
from benchmarks.aot import programs
from pdl_jax.cli import dry_run
from pdl_jax.cluster import aot
from pdl_jax.errors import ConfigError
from pdl_jax.mesh import MeshSettings
from tests import small

compiles = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs the package libtpu, see make aot',
)


@compiles
def test_only_data_goes_over_the_slices_of_tpus():
  chips = aot.devices('v6e:2x2', 2)
  mesh = MeshSettings(data=-1, fsdp=2, slices=2).make(chips[::2] + chips[1::2])
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 2, 'tensor': 1}
  of = [{each.slice_index for each in row.flat} for row in mesh.devices]
  assert of == [{0}, {0}, {1}, {1}]


@compiles
@pytest.mark.parametrize(
  ('slices', 'words'),
  [
    (1, 'mesh.slices 1, but the devices are in 2 slices, of 4, 4 devices'),
    (4, 'mesh.slices 4, but the devices are in 2 slices'),
  ],
)
def test_slices_of_tpus_that_do_not_fit(slices, words):
  with pytest.raises(ConfigError, match=words):
    MeshSettings(slices=slices).make(aot.devices('v6e:2x2', 2))


@compiles
@pytest.mark.parametrize('name', ['v6e', 'nonsense:2x2', 'v6e:9x9'])
def test_topologies_that_are_none(name):
  with pytest.raises(ConfigError, match=f'--topology={name} is none') as error:
    aot.devices(name)
  assert '\n' not in str(error.value)


@compiles
@pytest.mark.filterwarnings('error')
def test_a_program_is_compiled_twice():
  """As there is no reading of what a compiler without chips has kept."""
  at = jax.sharding.SingleDeviceSharding(aot.devices('v6e:2x2')[0])
  x = jax.ShapeDtypeStruct((384, 256), jnp.bfloat16, sharding=at)
  one, two = (aot.compile(jax.jit(lambda x: 2 * x).lower(x)) for _ in 'ab')
  assert one[1] == two[1]


@compiles
def test_what_goes_between_slices_is_counted():
  """A gather inside a slice, a sum over slices, and one that goes over both."""
  mesh = MeshSettings(fsdp=4, slices=2).make(aot.devices('v6e:2x2', 2))
  split = NamedSharding(mesh, PartitionSpec('data', 'fsdp'))
  x = jax.ShapeDtypeStruct((2, 4096), jnp.float32, sharding=split)

  def program(f, spec):
    with jax.set_mesh(mesh):
      made = jax.jit(f, out_shardings=NamedSharding(mesh, spec)).lower(x)
    return hlo.parse(aot.compile(made)[0].as_text())

  inside = program(lambda x: 2 * x, PartitionSpec('data'))
  assert [each.kind for each in hlo.collectives(inside, 4)] == ['all-gather']
  assert not hlo.between_slices(inside)
  summed = program(lambda x: x.sum(0), PartitionSpec('fsdp'))
  assert hlo.between_slices(summed) == {'SUM': 4 * 1024}
  gathered = program(lambda x: 2 * x, PartitionSpec(None, 'fsdp'))
  assert set(hlo.between_slices(gathered)) - {'SUM'}


@compiles
def test_arrays_of_a_program_are_found_and_values_in_fusions_are_not():
  at = jax.sharding.SingleDeviceSharding(aot.devices('v6e:2x2')[0])
  hidden = jax.ShapeDtypeStruct((384, 256), jnp.bfloat16, sharding=at)
  head = jax.ShapeDtypeStruct((1000, 256), jnp.bfloat16, sharding=at)

  def shapes(f):
    made, _ = aot.compile(jax.jit(f).lower(hidden, head))
    return hlo.shapes(hlo.parse(made.as_text()))

  assert (384, 1000) in shapes(lambda h, w: jax.nn.softmax(h @ w.T))
  outer = shapes(lambda h, w: (h[:, :1] * w[None, :, 0]).max())
  assert (384, 1000) not in outer


@compiles
@pytest.mark.parametrize('topology', programs.CHIPS)
def test_a_program_that_is_too_large_is_refused(topology):
  """With the room that the benchmark holds against its programs."""
  (chip, *_) = aot.devices(topology)
  at = jax.sharding.SingleDeviceSharding(chip)
  x = jax.ShapeDtypeStruct((2**36,), jnp.float32, sharding=at)
  with pytest.raises(ConfigError, match='no room on a chip: ') as error:
    aot.compile(jax.jit(lambda x: x + 1).lower(x))
  room = programs.CHIPS[topology] / 2**30
  assert f'available HBM ({room:.2f}G)' in str(error.value)
  assert '\n' not in str(error.value)


@compiles
def test_a_dry_run_says_what_the_compiler_does(tmp_path):
  settings = small.settings(tmp_path, **{'mesh.fsdp': 2, 'mesh.slices': 2})
  text = dry_run.describe(settings, None, 'v6e:2x2')
  assert 'each of 8 devices, mesh data 4 x fsdp 2 x tensor 1 over 2 sl' in text
  assert "# by the TPU's own compiler for v6e:2x2, which has run no" in text
  assert all(line.startswith('#') for line in text.splitlines())


RECORD = {
  'case': {'program': 'train', 'topology': 'v5e:4x4', 'slices': 1},
  'mesh': [1, 16, 1], 'arguments': 10**9, 'temporaries': 10**9, 'output': 0,
  'sent_bytes': {'all-gather': 1}, 'between_slices': {}, 'too_large': [],
  'kernels': 3,
}  # fmt: skip


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'temporaries': 16 * 10**9}, '17.00 GB, more than 16.91'),
    ({'sent_bytes': {'all-to-all': 1}}, 'sends .*all-to-all'),
    ({'sent_bytes': {'all-reduce': math.nan}}, 'loops of unknown turns'),
    ({'mesh': [16, 1, 1]}, 'sends .*all-gather'),
    ({'between_slices': {'SUM': 1}}, 'goes between 1 slices'),
    ({'case': {**RECORD['case'], 'slices': 2}}, 'goes between 2 slices'),
    ({'case': {**RECORD['case'], 'slices': 2},
      'between_slices': {'SUM': 1, '': 1}}, 'goes between 2 slices'),
    ({'kernels': 0}, 'not by the kernel splash'),
    ({'too_large': [[2, 3072, 49152]]}, 'should not be: .*49152'),
  ],
)  # fmt: skip
def test_what_must_hold_of_a_program(changes, words):
  programs.check(RECORD)
  with pytest.raises(ValueError, match=words):
    programs.check({**RECORD, **changes})


def test_arrays_that_are_too_large():
  model = programs.MODELS['7B']
  rows, length = programs.ROWS, programs.LENGTH
  fine = {
    (), (model.vocab_size, model.width), (model.layers, rows, length, 4096)
  }  # fmt: skip
  assert not programs.too_large(fine, model)
  for shape in ((rows, length, model.vocab_size), (rows, 32, length, length)):
    assert programs.too_large({*fine, shape}, model) == [list(shape)]
