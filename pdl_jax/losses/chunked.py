"""Any loss on logits, a few positions at a time.

For losses that no statistic of a token is enough for, and for heads that are
no matrix. Each chunk of positions has its logits computed again in the
backward pass, so that one chunk of them is alive at a time. The compiler
splits the arrays over the mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses.checks import check_floats, read_labels
from pdl_jax.losses.core import LossTerms, Sums
from pdl_jax.losses.cross_entropy import token_weights
from pdl_jax.losses.dense_losses import earlier_targets

# Logits alive at once, in elements a chunk; 2**24 fp32 numbers are 64 MB.
CHUNK_ELEMENTS = 2**24


def chunked_loss_sums(
  loss: Callable[..., tuple[LossTerms, Array]],
  head: Any,
  hidden_BxLxD: Array,
  labels_BxL: Array,
  weights_V: Array | None,
  where_BxL: Array,
  *,
  vocab_size: int,
  columns: int,
) -> tuple[Sums, Sums]:
  """Sums of a loss that looks at logits, as `fused.api.linear_loss_sums`.

  Args:
    loss: (head, hidden, labels, weight, (labels_BxL, earlier)) -> LossTerms
      and nll of a chunk of positions; see `dense_losses.earlier_targets`.
    head: a pytree of arrays, what the logits are made from; its gradient adds
      up in its own type.
    hidden_BxLxD: states that predict the targets of each row, in order.
    labels_BxL, weights_V, where_BxL: see `fused.api.linear_pdl_loss`.
    vocab_size: V, of labels and weights.
    columns: logits of a position, from which the size of a chunk follows.
  """
  batch, length = labels_BxL.shape
  check_floats(hidden=hidden_BxLxD)
  labels_BxL, kept_BxL = read_labels(labels_BxL, where_BxL, vocab_size)
  assert kept_BxL is not None
  where_BxL = kept_BxL
  hidden_BxLxD = jnp.where(where_BxL[..., None], hidden_BxLxD, 0)
  weight_BxL = token_weights(weights_V, labels_BxL, vocab_size)
  part = max(1, min(length, CHUNK_ELEMENTS // (batch * columns)))
  part = -(-length // -(-length // part))
  count = -(-length // part)

  def split(x: Array) -> Array:
    """[B, L, ...] to [count, B, part, ...], zeros at the end."""
    room = [(0, 0), (0, count * part - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, room).reshape(batch, count, part, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  @jax.checkpoint
  def chunk(head: Any, start: Array, *arrays: Array) -> tuple:
    hidden, labels, weight, where = arrays
    earlier = earlier_targets(labels_BxL, where_BxL, start, part)
    terms, nll = loss(head, hidden, labels, weight, (labels_BxL, earlier))
    return tuple(
      jnp.where(where, x, 0.0).sum() for x in (*terms, lax.stop_gradient(nll))
    )

  def step(sums: tuple, arrays: tuple[Array, ...]) -> tuple[tuple, None]:
    values = chunk(head, *arrays)
    return tuple(a + b for a, b in zip(sums, values, strict=True)), None

  zero = jnp.zeros((), jnp.float32)
  arrays = map(split, (hidden_BxLxD, labels_BxL, weight_BxL, where_BxL))
  starts = jnp.arange(count) * part
  (num, den, plain), _ = lax.scan(step, (zero,) * 3, (starts, *arrays))
  # A label outside of the vocabulary has a weight of NaN.
  plain = jnp.where(jnp.isnan(den), jnp.nan, plain)
  tokens = where_BxL.sum().astype(jnp.float32)
  return (
    Sums(num, lax.stop_gradient(den)),
    Sums(lax.stop_gradient(plain), tokens),
  )
