"""What does a PDL step cost over a cross-entropy step, and in memory?

  python -m benchmarks.step_cost
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, steps
from benchmarks.harness import Record
from pdl_jax.losses import LossTables
from pdl_jax.mesh import make_mesh
from pdl_jax.train.step import train_step

PAIRS = 12


def measure(options: harness.Options) -> list[Record]:
  """Measures pairs of steps, and the memory of both programs."""
  settings, file = steps.main_job()
  model, length = file.config(), settings.data.lengths.sequence
  rows = 1 if options.tiny else settings.train.batch_size
  batch = steps.batch(settings, model.vocab_size, rows, length)
  random = np.random.default_rng(0)
  weights = jnp.asarray(random.uniform(0.1, 5, model.vocab_size), jnp.float32)
  tables, ones = LossTables(weights), LossTables(jnp.ones(model.vocab_size))
  with jax.set_mesh(make_mesh((1, 1, 1))):
    config, start = steps.begin(
      model, file.params(), settings.optimizer, settings
    )
    weighted = jax.jit(partial(train_step, config))
    plain = jax.jit(lambda s, b: train_step(config, s, b, ones))
    pdl = weighted.lower(start, batch, tables).compile()
    entropy = plain.lower(start, batch).compile()
    calls = {
      'pdl': partial(pdl, start, batch, tables),
      'entropy': partial(entropy, start, batch),
    }
    harness.take_turns(calls, 1)
    seconds = harness.take_turns(calls, options.rounds(PAIRS))
  ratios = np.divide(seconds['pdl'], seconds['entropy'])
  return [{
    'pairs': len(ratios),
    'ratio_median': float(np.median(ratios)),
    'ratio_quartiles': np.quantile(ratios, [0.25, 0.75]).tolist(),
    'seconds_cross_entropy_median': float(np.median(seconds['entropy'])),
    'batch': rows,
    'length': length,
    'targets': batch['labels'].shape[1],
    'vocabulary': model.vocab_size,
    'temporary_bytes_pdl': pdl.memory_analysis().temp_size_in_bytes,
    'temporary_bytes_ce': entropy.memory_analysis().temp_size_in_bytes,
    'logits_at_every_position_in_program': (
      f'{rows},{length},{model.vocab_size}]' in pdl.as_text()
    ),
    'jax': jax.__version__,
  }]


def table(records: list[Record]) -> str:
  """Formats the one record."""
  (record,) = records
  low, high = record['ratio_quartiles']
  every = 4 * record['batch'] * record['length'] * record['vocabulary']
  found = record['logits_at_every_position_in_program']
  median = record['seconds_cross_entropy_median']
  return harness.markdown(('measured', 'value'), [
    ('time, PDL step / cross-entropy step, median',
     f'{record["ratio_median"]:.3f}'),
    ('quartiles', f'{low:.3f} to {high:.3f}'),
    ('interleaved pairs', f'{record["pairs"]}'),
    ('cross-entropy step, s', f'{median:.3f}'),
    ('temporary memory PDL, MB', f'{record["temporary_bytes_pdl"] / 1e6:.3f}'),
    ('temporary memory cross-entropy, MB',
     f'{record["temporary_bytes_ce"] / 1e6:.3f}'),
    ('one [B, L, V] array would be, MB', f'{every / 1e6:.3f}'),
    ('[B, L, V] array in the compiled program', 'yes' if found else 'no'),
  ])  # fmt: skip


if __name__ == '__main__':
  harness.main(__file__, measure, table)
