"""Applies a loss with its settings to any output head."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses import dense_losses
from pdl_jax.losses.checks import check_floats, nan_outside, read_labels
from pdl_jax.losses.core import LossTerms, Sums, TokenStats
from pdl_jax.losses.cross_entropy import (
  cross_entropy_terms,
  token_nll,
  token_weights,
)
from pdl_jax.losses.fused.api import (
  CONFIG,
  FusedConfig,
  device_budget,
  linear_loss_sums,
  linear_token_stats,
)
from pdl_jax.losses.heads import Head, LinearHead
from pdl_jax.losses.registry import LossSpec
from pdl_jax.mesh import constrain

# Elements of the logits alive at once; 2**24 fp32 numbers are 64 MiB.
CHUNK_ELEMENTS = 2**24


class LossTables(NamedTuple):
  """Weights of the types, and a bias of the logits; arguments of each step."""

  weights_V: Array
  bias_V: Array | None = None


class Loss(NamedTuple):
  """A loss with its settings, Python numbers that a step is compiled for.

  `fused` says how that of a linear head is computed.
  """

  spec: LossSpec
  settings: Mapping[str, Any]
  reduction: str = 'weighted_mean'
  fused: FusedConfig = CONFIG

  @property
  def tile_bytes(self) -> int:
    """The budget of a linear head's tiles on the device that there is."""
    return self.fused.memory_bytes or device_budget()

  def sums(
    self,
    head: Head,
    hidden_BxLxD: Array,
    labels_BxL: Array,
    tables: LossTables,
    where_BxL: Array,
  ) -> tuple[Sums, Sums]:
    """Returns weighted Sums of a head's loss, and plain ones for monitoring.

    A linear head takes the fused path, other heads the chunked one. Rows are
    sequences of targets. See `fused.api.linear_loss_sums`.
    """
    rest = labels_BxL, tables.weights_V, where_BxL
    if self.spec.on_logits is None:
      head = head.with_bias(tables.bias_V)
    if self.spec.on_logits is None and isinstance(head, LinearHead):
      weighted, plain = linear_loss_sums(
        self._terms, hidden_BxLxD, head, *rest, wants=self._wants,
        temperature=self._temperature, config=self.fused,
      )  # fmt: skip
    else:
      weighted, plain = self._chunked(head, hidden_BxLxD, *rest)
    den = {
      'weighted_mean': weighted.den,
      'token_mean': plain.den,
      'sum': jnp.zeros_like(weighted.den),
    }[self.reduction]
    return Sums(weighted.num, den), plain

  def check(self) -> None:
    """Refuses settings out of range, by evaluating the loss on two tokens."""
    ones = jnp.ones((1, 2))
    if self.spec.on_logits is None:
      self._terms(TokenStats(ones, ones, ones, ones, ones), ones, ())
      return
    labels = jnp.zeros((1, 2), int)
    earlier = dense_losses.earlier_targets(labels, ones > 0, 0, 2)
    context = dense_losses.Context(labels, earlier, ones)
    logits = jnp.ones((1, 2, 2))
    self.spec.on_logits(logits, labels, context, ones, **self.settings)

  @property
  def _temperature(self) -> float:
    return self.settings.get(self.spec.temperature, 1.0)

  @property
  def _wants(self) -> tuple[str, ...]:
    smooth = self.settings.get('label_smoothing', 0.0) > 0
    return ('average',) if smooth else self.spec.wants

  def _terms(
    self, stats: TokenStats, weight: Array, _: tuple[()]
  ) -> LossTerms:
    terms = self.spec.terms or cross_entropy_terms
    return terms(stats, weight, **self.settings)

  def _chunk(
    self, made: Any, hidden: Array, labels: Array, weight: Array, row: Any
  ) -> tuple[LossTerms, Array]:
    """Returns terms and nll of a chunk; `row` begins a `Context`."""
    (head, tables), on_logits = made, self.spec.on_logits
    if on_logits is None:
      stats = head.stats(tables, hidden, labels, self._temperature)
      nll = stats.log_z - stats.label / self._temperature
      return self._terms(stats, weight, ()), nll
    labels_BxC, earlier = row
    context = dense_losses.Context(labels_BxC, earlier, head.rows().T)
    logits = constrain(head.logits(hidden), 'batch', 'length', 'vocab')
    terms = on_logits(logits, labels, context, weight, **self.settings)
    return terms, token_nll(lax.stop_gradient(logits), labels)

  def _chunked(
    self,
    head: Any,
    hidden_BxLxD: Array,
    labels_BxL: Array,
    weights_V: Array | None,
    where_BxL: Array,
  ) -> tuple[Sums, Sums]:
    """Returns Sums as `linear_loss_sums` does, a few positions at a time.

    It serves losses that need more than `TokenStats`, and heads without a
    matrix. The backward pass recomputes the logits of each chunk, so that only
    one chunk of them is alive at a time; the gradient of the head adds up in
    its own dtype. The compiler splits the arrays over the mesh.
    """
    made, columns = (head, None), head.vocab_size
    if self.spec.on_logits is None:
      made, columns = (head, head.tables(self._temperature)), head.columns
    batch, length = labels_BxL.shape
    check_floats(hidden=hidden_BxLxD)
    labels_BxL, kept = read_labels(labels_BxL, where_BxL, head.vocab_size)
    assert kept is not None
    hidden_BxLxD = jnp.where(kept[..., None], hidden_BxLxD, 0)
    weight_BxL = token_weights(weights_V, labels_BxL, head.vocab_size)
    part = max(1, min(length, CHUNK_ELEMENTS // (batch * columns)))
    part = -(-length // -(-length // part))
    count = -(-length // part)

    def split(x: Array) -> Array:
      """Splits [B, L, ...] into [count, B, part, ...], zeros at the end."""
      room = [(0, 0), (0, count * part - length)] + [(0, 0)] * (x.ndim - 2)
      x = jnp.pad(x, room).reshape(batch, count, part, *x.shape[2:])
      return jnp.moveaxis(x, 1, 0)

    @jax.checkpoint
    def chunk(made: Any, start: Array, *arrays: Array) -> tuple:
      hidden, labels, weight, where = arrays
      earlier = dense_losses.earlier_targets(labels_BxL, kept, start, part)
      row = labels_BxL, earlier
      terms, nll = self._chunk(made, hidden, labels, weight, row)
      return tuple(
        jnp.where(where, x, 0.0).sum() for x in (*terms, lax.stop_gradient(nll))
      )

    def step(sums: tuple, arrays: tuple[Array, ...]) -> tuple[tuple, None]:
      values = chunk(made, *arrays)
      return tuple(a + b for a, b in zip(sums, values, strict=True)), None

    zero = jnp.zeros((), jnp.float32)
    arrays = map(split, (hidden_BxLxD, labels_BxL, weight_BxL, kept))
    starts = jnp.arange(count) * part
    (num, den, plain), _ = lax.scan(step, (zero,) * 3, (starts, *arrays))
    # A label outside the vocabulary has weight NaN.
    plain = jnp.where(jnp.isnan(den), jnp.nan, plain)
    tokens = kept.sum().astype(jnp.float32)
    return (
      Sums(num, lax.stop_gradient(den)), Sums(lax.stop_gradient(plain), tokens)
    )


def head_nll(
  head: Head,
  hidden: Array,
  labels: Array,
  where: Array,
  fused: FusedConfig = CONFIG,
) -> Array:
  """Returns -log p of each label in nats, [...]; 0 where masked."""
  if isinstance(head, LinearHead):
    return linear_token_stats(
      hidden, head, labels, where=where, wants=(), ignore_index=None,
      config=fused,
    ).nll  # fmt: skip
  check_floats(hidden=hidden)
  safe, kept = read_labels(labels, where, head.vocab_size)
  assert kept is not None
  nll = head.nll(jnp.where(kept[..., None], hidden, 0), safe)
  return jnp.where(kept, nan_outside(nll, safe, head.vocab_size), 0.0)
