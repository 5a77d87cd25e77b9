"""Products of the layers, and what their gradients are made of."""

import jax
import numpy as np
import pytest

from pdl_jax.model.layers import product

pytestmark = pytest.mark.usefixtures('quick_compile')
# Shapes of x and W, and the axes that they share: query, output, and a vector.
CASES = [
  ((2, 5, 6), (6, 3, 4), 1),
  ((2, 5, 3, 4), (3, 4, 6), 2),
  ((6,), (6, 7), 1),
]


def arrays(case):
  x, matrix, inputs = case
  random = np.random.default_rng(0)
  return random.normal(size=x), random.normal(size=matrix), inputs


@pytest.mark.parametrize('case', CASES)
def test_gradients_are_those_of_fp64(case):
  x, matrix, inputs = arrays(case)
  y, pull = jax.vjp(lambda x, w: product(x, w, inputs), x, matrix)
  dy = np.random.default_rng(1).normal(size=y.shape)
  dx, dw = pull(dy.astype(y.dtype))
  outs = matrix.ndim - inputs
  rows = range(x.ndim - inputs)
  np.testing.assert_allclose(y, np.tensordot(x, matrix, inputs), atol=1e-5)
  right = tuple(range(-outs, 0))
  np.testing.assert_allclose(
    dx, np.tensordot(dy, matrix, (right, right)), atol=1e-5
  )
  np.testing.assert_allclose(
    dw, np.tensordot(x, dy, (tuple(rows), tuple(rows))), atol=1e-5
  )


@pytest.mark.parametrize('case', CASES)
def test_no_gradient_is_transposed(case):
  x, matrix, inputs = arrays(case)

  def total(x, matrix):
    return product(x, matrix, inputs).sum()

  made = jax.make_jaxpr(jax.grad(total, (0, 1)))(x, matrix)
  assert 'transpose' not in str(made)
