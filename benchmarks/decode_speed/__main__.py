"""Is greedy decoding faster here than with transformers on PyTorch?

  python -m benchmarks.decode_speed
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, steps
from benchmarks.harness import Record
from pdl_jax import generate as generation
from pdl_jax.data import pipeline, sources
from pdl_jax.data.examples import Pairs
from pdl_jax.data.pipeline import left_padded
from pdl_jax.data.pretrained_tokenizer import open_plain_tokenizer
from pdl_jax.data.tasks import TASKS
from pdl_jax.evaluate.predict import bucket_length
from pdl_jax.generate import DecodeSettings
from pdl_jax.model import decoding, lm
from pdl_jax.pretrained.gguf import GGUFModel

OURS, BASELINE = 'ours_4', 'transformers'
LABELS = {
  OURS: 'ours, 4 prompt buckets',
  BASELINE: 'transformers on PyTorch',
}
PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'torch', 'transformers')
# Numbers of prompt lengths: a single one, and evaluation's default. Both pad
# these prompts to the same lengths (table 3), so the one program is timed once.
BUCKETS = (1, 4)
# PASSIVE lets idle torch workers sleep. Otherwise they spin for a while, into
# what is timed next.
CASES: tuple[Record, ...] = tuple(
  {
    'prompts': 2 * batch, 'batch': batch, 'new_tokens': 40, 'rounds': 5,
    'contenders': list(LABELS), 'wait_policy': 'PASSIVE',
  }
  for batch in (1, 2, 8, 32)
)
TINY: Record = {
  'prompts': 4, 'batch': 2, 'new_tokens': 4, 'rounds': 1,
  'contenders': list(LABELS), 'wait_policy': 'PASSIVE',
}  # fmt: skip


def measure(options: harness.Options) -> list[Record]:
  """Measures each case."""
  # A cached program would not show what compiling takes.
  env = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  return harness.by_case(
    options, [TINY] if options.tiny else CASES,
    lambda case: harness.alone(
      case, env={**env, 'OMP_WAIT_POLICY': case['wait_policy']}
    )[0],
  )  # fmt: skip


# --- in a process of its own --------------------------------------------------


class Work(NamedTuple):
  """What is to be generated, and with which weights.

  Attributes:
    examples: the held-out split of the main job.
    numbers: which examples, in batches, longest prompts first.
    longest: tokens of the longest prompt of each batch.
    prompt_tokens: of all prompts, without padding.
    new_tokens: per text.
    stop: id that is banned, so that all texts have the same length.
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
    """Returns the columns to which evaluation pads each batch."""
    longest = self.examples.lengths.prompt
    return [bucket_length(size, longest, buckets) for size in self.longest]

  def prompts(self, lengths: list[int]) -> list[dict[str, np.ndarray]]:
    """Pads each batch on the left to its length."""
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


def measure_case(case: Record) -> Record:
  """Measures times, texts and circumstances of a case."""
  policy = {'wait_policy': os.environ.get('OMP_WAIT_POLICY')}
  started = harness.measured_on(PACKAGES) | policy
  work = prepare(case)
  makers = {OURS: make_ours, BASELINE: make_transformers}
  calls = {name: makers[name](work) for name in case['contenders']}
  found, texts = timed(calls, case['rounds'])
  return {
    'case': case,
    'environment': started | {'load_end': list(os.getloadavg())},
    'prompt_tokens': work.prompt_tokens,
    'longest_prompts': work.longest,
    'bucketed_prompts': {str(b): work.bucketed(b) for b in BUCKETS},
    'contenders': found,
    'agreement': {
      name: agreement(work, texts[name], texts[BASELINE])
      for name in texts if name != BASELINE
    },
  }  # fmt: skip


def prepare(case: Record) -> Work:
  """Batches prompts of the main job as its evaluation does."""
  settings, file = steps.main_job()
  data = settings.data
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
    file, jax.device_put(file.params()), examples,
    [numbers[batch] for batch in batches],
    [int(sizes[batch].max()) for batch in batches], int(sizes.sum()),
    case['new_tokens'], tokenizer.end_of_turn,
  )  # fmt: skip


def make_ours(work: Work) -> Call:
  """Makes a call of `generation.generate` in two parts, as in evaluation."""
  config = work.file.config()
  settings = DecodeSettings(min_new_tokens=work.new_tokens)
  prefill = jax.jit(partial(decoding.prefill, config), static_argnames='size')
  extend = jax.jit(
    partial(
      generation.extend, config, keys_B=None, settings=settings,
      max_new_tokens=work.new_tokens, stop_ids=(work.stop,),
    )
  )  # fmt: skip
  batches = work.prompts(work.bucketed(BUCKETS[-1]))

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
  """Makes a call of transformers' `generate`, with defaults, for that file."""
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
      """Notes the time of each step; the first logits are the prefill's."""
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


def timed(
  calls: dict[str, Call], rounds: int
) -> tuple[dict[str, Record], dict[str, np.ndarray]]:
  """Times each contender and returns its ids, equal in every round."""
  found, texts = {}, {}
  for name, call in calls.items():
    began = time.perf_counter()
    texts[name] = call().ids_NxT
    first = time.perf_counter() - began
    found[name] = {
      'first_seconds': first, 'prefill_seconds': [], 'decode_seconds': []
    }  # fmt: skip
  for name in harness.in_turns(list(calls), rounds):
    ids, prefill, loop = calls[name]()
    np.testing.assert_array_equal(ids, texts[name], err_msg=name)
    found[name]['prefill_seconds'].append(prefill)
    found[name]['decode_seconds'].append(loop)
    print(f'  {name} {prefill:.2f} {loop:.2f}', file=sys.stderr, flush=True)
  return found, texts


def agreement(
  work: Work, ours_NxT: np.ndarray, theirs_NxT: np.ndarray
) -> Record:
  """Compares two sets of texts.

  Returns:
    equal_ids: share of places with the same id; after a first difference, the
      texts diverge.
    equal_texts, texts: numbers of them.
    gaps: for each text that differs, how far our logits prefer our token at the
      first difference, in nats.
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
  """Makes a function from ids to the logits of the next one, without cache."""
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


# --- tables -------------------------------------------------------------------

_spread = partial(harness.spread, to='-')


def table(records: list[Record]) -> str:
  """Formats all tables."""
  times = [
    _times(record, name)
    for record in records
    for name in record['case']['contenders']
  ]
  texts = [
    {
      'decoding': LABELS[name],
      'batch': str(record['case']['batch']),
      'equal ids': f'{found["equal_ids"]:.2%}',
      'equal texts': f'{found["equal_texts"]} of {found["texts"]}',
      'largest gap at a first difference, nats': (
        f'{max(found["gaps"]):.1e}' if found['gaps'] else 'no difference'
      ),
    }
    for record in records
    for name, found in record['agreement'].items()
  ]
  facts = list(map(_facts, records))
  named = [(name, *(fact[name] for fact in facts)) for name in facts[0]]
  return '\n'.join((
    harness.section(
      '1. Time',
      'Medians over the rounds, quartiles in brackets; ratios are of the same '
      'round, below 1 is faster than transformers. The first call compiles.',
      harness.markdown([*times[0]], [[*row.values()] for row in times]),
    ),
    harness.section(
      '2. Texts', 'Against what transformers generates.',
      harness.markdown([*texts[0]], [[*row.values()] for row in texts]),
    ),
    harness.section(
      '3. Circumstances',
      'Load: runnable processes, averages of 1, 5 and 15 minutes.',
      harness.markdown(
        ('what', *(f'case {i}' for i in range(1, len(facts) + 1))), named
      ),
    ),
  ))  # fmt: skip


def _parts(record: Record, name: str) -> dict[str, np.ndarray]:
  found = record['contenders'][name]
  prefill, decode = (
    np.asarray(found[f'{part}_seconds']) for part in ('prefill', 'decode')
  )
  return {'whole': prefill + decode, 'prefill': prefill, 'decode': decode}


def _times(record: Record, name: str) -> dict[str, str]:
  case, found = record['case'], _parts(record, name)
  base = _parts(record, BASELINE)
  # The prefill already gave the first token of each text.
  made = case['prompts'] * (case['new_tokens'] - 1)
  share = statistics.median(found['prefill'] / found['whole'])
  return {
    'decoding': LABELS[name],
    'batch': str(case['batch']),
    'time, s': _spread(found['whole'], 1),
    'over transformers: whole': _spread(found['whole'] / base['whole']),
    'prefill': _spread(found['prefill'] / base['prefill']),
    'decode': _spread(found['decode'] / base['decode']),
    'prefill tokens/s': (
      f'{record["prompt_tokens"] / statistics.median(found["prefill"]):,.0f}'
    ),
    'decode tokens/s': f'{made / statistics.median(found["decode"]):,.0f}',
    'share of prefill': f'{share:.0%}',
    'first call, s': f'{record["contenders"][name]["first_seconds"]:.1f}',
  }


def _facts(record: Record) -> dict[str, str]:
  case, found = record['case'], record['environment']
  loads = lambda key: ', '.join(f'{x:.1f}' for x in found[key])  # noqa: E731
  listed = lambda numbers: ', '.join(map(str, numbers))  # noqa: E731
  return {
    'prompts, batch': f'{case["prompts"]}, {case["batch"]}',
    'OMP_WAIT_POLICY': found['wait_policy'] or 'unset',
    'prompt tokens, padding not counted': f'{record["prompt_tokens"]:,}',
    'longest prompt of each batch': listed(record['longest_prompts']),
    **{
      f'columns of each batch, prompt buckets {count}': listed(sizes)
      for count, sizes in record['bucketed_prompts'].items()
    },
    'new tokens a prompt': str(case['new_tokens']),
    'rounds': str(case['rounds']),
    'processors': f'{found["cpus"]} ({found["machine"]})',
    'load before': loads('load_start'),
    'load after': loads('load_end'),
    'date': found['date'],
    **found['versions'],
  }


if __name__ == '__main__':
  harness.main(__file__, measure, table, measure_case)
