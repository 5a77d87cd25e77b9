"""Checks, before a run trains, that code compiled by JAX computes correctly.

XLA's CPU backend gives some reductions to YNNPACK. In jaxlib 0.10.2 and
0.12.0.1 this computes them wrongly and without an error, up to NaN (jax #39103,
tensorflow #126812). Every process of this project sets `process.XLA_FLAG`,
which takes reductions from YNNPACK. Accelerators have had wrong kernels too
(jax #39486, #40633). So known patterns and the loss itself are compiled and
compared with fp64.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdl_jax.errors import HostError
from pdl_jax.losses import LOSSES, Loss, LossTables
from pdl_jax.losses.core import LossTerms, Sums, TokenStats
from pdl_jax.losses.cross_entropy import cross_entropy_terms
from pdl_jax.losses.dense_losses import Context, earlier_targets
from pdl_jax.losses.heads import LinearHead
from pdl_jax.process import XLA_FLAG

# Relative to the largest value. Inputs have few binary digits, so that their
# products stay exact in the bfloat16 passes of accelerators.
_TOLERANCE = {'cpu': 1e-4}
_ROUNDED = 1e-2
# One of the patterns gives a different number at each call.
_CALLS = 20
_B, _L, _D, _V = 2, 16, 32, 300


class _Case(NamedTuple):
  """A compiled result, and its true value in fp64."""

  name: str
  found: Any
  truth: Any


def check_backend(loss: Loss | None = None) -> str:
  """Compares results compiled for JAX's default device with NumPy in fp64.

  Importing pdl_jax sets no XLA flag. Your own process that computes on CPUs
  must set, before JAX starts,
  XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce

  Args:
    loss: its value and gradients are compared; None takes `linear_pdl_loss`.

  Returns:
    one line for the terminal.

  Raises:
    HostError: a result differs by more than rounding.
  """
  backend = jax.default_backend()
  tolerance = _TOLERANCE.get(backend, _ROUNDED)
  worst = 0.0
  for case in _cases(loss or Loss(LOSSES['power_law'], {})):
    error = _difference(case)
    worst = max(worst, error)
    if not error <= tolerance:
      raise HostError(
        f'jaxlib {metadata.version("jaxlib")} computes wrong numbers on this '
        f'{backend}: {case.name} differs from fp64 by {error:.1e} of its size, '
        f'more than {tolerance:g}; XLA_FLAGS is '
        f'{os.environ.get("XLA_FLAGS", "")!r}. On a CPU set '
        f'XLA_FLAGS={XLA_FLAG} before JAX starts (launch.py does), elsewhere '
        'take another version of jaxlib or of the driver'
      )
  return f'self-check reductions and loss, compiled: {worst:.0e} from fp64'


def _difference(case: _Case) -> float:
  truth = np.asarray(case.truth, np.float64)
  gap = np.abs(np.asarray(case.found, np.float64) - truth).max()
  error = float(gap / max(np.abs(truth).max(), 1e-30))
  return error if np.isfinite(error) else float('inf')


def _cases(loss: Loss) -> Iterator[_Case]:
  yield from _reductions()
  yield from _loss(loss)


def _reductions() -> Iterator[_Case]:
  """Yields the patterns that XLA is known to compile wrongly."""
  rows = np.arange(32_769, dtype=np.float32)
  points = np.stack([rows, 0 * rows, 0 * rows], 1)
  draw = np.random.default_rng(0)
  e = draw.integers(-8, 9, (8, 119, 119)).astype(np.float32)
  ones = np.ones((1024, 1), np.float32)

  def patterns(points: Array, e: Array, s: Array, ones: Array) -> list[Array]:
    product = jax.vmap(lambda unit, row: ((unit @ row) ** 2).sum(), (None, 0))
    return [
      product(jnp.eye(3), points),
      ((e @ jnp.broadcast_to(s, e.shape)) * e).sum((1, 2)),
      ((e @ jnp.zeros_like(e)) * e + e).sum(-1),
      jnp.broadcast_to(ones, (2, 1024, 1024)).sum(),
    ]

  # One program, because compiling takes longer than computing.
  compiled = jax.jit(patterns)
  found = [compiled(points, e, np.float32(0.75), ones) for _ in range(_CALLS)]
  truth = e.astype(np.float64)
  yield from map(_Case, (
    'a vmapped product, squared and summed',
    'a product with a broadcast number inside a sum',
    'a product with zeros inside a sum',
  ), found[0], (
    rows.astype(np.float64) ** 2,
    0.75 * (truth.sum(2) ** 2).sum(1),
    truth.sum(-1),
  ))  # fmt: skip
  sums = [numbers[-1] for numbers in found]
  yield _Case('a sum over a broadcast array', sums, np.full(_CALLS, 2.0**21))


def _loss(loss: Loss) -> Iterator[_Case]:
  """Yields value, denominator and gradients of a loss on a linear head."""
  draw = np.random.default_rng(1)

  def short(*shape: int) -> np.ndarray:
    return (draw.integers(-16, 17, shape) / 16).astype(np.float32)

  hidden_BxLxD, rows_VxD, bias_V = short(_B, _L, _D), short(_V, _D), short(_V)
  weights_V = draw.integers(1, 33, _V).astype(np.float32) / 16
  # Some types occur twice in a row of targets.
  labels_BxL = draw.integers(0, _V, (_B, _L)).astype(np.int32)
  labels_BxL[:, 3:6] = labels_BxL[:, :3]
  where_BxL = draw.random((_B, _L)) < 0.8
  if loss.spec.bias is None:
    bias_V = np.zeros_like(bias_V)
  tables = LossTables(jnp.asarray(weights_V), jnp.asarray(bias_V))

  def compiled(hidden: Array, rows: Array) -> tuple[Array, list[Array]]:
    weighted, plain = loss.sums(
      LinearHead(rows), hidden, jnp.asarray(labels_BxL), tables,
      jnp.asarray(where_BxL),
    )  # fmt: skip
    return weighted.num, [weighted.den, plain.num]

  value = jax.jit(jax.value_and_grad(compiled, (0, 1), has_aux=True))
  (num, (den, plain)), (of_hidden, of_rows) = value(
    jnp.asarray(hidden_BxLxD), jnp.asarray(rows_VxD)
  )
  hidden, rows = hidden_BxLxD.astype(np.float64), rows_VxD.astype(np.float64)
  z = hidden @ rows.T + bias_V
  weight_BxL = np.where(where_BxL, weights_V[labels_BxL], 0)
  sums, dz = _by_hand(loss, z, rows, labels_BxL, weight_BxL, where_BxL)
  log_z, label, *_ = _stats(z, labels_BxL, 1.0)[0]
  yield _Case('the loss', num, sums.num)
  yield _Case('the sum of weights', den, sums.den)
  yield _Case('the unweighted loss', plain, (log_z - label)[where_BxL].sum())
  yield _Case('the gradient by hidden states', of_hidden, dz @ rows)
  by_rows = np.einsum('blv,bld->vd', dz, hidden)
  yield _Case('the gradient by the output rows', of_rows, by_rows)


def _by_hand(
  loss: Loss,
  z: np.ndarray,
  rows_VxD: np.ndarray,
  labels: np.ndarray,
  weight: np.ndarray,
  where: np.ndarray,
) -> tuple[Sums, np.ndarray]:
  """Returns Sums of the loss, and the gradient of the first by the logits z.

  Sums over the vocabulary are done here in fp64; JAX computes only the terms
  from each token's statistics. Unlike in training, a loss on all logits gets
  them whole.
  """
  spec, weight = loss.spec, weight.astype(np.float32)
  on_logits = spec.on_logits
  if on_logits is not None:
    earlier = jax.jit(earlier_targets, static_argnums=(2, 3))
    context = Context(
      jnp.asarray(labels), earlier(labels, where, 0, _L),
      jnp.asarray(rows_VxD.T, jnp.float32),
    )  # fmt: skip
    sums, (dz,) = _of_tokens(
      lambda z: on_logits(z, labels, context, weight, **loss.settings), z
    )
    return sums, dz
  temperature = loss.settings.get(spec.temperature, 1.0)
  stats, q, chosen = _stats(z, labels, temperature)
  of_stats: Callable[..., LossTerms] = spec.terms or cross_entropy_terms
  sums, (log_z, label, average) = _of_tokens(
    lambda *first: of_stats(
      TokenStats(*first, *stats[3:]), weight, **loss.settings
    ),
    *stats[:3],
  )
  dz = log_z[..., None] * q / temperature + label[..., None] * chosen
  return sums, dz + average[..., None] / z.shape[-1]


def _of_tokens(
  terms: Callable[..., LossTerms], *numbers: np.ndarray
) -> tuple[Sums, list[np.ndarray]]:
  """Returns Sums over tokens, and the first's gradient by each argument."""

  def total(*numbers: Array) -> tuple[Array, LossTerms]:
    found = terms(*numbers)
    return found.loss_BxL.sum(), found

  slopes_of = jax.grad(total, tuple(range(len(numbers))), has_aux=True)
  slopes, (loss_BxL, weight_BxL) = jax.tree.map(
    partial(np.asarray, dtype=np.float64),
    jax.jit(slopes_of)(*(x.astype(np.float32) for x in numbers)),
  )
  return Sums(loss_BxL.sum(), weight_BxL.sum()), slopes


def _stats(
  z: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
  """Returns the fields of TokenStats, softmax(z / T) and the one-hot labels."""
  top = z.max(-1, keepdims=True)
  power = np.exp((z - top) / temperature)
  mass = power.sum(-1, keepdims=True)
  q, chosen = power / mass, np.eye(z.shape[-1])[labels]
  stats = (
    (np.log(mass) + top / temperature)[..., 0], (z * chosen).sum(-1),
    z.mean(-1), (q * z).sum(-1).astype(np.float32), z.argmax(-1),
  )  # fmt: skip
  return stats, q, chosen
