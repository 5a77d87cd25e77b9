"""Text generation from a cached model: greedy, sampled, or by beam search.

`generate` does everything; a caller who times its parts calls
`model.decoding.prefill` and `extend`.
"""

from pdl_jax.generate.api import Generated, extend, generate, hash_ids, row_keys
from pdl_jax.generate.constraints import repeated
from pdl_jax.generate.settings import METHODS, DecodeSettings

__all__ = [
  'METHODS',
  'DecodeSettings',
  'Generated',
  'extend',
  'generate',
  'hash_ids',
  'repeated',
  'row_keys',
]
