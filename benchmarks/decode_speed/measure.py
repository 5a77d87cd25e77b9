"""Measures one case, in a process of its own, and prints its record.

  python -m benchmarks.decode_speed.measure '{"batch": 32, ...}'

Called by experiment.py, which says what a case holds.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import summarize
from pdl_jax import generate as generation
from pdl_jax.config import Settings
from pdl_jax.data import pipeline, sources
from pdl_jax.data.examples import Pairs
from pdl_jax.data.pipeline import left_padded
from pdl_jax.data.pretrained_tokenizer import open_plain_tokenizer
from pdl_jax.data.tasks import TASKS
from pdl_jax.evaluate.predict import bucket_length
from pdl_jax.generate import DecodeSettings
from pdl_jax.model import decoding, lm
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file

PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'torch', 'transformers')
REFERENCE = 'transformers'
# Numbers of prompt lengths: the default of evaluation, and one alone.
BUCKETS = (1, 4)
Case = dict[str, Any]


class Work(NamedTuple):
  """What is to be generated, and with which weights.

  Attributes:
    file: of the model.
    params: its weights, on the device.
    examples: the held-out split of the main job.
    numbers: which of them, in batches; longest prompts first.
    longest: tokens of the longest prompt of each batch.
    prompt_tokens: of all prompts, padding not counted.
    new_tokens: of each text.
    stop: id that is banned, so that every text is as long.
  """

  file: GGUFModel
  params: dict[str, Any]
  examples: Pairs
  numbers: list[np.ndarray]
  longest: list[int]
  prompt_tokens: int
  new_tokens: int
  stop: int

  def bucketed(self, buckets: int) -> list[int]:
    """Columns to which evaluation pads each batch."""
    longest = self.examples.lengths.prompt
    return [bucket_length(size, longest, buckets) for size in self.longest]

  def prompts(self, lengths: list[int]) -> list[dict[str, np.ndarray]]:
    """Each batch padded on the left to its length."""
    pairs = zip(self.numbers, lengths, strict=True)
    return [
      left_padded(self.examples, numbers, len(numbers), length)
      for numbers, length in pairs
    ]


class Texts(NamedTuple):
  """What a call generated, and the wall time of its two parts."""

  ids_NxT: np.ndarray
  prefill_seconds: float
  decode_seconds: float


Call = Callable[[], Texts]


def main() -> None:
  """Prints the record of the case on the command line, as one JSON line."""
  case = json.loads(sys.argv[1])
  started = environment()
  work = prepare(case)
  calls = {name: CONTENDERS[name](work) for name in case['contenders']}
  found, texts = measure(calls, case['rounds'])
  record = {
    'case': case,
    'environment': started | {'load_end': list(os.getloadavg())},
    'prompt_tokens': work.prompt_tokens,
    'longest_prompts': work.longest,
    'bucketed_prompts': {str(b): work.bucketed(b) for b in BUCKETS},
    'contenders': found,
    'agreement': {
      name: agreement(work, texts[name], texts[REFERENCE])
      for name in texts if name != REFERENCE
    },
  }  # fmt: skip
  print(json.dumps(record))


def environment() -> dict[str, Any]:
  """What the numbers depend on beside the code."""
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {
    'versions': {'python': platform.python_version(), **versions},
    'machine': platform.machine(),
    'cpus': len(os.sched_getaffinity(0)),
    'wait_policy': os.environ.get('OMP_WAIT_POLICY'),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'load_start': list(os.getloadavg()),
  }


def prepare(case: Case) -> Work:
  """Prompts of the main job, batched as its evaluation batches them."""
  settings = Settings.from_config(summarize.get_config())
  data = settings.data
  file = GGUFModel(find_package_file(settings.model.pretrained))
  tokenizer, task = open_plain_tokenizer(file), TASKS[data.task]
  source = sources.load(data.name, settings.evaluate.split)
  seen = pipeline.survey(source, task, tokenizer, data.lengths)
  examples = Pairs(source, seen.usable, task, tokenizer, data.lengths)
  numbers = pipeline.sample(examples, case['prompts'])
  sizes = np.array([
    len(examples.prompt_and_target(int(number))[0]) for number in numbers
  ])
  order = np.argsort(-sizes, kind='stable')
  starts = range(0, len(order), case['batch'])
  batches = [order[start : start + case['batch']] for start in starts]
  return Work(
    file,
    jax.device_put(file.params()),
    examples,
    [numbers[batch] for batch in batches],
    [int(sizes[batch].max()) for batch in batches],
    int(sizes.sum()),
    case['new_tokens'],
    tokenizer.end_of_turn,
  )


# --- contenders ---------------------------------------------------------------


def make_ours(buckets: int, work: Work) -> Call:
  """The two parts of `generation.generate`, as evaluation calls them."""
  config = work.file.config()
  settings = DecodeSettings(min_new_tokens=work.new_tokens)
  prefill = jax.jit(partial(decoding.prefill, config), static_argnames='size')
  extend = jax.jit(
    partial(
      generation.extend, config, keys_B=None, settings=settings,
      max_new_tokens=work.new_tokens, stop_ids=(work.stop,),
    )
  )  # fmt: skip
  batches = work.prompts(work.bucketed(buckets))

  def generate(prompts: np.ndarray, filled: np.ndarray) -> Texts:
    began = time.perf_counter()
    size = prompts.shape[1] + work.new_tokens
    state = prefill(work.params, prompts, filled, size=size)
    jax.block_until_ready(state)
    read = time.perf_counter()
    ids = np.asarray(extend(work.params, *state).tokens_BxT)
    return Texts(ids, read - began, time.perf_counter() - read)

  return lambda: _joined([generate(**batch) for batch in batches])


def make_transformers(work: Work) -> Call:
  """`generate` of transformers with its defaults, from the same file."""
  import torch
  from transformers import AutoModelForCausalLM, GenerationConfig

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  path = work.file.path
  model = AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  )
  config = GenerationConfig(
    do_sample=False, max_new_tokens=work.new_tokens,
    min_new_tokens=work.new_tokens, eos_token_id=work.stop,
    pad_token_id=work.stop,
  )  # fmt: skip
  batches = [
    {name: torch.from_numpy(array) for name, array in batch.items()}
    for batch in work.prompts(work.longest)
  ]

  def generate(prompts: torch.Tensor, filled: torch.Tensor) -> Texts:
    steps: list[float] = []

    def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
      """Called with the logits of each step, the first time with prefill's."""
      steps.append(time.perf_counter())
      return scores

    began = time.perf_counter()
    ids = model.generate(
      prompts.long(), attention_mask=filled.long(), generation_config=config,
      logits_processor=[note],
    )  # fmt: skip
    ids = ids[:, prompts.shape[1] :].numpy()
    return Texts(ids, steps[0] - began, time.perf_counter() - steps[0])

  return lambda: _joined([generate(**batch) for batch in batches])


def _joined(batches: list[Texts]) -> Texts:
  ids, prefill, loop = zip(*batches, strict=True)
  return Texts(np.concatenate(ids), sum(prefill), sum(loop))


CONTENDERS: dict[str, Callable[[Work], Call]] = {
  **{f'ours_{b}': partial(make_ours, b) for b in BUCKETS},
  REFERENCE: make_transformers,
}


# --- measuring ----------------------------------------------------------------


def measure(
  calls: dict[str, Call], rounds: int
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
  """Every contender once a round, in an order that changes every round.

  Returns:
    seconds of each, and the ids that it generated, the same in every round.
  """
  found, texts = {}, {}
  for name, call in calls.items():
    began = time.perf_counter()
    texts[name] = call().ids_NxT
    found[name] = {
      'first_seconds': time.perf_counter() - began,
      'prefill_seconds': [],
      'decode_seconds': [],
    }
    print(f'  {name} {found[name]}', file=sys.stderr, flush=True)
  for number in range(rounds):
    order = np.random.default_rng([1, number]).permutation(list(calls))
    for name in order.tolist():
      ids, prefill, loop = calls[name]()
      np.testing.assert_array_equal(ids, texts[name], err_msg=name)
      found[name]['prefill_seconds'].append(prefill)
      found[name]['decode_seconds'].append(loop)
      print(f'  {name} {prefill:.2f} {loop:.2f}', file=sys.stderr, flush=True)
  return found, texts


def agreement(
  work: Work, ours_NxT: np.ndarray, theirs_NxT: np.ndarray
) -> dict[str, Any]:
  """How far two sets of texts are the same.

  Returns:
    equal_ids: share of the places with the same id; after a first difference
      texts go their own way.
    equal_texts, texts: number of them.
    gaps: of each text that differs, by how much our logits prefer our token
      where the two first differ, in nats.
  """
  same_NxT = ours_NxT == theirs_NxT
  numbers, score = np.concatenate(work.numbers), _last_logits(work)
  gaps = []
  for row in np.flatnonzero(~same_NxT.all(axis=1)):
    first = int(np.argmin(same_NxT[row]))
    prompt, _ = work.examples.prompt_and_target(int(numbers[row]))
    logits_V = score([*prompt, *ours_NxT[row, :first].tolist()])
    chosen = logits_V[[ours_NxT[row, first], theirs_NxT[row, first]]]
    gaps.append(float(chosen[0] - chosen[1]))
  return {
    'equal_ids': float(same_NxT.mean()),
    'equal_texts': int(same_NxT.all(axis=1).sum()),
    'texts': len(same_NxT),
    'gaps': gaps,
  }


def _last_logits(work: Work) -> Callable[[list[int]], np.ndarray]:
  """A function from ids to the logits of the next one; no cache is used."""
  config = work.file.config()
  size = work.examples.lengths.prompt + work.new_tokens
  positions_1xL = jnp.arange(size)[None]
  logits = jax.jit(partial(lm.logits, config))

  def last(ids: list[int]) -> np.ndarray:
    tokens_1xL = np.zeros((1, size), np.int32)
    tokens_1xL[0, : len(ids)] = ids
    segments_1xL = (np.arange(size) < len(ids))[None].astype(np.int32)
    found = logits(work.params, tokens_1xL, segments_1xL, positions_1xL)
    return np.asarray(found[0, len(ids) - 1])

  return last


if __name__ == '__main__':
  main()
