"""What does a PDL step cost over a cross-entropy step, and in memory?

  python -m benchmarks.step_cost

SmolLM2 with the settings of configs/summarize.py, the two steps in turn in one
process. Both are the same program with another table of weights, so the ratio
can differ from 1 by noise alone; the cost of looking the weights up is
measured against a program compiled for constant ones, which the compiler may
drop.
"""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from configs import summarize
from pdl_jax.config import Settings
from pdl_jax.losses import LossTables
from pdl_jax.mesh import make_mesh
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.run import loss_tables
from pdl_jax.train import optimizer, state
from pdl_jax.train.step import StepConfig, train_step

FOLDER = Path(__file__).parent
PAIRS = 12


def main() -> None:
  """Measures, and leaves records.jsonl, env.json and table.md."""
  settings = Settings.from_config(summarize.get_config())
  file = GGUFModel(find_package_file(settings.model.pretrained))
  model, steps = file.config(), settings.train.steps
  config = StepConfig(
    model=model,
    optimizer=optimizer.make_optimizer(settings.optimizer, steps),
    schedule=optimizer.make_schedule(settings.optimizer, steps),
    loss=loss_tables.make_loss(settings.loss),
    grad_accum_steps=1,
  )
  mesh = make_mesh((1, 1, 1))
  ones = jnp.ones(model.vocab_size)
  random = np.random.default_rng(0)
  weights = jnp.asarray(random.uniform(0.1, 5, model.vocab_size), jnp.float32)
  batch = _batch(settings, model.vocab_size, random)
  with jax.set_mesh(mesh):
    start = state.create(
      file.params(), model, settings.optimizer, config.optimizer, mesh
    )
    weighted = jax.jit(partial(train_step, config))
    plain = jax.jit(lambda s, b: train_step(config, s, b, LossTables(ones)))
    compiled_pdl = weighted.lower(start, batch, LossTables(weights)).compile()
    compiled_ce = plain.lower(start, batch).compile()
    ratios, seconds = _interleave(
      lambda: compiled_pdl(start, batch, LossTables(weights)),
      lambda: compiled_ce(start, batch),
    )
  b, length = batch['tokens'].shape
  targets = batch['labels'].shape[1]
  record = {
    'pairs': PAIRS,
    'ratio_median': float(np.median(ratios)),
    'ratio_quartiles': np.quantile(ratios, [0.25, 0.75]).tolist(),
    'seconds_cross_entropy_median': float(np.median(seconds)),
    'batch': b,
    'length': length,
    'targets': targets,
    'vocabulary': model.vocab_size,
    'temporary_bytes_pdl': compiled_pdl.memory_analysis().temp_size_in_bytes,
    'temporary_bytes_ce': compiled_ce.memory_analysis().temp_size_in_bytes,
    'logits_at_every_position_in_program': (
      f'{b},{length},{model.vocab_size}]' in compiled_pdl.as_text()
    ),
    'jax': jax.__version__,
  }
  harness.keep(FOLDER, [record], report_files)


def table(record: dict) -> str:
  """The record as Markdown."""
  low, high = record['ratio_quartiles']
  every = (
    4 * record['batch'] * record['length'] * record['vocabulary'] / 1e6
  )
  rows = [
    ('time, PDL step / cross-entropy step, median', record['ratio_median']),
    ('quartiles', f'{low:.3f} to {high:.3f}'),
    ('interleaved pairs', record['pairs']),
    ('cross-entropy step, s', record['seconds_cross_entropy_median']),
    ('temporary memory PDL, MB', record['temporary_bytes_pdl'] / 1e6),
    ('temporary memory cross-entropy, MB', record['temporary_bytes_ce'] / 1e6),
    ('one [B, L, V] array would be, MB', every),
    (
      '[B, L, V] array in the compiled program',
      'yes' if record['logits_at_every_position_in_program'] else 'no',
    ),
  ]
  cells = [
    (name, f'{value:.3f}' if isinstance(value, float) else str(value))
    for name, value in rows
  ]
  return '| measured | value |\n| --- | ---: |\n' + ''.join(
    f'| {name} | {value} |\n' for name, value in cells
  )


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  (record,) = harness.read(FOLDER)
  return {'table.md': table(record)}


def _batch(
  settings: Settings, vocabulary: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
  """Full rows: every position and target is real."""
  lengths, rows = settings.data.lengths, settings.train.batch_size
  shape = (rows, lengths.sequence)
  reads = np.arange(lengths.prompt - 1, lengths.sequence, dtype=np.int32)
  return {
    'tokens': random.integers(0, vocabulary, shape).astype(np.int32),
    'segments': np.ones(shape, np.int32),
    'positions': np.tile(np.arange(shape[1], dtype=np.int32), (rows, 1)),
    'labels': random.integers(0, vocabulary, (rows, lengths.target)).astype(
      np.int32
    ),
    'reads': np.tile(reads, (rows, 1)),
    'where': np.ones((rows, lengths.target), bool),
  }


def _interleave(first, second) -> tuple[list[float], list[float]]:  # noqa: ANN001
  """Ratios of the times of two calls, pair by pair, and the second's times."""
  ratios, seconds = [], []
  for call in (first, second):
    jax.block_until_ready(call())
  for pair in range(PAIRS):
    times = {}
    # The order changes every pair: what is second is never always warmer.
    order = [('a', first), ('b', second)][:: 1 if pair % 2 else -1]
    for name, call in order:
      began = time.perf_counter()
      jax.block_until_ready(call())
      times[name] = time.perf_counter() - began
    ratios.append(times['a'] / times['b'])
    seconds.append(times['b'])
  return ratios, seconds


if __name__ == '__main__':
  main()
