"""Any loss on logits over a linear head, a few positions at a time.

For losses that no statistic of a token is enough for. Each chunk of positions
has its logits computed again in the backward pass, so that one chunk of them
is alive at a time. The compiler splits the arrays over the mesh.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.losses.by_logits import Context, earlier_targets
from pdl_jax.losses.cross_entropy import check_labels, token_nll, token_weights
from pdl_jax.losses.terms import LossTerms, Sums
from pdl_jax.sharding import constrain

# Logits alive at once, in elements a chunk; 2**24 fp32 numbers are 64 MB.
CHUNK_ELEMENTS = 2**24


def chunked_loss_sums(
  loss: Callable[..., LossTerms],
  hidden_BxLxD: Array,
  head_DxV: Array,
  labels_BxL: Array,
  weights_V: Array | None,
  where_BxL: Array,
  *,
  settings: Mapping[str, Any],
) -> tuple[Sums, Sums]:
  """Sums of a loss on logits.

  Args:
    loss: (logits, labels, context, weight, **settings) -> LossTerms, of a
      chunk of positions; see `by_logits.Context`.
    hidden_BxLxD: states that predict the targets of each row, in order.
    head_DxV: output matrix; its gradient adds up in its own type.
    labels_BxL, weights_V, where_BxL: see `linear.linear_pdl_loss`.
    settings: of the loss.

  Returns:
    weighted: Sums(sum loss, sum weight); num is differentiable in hidden and
      head.
    plain: Sums(sum nll, n), unweighted, to be watched; no gradient.
  """
  batch, length = labels_BxL.shape
  size = head_DxV.shape[1]
  check_labels(labels_BxL, size, where_BxL)
  hidden_BxLxD = jnp.where(where_BxL[..., None], hidden_BxLxD, 0)
  labels_BxL = jnp.where(where_BxL, labels_BxL, 0)
  weight_BxL = token_weights(weights_V, labels_BxL, size)
  part = max(1, min(length, CHUNK_ELEMENTS // (batch * size)))
  part = -(-length // -(-length // part))
  count = -(-length // part)

  def split(x: Array) -> Array:
    """[B, L, ...] to [count, B, part, ...], zeros at the end."""
    room = [(0, 0), (0, count * part - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, room).reshape(batch, count, part, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  @jax.checkpoint
  def chunk(head_DxV: Array, start: Array, *arrays: Array) -> tuple:
    hidden, labels, weight, where = arrays
    logits = jnp.einsum(
      'bld,dv->blv', hidden, head_DxV.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    logits = constrain(logits, 'batch', 'length', 'vocab')
    earlier = earlier_targets(labels_BxL, where_BxL, start, part)
    context = Context(labels_BxL, earlier, head_DxV)
    terms = loss(logits, labels, context, weight, **settings)
    nll = token_nll(lax.stop_gradient(logits), labels)
    return tuple(
      jnp.where(where, x, 0.0).sum() for x in (*terms, nll)
    )

  def step(sums: tuple, arrays: tuple[Array, ...]) -> tuple[tuple, None]:
    values = chunk(head_DxV, *arrays)
    return tuple(a + b for a, b in zip(sums, values, strict=True)), None

  zero = jnp.zeros((), jnp.float32)
  arrays = map(split, (hidden_BxLxD, labels_BxL, weight_BxL, where_BxL))
  starts = jnp.arange(count) * part
  (num, den, plain), _ = lax.scan(step, (zero,) * 3, (starts, *arrays))
  tokens = where_BxL.sum().astype(jnp.float32)
  return (
    Sums(num, lax.stop_gradient(den)),
    Sums(lax.stop_gradient(plain), tokens),
  )
