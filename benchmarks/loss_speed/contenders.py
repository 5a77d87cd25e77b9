"""Who is compared: name -> label and how the call is made."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from benchmarks.loss_speed import peers
from pdl_jax.losses.fused.api import linear_pdl_loss

TORCH_CHUNK = 512
LOW_MEMORY = 2**24


class Batch(NamedTuple):
  """What every contender is given; each reads what it can use.

  Attributes:
    hidden_NxD: hidden states.
    head_DxV: output matrix.
    labels_N: types, at masked tokens too.
    weight_N: of each token, 0 at masked ones: for those who cannot look
      weights up, already looked up.
    weights_V: of each type.
    where_N: tokens that count, or None: all.
  """

  hidden_NxD: Any
  head_DxV: Any
  labels_N: Any
  weight_N: Any
  weights_V: Any
  where_N: Any


Call = Callable[[Batch], tuple]
"""batch -> (loss, d_hidden[, d_head])."""


class Contender(NamedTuple):
  """One line of the tables.

  Attributes:
    label: in the tables.
    make: batch -> call; the batch is for shapes and constants.
    weighted: False: every token counts 1 to it.
    torch: takes torch tensors and is not compiled.
    ours: of this library.
  """

  label: str
  make: Callable[[Batch], Call]
  weighted: bool = True
  torch: bool = False
  ours: bool = False


def _ours(
  _: Batch, weighted: bool = True, frozen: bool = False, **options: Any
) -> Call:
  def f(batch: Batch) -> tuple:
    def value(hidden: Array, head: Array) -> Array:
      return linear_pdl_loss(
        hidden, head, batch.labels_N, batch.weights_V if weighted else None,
        where=batch.where_N, ignore_index=None, **options,
      )  # fmt: skip

    return _gradients(value, batch, frozen)

  return f


def _optax_frozen(_: Batch) -> Call:
  def f(batch: Batch) -> tuple:
    value = lambda hidden, head: peers.optax_value(  # noqa: E731
      hidden, head, batch.labels_N, batch.weight_N
    )
    return _gradients(value, batch, frozen=True)

  return f


def _gradients(
  value: Callable[..., Array], batch: Batch, frozen: bool
) -> tuple:
  loss, gradients = jax.value_and_grad(value, (0,) if frozen else (0, 1))(
    batch.hidden_NxD, batch.head_DxV
  )
  return loss, *gradients


def _peer(make: Callable[[Batch], peers.Loss]) -> Callable[[Batch], Call]:
  def made(batch: Batch) -> Call:
    loss = make(batch)
    return lambda batch: loss(*batch[:4])

  return made


def _levanter(v_block: int | None, batch: Batch) -> peers.Loss:
  return peers.make_levanter(len(batch.labels_N), v_block)


CONTENDERS = {
  'optax': Contender('optax, unfused', _peer(lambda _: peers.make_optax())),
  'tokens': Contender(
    'ours, tokens', partial(_ours, method='tokens'), ours=True
  ),
  'tokens_plain': Contender(
    'ours, tokens, no weights',
    partial(_ours, weighted=False, method='tokens'),
    weighted=False,
    ours=True,
  ),
  'vocabulary': Contender(
    'ours, vocabulary', partial(_ours, method='vocabulary'), ours=True
  ),
  'vocabulary_low': Contender(
    'ours, vocabulary, 16 MB',
    partial(_ours, method='vocabulary', memory_bytes=LOW_MEMORY),
    ours=True,
  ),
  'tokens_frozen': Contender(
    'ours, tokens, frozen head',
    partial(_ours, frozen=True, method='tokens'),
    ours=True,
  ),
  'optax_frozen': Contender('optax, frozen head', _optax_frozen),
  'tokamax': Contender(
    'tokamax, weights added here', _peer(lambda _: peers.make_tokamax())
  ),
  'tokamax_public': Contender(
    'tokamax as it is, no weights',
    _peer(lambda _: peers.make_tokamax_public()),
    weighted=False,
  ),
  'levanter': Contender(
    'levanter, its own blocks', _peer(partial(_levanter, None))
  ),
  'levanter_1024': Contender(
    'levanter, blocks of 1024', _peer(partial(_levanter, 1024))
  ),
  'torch_class': Contender(
    f'torch, weights by type, chunk {TORCH_CHUNK}',
    _peer(lambda b: peers.make_torch_class(b.weights_V, TORCH_CHUNK)),
    torch=True,
  ),
  'torch_token': Contender(
    f'torch, weights by token, chunk {TORCH_CHUNK}',
    _peer(lambda _: peers.make_torch(TORCH_CHUNK)),
    torch=True,
  ),
}
BASELINE = 'optax'
# Without variants of settings.
MAIN = (
  'optax', 'tokens', 'vocabulary_low', 'tokamax', 'levanter_1024',
  'torch_class',
)  # fmt: skip
# Of the others those that can weigh a token, and so mask it.
RIVALS = ('tokamax', 'levanter', 'levanter_1024', 'torch_class', 'torch_token')


def draw(
  tokens: int, width: int, vocabulary: int, masked: float, scale: float,
  dtype: Any = np.float32,
) -> Batch:  # fmt: skip
  """Arrays of one seed, as numpy.

  Args:
    tokens, width, vocabulary: N, D, V.
    masked: share of the tokens that do not count, spread at random.
    scale: standard deviation of the logits.
    dtype: of hidden states and head.
  """
  random = np.random.default_rng(0)
  normal = partial(random.standard_normal, dtype=np.float32)
  weights_V = random.uniform(0.1, 5, vocabulary).astype(np.float32)
  labels_N = random.integers(0, vocabulary, tokens).astype(np.int32)
  hidden = normal((tokens, width)).astype(dtype)
  head = (normal((width, vocabulary)) * (scale / width**0.5)).astype(dtype)
  where_N = np.ones(tokens, bool)
  where_N[random.permutation(tokens)[: round(masked * tokens)]] = False
  weight_N = np.where(where_N, weights_V[labels_N], 0).astype(np.float32)
  return Batch(
    hidden, head, labels_N, weight_N, weights_V, where_N if masked else None
  )
