"""What does attention in blocks cost on rows of many tokens?

  python -m benchmarks.long_rows
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Record
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig

ALL, BLOCKS = 'all scores at once', 'in blocks'
IMPLEMENTATIONS = {ALL: 'xla', BLOCKS: 'chunked'}
# Rounds by length; 0 compiles only, for the memory.
LENGTHS = {128: 40, 256: 40, 512: 40, 1024: 20, 2048: 10, 8192: 0}


def measure(options: harness.Options) -> list[Record]:
  """Measures every length; a tiny benchmark only the shortest."""
  lengths = dict(list(LENGTHS.items())[:1]) if options.tiny else LENGTHS
  return [
    _measure(length, rounds and options.rounds(rounds))
    for length, rounds in lengths.items()
  ]


def _layer(implementation: str) -> ModelConfig:
  """One layer of SmolLM2's shape, without its vocabulary."""
  return ModelConfig(
    vocab_size=256, width=576, layers=1, heads=9, kv_heads=3, head_dim=64,
    mlp=1536, context=8192, attention_impl=implementation,
  )  # fmt: skip


def _measure(length: int, rounds: int) -> Record:
  random = np.random.default_rng(0)
  tokens = jnp.asarray(random.integers(0, 256, (1, length)))
  inputs = tokens, jnp.ones_like(tokens), jnp.arange(length)[None]
  calls, memory = {}, {}
  for name, implementation in IMPLEMENTATIONS.items():
    config = _layer(implementation)
    params = lm.init(config, jax.random.key(0))

    def loss(params: lm.Params, *inputs: jax.Array) -> jax.Array:
      return (lm.hidden(config, params, *inputs) ** 3).sum()  # noqa: B023

    compiled = jax.jit(jax.grad(loss)).lower(params, *inputs).compile()
    memory[name] = compiled.memory_analysis().temp_size_in_bytes
    calls[name] = partial(compiled, params, *inputs)
  if rounds:
    jax.block_until_ready([call() for call in calls.values()])
  return {
    'length': length, 'cpus': os.cpu_count(), 'jax': jax.__version__,
    'seconds': harness.take_turns(calls, rounds) if rounds else {},
    'temporary_bytes': memory,
  }  # fmt: skip


def table(records: list[Record]) -> str:
  """Formats ratios to all scores at once, within each round."""

  def time(length: int) -> str:
    seconds = of[length]['seconds']
    if not seconds:
      return 'not timed'
    return harness.spread(np.divide(seconds[BLOCKS], seconds[ALL]), 2)

  def memory(length: int, name: str) -> str:
    return f'{of[length]["temporary_bytes"][name] / 1e6:,.1f}'

  of = {record['length']: record for record in records}
  return harness.section(
    'One layer of SmolLM2, forward and backward, one row',
    'Time in blocks over that of all scores at once, of the same round, median '
    f'and quartiles, on {records[0]["cpus"]} CPUs; temporary memory by the '
    'compiler.',
    harness.listed(of, {
      'tokens': lambda x: f'{x:,}',
      'rounds': lambda x: str(len(of[x]['seconds'].get(ALL, ()))), 'time': time,
      f'MB, {ALL}': lambda x: memory(x, ALL),
      f'MB, {BLOCKS}': lambda x: memory(x, BLOCKS),
    }, 'rrrrr'),
  )  # fmt: skip


if __name__ == '__main__':
  harness.main(__file__, measure, table)
