"""What does a LoRA step on SmolLM2 cost in time and memory, by what trains?

  python -m benchmarks.lora_step
"""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, steps
from benchmarks.harness import Record
from pdl_jax.config import Settings
from pdl_jax.losses import LossTables
from pdl_jax.mesh import make_mesh
from pdl_jax.model import lm
from pdl_jax.model.settings import LoRASettings
from pdl_jax.pretrained.gguf import GGUFModel
from pdl_jax.train.step import train_step

BASELINE = 'all parameters'
ROUNDS = 10
LORA = LoRASettings().config(gated=True)
SOME = LoRASettings(targets='query,value').config(gated=True)
# What trains, and fields of the model.
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
  BASELINE: ('all', {}),
  'last 10 layers': ('last_layers', {}),
  'LoRA, all linear layers': ('lora', {'lora': LORA}),
  'the same, the rest in bf16': (
    'lora', {'lora': LORA, 'param_dtype': 'bfloat16'}
  ),
  'LoRA, query and value': ('lora', {'lora': SOME}),
}  # fmt: skip


def measure(options: harness.Options) -> list[Record]:
  """Measures time and memory of each contender."""
  settings, file = steps.main_job()
  rows = 1 if options.tiny else settings.train.batch_size
  length = settings.data.max_prompt + settings.data.max_target - 1
  batch = steps.batch(settings, file.config().vocab_size, rows, length)
  calls, records = {}, []
  for name, (trainable, fields) in CONTENDERS.items():
    calls[name], record = _contender(trainable, fields, settings, file, batch)
    records.append({'name': name, 'rows': rows, 'length': length, **record})
  seconds = harness.take_turns(calls, options.rounds(ROUNDS))
  for record in records:
    record['seconds'] = seconds[record['name']]
  return records


def _contender(
  trainable: str, fields: dict[str, Any], settings: Settings, file: GGUFModel,
  batch: dict[str, jax.Array],
) -> tuple[Callable[[], Any], Record]:  # fmt: skip
  model = dataclasses.replace(file.config(), **fields)
  options: Any = dataclasses.replace(settings.optimizer, trainable=trainable)
  tables = LossTables(jnp.ones(model.vocab_size))
  with jax.set_mesh(make_mesh((1, 1, 1))):
    params = lm.extended(model, file.params(), jax.random.key(0))
    config, start = steps.begin(model, params, options, settings)
    compiled: Any = jax.jit(partial(train_step, config), donate_argnums=0)
    compiled = compiled.lower(start, batch, tables).compile()
  kept = [start]

  def call() -> Any:
    kept[0], scalars = compiled(kept[0], batch, tables)
    return scalars

  def size(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))

  record = {
    'trained': sum(x.size for x in jax.tree.leaves(start.trained)),
    'state_bytes': size(start),
    'moment_bytes': size(start.opt_state),
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
    'cpus': os.cpu_count(), 'jax': jax.__version__,
  }  # fmt: skip
  jax.block_until_ready(call())
  return call, record


def table(records: list[Record]) -> str:
  """Formats ratios to a step of all parameters."""

  def taken(record: Record) -> int:
    return record['state_bytes'] + record['temporary_bytes']

  base, first, whole = records[0]['seconds'], records[0], taken(records[0])
  note = (
    f'{first["rows"]} rows of {first["length"]} tokens. Time of a step in '
    f'that of all parameters in the same round, median and quartiles of '
    f'{len(base)} rounds on {first["cpus"]} CPUs; the median of all '
    f'parameters is {np.median(base):.2f} s. MB are 1e6 bytes; memory is the '
    'state and the temporaries of a step.\n\n'
  )
  return note + harness.listed(records, {
    'what trains': lambda r: r['name'],
    'parameters': lambda r: f'{r["trained"]:,}',
    'time': lambda r: harness.spread(np.divide(r['seconds'], base)),
    'moments MB': lambda r: f'{r["moment_bytes"] / 1e6:,.0f}',
    'state MB': lambda r: f'{r["state_bytes"] / 1e6:,.0f}',
    'temporaries MB': lambda r: f'{r["temporary_bytes"] / 1e6:,.0f}',
    'memory': lambda r: f'{taken(r) / whole:.2f}',
  })


if __name__ == '__main__':
  harness.main(__file__, measure, table)
