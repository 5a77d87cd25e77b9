"""Weights that follow from their names.

`golden/make_hf.py` fills models of transformers with them: what these compute
is golden/hf.npz.
"""

import zlib

import numpy as np


def tensor(name, shape):
  """Numbers of a name, the same wherever numpy runs."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  norms = ('norm.weight', 'ln_1.weight', 'ln_2.weight', 'ln_f.weight')
  around = 1.0 if name.endswith(norms) else 0.0
  x = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3)
  return x + np.float32(around)


def tokens(vocab_size, length):
  """One row, of a seed."""
  rng = np.random.default_rng(0)
  return rng.integers(0, vocab_size, (1, length)).astype(np.int32)


def weights(case):
  """Of one of the cases."""
  return {n: tensor(n, shape) for n, shape in case['shapes'].items()}
