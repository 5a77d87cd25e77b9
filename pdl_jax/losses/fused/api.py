"""Losses of a linear head in the memory of a few tiles, without [N, V] logits.

All split over a (data, fsdp, tensor) mesh with `jax.shard_map`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.errors import ConfigError
from pdl_jax.losses.checks import (
  check_floats,
  check_positive,
  is_zero,
  nan_outside,
  read_labels,
)
from pdl_jax.losses.core import LossTerms, Sums, TokenStats
from pdl_jax.losses.cross_entropy import (
  check_options,
  cross_entropy_terms,
  finish,
  token_weights,
)
from pdl_jax.losses.fused import sharded
from pdl_jax.losses.fused.plan import (
  STATS,
  Axes,
  FusedConfig,
  Plan,
  StatsFunction,
  device_budget,
)
from pdl_jax.losses.fused.tiles import Matrix, Tokens, alike
from pdl_jax.losses.heads import LinearHead
from pdl_jax.losses.reduce import denominator as reduction_denominator
from pdl_jax.losses.renamed import renamed

__all__ = [
  'STATS', 'Axes', 'FusedConfig', 'device_budget', 'linear_loss_sums',
  'linear_pdl_loss', 'linear_token_stats',
]  # fmt: skip
CONFIG = FusedConfig()
# Arguments of version 0.1.
_renamed = renamed(
  head_DxV='head',
  **{
    field.name: f'config.{field.name}'
    for field in dataclasses.fields(FusedConfig)
  },
)


@_renamed
def linear_pdl_loss(
  hidden: Array,
  head: Array | LinearHead,
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
  ignore_index: int | None = -100,
  config: FusedConfig = CONFIG,
) -> Any:
  """`pdl_loss(hidden @ head + bias, ...)` without the logits in memory.

  Two algorithms (`fused.kernel`) give the same value up to rounding: 'tokens'
  in 6NDV floating-point operations; 'vocabulary' in 8NDV, with less memory and
  a value per token. Groups of masked tokens are skipped, matmuls included.

  Inside a caller's `jax.shard_map`, it is the loss of the device's tokens, with
  a whole head. Only reverse mode works: JAX refuses `jax.jvp`, `jax.jacfwd` and
  `jax.hessian`, which `pdl_loss` supports.

  Args:
    hidden: [..., D], fp32 or bf16. Under 'tokens' in fp16 the gradient of the
      logits may underflow, since no loss scale is known yet.
    head: matrix [D, V], cast to the dtype of hidden, with products in fp32; or
      a `LinearHead` with rows [V, R].
    labels, where, reduction, denominator: see `pdl_loss`.
    weights_V: >= 0, from `power_law_weights`; None gives cross-entropy. No
      gradient flows into it.
    label_smoothing, z_loss: see `pdl_loss`; 'tokens' gives them no gradient.
    softcap: z becomes softcap * tanh(z / softcap), before the bias.
    bias_V: [head's V], added to the logits.
    ignore_index: label that also masks its token; None, without `where`, saves
      sorting the tokens. Under 'vocabulary' such tokens are skipped only if
      `where` is given.
    config: algorithm, memory and mesh.

  Returns:
    fp32: a scalar, an array in the labels' shape, or Sums.

  Raises:
    ConfigError: shapes that do not fit, labels out of range (outside jit), an
      option out of range, or reduction 'none' under 'tokens', whose gradient
      is scaled by one cotangent for all tokens.
  """
  check_options(label_smoothing, z_loss, reduction, denominator)
  method = config.method or ('vocabulary' if reduction == 'none' else 'tokens')
  if method == 'tokens' and reduction == 'none':
    raise ConfigError(
      "reduction 'none' needs method 'vocabulary': under 'tokens' the gradient "
      'is made in the forward pass, before a cotangent per token is known'
    )
  options = {'label_smoothing': label_smoothing, 'z_loss': z_loss}
  parameters = {k: v for k, v in options.items() if not is_zero(v)}
  made = _read(
    config, hidden, head, labels, where, ignore_index, bias_V, softcap,
    terms=_nll_terms,
    wants=('average',) if 'label_smoothing' in parameters else (),
  )  # fmt: skip
  weight = made.weight(weights_V)
  if method == 'vocabulary':
    stats = made.stats(skips=where is not None)
    terms = cross_entropy_terms(stats, weight, **options)
    return finish(terms, made.where, reduction, denominator)
  if reduction == 'sums':
    return Sums(*made.sums(weight, parameters)[:2])
  # Each token's coefficient is known before the first matmul, which saves a
  # second pass over the gradients.
  if denominator is None:
    denominator = reduction_denominator(weight, made.where, reduction)
  den = jnp.asarray(denominator, jnp.float32)
  return made.sums(weight / jnp.where(den > 0, den, 1.0), parameters)[0]


def linear_loss_sums(
  terms: StatsFunction,
  hidden: Array,
  head: Array | LinearHead,
  labels: Array,
  weights_V: Array | None,
  where: Array,
  *,
  parameters: Any = (),
  wants: Sequence[str] = (),
  temperature: float = 1.0,
  softcap: float | None = None,
  bias_V: Array | None = None,
  config: FusedConfig = CONFIG,
) -> tuple[Sums, Sums]:
  """Returns Sums of any loss of `TokenStats`, by groups of tokens.

  Args:
    terms: (stats, weight, parameters) -> loss and weight of each token. Traced
      arrays go into `parameters`; `terms` must not close over them.
    parameters: pytree of scalars for the terms; it gets no gradient.
    wants: the `STATS` that the terms read.
    temperature: T of the softmax behind log_z and expected.
    hidden, head, labels, weights_V, where, softcap, bias_V, config: see
      `linear_pdl_loss`.

  Returns:
    weighted: Sums(sum loss, sum weight); num is differentiable.
    plain: unweighted Sums(sum nll at T, n) for monitoring; no gradient.
  """
  made = _read(
    config, hidden, head, labels, where, None, bias_V, softcap,
    temperature=temperature, terms=terms, wants=tuple(wants),
  )  # fmt: skip
  num, den, plain = made.sums(made.weight(weights_V), parameters)
  # A label outside the vocabulary has weight NaN.
  plain = jnp.where(jnp.isnan(den), jnp.nan, plain)
  count = jnp.broadcast_to(where, labels.shape).sum().astype(jnp.float32)
  return Sums(num, den), Sums(plain, count)


@_renamed
def linear_token_stats(
  hidden: Array,
  head: Array | LinearHead,
  labels: Array,
  *,
  where: Array | None = None,
  wants: Sequence[str] = STATS,
  temperature: float = 1.0,
  softcap: float | None = None,
  bias_V: Array | None = None,
  ignore_index: int | None = -100,
  config: FusedConfig = CONFIG,
) -> TokenStats:
  """Returns log-probability, entropy and argmax per token, by V blocks.

  Args: see `linear_pdl_loss`; `wants` names the `STATS` to compute.

  Returns:
    TokenStats in the labels' shape. Masked tokens have zeros. Statistics not in
    `wants` are NaN (argmax: -1). Inside jit, a label outside [0, V) gives NaN
    except in argmax.
  """
  made = _read(
    config, hidden, head, labels, where, ignore_index, bias_V, softcap,
    temperature=temperature, wants=tuple(wants),
  )  # fmt: skip
  stats = made.stats(skips=where is not None)
  shown = {}
  for name, x in stats._asdict().items():
    if name in STATS and name not in wants:
      shown[name] = jnp.full_like(x, -1 if name == 'argmax' else jnp.nan)
    elif name != 'argmax':
      shown[name] = nan_outside(x, made.labels, made.plan.types)
  return stats._replace(**shown)


def _nll_terms(
  stats: TokenStats, weight: Array, parameters: dict[str, Any]
) -> LossTerms:
  return cross_entropy_terms(stats, weight, **parameters)


class _Call(NamedTuple):
  """Checked arguments; labels are 0 where a token does not count."""

  plan: Plan
  matrix: Matrix
  hidden: Array
  labels: Array
  where: Array

  def weight(self, weights_V: Array | None) -> Array:
    found = token_weights(weights_V, self.labels, self.plan.types)
    return lax.stop_gradient(found)

  def sums(self, weight: Array, parameters: Any) -> tuple[Array, ...]:
    """Returns (sum loss, sum weight, sum nll), by groups of tokens."""
    inputs = alike((self.matrix, self._tokens(weight), parameters))
    return sharded.summed(self.plan, *inputs)

  def stats(self, *, skips: bool) -> TokenStats:
    """Returns statistics in the labels' shape, by blocks of the vocabulary.

    `skips` says whether it pays to sort out masked tokens.
    """
    plan = dataclasses.replace(self.plan, masked=skips)
    weight = jnp.ones(self.labels.shape, jnp.float32)
    found = sharded.token_stats(
      plan, *alike((self.matrix, self._tokens(weight)))
    )
    return jax.tree.map(lambda x: x.reshape(self.labels.shape), found)

  def _tokens(self, weight: Array) -> Tokens:
    """Puts tokens in rows; zeros masked hidden states, so that none leaks."""
    hidden = jnp.where(self.where[..., None], self.hidden, 0)
    labels = self.labels.astype(jnp.int32)
    return Tokens(
      hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1),
      weight.reshape(-1), self.where.reshape(-1),
    )  # fmt: skip


def _read(
  config: FusedConfig,
  hidden: Array,
  head: Array | LinearHead,
  labels: Array,
  where: Array | None,
  ignore_index: int | None,
  bias_V: Array | None,
  softcap: float | None,
  **loss: Any,
) -> _Call:
  """Checks the arguments against each other; `loss` are fields of the plan."""
  check_positive('softcap', softcap, or_none=True)
  check_floats(hidden=hidden, bias_V=bias_V)
  if isinstance(head, LinearHead):
    if softcap is not None and head.softcap is not None:
      raise ConfigError(
        f'softcap {softcap} is given besides that of the head, {head.softcap}'
      )
    softcap = head.softcap if softcap is None else softcap
    hidden, matrix = head.project(hidden), head.matrix_VxR
    bias_V = head.with_bias(bias_V).bias_V
    config = dataclasses.replace(config, transposed=True)
  else:
    matrix = head
  check_floats(head=matrix)
  if len(matrix.shape) != 2:
    raise ConfigError(
      f'the head has shape {matrix.shape}; it must be a matrix, [D, V], or '
      '[V, D] with transposed=True'
    )
  width, columns = matrix.shape[:: -1 if config.transposed else 1]
  plan = Plan.of(config, columns, softcap=softcap, **loss)
  if bias_V is not None and bias_V.shape != (columns,):
    raise ConfigError(
      f'bias_V has shape {bias_V.shape}, the head {columns} columns'
    )
  labels, where = read_labels(labels, where, plan.types, ignore_index)
  if hidden.shape != (*labels.shape, width):
    turned = hidden.shape == (*labels.shape, columns)
    advice = f', or give the head with transposed={not config.transposed}'
    raise ConfigError(
      f'hidden has shape {hidden.shape}; for labels {labels.shape} and a head '
      f'of {matrix.shape} it must be {(*labels.shape, width)}'
      f'{advice if turned else ""}'
    )
  if where is None:
    where = jnp.ones(labels.shape, bool)
  else:
    plan = dataclasses.replace(plan, masked=True)
  return _Call(plan, Matrix(matrix, bias_V), hidden, labels, where)
