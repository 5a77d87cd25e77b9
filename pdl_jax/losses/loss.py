"""A loss with its settings, applied to any output head."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.errors import ConfigError
from pdl_jax.losses import dense_losses, token_losses
from pdl_jax.losses.checks import check_floats, nan_outside, read_labels
from pdl_jax.losses.chunked import chunked_loss_sums
from pdl_jax.losses.core import LossTerms, Sums, TokenStats
from pdl_jax.losses.cross_entropy import token_nll
from pdl_jax.losses.fused.api import linear_loss_sums, linear_token_stats
from pdl_jax.losses.heads import (
  AdaptiveHead,
  CodeHead,
  CodeTables,
  Head,
  LinearHead,
  along,
  code_stats,
  code_tables,
  logit_stats,
)
from pdl_jax.losses.registry import LossSpec
from pdl_jax.mesh import constrain


class LossTables(NamedTuple):
  """What a loss knows of the types: arrays, so that a step can be given others.

  Attributes:
    weights_V: of each type; ones is cross-entropy.
    bias_V: added to the logits, or None.
  """

  weights_V: Array
  bias_V: Array | None = None


class Loss(NamedTuple):
  """A loss with its settings, as a step is compiled for it.

  Attributes:
    spec: from LOSSES.
    settings: of its terms or of its part on logits, Python numbers.
    reduction: what the sum is divided by, see `reduce.denominator`.
  """

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
    """Weighted Sums of a head's loss, and plain ones to be watched.

    The first numerator is differentiable in hidden and in the head. See
    `linear.linear_loss_sums` for the arguments; rows are sequences of targets.
    """
    spec = self.spec
    tokens = hidden_BxLxD, labels_BxL, tables.weights_V, where_BxL
    if spec.on_logits is not None:
      weighted, plain = chunked_loss_sums(
        self._on_logits, head, *tokens, vocab_size=head.vocab_size,
        columns=head.vocab_size,
      )  # fmt: skip
    elif isinstance(head, CodeHead):
      head = head.with_bias(tables.bias_V)
      tables_K = code_tables(head, self._temperature)
      weighted, plain = chunked_loss_sums(
        self._on_codes, (head, tables_K), *tokens, vocab_size=head.vocab_size,
        columns=head.matrix_KxD.shape[0],
      )  # fmt: skip
    elif isinstance(head, AdaptiveHead):
      weighted, plain = chunked_loss_sums(
        self._on_wide, (head, tables.bias_V), *tokens,
        vocab_size=head.vocab_size, columns=head.vocab_size,
      )  # fmt: skip
    else:
      bias_V = tables.bias_V
      if head.bias_V is not None:
        bias_V = head.bias_V if bias_V is None else head.bias_V + bias_V
      weighted, plain = linear_loss_sums(
        self._terms, head.project(hidden_BxLxD), head.matrix_VxR, labels_BxL,
        tables.weights_V, where_BxL, transposed=True, bias_V=bias_V,
        wants=self._wants, temperature=self._temperature,
        softcap=head.softcap,
      )  # fmt: skip
    den = {
      'weighted_mean': weighted.den,
      'token_mean': plain.den,
      'sum': jnp.zeros_like(weighted.den),
    }[self.reduction]
    return Sums(weighted.num, den), plain

  def check(self) -> None:
    """Refuses settings out of range, by evaluating the loss of two tokens.

    Raises:
      ConfigError: naming the setting.
    """
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

  def _on_logits(
    self,
    head: Head,
    hidden: Array,
    labels: Array,
    weight: Array,
    row: tuple[Array, Array],
  ) -> tuple[LossTerms, Array]:
    assert self.spec.on_logits is not None
    logits = constrain(head.logits(hidden), 'batch', 'length', 'vocab')
    labels_BxC, earlier = row
    if isinstance(head, AdaptiveHead):
      # What a type looks like in its cluster; of use to none but emo.
      raise ConfigError(
        'losses on all logits need an output row for each type, and '
        'model.head adaptive has none'
      )
    context = dense_losses.Context(labels_BxC, earlier, head.rows().T)
    terms = self.spec.on_logits(
      logits, labels, context, weight, **self.settings
    )
    return terms, token_nll(jax.lax.stop_gradient(logits), labels)

  def _on_wide(
    self,
    made: tuple[AdaptiveHead, Array | None],
    hidden: Array,
    labels: Array,
    weight: Array,
    _: tuple,
  ) -> tuple[LossTerms, Array]:
    head, bias_V = made
    logits = head.placed_logits(hidden)
    if bias_V is not None:
      logits += along(logits, bias_V[jnp.argsort(head.places_V)])
    logits = constrain(logits, 'batch', 'length', 'vocab')
    places = head.places_V[labels]
    stats = logit_stats(logits, places, self._temperature)
    nll = stats.log_z - stats.label / self._temperature
    return self._terms(stats, weight, ()), nll

  def _on_codes(
    self,
    made: tuple[CodeHead, CodeTables],
    hidden: Array,
    labels: Array,
    weight: Array,
    _: tuple,
  ) -> tuple[LossTerms, Array]:
    head, tables_K = made
    stats = code_stats(
      head, tables_K, head.code_logits(hidden), labels, self._temperature
    )
    nll = stats.log_z - stats.label / self._temperature
    return self._terms(stats, weight, ()), nll


def _nll_by_row(
  head: AdaptiveHead, hidden: Array, labels: Array
) -> Array:
  """A sequence at a time: its logits are as wide as the vocabulary."""

  def row(pair: tuple[Array, Array]) -> Array:
    return token_nll(head.placed_logits(pair[0]), head.places_V[pair[1]])

  return jax.lax.map(row, (hidden, labels))


def head_nll(
  head: Head, hidden: Array, labels: Array, where: Array
) -> Array:
  """-log p of each label, in nats, of the shape of the labels; 0 if masked."""
  if isinstance(head, LinearHead):
    return linear_token_stats(
      head.project(hidden), head.matrix_VxR, labels, where=where, wants=(),
      transposed=True, bias_V=head.bias_V, softcap=head.softcap,
      ignore_index=None,
    ).nll  # fmt: skip
  check_floats(hidden=hidden)
  safe, kept = read_labels(labels, where, head.vocab_size)
  assert kept is not None
  hidden = jnp.where(kept[..., None], hidden, 0)
  if isinstance(head, AdaptiveHead):
    nll = _nll_by_row(head, hidden, safe)
  else:
    nll = code_stats(
      head, code_tables(head), head.code_logits(hidden), safe
    ).nll
  return jnp.where(kept, nan_outside(nll, safe, head.vocab_size), 0.0)
