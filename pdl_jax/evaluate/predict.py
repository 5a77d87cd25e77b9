"""A model's answers on held-out examples, stored once for every metric."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from pdl_jax import decode
from pdl_jax.data.pipeline import (
  Batch,
  Examples,
  evaluation_batches,
  left_padded,
)
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.model.config import ModelConfig
from pdl_jax.sharding import put_batch
from pdl_jax.step import score_step

Tree = Any


class Predictor:
  """Scores targets and generates from prompts; compiles each once.

  Args:
    model: shape of the model.
    mesh: over which rows are split.
    tokenizer: decodes, and gives the stop token.
    batch: rows at a time; divisible by the mesh's data x fsdp.
    tilt: of the logits towards rare tokens, for the record.
    bias_V: what that adds to them; None at tilt 0.
  """

  def __init__(
    self,
    model: ModelConfig,
    mesh: Mesh,
    tokenizer: Tokenizer,
    batch: int,
    tilt: float = 0.0,
    bias_V: jax.Array | None = None,
  ):
    self._tilt, self._bias_V = tilt, bias_V
    self._mesh, self._tokenizer, self._batch = mesh, tokenizer, batch
    self._score = jax.jit(partial(score_step, model))
    self._generate = jax.jit(
      partial(decode.greedy, model, stop_id=tokenizer.end_of_turn),
      static_argnames='max_new_tokens',
    )

  def nll(
    self,
    params: Tree,
    examples: Examples,
    numbers: np.ndarray,
    check: Callable[[], None],
  ) -> list[np.ndarray]:
    """Unweighted loss of every target token, one array an example, in nats.

    Args:
      params: of the model, with one group of layers.
      examples: a split.
      numbers: which of them.
      check: called between batches; may raise to stop.
    """
    losses: list[np.ndarray] = []
    for batch in evaluation_batches(examples, numbers, self._batch):
      check()
      nll = self._score(params, put_batch(batch, self._mesh))
      rows = zip(_host(nll), batch['where'], strict=True)
      losses += [row[where] for row, where in rows]
    return losses[: len(numbers)]

  def predict(
    self,
    params: Tree,
    examples: Examples,
    numbers: np.ndarray,
    check: Callable[[], None],
  ) -> list[dict[str, Any]]:
    """Prediction records: what every metric is computed from.

    Args: see `nll`. Text is generated greedily, up to the longest target.
    """
    losses = self.nll(params, examples, numbers, check)
    limit = examples.lengths.target
    records: list[dict[str, Any]] = []
    starts = range(0, len(numbers), self._batch)
    for start in tqdm(starts, desc='generate', unit='batch', disable=None):
      check()
      chosen = numbers[start : start + self._batch]
      batch = left_padded(examples, chosen, self._batch)
      tokens, lengths = self._generate(
        params, *self._put_prompts(batch), max_new_tokens=limit,
        bias_V=self._bias_V,
      )  # fmt: skip
      for number, row, size in zip(
        chosen, _host(tokens), _host(lengths), strict=False
      ):
        record = self._record(examples, int(number), row[:size].tolist(), limit)
        record['reference_nll'] = losses[len(records)].tolist()
        records.append(record)
    return records

  def _put_prompts(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    placed = put_batch(batch, self._mesh)
    return placed['prompts'], placed['filled']

  def _record(
    self, examples: Examples, number: int, ids: list[int], limit: int
  ) -> dict[str, Any]:
    record = examples.record(number)
    prompt, target = examples.prompt_and_target(number)
    stopped = bool(ids) and ids[-1] == self._tokenizer.end_of_turn
    return {
      'id': record['id'],
      'prompt': self._tokenizer.decode(prompt, keep_special=True),
      'source': record[examples.task.source],
      'references': [record[examples.task.target]],
      'text': self._tokenizer.decode(ids).strip(),
      'token_ids': ids,
      'finish_reason': 'stop' if stopped else 'length',
      'reference_ids': target,
      'decode': {
        'method': 'greedy', 'max_new_tokens': limit, 'tilt': self._tilt,
      },
    }


def _host(x: jax.Array) -> np.ndarray:
  """A global array, the rows of other processes too, on this host."""
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))
