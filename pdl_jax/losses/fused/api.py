"""Weighted cross-entropy of a linear head, without the [N, V] logits.

`linear_pdl_loss` is the loss of `pdl_loss(hidden @ head, ...)`; a head of any
vocabulary costs the memory of a few tiles. `linear_loss_sums` does the same
for every loss that is a function of `TokenStats`, and `linear_token_stats`
gives the statistics themselves, per token. All three split over a
(data, fsdp, tensor) mesh by hand, with `jax.shard_map`.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from pdl_jax.errors import ConfigError
from pdl_jax.losses.checks import (
  check_array,
  check_floats,
  is_zero,
  nan_outside,
  number_of,
  read_labels,
)
from pdl_jax.losses.core import LossTerms, Sums, TokenStats
from pdl_jax.losses.cross_entropy import (
  check_options,
  finish,
  token_weights,
)
from pdl_jax.losses.fused import sharded
from pdl_jax.losses.fused.kernel import StatsFunction
from pdl_jax.losses.fused.sharded import Axes, Inputs, Plan
from pdl_jax.losses.fused.tiles import alike
from pdl_jax.losses.reduce import denominator as reduction_denominator
from pdl_jax.losses.token_losses import cross_entropy_terms

STATS = ('average', 'expected', 'argmax')
METHODS = ('tokens', 'vocabulary')
# fp32 logits alive at once. The gradient of the head is read and written once
# a group of tokens: at V 32,768 this makes groups of about 700.
MEMORY_BYTES = 88 * 2**20
AXES = Axes()


@overload
def linear_pdl_loss(
  hidden: Array,
  head_DxV: Array,
  labels: Array,
  weights_V: Array | None,
  *,
  reduction: Literal['sums'],
  where: Array | None = None,
  denominator: None = None,
  label_smoothing: Array | float = 0.0,
  z_loss: Array | float = 0.0,
  softcap: float | None = None,
  bias_V: Array | None = None,
  vocab_size: int | None = None,
  transposed: bool = False,
  method: str | None = None,
  memory_bytes: int = MEMORY_BYTES,
  mesh: Mesh | None = None,
  axes: Axes = AXES,
  ignore_index: int | None = -100,
) -> Sums: ...


@overload
def linear_pdl_loss(
  hidden: Array,
  head_DxV: Array,
  labels: Array,
  weights_V: Array | None,
  *,
  reduction: Literal[
    'weighted_mean', 'token_mean', 'sum', 'none'
  ] = 'weighted_mean',
  where: Array | None = None,
  denominator: Array | float | None = None,
  label_smoothing: Array | float = 0.0,
  z_loss: Array | float = 0.0,
  softcap: float | None = None,
  bias_V: Array | None = None,
  vocab_size: int | None = None,
  transposed: bool = False,
  method: str | None = None,
  memory_bytes: int = MEMORY_BYTES,
  mesh: Mesh | None = None,
  axes: Axes = AXES,
  ignore_index: int | None = -100,
) -> Array: ...


def linear_pdl_loss(
  hidden: Array,
  head_DxV: Array,
  labels: Array,
  weights_V: Array | None,
  *,
  where: Array | None = None,
  reduction: str = 'weighted_mean',
  denominator: Array | float | None = None,
  label_smoothing: Array | float = 0.0,
  z_loss: Array | float = 0.0,
  softcap: float | None = None,
  bias_V: Array | None = None,
  vocab_size: int | None = None,
  transposed: bool = False,
  method: str | None = None,
  memory_bytes: int = MEMORY_BYTES,
  mesh: Mesh | None = None,
  axes: Axes = AXES,
  ignore_index: int | None = -100,
) -> Array | Sums:
  """`pdl_loss(hidden @ head + bias, ...)` without the logits in memory.

  Two algorithms, the same value to rounding. 'tokens' takes groups of tokens
  and computes the gradient in the forward pass: 6NDV floating-point
  operations. 'vocabulary' takes blocks of the vocabulary and computes the
  logits twice: 8NDV, but less memory and a value per token. Groups of tokens
  that are masked are skipped, matmuls and all.

  Inside a `jax.shard_map` of the caller's it is the loss of the tokens that the
  device holds, with a whole head. It has a derivative in reverse mode alone:
  `jax.jvp`, `jax.jacfwd` and `jax.hessian` are refused by JAX; `pdl_loss` has
  them.

  Args:
    hidden: [..., D], fp32 or bf16. In fp16 the gradient of the logits may
      underflow under 'tokens', before a loss scale is known.
    head_DxV: output matrix, taken in the dtype of hidden; products add up in
      fp32.
    labels: [...], integers in [0, V) wherever a token counts. Any other makes
      value and gradient NaN inside `jax.jit`, and is an error outside.
    weights_V: >= 0, of each type, from `power_law_weights`; None:
      cross-entropy. No gradient flows into it.
    where: [...], True at tokens that count; what the others hold, NaN too,
      reaches neither loss nor gradient. None: all.
    reduction, denominator, label_smoothing, z_loss: see `pdl_loss`; under
      'tokens' no gradient flows into the last two.
    softcap: z becomes softcap * tanh(z / softcap), before the bias.
    bias_V: [head's V], added to the logits.
    vocab_size: V, where the head has columns of padding at its end.
    transposed: the head is given as [V, D], like a tied embedding, and is not
      turned around.
    method: 'tokens' or 'vocabulary'; None: 'vocabulary' for reduction 'none',
      else 'tokens'.
    memory_bytes: budget of fp32 logits alive at once, from which the sizes of
      the tiles follow; 'tokens' takes at least 512 tokens at a time.
    mesh: that splits the arrays; None: the one of `jax.set_mesh`, if any. The
      number of tokens and the vocabulary need not divide over it, but a head
      that does not is padded, which costs a copy.
    axes: names of its axes.
    ignore_index: label of tokens that are masked too; None: no such label,
      which saves sorting the tokens where there is no `where` either. Under
      'vocabulary' its tokens are skipped only where there is a `where`.

  Returns:
    fp32: a scalar, an array of the shape of the labels, or Sums.

  Raises:
    ConfigError: for shapes that do not fit, labels out of range (outside jit),
      an option out of range, or reduction 'none' under 'tokens', whose
      gradient is scaled by one cotangent for all tokens.
  """
  check_options(label_smoothing, z_loss, softcap, reduction, denominator)
  if method is None:
    method = 'vocabulary' if reduction == 'none' else 'tokens'
  if method not in METHODS:
    raise ConfigError(f'method {method!r} is not one of {", ".join(METHODS)}')
  if method == 'tokens' and reduction == 'none':
    raise ConfigError(
      "reduction 'none' needs method 'vocabulary': under 'tokens' the gradient "
      'is made in the forward pass, before a cotangent per token is known'
    )
  wants = () if is_zero(label_smoothing) else ('average',)
  skips = where is not None
  plan, labels, where = _plan(
    hidden, head_DxV, labels, where, ignore_index, bias_V, vocab_size,
    transposed, softcap, 1.0, memory_bytes, mesh, axes, _nll_terms, wants,
  )  # fmt: skip
  weight = _weight(weights_V, labels, plan.vocab_size)
  options = {'label_smoothing': label_smoothing, 'z_loss': z_loss}
  parameters = {k: v for k, v in options.items() if not is_zero(v)}
  flat = partial(_inputs, hidden, head_DxV, bias_V, labels, where=where)
  if method == 'vocabulary':
    plan = dataclasses.replace(plan, masked=skips)
    found = sharded.token_stats(plan, alike(flat(weight)))
    stats = jax.tree.map(lambda x: x.reshape(labels.shape), found)
    terms = cross_entropy_terms(
      stats, weight, label_smoothing=label_smoothing, z_loss=z_loss
    )
    return finish(terms, where, reduction, denominator)
  if reduction == 'sums':
    num, den, _ = sharded.summed(plan, *alike((flat(weight), parameters)))
    return Sums(num, den)
  # The coefficient of every token is known before the first matmul, so that
  # no second pass over the gradients is needed.
  if denominator is None:
    everywhere = jnp.ones(labels.shape, bool) if where is None else where
    denominator = reduction_denominator(weight, everywhere, reduction)
  den = jnp.asarray(denominator, jnp.float32)
  scaled = weight / jnp.where(den > 0, den, 1.0)
  return sharded.summed(plan, *alike((flat(scaled), parameters)))[0]


def linear_loss_sums(
  terms: StatsFunction,
  hidden: Array,
  head_DxV: Array,
  labels: Array,
  weights_V: Array | None,
  where: Array,
  *,
  parameters: Any = (),
  wants: Sequence[str] = (),
  temperature: float = 1.0,
  softcap: float | None = None,
  bias_V: Array | None = None,
  vocab_size: int | None = None,
  transposed: bool = False,
  memory_bytes: int = MEMORY_BYTES,
  mesh: Mesh | None = None,
  axes: Axes = AXES,
) -> tuple[Sums, Sums]:
  """Sums of any loss of `TokenStats`, by groups of tokens.

  Args:
    terms: (stats, weight, parameters) -> loss and weight of each token. The
      gradient goes through log_z, label and average. It must not close over
      traced arrays: these go into `parameters`, through which no gradient
      flows.
    hidden, head_DxV, labels, weights_V, where: see `linear_pdl_loss`.
    parameters: a pytree of scalars for the terms.
    wants: which of `STATS` the terms read.
    temperature: T of the softmax behind log_z and expected.
    softcap, bias_V, vocab_size, transposed, memory_bytes, mesh, axes: see
      `linear_pdl_loss`.

  Returns:
    weighted: Sums(sum loss, sum weight); num is differentiable.
    plain: Sums(sum nll at T, n), unweighted, to be watched; no gradient.
  """
  plan, labels, kept = _plan(
    hidden, head_DxV, labels, where, None, bias_V, vocab_size, transposed,
    softcap, temperature, memory_bytes, mesh, axes, terms, _check_wants(wants),
  )  # fmt: skip
  weight = _weight(weights_V, labels, plan.vocab_size)
  inputs = _inputs(hidden, head_DxV, bias_V, labels, weight, kept)
  num, den, plain = sharded.summed(plan, *alike((inputs, parameters)))
  # A label outside of the vocabulary has a weight of NaN.
  plain = jnp.where(jnp.isnan(den), jnp.nan, plain)
  count = where.sum().astype(jnp.float32)
  return Sums(num, den), Sums(plain, count)


def linear_token_stats(
  hidden: Array,
  head_DxV: Array,
  labels: Array,
  *,
  where: Array | None = None,
  wants: Sequence[str] = STATS,
  temperature: float = 1.0,
  softcap: float | None = None,
  bias_V: Array | None = None,
  vocab_size: int | None = None,
  transposed: bool = False,
  memory_bytes: int = MEMORY_BYTES,
  mesh: Mesh | None = None,
  axes: Axes = AXES,
  ignore_index: int | None = -100,
) -> TokenStats:
  """Log-probability, entropy and argmax of each token, by vocabulary blocks.

  Args: see `linear_pdl_loss`; `wants` says which of `STATS` are computed.

  Returns:
    TokenStats of the shape of the labels: `nll` is -log p of the label,
    `entropy` that of the distribution. Differentiable in log_z, label and
    average; zeros where masked. What was not asked for is NaN (argmax: -1),
    and so is everything but argmax at a label outside [0, V) inside jit.
  """
  wants, skips = _check_wants(wants), where is not None
  plan, labels, where = _plan(
    hidden, head_DxV, labels, where, ignore_index, bias_V, vocab_size,
    transposed, softcap, temperature, memory_bytes, mesh, axes, None, wants,
  )  # fmt: skip
  plan = dataclasses.replace(plan, masked=skips)
  weight = jnp.ones(labels.shape, jnp.float32)
  inputs = _inputs(hidden, head_DxV, bias_V, labels, weight, where)
  *numbers, argmax = (
    x.reshape(labels.shape) for x in sharded.token_stats(plan, alike(inputs))
  )
  log_z, label, average, expected = (
    nan_outside(x, labels, plan.vocab_size) for x in numbers
  )
  nan = jnp.full(labels.shape, jnp.nan, jnp.float32)
  return TokenStats(
    log_z,
    label,
    average if 'average' in wants else nan,
    expected if 'expected' in wants else nan,
    argmax if 'argmax' in wants else jnp.full_like(argmax, -1),
  )


def _nll_terms(
  stats: TokenStats, weight: Array, parameters: dict[str, Any]
) -> LossTerms:
  return cross_entropy_terms(stats, weight, **parameters)


def _check_wants(wants: Sequence[str]) -> tuple[str, ...]:
  unknown = [name for name in wants if name not in STATS]
  if unknown:
    raise ConfigError(f'wants {unknown[0]!r} is not one of {", ".join(STATS)}')
  return tuple(wants)


def _plan(
  hidden: Array,
  head_DxV: Array,
  labels: Array,
  where: Array | None,
  ignore_index: int | None,
  bias_V: Array | None,
  vocab_size: int | None,
  transposed: bool,
  softcap: float | None,
  temperature: float,
  memory_bytes: int,
  mesh: Mesh | None,
  axes: Axes,
  terms: StatsFunction | None,
  wants: tuple[str, ...],
) -> tuple[Plan, Array, Array | None]:
  """Checks the arguments against each other; also `read_labels`."""
  check_options(0.0, 0.0, softcap, 'none', None)
  check_floats(hidden=hidden, head=head_DxV, bias_V=bias_V)
  check_array('labels', labels, jnp.integer, 'integers')
  if len(head_DxV.shape) != 2:
    raise ConfigError(
      f'the head has shape {head_DxV.shape}; it must be a matrix, [D, V], or '
      '[V, D] with transposed=True'
    )
  width, columns = head_DxV.shape[::-1] if transposed else head_DxV.shape
  size = columns if vocab_size is None else vocab_size
  if hidden.shape != (*labels.shape, width):
    turned = hidden.shape == (*labels.shape, columns)
    advice = f', or give the head with transposed={not transposed}'
    raise ConfigError(
      f'hidden has shape {hidden.shape}; for labels {labels.shape} and a head '
      f'of {head_DxV.shape} it must be {(*labels.shape, width)}'
      f'{advice if turned else ""}'
    )
  if not isinstance(size, int | np.integer) or not 0 < size <= columns:
    raise ConfigError(
      f'vocab_size {size} must be in [1, {columns}], the columns of the head'
    )
  if bias_V is not None and bias_V.shape != (columns,):
    raise ConfigError(
      f'bias_V has shape {bias_V.shape}, the head {columns} columns'
    )
  if not 0 < number_of(temperature) < np.inf:
    raise ConfigError(f'temperature must be > 0, got {temperature}')
  if not 0 < number_of(memory_bytes) < np.inf:
    raise ConfigError(f'memory_bytes must be > 0, got {memory_bytes}')
  labels, where = read_labels(labels, where, size, ignore_index)
  used, memory_bytes = sharded.usable_mesh(mesh), int(memory_bytes)
  plan = Plan(
    terms, wants, size, softcap, temperature, memory_bytes, where is not None,
    transposed, used, sharded.present_axes(axes, used),
  )  # fmt: skip
  return plan, labels, where


def _weight(weights_V: Array | None, labels: Array, size: int) -> Array:
  return lax.stop_gradient(token_weights(weights_V, labels, size))


def _inputs(
  hidden: Array,
  head_DxV: Array,
  bias_V: Array | None,
  labels: Array,
  weight: Array,
  where: Array | None,
) -> Inputs:
  """Tokens in rows, and nothing behind the mask that could leak."""
  if where is None:
    where = jnp.ones(labels.shape, bool)
  hidden = jnp.where(where[..., None], hidden, 0)
  labels = labels.astype(jnp.int32)
  return Inputs(
    hidden.reshape(-1, hidden.shape[-1]), head_DxV, bias_V,
    labels.reshape(-1), weight.reshape(-1), where.reshape(-1),
  )  # fmt: skip
