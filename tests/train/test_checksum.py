"""Checksums: see each bit, do not see the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pdl_jax.train.checksum import (
  array_types,
  checksum,
  checksums,
  differences,
  json_crc,
)


def numpy_checksum(words):
  """The documented formula, word by word, in Python's integers."""
  total = 0
  for index, word in enumerate(words.ravel().tolist()):
    word ^= index * 0x9E3779B1 % 2**32
    word = (word ^ (word >> 16)) * 0x85EBCA6B % 2**32
    word = (word ^ (word >> 13)) * 0xC2B2AE35 % 2**32
    total += word ^ (word >> 16)
  return total % 2**32


def normal(shape, dtype=jnp.float32, seed=0):
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def test_formula():
  array = normal((3, 5, 2))
  assert int(checksum(array)) == numpy_checksum(np.asarray(array).view('u4'))
  assert int(checksum(jnp.float32(0))) == 0
  assert int(checksum(jnp.zeros((0, 3)))) == 0


@pytest.mark.parametrize(
  'dtype', ['float32', 'bfloat16', 'float16', 'int32', 'int8', 'uint16']
)
def test_every_flipped_bit_changes_it(dtype):
  array = np.array(normal((2, 3), jnp.float32) * 50).astype(dtype)
  raw = array.view(f'u{array.itemsize}')
  intact = int(checksum(jnp.asarray(array)))
  for index in np.ndindex(raw.shape):
    for bit in range(8 * raw.itemsize):
      flipped = raw.copy()
      flipped[index] ^= raw.dtype.type(1 << bit)
      assert int(checksum(jnp.asarray(flipped.view(dtype)))) != intact


def test_every_flipped_bool_and_key_changes_it():
  flags = np.array([[True, False, True]])
  seen = {int(checksum(flags ^ (np.arange(3) == i)[None])) for i in range(4)}
  assert len(seen) == 4
  keys = jax.random.split(jax.random.key(0), 5)
  assert len({int(checksum(key)) for key in keys}) == 5
  data = jax.random.key_data(keys)
  assert int(checksum(keys)) == int(checksum(data))


def test_64_bits_and_complex():
  with jax.enable_x64(True):
    array = np.arange(5, dtype=np.int64) - 2
    intact = int(checksum(jnp.asarray(array)))
    for bit in range(64):
      flipped = array.view('u8') ^ np.uint64(1 << bit) * (np.arange(5) == 3)
      assert int(checksum(jnp.asarray(flipped.view('i8')))) != intact
  array = np.asarray([1 + 2j, 3 - 4j], np.complex64)
  words = array.view(np.float32).view('u4')
  assert int(checksum(jnp.asarray(array))) == numpy_checksum(words)


@settings(max_examples=100, deadline=None)
@given(
  st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.5]), min_size=8, max_size=8),
  st.integers(0, 7),
  st.integers(0, 7),
)
def test_exchanged_elements_change_it(values, i, j):
  array = np.asarray(values, np.float32)
  other = array.copy()
  other[[i, j]] = other[[j, i]]
  same = np.array_equal(array.view('u4'), other.view('u4'))
  assert (int(checksum(array)) == int(checksum(other))) == same


def test_exchanging_0_and_1_anywhere_changes_it():
  # A sum of word * odd constant misses about 2016 / 256 = 8 of these.
  array = np.zeros(64, np.float32)
  seen = set()
  for i in range(64):
    array[:] = 0
    array[i] = 1
    seen.add(int(checksum(array)))
  assert len(seen) == 64


@pytest.mark.parametrize(
  ('mesh_shape', 'spec'),
  [
    ((8, 1, 1), P('data')),
    ((8, 1, 1), P(None, 'data')),
    ((2, 2, 2), P()),
    ((2, 2, 2), P(('data', 'tensor'), 'fsdp')),
    ((1, 4, 2), P('tensor', 'fsdp')),
  ],
)
def test_same_on_every_mesh(mesh_shape, spec):
  mesh = jax.make_mesh(
    mesh_shape, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3
  )
  array = normal((16, 24))
  sharded = jax.device_put(array, NamedSharding(mesh, spec))
  assert int(checksum(sharded)) == int(checksum(array))


def test_trees():
  tree = {'a': normal((2, 3)), 'b': [jnp.int32(1), jnp.ones(2, jnp.bfloat16)]}
  types = {'a': 'float32[2, 3]', 'b/0': 'int32[]', 'b/1': 'bfloat16[2]'}
  assert array_types(tree) == types
  assert checksums(tree)['a'] == f'{int(checksum(tree["a"])):#010x}'
  assert differences(types, types) == []
  assert differences(types, {**types, 'b/0': 'int8[]', 'c': 'int8[]'}) == [
    'b/0: int32[] saved, int8[] now',
    'c: nothing saved, int8[] now',
  ]
  with pytest.raises(ValueError, match='share a path'):
    array_types({'a/b': jnp.ones(1), 'a': {'b': jnp.ones(1)}})


def test_json_crc_ignores_the_order_of_keys():
  assert json_crc({'a': 1, 'b': [2]}) == json_crc({'b': [2], 'a': 1})
  assert json_crc({'a': 1}) != json_crc({'a': 3})
