"""What the predictions of a model before fine-tuning follow from.

Runs that differ in their training alone begin with one model, and a later one
takes the predictions of an earlier one beside it.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pdl_jax.data.pipeline import Examples
from pdl_jax.evaluate.predict import Predictor
from pdl_jax.run_folder import environment
from pdl_jax.storage import cache
from pdl_jax.train.checksum import checksums

# Of `environment`: what may change the last bits of a number.
_CHANGE_NUMBERS = (
  'packages', 'plugins', 'backend', 'xla_flags', 'libtpu_init_args', 'jax',
  'mesh',
)  # fmt: skip


def key(
  predictor: Predictor, params: Any, examples: Examples, numbers: Sequence[int]
) -> str:
  """Hashes all that predictions follow from, the library's code too.

  `numbers` are those of the examples that are predicted.
  """
  found = environment(predictor.mesh.shape)
  whole = {
    'code': cache.code(),
    'environment': {name: found[name] for name in _CHANGE_NUMBERS},
    'predictor': predictor.described(examples),
    'weights': checksums(params),
    'texts': [
      [*examples.prompt_and_target(n), examples.record(n)] for n in numbers
    ],
  }
  text = json.dumps(whole, sort_keys=True, default=np.ndarray.tolist)
  return hashlib.sha256(text.encode()).hexdigest()
