"""What does a LoRA step on SmolLM2 cost in time and memory, by what trains?

  python -m benchmarks.lora_step

Whole steps, loss and optimizer included, of SmolLM2 with the rows of
configs/summarize.py: all parameters, the main job's last ten layers, and
adapters of rank 16. Each state is donated and goes on from step to step; the
contenders take turns within each round. Memory is the compiler's: what the
state takes between steps, and that with the temporaries of a step.
"""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, steps
from configs import summarize
from pdl_jax.config import Settings
from pdl_jax.losses import LossTables
from pdl_jax.mesh import make_mesh
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.settings import LoRASettings
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.train import state
from pdl_jax.train.step import train_step

FOLDER = Path(__file__).parent
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


def main() -> None:
  """Measures, and leaves records.jsonl, env.json and table.md."""
  settings = Settings.from_config(summarize.get_config())
  file = GGUFModel(find_package_file(settings.model.pretrained))
  rows = settings.train.batch_size
  length = settings.data.max_prompt + settings.data.max_target - 1
  batch = steps.batch(settings, file.config().vocab_size, rows, length)
  calls, records = {}, []
  for name, (trainable, fields) in CONTENDERS.items():
    model = dataclasses.replace(file.config(), **fields)
    options = dataclasses.replace(settings.optimizer, trainable=trainable)
    calls[name], record = _contender(model, options, settings, file, batch)
    records.append({'name': name, 'rows': rows, 'length': length, **record})
  seconds = steps.take_turns(calls, ROUNDS)
  for record in records:
    record['seconds'] = seconds[record['name']]
  harness.keep(FOLDER, records, report_files)


def _contender(
  model: ModelConfig,
  options: Any,
  settings: Settings,
  file: GGUFModel,
  batch: dict[str, jax.Array],
) -> tuple[Callable[[], Any], dict[str, Any]]:
  """A call that makes the next step, and what it takes."""
  mesh = make_mesh((1, 1, 1))
  config = steps.step_config(model, options, settings)
  tables = LossTables(jnp.ones(model.vocab_size))
  with jax.set_mesh(mesh):
    params = lm.extended(model, file.params(), jax.random.key(0))
    start = state.create(params, model, options, config.optimizer, mesh)
    compiled: Any = jax.jit(partial(train_step, config), donate_argnums=0)
    compiled = compiled.lower(start, batch, tables).compile()
  memory, kept = compiled.memory_analysis(), [start]

  def call() -> Any:
    kept[0], scalars = compiled(kept[0], batch, tables)
    return scalars

  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
  record = {
    'trained': sum(x.size for x in jax.tree.leaves(start.trained)),
    'state_bytes': size(start),
    'moment_bytes': size(start.opt_state),
    'temporary_bytes': memory.temp_size_in_bytes,
    'cpus': os.cpu_count(), 'jax': jax.__version__,
  }  # fmt: skip
  jax.block_until_ready(call())
  return call, record


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown: ratios to a step of all parameters."""
  base, first = records[0]['seconds'], records[0]
  whole = first['state_bytes'] + first['temporary_bytes']
  lines = [
    f'{first["rows"]} rows of {first["length"]} tokens. Time of a step in '
    f'that of all parameters in the same round, median and quartiles of '
    f'{len(base)} rounds on {first["cpus"]} CPUs; the median of all '
    f'parameters is {np.median(base):.2f} s. MB are 1e6 bytes; memory is the '
    'state and the temporaries of a step.', '',
    '| what trains | parameters | time | moments MB | state MB | temporaries '
    'MB | memory |', '| --- | ---: | ---: | ---: | ---: | ---: | ---: |',
  ]  # fmt: skip
  for record in records:
    ratio = np.divide(record['seconds'], base)
    low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
    total = record['state_bytes'] + record['temporary_bytes']
    lines.append(
      f'| {record["name"]} | {record["trained"]:,} | {middle:.2f} ({low:.2f} '
      f'to {high:.2f}) | {record["moment_bytes"] / 1e6:,.0f} | '
      f'{record["state_bytes"] / 1e6:,.0f} | '
      f'{record["temporary_bytes"] / 1e6:,.0f} | {total / whole:.2f} |'
    )
  return '\n'.join(lines) + '\n'


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  return {'table.md': table(harness.read(FOLDER))}


if __name__ == '__main__':
  main()
