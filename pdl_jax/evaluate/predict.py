"""Stores a model's answers on held-out examples once, for every metric."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from pdl_jax import generate
from pdl_jax.data.pipeline import Examples, evaluation_batches, left_padded
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.generate import DecodeSettings
from pdl_jax.losses.fused.api import CONFIG, FusedConfig
from pdl_jax.mesh import put_whole_batch
from pdl_jax.model import decoding
from pdl_jax.model.config import ModelConfig
from pdl_jax.train.step import score_step

Tree = Any
# Fields of an example by which metrics may group predictions.
_KEPT = ('group', 'style')


class Throughput(NamedTuple):
  """Tokens (stop tokens too) and wall time, without padding or compilation."""

  prefill_tokens: int = 0
  prefill_seconds: float = 0.0
  decode_tokens: int = 0
  decode_seconds: float = 0.0
  compilations: int = 0


class _Row(NamedTuple):
  """A text to generate; `place` is its position among the requested numbers."""

  place: int
  sample: int
  number: int
  size: int


class Predictor:
  """Scores targets and generates from prompts; compiles each length once.

  Args:
    batch: rows at a time; divisible by the mesh's data x fsdp.
    bias_V: what `settings.tilt` adds to the logits; None at tilt 0.
    fused: how log Z of scores is computed.
  """

  def __init__(
    self,
    model: ModelConfig,
    mesh: Mesh,
    tokenizer: Tokenizer,
    batch: int,
    settings: DecodeSettings,
    bias_V: jax.Array | None = None,
    fused: FusedConfig = CONFIG,
  ):
    self._model, self.mesh, self._tokenizer = model, mesh, tokenizer
    self._batch, self._settings, self._bias_V = batch, settings, bias_V
    self._fused = fused
    self._score = jax.jit(partial(score_step, model, fused=fused))
    self._prefill = jax.jit(
      partial(decoding.prefill, model), static_argnames='size'
    )
    self._extend = jax.jit(self._extended, static_argnames='limit')
    self._compiled: dict[Any, jax.stages.Compiled] = {}
    self.throughput = Throughput()

  def described(self, examples: Examples) -> dict[str, Any]:
    """What predictions depend on besides weights and texts, as JSON values."""
    bias = None if self._bias_V is None else np.asarray(self._bias_V).tolist()
    return {
      'model': repr(self._model), 'tokenizer': self._tokenizer.fingerprint,
      'decode': self._settings.record(self._limit(examples)),
      'batch': self._batch, 'bias': bias, 'fused': repr(self._fused),
    }  # fmt: skip

  def nll(
    self,
    params: Tree,
    examples: Examples,
    numbers: np.ndarray,
    check: Callable[[], None],
  ) -> list[np.ndarray]:
    """Unweighted loss of each target token in nats, one array per example.

    Layers of `params` are in one group; `check` may raise to stop.
    """
    losses: list[np.ndarray] = []
    for batch in evaluation_batches(examples, numbers, self._batch):
      check()
      nll = self._score(params, put_whole_batch(batch, self.mesh))
      rows = zip(_host(nll), batch['where'], strict=True)
      losses += [row[where] for row, where in rows]
    return losses[: len(numbers)]

  def predict(
    self,
    params: Tree,
    examples: Examples,
    numbers: np.ndarray,
    check: Callable[[], None],
    done: Callable[[list[dict[str, Any]]], None] | None = None,
  ) -> list[dict[str, Any]]:
    """Makes one prediction record per example and sample, ordered as `numbers`.

    Prompts of similar length share a batch. The longest come first, so that a
    lack of memory shows at once.

    Args:
      params: on devices, with one group of layers.
      check: called between batches; may raise to stop.
      done: called with the new records after each batch.
    """
    self.throughput = Throughput()
    numbers = np.asarray(numbers)
    losses = self.nll(params, examples, numbers, check)
    sizes = [len(examples.prompt_and_target(n)[0]) for n in numbers.tolist()]
    rows = [
      _Row(place, sample, int(numbers[place]), size)
      for place, size in enumerate(sizes)
      for sample in range(self._settings.samples)
    ]
    rows.sort(key=lambda row: -row.size)
    # Once for all batches: the decoding loop reads each layer by itself.
    parts = decoding.part_layers(params)
    records: dict[tuple[int, int], dict[str, Any]] = {}
    starts = range(0, len(rows), self._batch)
    for start in tqdm(starts, desc='generate', unit='batch', disable=None):
      check()
      chosen = rows[start : start + self._batch]
      texts = self._generate(params, parts, examples, chosen)
      new = {
        (row.place, row.sample): self._record(examples, row, ids)
        | {'reference_nll': losses[row.place].tolist()}
        for row, ids in zip(chosen, texts, strict=True)
      }
      records |= new
      if done is not None:
        done(list(new.values()))
    return [record for _, record in sorted(records.items())]

  def _generate(
    self, params: Tree, parts: Tree, examples: Examples, rows: list[_Row]
  ) -> list[list[int]]:
    length = bucket_length(
      rows[0].size, examples.lengths.prompt, self._settings.prompt_buckets
    )
    limit = self._limit(examples)
    batch = self._prompts(examples, rows, length)
    placed = put_whole_batch(batch, self.mesh)
    known = len(self._compiled)
    state, prefill_seconds = self._timed(
      self._prefill, params, placed['prompts'], placed['filled'],
      size=length + limit,
    )  # fmt: skip
    generated, decode_seconds = self._timed(
      self._extend, parts, *state, placed['hashes'], placed['samples'],
      self._bias_V, limit=limit,
    )  # fmt: skip
    tokens, lengths = (_host(x)[: len(rows)] for x in generated)
    before = self.throughput
    self.throughput = Throughput(
      before.prefill_tokens + int(batch['filled'].sum()),
      before.prefill_seconds + prefill_seconds,
      before.decode_tokens + int(lengths.sum()),
      before.decode_seconds + decode_seconds,
      before.compilations + (len(self._compiled) - known) // 2,
    )
    pairs = zip(tokens, lengths, strict=True)
    return [ids[:size].tolist() for ids, size in pairs]

  def _prompts(
    self, examples: Examples, rows: list[_Row], length: int
  ) -> dict[str, np.ndarray]:
    numbers = np.asarray([row.number for row in rows])
    batch = left_padded(examples, numbers, self._batch, length)
    ids = [examples.record(row.number)['id'] for row in rows]
    empty = self._batch - len(rows)
    samples = [row.sample for row in rows] + [0] * empty
    return {
      **batch,
      'hashes': generate.hash_ids(ids + [''] * empty),
      'samples': np.asarray(samples, np.uint32),
    }

  def _extended(
    self,
    params: Tree,
    hidden_BxD: jax.Array,
    cache: decoding.Cache,
    hashes_Bx2: jax.Array,
    samples_B: jax.Array,
    bias_V: jax.Array | None,
    *,
    limit: int,
  ) -> tuple[jax.Array, jax.Array]:
    keys_B = generate.row_keys(self._settings.seed, hashes_Bx2, samples_B)
    generated = generate.extend(
      self._model, params, hidden_BxD, cache, keys_B, settings=self._settings,
      max_new_tokens=limit, stop_ids=self._tokenizer.stops,
      bias_V=bias_V,
    )  # fmt: skip
    return generated.tokens_BxT, generated.lengths_B

  def _timed(
    self, function: Any, *arrays: Any, **static: int
  ) -> tuple[Any, float]:
    """Returns a result, and the seconds that it took without compilation."""
    leaves, structure = jax.tree.flatten(arrays)
    shapes = tuple((leaf.shape, leaf.sharding) for leaf in leaves)
    key = (function, structure, shapes, *static.items())
    if key not in self._compiled:
      self._compiled[key] = function.lower(*arrays, **static).compile()
    began = time.perf_counter()
    result = jax.block_until_ready(self._compiled[key](*arrays))
    return result, time.perf_counter() - began

  def _limit(self, examples: Examples) -> int:
    return self._settings.max_new_tokens or examples.lengths.target

  def _record(
    self, examples: Examples, row: _Row, ids: list[int]
  ) -> dict[str, Any]:
    record = examples.record(row.number)
    prompt, target = examples.prompt_and_target(row.number)
    stopped = bool(ids) and ids[-1] in self._tokenizer.stops
    kept = {name: record[name] for name in _KEPT if name in record}
    return {
      'id': record_ids(record['id'], self._settings.samples)[row.sample],
      **kept,
      'prompt': self._tokenizer.decode(prompt, keep_special=True),
      'source': record['source'],
      'references': [record['target']],
      'text': self._tokenizer.decode(ids).strip(),
      'token_ids': ids,
      'finish_reason': 'stop' if stopped else 'length',
      'reference_ids': target,
      'decode': self._settings.record(self._limit(examples)),
    }


def record_ids(example: str, samples: int) -> list[str]:
  """Returns the ids of the prediction records of one example."""
  if samples == 1:
    return [example]
  return [f'{example}#{k}' for k in range(samples)]


def bucket_length(size: int, longest: int, buckets: int) -> int:
  """Rounds `size` up to one of `buckets` equal steps to `longest`."""
  step = max((size - 1) * buckets // longest + 1, 1)
  return -(-longest * step // buckets)


def _host(x: jax.Array) -> np.ndarray:
  """Gathers a global array, with the rows of other processes, on this host."""
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))
