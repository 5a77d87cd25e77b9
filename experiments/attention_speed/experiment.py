"""What does a training step cost with complex attention, against RoPE?

  python -m experiments.attention_speed.experiment

Whole steps, loss and optimizer included: of a model of D 256 trained in all its
layers, and of SmolLM2's shape with the settings of
configs/summarize.py, its last ten layers trained. Random weights and tokens:
time does not depend on them. Contenders take turns within each round, in an
order that moves on by one. Also the temporary memory of each compiled step, and
its largest array with two axes of the length of a row.
"""

import dataclasses
import json
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import language_model, summarize
from pdl_jax import optimizer, sharding, state, weighting
from pdl_jax.losses import LossTables
from pdl_jax.model import api
from pdl_jax.model.config import AttentionConfig, ModelConfig
from pdl_jax.model.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.settings import Settings
from pdl_jax.step import StepConfig, train_step

FOLDER = Path(__file__).parent
BASELINE = 'RoPE'
KINDS = {
  BASELINE: AttentionConfig(),
  'CMHA': AttentionConfig('complex'),
}


class Case(NamedTuple):
  """What is timed: shape, settings, rows, tokens of a row, rounds."""

  name: str
  model: ModelConfig
  settings: Settings
  rows: int
  length: int
  rounds: int


def main() -> None:
  """Measures, writes records.jsonl and table.md, prints the table."""
  records = [_measure(case) for case in _cases()]
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (FOLDER / 'records.jsonl').write_text(lines)
  (FOLDER / 'table.md').write_text(table(records))
  print(table(records))


def _cases() -> list[Case]:
  config: Any = language_model.get_config('small')
  small = Settings.from_config(config)
  shape = ModelConfig(
    vocab_size=8192, width=256, layers=4, heads=4, kv_heads=2, head_dim=64,
    mlp=768, context=1024,
  )  # fmt: skip
  pretrained = Settings.from_config(summarize.get_config())
  file = GGUFModel(find_package_file(pretrained.model.pretrained))
  return [
    Case('D 256', shape, small, 16, 128, 60),
    Case('SmolLM2', file.config(), pretrained, 8, 119, 24),
  ]


def _measure(case: Case) -> dict[str, Any]:
  options, steps = case.settings.optimizer, case.settings.train.steps
  batch = _batch(case)
  tables = LossTables(jnp.ones(case.model.vocab_size))
  calls, seconds, memory, square = {}, {}, {}, {}
  with jax.set_mesh(sharding.make_mesh((1, 1, 1))):
    for name, kind in KINDS.items():
      model = dataclasses.replace(case.model, attention=kind)
      config = StepConfig(
        model=model,
        optimizer=optimizer.make_optimizer(options, steps),
        schedule=optimizer.make_schedule(options, steps),
        loss=weighting.make_loss(case.settings.loss),
        accumulation=1,
      )
      start = state.create(
        api.init(model, jax.random.key(0)), model, options, config.optimizer,
        sharding.make_mesh((1, 1, 1)),
      )  # fmt: skip
      compiled: Any = jax.jit(partial(train_step, config)).lower(
        start, batch, tables
      ).compile()  # fmt: skip
      calls[name] = partial(compiled, start, batch, tables)
      jax.block_until_ready(calls[name]())
      seconds[name] = []
      memory[name] = compiled.memory_analysis().temp_size_in_bytes
      square[name] = _largest_square(compiled.as_text(), case.length)
    names = list(calls)
    for number in range(case.rounds):
      shift = number % len(names)
      for name in names[shift:] + names[:shift]:
        began = time.perf_counter()
        jax.block_until_ready(calls[name]())
        seconds[name].append(time.perf_counter() - began)
  return {
    'case': case.name, 'width': case.model.width, 'layers': case.model.layers,
    'heads': case.model.heads, 'head_dim': case.model.head_dim,
    'vocab_size': case.model.vocab_size, 'rows': case.rows,
    'length': case.length, 'cpus': os.cpu_count(), 'jax': jax.__version__,
    'seconds': seconds, 'temporary_bytes': memory,
    'largest_square': square,
  }  # fmt: skip


def _largest_square(program: str, length: int) -> list[int]:
  """Shape of the largest array with two axes of that length."""
  shapes = {
    tuple(int(n) for n in found.split(','))
    for found in re.findall(r'\[([\d,]+)\]', program)
  }
  square = [shape for shape in shapes if shape.count(length) >= 2]
  return list(max(square, key=lambda shape: (np.prod(shape), shape)))


def _batch(case: Case) -> dict[str, jax.Array]:
  """Full rows: every position is a target but where the settings read few."""
  random = np.random.default_rng(0)
  shape, vocab_size = (case.rows, case.length), case.model.vocab_size
  reads = np.arange(case.length)
  if case.settings.model.pretrained:
    reads = reads[case.settings.data.max_prompt - 1 :]
  targets = (case.rows, reads.size)
  ids = partial(random.integers, 0, vocab_size)
  made = {
    'tokens': ids(shape),
    'segments': np.ones(shape),
    'positions': np.tile(np.arange(case.length), (case.rows, 1)),
    'labels': ids(targets),
    'reads': np.tile(reads, (case.rows, 1)),
  }
  batch = {name: jnp.asarray(x, jnp.int32) for name, x in made.items()}
  return {**batch, 'where': jnp.ones(targets, bool)}


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown: ratios to RoPE within each round."""
  lines = []
  for record in records:
    seconds, memory = record['seconds'], record['temporary_bytes']
    base = seconds[BASELINE]
    lines += [
      f'## {record["case"]}: {record["rows"]} rows of {record["length"]} '
      'tokens', '',
      f'D {record["width"]}, {record["layers"]} layers, {record["heads"]} '
      f'heads of {record["head_dim"]}, V {record["vocab_size"]:,}. Time of a '
      f'training step in RoPE\'s of the same round, median and quartiles of '
      f'{len(base)} rounds on {record["cpus"]} CPUs; RoPE\'s median is '
      f'{np.median(base):.2f} s.', '',
      '| attention | time | temporary MB | largest array with two axes of '
      'length L |', '| --- | ---: | ---: | --- |',
    ]  # fmt: skip
    for name, values in seconds.items():
      ratio = np.divide(values, base)
      low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
      square = ' x '.join(map(str, record['largest_square'][name]))
      lines.append(
        f'| {name} | {middle:.3f} ({low:.3f} to {high:.3f}) | '
        f'{memory[name] / 1e6:.1f} | {square} |'
      )
    lines.append('')
  return '\n'.join(lines)


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  lines = (FOLDER / 'records.jsonl').read_text().splitlines()
  return {'table.md': table([json.loads(line) for line in lines])}


if __name__ == '__main__':
  main()
