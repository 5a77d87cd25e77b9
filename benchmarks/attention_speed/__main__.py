"""What does a training step cost with complex attention, against RoPE?

  python -m benchmarks.attention_speed
"""

import dataclasses
import os
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, steps
from benchmarks.harness import Record
from configs import language_model
from pdl_jax.config import Settings
from pdl_jax.losses import LossTables
from pdl_jax.mesh import make_mesh
from pdl_jax.model import lm
from pdl_jax.model.config import AttentionConfig, ModelConfig
from pdl_jax.train.step import train_step

BASELINE = 'RoPE'
KINDS = {
  BASELINE: AttentionConfig(),
  'CMHA': AttentionConfig('complex'),
}


class Case(NamedTuple):
  """What is timed; `length` is the tokens per row."""

  name: str
  model: ModelConfig
  settings: Settings
  rows: int
  length: int
  rounds: int


def measure(options: harness.Options) -> list[Record]:
  """Measures both models; a tiny benchmark only the small one."""
  cases = _cases()[:1] if options.tiny else _cases()
  return [_measure(case, options.rounds(case.rounds)) for case in cases]


def _cases() -> list[Case]:
  small = Settings.from_config(language_model.get_config('small'))
  shape = ModelConfig(
    vocab_size=8192, width=256, layers=4, heads=4, kv_heads=2, head_dim=64,
    mlp=768, context=1024,
  )  # fmt: skip
  pretrained, file = steps.main_job()
  return [
    Case('D 256', shape, small, 16, 128, 60),
    Case('SmolLM2', file.config(), pretrained, 8, 119, 24),
  ]


def _measure(case: Case, rounds: int) -> Record:
  batch = steps.batch(
    case.settings, case.model.vocab_size, case.rows, case.length
  )
  tables = LossTables(jnp.ones(case.model.vocab_size))
  calls, memory, square = {}, {}, {}
  with jax.set_mesh(make_mesh((1, 1, 1))):
    for name, kind in KINDS.items():
      model = dataclasses.replace(case.model, attention=kind)
      params = lm.init(model, jax.random.key(0))
      config, start = steps.begin(
        model, params, case.settings.optimizer, case.settings
      )
      compiled: Any = jax.jit(partial(train_step, config)).lower(
        start, batch, tables
      ).compile()  # fmt: skip
      calls[name] = partial(compiled, start, batch, tables)
      jax.block_until_ready(calls[name]())
      memory[name] = compiled.memory_analysis().temp_size_in_bytes
      square[name] = _largest_square(compiled.as_text(), case.length)
    seconds = harness.take_turns(calls, rounds)
  shape = ('width', 'layers', 'heads', 'head_dim', 'vocab_size')
  return {
    'case': case.name, **{name: getattr(case.model, name) for name in shape},
    'rows': case.rows, 'length': case.length, 'cpus': os.cpu_count(),
    'jax': jax.__version__, 'seconds': seconds, 'temporary_bytes': memory,
    'largest_square': square,
  }  # fmt: skip


def _largest_square(program: str, length: int) -> list[int]:
  shapes = {
    tuple(int(n) for n in found.split(','))
    for found in re.findall(r'\[([\d,]+)\]', program)
  }
  square = [shape for shape in shapes if shape.count(length) >= 2]
  return list(max(square, key=lambda shape: (np.prod(shape), shape)))


def table(records: list[Record]) -> str:
  """Formats ratios to RoPE within each round."""
  return '\n'.join(map(_section, records))


def _section(record: Record) -> str:
  seconds = record['seconds']
  base = seconds[BASELINE]
  return harness.section(
    f'{record["case"]}: {record["rows"]} rows of {record["length"]} tokens',
    f'D {record["width"]}, {record["layers"]} layers, {record["heads"]} '
    f'heads of {record["head_dim"]}, V {record["vocab_size"]:,}. Time of a '
    f'training step in RoPE\'s of the same round, median and quartiles of '
    f'{len(base)} rounds on {record["cpus"]} CPUs; RoPE\'s median is '
    f'{np.median(base):.2f} s.',
    harness.listed(seconds, {
      'attention': str,
      'time': lambda x: harness.spread(np.divide(seconds[x], base), 3),
      'temporary MB': lambda x: f'{record["temporary_bytes"][x] / 1e6:.1f}',
      'largest array with two axes of length L': lambda x: (
        ' x '.join(map(str, record['largest_square'][x]))
      ),
    }, 'lrrl'),
  )  # fmt: skip


if __name__ == '__main__':
  harness.main(__file__, measure, table)
