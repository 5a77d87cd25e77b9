"""Output heads as losses see them: plain arrays."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from pdl_jax.errors import ConfigError
from pdl_jax.losses.core import TokenStats
from pdl_jax.losses.cross_entropy import label_logit, token_nll
from pdl_jax.mesh import constrain


def along(x: Array, row: Array) -> Array:
  """Reshapes a row to broadcast along the last axis of x."""
  return row.reshape((1,) * (x.ndim - 1) + row.shape)


def _with_bias(head: Any, bias_V: Array | None) -> Any:
  """Returns the head with an added bias of its logits, or of its log p."""
  if head.bias_V is not None and bias_V is not None:
    bias_V = head.bias_V + bias_V
  return head if bias_V is None else head._replace(bias_V=bias_V)


class LinearHead(NamedTuple):
  """z_v = (h P) . W_v + b_v; with a soft cap c, c tanh((h P) . W_v / c) + b_v.

  W is `matrix_VxR`, with a row for each type. P is the projection of a low-rank
  head; without one, W multiplies the hidden state itself.
  """

  matrix_VxR: Array
  bias_V: Array | None = None
  projection_DxR: Array | None = None
  softcap: float | None = None

  with_bias = _with_bias

  @property
  def vocab_size(self) -> int:
    """Vocabulary size V."""
    return self.matrix_VxR.shape[0]

  def project(self, hidden: Array) -> Array:
    """Returns h P, [..., R], which the matrix multiplies."""
    if self.projection_DxR is None:
      return hidden
    return hidden @ self.projection_DxR.astype(hidden.dtype)

  def logits(self, hidden: Array) -> Array:
    """Returns logits [..., V], fp32."""
    z = jnp.einsum(
      '...r,vr->...v', self.project(hidden),
      self.matrix_VxR.astype(hidden.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip
    if self.softcap is not None:
      z = self.softcap * jnp.tanh(z / self.softcap)
    return z if self.bias_V is None else z + along(z, self.bias_V)

  def rows(self) -> Array:
    """Returns the effective output matrix, [V, D]."""
    if self.projection_DxR is None:
      return self.matrix_VxR
    return self.matrix_VxR @ self.projection_DxR.T


class CodeTables(NamedTuple):
  """Sums over the types of each code, [K]; fp32 except tokens_K.

  Attributes:
    size_K: number of types.
    log_mass_K: log sum_i exp(b_i / T); -inf for an empty code.
    mean_K: mean of b under exp(b / T); 0 for an empty code.
    top_K: largest b; -inf for an empty code.
    tokens_K: first type with that b; V for an empty code.
  """

  size_K: Array
  log_mass_K: Array
  mean_K: Array
  top_K: Array
  tokens_K: Array


class CodeHead(NamedTuple):
  """z_v = h . C[c(v)] + b_v: all types of a code share one row.

  So p(v | h) = p(code | h) p(v | code), where the second factor does not depend
  on h: a class-based language model (Brown et al. 1992, Computational
  Linguistics 18(4)). A loss needs only the K logits of the codes. The codes c
  are int32 in [0, K). Without a bias, all types of a code tie.
  """

  matrix_KxD: Array
  codes_V: Array
  bias_V: Array | None = None

  with_bias = _with_bias

  @property
  def vocab_size(self) -> int:
    """Vocabulary size V."""
    return self.codes_V.shape[0]

  @property
  def columns(self) -> int:
    """Number of logits computed per token."""
    return self.matrix_KxD.shape[0]

  def code_logits(self, hidden: Array) -> Array:
    """Returns h . C, [..., K], fp32."""
    return jnp.einsum(
      '...d,kd->...k', hidden, self.matrix_KxD.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )  # fmt: skip

  def logits(self, hidden: Array) -> Array:
    """Returns logits [..., V], fp32, for callers that need every type."""
    z = jnp.take(self.code_logits(hidden), self.codes_V, axis=-1)
    return z if self.bias_V is None else z + along(z, self.bias_V)

  def rows(self) -> Array:
    """Returns the effective output matrix, [V, D]."""
    return self.matrix_KxD[self.codes_V]

  def tables(self, temperature: float = 1.0) -> CodeTables:
    """Sums over the types of each code: O(V) once, not once per token."""
    codes_V, count = self.codes_V, self.matrix_KxD.shape[0]
    vocab = self.vocab_size
    bias_V = jnp.zeros(vocab) if self.bias_V is None else self.bias_V
    bias_V = bias_V.astype(jnp.float32)

    def add(x_V: Array) -> Array:
      return jax.ops.segment_sum(x_V, codes_V, count)

    size_K = add(jnp.ones(vocab))
    top_K = jax.ops.segment_max(stop_gradient(bias_V), codes_V, count)
    full_K = size_K > 0
    # Relative to the code's top nothing overflows; empty codes give no NaN.
    base_K = jnp.where(full_K, top_K, 0.0)
    share_V = jnp.exp((bias_V - base_K[codes_V]) / temperature)
    mass_K = jnp.where(full_K, add(share_V), 1.0)
    log_mass_K = jnp.where(
      full_K, jnp.log(mass_K) + base_K / temperature, -jnp.inf
    )
    is_top_V = bias_V == top_K[codes_V]
    places_V = jnp.where(is_top_V, jnp.arange(vocab), vocab)
    tokens_K = jax.ops.segment_min(places_V, codes_V, count)
    return CodeTables(
      size_K, log_mass_K, add(share_V * bias_V) / mass_K,
      jnp.where(full_K, top_K, -jnp.inf), jnp.minimum(tokens_K, vocab),
    )  # fmt: skip

  def code_stats(
    self,
    tables: CodeTables,
    code_logits: Array,
    labels: Array,
    temperature: float = 1.0,
  ) -> TokenStats:
    """Returns `TokenStats` over the V types, from the K code logits [..., K].

    Average and largest logit are those of all V types; of ties, the first.
    """
    if code_logits.ndim == 3:
      code_logits = constrain(code_logits, 'batch', 'length', 'codes')
    row = partial(along, code_logits)
    mass = code_logits / temperature + row(tables.log_mass_K)
    log_z = jax.nn.logsumexp(mass, axis=-1)
    bias_V = self.bias_V
    label = label_logit(code_logits, self.codes_V[labels])
    average = (code_logits * row(tables.size_K)).sum(-1) / self.vocab_size
    if bias_V is not None:
      label += bias_V[labels]
      average += bias_V.mean()
    fixed = stop_gradient(code_logits)
    q = jnp.exp(stop_gradient(mass - log_z[..., None]))
    expected = (q * (fixed + row(stop_gradient(tables.mean_K)))).sum(-1)
    top = fixed + row(tables.top_K)
    best = top == top.max(-1, keepdims=True)
    argmax = jnp.where(best, row(tables.tokens_K), self.vocab_size).min(-1)
    return TokenStats(log_z, label, average, expected, argmax.astype(jnp.int32))

  def stats(
    self, tables: CodeTables, hidden: Array, labels: Array, temperature: float
  ) -> TokenStats:
    """Returns `TokenStats` in the labels' shape."""
    logits = self.code_logits(hidden)
    return self.code_stats(tables, logits, labels, temperature)

  def nll(self, hidden: Array, labels: Array) -> Array:
    """Returns -log p of each label, in nats."""
    return self.stats(self.tables(), hidden, labels, 1.0).nll


class AdaptiveHead(NamedTuple):
  """Adaptive softmax: log p by clusters of types (arXiv:1609.04309).

  The first head gives log p of the common types and of the clusters. A type of
  a cluster has log p(cluster) + log p(v | cluster), the latter from the
  cluster's own head. A bias is added to log p.

  Attributes:
    first_HxD: rows of the common types, then one row per cluster.
    clusters: low-rank heads; the rarer the types, the lower the rank.
    places_V: place of each type: common types first, then cluster by cluster.
  """

  first_HxD: Array
  clusters: tuple[LinearHead, ...]
  places_V: Array
  bias_V: Array | None = None

  with_bias = _with_bias

  @property
  def vocab_size(self) -> int:
    """Vocabulary size V."""
    return self.places_V.shape[0]

  @property
  def columns(self) -> int:
    """Number of logits computed per token."""
    return self.vocab_size

  def logits(self, hidden: Array) -> Array:
    """Returns log p of each type plus its bias, [..., V], fp32."""
    return jnp.take(self.placed_logits(hidden), self.places_V, axis=-1)

  def placed_logits(self, hidden: Array) -> Array:
    """As `logits`, in the order of places: a look-up has a slow gradient."""
    first = jax.nn.log_softmax(LinearHead(self.first_HxD).logits(hidden))
    common = first.shape[-1] - len(self.clusters)
    parts = [first[..., :common]]
    for i, cluster in enumerate(self.clusters):
      inside = jax.nn.log_softmax(cluster.logits(hidden))
      parts.append(first[..., common + i, None] + inside)
    z = jnp.concatenate(parts, -1)
    if self.bias_V is None:
      return z
    return z + along(z, self.bias_V[jnp.argsort(self.places_V)])

  def rows(self) -> Array:
    """Raises ConfigError: a row within a cluster is useless to a loss."""
    raise ConfigError(
      'losses on all logits need an output row for each type, and model.head '
      'adaptive has none'
    )

  def tables(self, temperature: float = 1.0) -> None:
    """Returns None: `stats` needs nothing else."""
    del temperature

  def stats(
    self, tables: None, hidden: Array, labels: Array, temperature: float
  ) -> TokenStats:
    """Returns `TokenStats` in the labels' shape."""
    del tables
    logits = constrain(self.placed_logits(hidden), 'batch', 'length', 'vocab')
    label = label_logit(logits, self.places_V[labels])
    log_z = jax.nn.logsumexp(logits / temperature, axis=-1)
    fixed = stop_gradient(logits)
    q = jnp.exp(fixed / temperature - stop_gradient(log_z)[..., None])
    argmax = jnp.argmax(fixed, axis=-1).astype(jnp.int32)
    expected = (q * fixed).sum(-1)
    return TokenStats(log_z, label, logits.mean(-1), expected, argmax)

  def nll(self, hidden: Array, labels: Array) -> Array:
    """Returns -log p of each label in nats, for one sequence at a time.

    A sequence's logits are as wide as the vocabulary.
    """

    def row(pair: tuple[Array, Array]) -> Array:
      return token_nll(self.placed_logits(pair[0]), self.places_V[pair[1]])

    return jax.lax.map(row, (hidden, labels))


Head = LinearHead | CodeHead | AdaptiveHead
