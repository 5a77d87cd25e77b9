"""Lists who is compared: name -> label and how the call is made."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jax import Array

from benchmarks.loss_speed import peers
from benchmarks.loss_speed.peers import Batch, Call
from pdl_jax.losses.fused.api import FusedConfig, linear_pdl_loss

TORCH_CHUNK = 512
LOW_MEMORY = 2**24


class Contender(NamedTuple):
  """One line of the tables.

  Attributes:
    make: imports what it needs, and returns the call.
    weighted: if False, every token counts as 1.
    ours: from this library, with the head trained.
  """

  label: str
  make: Callable[[], Call]
  package: str = 'jax'
  weighted: bool = True
  ours: bool = False

  @property
  def torch(self) -> bool:
    """Whether it takes torch tensors and is not compiled."""
    return self.package == 'torch'


def _ours(weighted: bool = True, frozen: bool = False, **options: Any) -> Call:
  def value(hidden: Array, head: Array, batch: Batch) -> Array:
    return linear_pdl_loss(
      hidden, head, batch.labels_N, batch.weights_V if weighted else None,
      where=batch.where_N, ignore_index=None, config=FusedConfig(**options),
    )  # fmt: skip

  return peers.with_gradients(value, frozen)


CONTENDERS = {
  'optax': Contender('optax, unfused', peers.make_optax, 'optax'),
  'tokens': Contender(
    'ours, tokens', partial(_ours, method='tokens'), ours=True
  ),
  'tokens_plain': Contender(
    'ours, tokens, no weights',
    partial(_ours, weighted=False, method='tokens'),
    weighted=False,
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
  ),
  'optax_frozen': Contender(
    'optax, frozen head', partial(peers.make_optax, frozen=True), 'optax'
  ),
  'tokamax': Contender(
    'tokamax, weights added here', peers.make_tokamax, 'tokamax'
  ),
  'tokamax_public': Contender(
    'tokamax as it is, no weights',
    peers.make_tokamax_public,
    'tokamax',
    weighted=False,
  ),
  'levanter': Contender(
    'levanter, its own blocks', peers.make_levanter, 'levanter'
  ),
  'levanter_1024': Contender(
    'levanter, blocks of 1024', partial(peers.make_levanter, 1024), 'levanter'
  ),
  'torch_class': Contender(
    f'torch, weights by type, chunk {TORCH_CHUNK}',
    partial(peers.make_torch_class, TORCH_CHUNK),
    'torch',
  ),
  'torch_token': Contender(
    f'torch, weights by token, chunk {TORCH_CHUNK}',
    partial(peers.make_torch, TORCH_CHUNK),
    'torch',
  ),
}
BASELINE = 'optax'
# The contenders without variants of settings.
MAIN = (
  'optax', 'tokens', 'vocabulary_low', 'tokamax', 'levanter_1024',
  'torch_class',
)  # fmt: skip
# Peers that can weight a token, and so mask it.
RIVALS = ('tokamax', 'levanter', 'levanter_1024', 'torch_class', 'torch_token')
