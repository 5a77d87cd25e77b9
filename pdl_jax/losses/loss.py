"""Applies a loss with its settings to any output head."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.losses import dense_losses, token_losses
from pdl_jax.losses.checks import check_floats, nan_outside, read_labels
from pdl_jax.losses.chunked import chunked_loss_sums
from pdl_jax.losses.core import LossTerms, Sums, TokenStats
from pdl_jax.losses.cross_entropy import token_nll
from pdl_jax.losses.fused.api import linear_loss_sums, linear_token_stats
from pdl_jax.losses.heads import Head, LinearHead
from pdl_jax.losses.registry import LossSpec
from pdl_jax.mesh import constrain


class LossTables(NamedTuple):
  """Weights of the types, and a bias of the logits; arguments of each step."""

  weights_V: Array
  bias_V: Array | None = None


class Loss(NamedTuple):
  """A loss with its settings, Python numbers that a step is compiled for."""

  spec: LossSpec
  settings: Mapping[str, Any]
  reduction: str = 'weighted_mean'

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
    tokens = labels_BxL, tables.weights_V, where_BxL
    biased = head.with_bias(tables.bias_V)
    if self.spec.on_logits is not None:
      weighted, plain = chunked_loss_sums(
        self._of_logits, head, hidden_BxLxD, *tokens,
        vocab_size=head.vocab_size, columns=head.vocab_size,
      )  # fmt: skip
    elif isinstance(biased, LinearHead):
      weighted, plain = linear_loss_sums(
        self._terms, hidden_BxLxD, biased, *tokens, wants=self._wants,
        temperature=self._temperature,
      )  # fmt: skip
    else:
      made = biased, biased.tables(self._temperature)
      weighted, plain = chunked_loss_sums(
        self._of_head, made, hidden_BxLxD, *tokens,
        vocab_size=head.vocab_size, columns=biased.columns,
      )  # fmt: skip
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
    terms = self.spec.terms or token_losses.cross_entropy_terms
    return terms(stats, weight, **self.settings)

  def _of_logits(
    self,
    head: Head,
    hidden: Array,
    labels: Array,
    weight: Array,
    row: tuple[Array, Array],
  ) -> tuple[LossTerms, Array]:
    assert self.spec.on_logits is not None
    labels_BxC, earlier = row
    context = dense_losses.Context(labels_BxC, earlier, head.rows().T)
    logits = constrain(head.logits(hidden), 'batch', 'length', 'vocab')
    terms = self.spec.on_logits(
      logits, labels, context, weight, **self.settings
    )
    return terms, token_nll(jax.lax.stop_gradient(logits), labels)

  def _of_head(
    self, made: Any, hidden: Array, labels: Array, weight: Array, _: Any
  ) -> tuple[LossTerms, Array]:
    head, tables = made
    stats = head.stats(tables, hidden, labels, self._temperature)
    nll = stats.log_z - stats.label / self._temperature
    return self._terms(stats, weight, ()), nll


def head_nll(
  head: Head, hidden: Array, labels: Array, where: Array
) -> Array:
  """Returns -log p of each label in nats, [...]; 0 where masked."""
  if isinstance(head, LinearHead):
    return linear_token_stats(
      hidden, head, labels, where=where, wants=(), ignore_index=None
    ).nll
  check_floats(hidden=hidden)
  safe, kept = read_labels(labels, where, head.vocab_size)
  assert kept is not None
  nll = head.nll(jnp.where(kept[..., None], hidden, 0), safe)
  return jnp.where(kept, nan_outside(nll, safe, head.vocab_size), 0.0)
