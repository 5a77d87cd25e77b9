"""Any loss on logits, computed a few positions at a time.

It serves losses that need more than `TokenStats`, and heads without a matrix.
The backward pass recomputes the logits of each chunk, so that only one chunk
of them is alive at a time. The compiler splits the arrays over the mesh.
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

# Elements of the logits alive at once; 2**24 fp32 numbers are 64 MiB.
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
  """Returns Sums of a loss on logits, as `fused.api.linear_loss_sums` does.

  Args:
    loss: (head, hidden, labels, weight, (labels_BxL, earlier)) -> LossTerms
      and nll of a chunk of positions; see `dense_losses.earlier_targets`.
    head: pytree of arrays that give the logits; its gradient adds up in its
      own dtype.
    hidden_BxLxD: states that predict the targets of each row, in order.
    columns: logits per position, which determine the chunk size.
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
    """Splits [B, L, ...] into [count, B, part, ...], with zeros at the end."""
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
  # A label outside the vocabulary has weight NaN.
  plain = jnp.where(jnp.isnan(den), jnp.nan, plain)
  tokens = where_BxL.sum().astype(jnp.float32)
  return (
    Sums(num, lax.stop_gradient(den)),
    Sums(lax.stop_gradient(plain), tokens),
  )
