"""Checksums of arrays, the same on every mesh, and of JSON."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any

# Odd, so that index -> index * _STRIDE (mod 2**32) never repeats.
_STRIDE = 0x9E3779B1


def _words(array: jax.Array) -> jax.Array:
  """Returns the bits of an array as uint32, one or two words per element."""
  if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
    array = jax.random.key_data(array)
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  if jnp.issubdtype(array.dtype, jnp.complexfloating):
    array = jnp.stack([array.real, array.imag], axis=-1)
  width = jnp.dtype(f'uint{8 * min(array.dtype.itemsize, 4)}')
  return jax.lax.bitcast_convert_type(array, width).astype(jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
  """Maps uint32 one to one; each bit affects all (from MurmurHash3)."""
  word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
  return word ^ (word >> 16)


@jax.jit
def checksum(array: jax.Array) -> jax.Array:
  """Sums up positions and bits as a uint32 scalar, where the array lies.

    sum_i mix(word_i ^ (i * odd constant)) mod 2**32

  Here i is the index in the whole array. A sum has no order, so sharding cannot
  change it. `mix` is a bijection, so any change within one 32-bit word is seen.
  Changes of several words, such as exchanges, escape one time in 2**32. (A
  linear sum of word * odd constant misses 1 in 256 exchanges of 0.0 and 1.0.)

  Shape and sharding are free; dtypes are bool, complex, PRNG keys, or have 8,
  16, 32 or 64 bits. No 64-bit arithmetic and no copy is made.
  """
  words = _words(array)
  position = jnp.zeros(words.shape, jnp.uint32)
  stride = _STRIDE
  for axis in reversed(range(words.ndim)):
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    position += index * jnp.uint32(stride)
    stride = stride * words.shape[axis] % 2**32
  return jnp.sum(_mix(words ^ position), dtype=jnp.uint32)


def path_name(path: tuple) -> str:
  """Names a leaf by its path in a pytree, as in `params/layer_0/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def leaves_by_path(tree: PyTree) -> dict[str, PyTree]:
  """Maps the name of each leaf of a pytree to the leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = {path_name(path): leaf for path, leaf in leaves}
  if len(named) != len(leaves):
    raise ValueError(f'some of the {len(leaves)} leaves share a path')
  return named


def array_types(tree: PyTree) -> dict[str, str]:
  """Maps each path to dtype and shape, as in `float32[2, 3]`."""
  leaves = leaves_by_path(tree)
  return {path: f'{x.dtype}{list(x.shape)}' for path, x in leaves.items()}


def checksums(tree: PyTree) -> dict[str, str]:
  """Maps each path to the checksum of its array, in hexadecimal."""
  leaves = leaves_by_path(tree)
  # One at a time: collectives of many programs can deadlock on CPU devices.
  return {path: f'{int(checksum(x)):#010x}' for path, x in leaves.items()}


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """Lists each path at which the two differ, one per line."""
  pairs = [
    (path, saved.get(path, 'nothing'), now.get(path, 'nothing'))
    for path in sorted(saved.keys() | now.keys())
  ]
  return [f'{path}: {a} saved, {b} now' for path, a, b in pairs if a != b]


def json_crc(value: object) -> int:
  """CRC-32 of a JSON value, whatever the order of its keys."""
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())
