"""How long is a training step here, and with transformers on PyTorch?

  python -m benchmarks.train_step
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

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

OURS, THEIRS, TARGETS, LIMIT = 'ours', 'theirs', 'theirs_targets', 'limit'
Step = Callable[[], Record]
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'torch', 'transformers', 'peft')
NAMES = {
  'all': 'all parameters', 'last_layers': 'last 10 layers',
  'lora': 'LoRA, all linear layers',
}
LAYERS = 10
LORA = LoRASettings()
CASES: tuple[Record, ...] = tuple(
  {'trained': trained, 'rows': rows, 'rounds': rounds}
  for rows, rounds in ((8, 10), (32, 5))
  for trained in NAMES
)
TINY: Record = {'trained': 'lora', 'rows': 1, 'rounds': 1}


# Idle workers of PyTorch sleep; else they spin into what is timed next.
SLEEP = {'OMP_WAIT_POLICY': 'PASSIVE'}
# Large pages of memory, as `make summarize` has them.
LARGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


def measure(options: harness.Options) -> list[Record]:
  """Measures each case."""
  return harness.by_case(options, [TINY] if options.tiny else CASES, in_turns)


def in_turns(case: Record) -> Record:
  """Measures the seconds of a step by each contender.

  Each has a process of its own, which sleeps while it is not its turn: in one
  process they slow each other down, ours more than theirs.
  """
  found = harness.measured_on(PACKAGES)
  names = (OURS, THEIRS, TARGETS, LIMIT)
  children = {name: _start({**case, 'contender': name}) for name in names}
  try:
    first = {name: _turn(child) for name, child in children.items()}
    losses = [first[name]['loss'] for name in (OURS, THEIRS, TARGETS)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in harness.in_turns(names, case['rounds']):
      seconds[name].append(_turn(children[name])['seconds'])
  finally:
    for child in children.values():
      child.kill()
  flops = first[LIMIT]['flops']
  rate = first[LIMIT]['product_flops'] / np.array(seconds[LIMIT])
  seconds[LIMIT] = (flops / rate).tolist()
  return {
    'case': case, 'environment': found, 'flops': flops, 'rate': rate.tolist(),
    'first_losses': losses, 'seconds': seconds,
  }


def _start(case: Record) -> subprocess.Popen:
  pages = LARGE_PAGES if case['contender'] == OURS else {}
  return subprocess.Popen(
    [sys.executable, '-m', 'benchmarks.train_step', '--case', json.dumps(case)],
    cwd=harness.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    encoding='utf-8', env={**os.environ, **SLEEP, **pages},
  )  # fmt: skip


def _turn(child: subprocess.Popen) -> Record:
  """Lets a contender take a step, and waits for what it says."""
  assert child.stdin is not None and child.stdout is not None
  child.stdin.write('\n')
  child.stdin.flush()
  if not (line := child.stdout.readline()):
    raise subprocess.CalledProcessError(child.wait(), child.args)
  return json.loads(line)


# --- in a process of its own --------------------------------------------------


class Work(NamedTuple):
  """What a step trains, and on which batch of full rows of random tokens."""

  settings: Settings
  file: GGUFModel
  case: Record
  batch: dict[str, jax.Array]


def measure_case(case: Record) -> Record:
  """Times a step of a contender for each line that comes in.

  An untimed one goes before it, as in training: memory that was idle during the
  others' turns may have gone back to the machine's host.
  """
  settings, file = steps.main_job()
  length = settings.data.max_prompt + settings.data.max_target - 1
  batch = steps.batch(settings, file.config().vocab_size, case['rows'], length)
  work = Work(settings, file, case, batch)
  step = {
    OURS: ours, THEIRS: theirs, TARGETS: partial(theirs, targets_alone=True),
    LIMIT: product,
  }[case['contender']](work)  # fmt: skip
  while sys.stdin.readline():
    told = step()
    began = time.perf_counter()
    step()
    told['seconds'] = time.perf_counter() - began
    print(json.dumps(told), flush=True)
  return {}


def ours(work: Work) -> Step:
  """Makes a step of the project, with the loss of configs/summarize.py."""
  settings, trained = work.settings, work.case['trained']
  model = work.file.config()
  if trained == 'lora':
    model = dataclasses.replace(model, lora=LORA.config(gated=True))
  options = dataclasses.replace(settings.optimizer, trainable=trained)
  tables = LossTables(jnp.ones(model.vocab_size))
  with jax.set_mesh(make_mesh((1, 1, 1))):
    params = lm.extended(model, work.file.params(), jax.random.key(0))
    config, start = steps.begin(model, params, options, settings)
    compiled: Any = jax.jit(partial(train_step, config), donate_argnums=0)
    compiled = compiled.lower(start, work.batch, tables).compile()
  kept = [start]

  def step() -> Record:
    kept[0], scalars = compiled(kept[0], work.batch, tables)
    jax.block_until_ready(kept[0])
    return {'loss': float(scalars['loss'])}

  return step


def theirs(work: Work, targets_alone: bool = False) -> Step:
  """Makes a step of transformers: cross-entropy, fused AdamW, clipping."""
  import torch
  from transformers import AutoModelForCausalLM

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  path, options = work.file.path, work.settings.optimizer
  model: Any = AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  )
  if work.case['trained'] == 'lora':
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(
      r=LORA.rank, lora_alpha=LORA.alpha, target_modules='all-linear',
    ))  # fmt: skip
  else:
    for parameter in _frozen(model, work.case['trained']):
      parameter.requires_grad_(False)
  model.train()
  kept = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(
    kept, lr=options.learning_rate, betas=(options.b1, options.b2),
    eps=options.eps, weight_decay=options.weight_decay, fused=True,
  )  # fmt: skip
  tokens = torch.from_numpy(np.array(work.batch['tokens'])).long()
  count = work.batch['labels'].shape[1]
  labels = torch.full_like(tokens, -100)
  labels[:, -count:] = torch.from_numpy(np.array(work.batch['labels']))
  fewer: dict[str, Any] = {'shift_labels': labels}
  if targets_alone:
    kept_labels = labels[:, -count:].contiguous()
    fewer = {'shift_labels': kept_labels, 'logits_to_keep': count}

  def step() -> Record:
    optimizer.zero_grad(set_to_none=True)
    loss = model(input_ids=tokens, labels=labels, **fewer).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(kept, options.clip_norm)
    optimizer.step()
    return {'loss': loss.item()}

  return step


def _frozen(model: Any, trained: str) -> Iterator[Any]:
  """Yields what does not train: all but the last layers and the final norm."""
  if trained == 'last_layers':
    yield from model.model.embed_tokens.parameters()
    for layer in model.model.layers[:-LAYERS]:
      yield from layer.parameters()


def product(work: Work) -> Step:
  """Makes the limit: products as large as the model's largest."""
  model, count = work.file.config(), 20
  tokens = work.batch['tokens'].size
  x, w = jnp.ones((tokens, model.width)), jnp.ones((model.width, model.mlp))
  multiply = jax.jit(jnp.matmul)
  flops = {
    'product_flops': count * 2.0 * tokens * model.width * model.mlp,
    'flops': step_flops(work),
  }

  def step() -> Record:
    for _ in range(count):
      jax.block_until_ready(multiply(x, w))
    return dict(flops)

  return step


def step_flops(work: Work) -> float:
  """Floating-point operations of a step's products, the least that it needs.

  A matrix takes 2 per token and parameter forward; as many again for the
  gradient of its input, and as many for its own. Attention takes what is on or
  below the diagonal.
  """
  model, trained = work.file.config(), work.case['trained']
  rows, length = work.batch['tokens'].shape
  heads, kv, wide = model.heads, model.kv_heads, model.head_dim
  matrices = model.width * (
    2 * heads * wide + 2 * kv * wide + 3 * model.mlp
  )  # fmt: skip
  layer = 2.0 * rows * length * matrices
  pairs = rows * length * (length + 1) / 2
  attention = 2 * 2.0 * pairs * heads * wide
  backward = {'all': model.layers, 'last_layers': LAYERS, 'lora': model.layers}
  own = {'all': 1, 'last_layers': 1, 'lora': 0}[trained]
  below = backward[trained]
  head = 2.0 * work.batch['labels'].size * model.width * model.vocab_size
  # The head is the embedding, which trains with all parameters alone.
  return (
    model.layers * (layer + attention)
    + below * ((1 + own) * layer + 2 * attention)
    + head * (3 if trained == 'all' else 2)
  )


# --- table --------------------------------------------------------------------


def table(records: list[Record]) -> str:
  """Formats times, and ratios within a round."""
  return harness.listed(records, {
    'what trains': lambda r: NAMES[r['case']['trained']],
    'rows': lambda r: str(r['case']['rows']),
    'rounds': lambda r: str(r['case']['rounds']),
    'ours, s': lambda r: harness.spread(r['seconds'][OURS]),
    'over theirs': lambda r: _ratio(r, OURS, THEIRS),
    'over theirs, logits of targets alone': lambda r: _ratio(r, OURS, TARGETS),
    'limit over ours': lambda r: _ratio(r, LIMIT, OURS),
    'limit over theirs': lambda r: _ratio(r, LIMIT, THEIRS),
    'GFLOP/s of a product': lambda r: f'{np.median(r["rate"]) / 1e9:,.0f}',
  })


def _ratio(record: Record, a: str, b: str) -> str:
  seconds = record['seconds']
  return harness.spread(np.divide(seconds[a], seconds[b]))


if __name__ == '__main__':
  harness.main(__file__, measure, table, measure_case)
