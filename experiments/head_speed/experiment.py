"""How long do the logits, and the loss, of each output head take?

  python -m experiments.head_speed.experiment

At the size of SmolLM2 (V 49,152, D 576): the logits of all types from hidden
states, for one state, as in decoding, and for many; of VQ-Logits its parts
apart. And value and gradient of the loss of one codebook against the fused
loss of a dense head, at V 131,072. Random numbers throughout: time does not
depend on them. Contenders take turns within each round.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdl_jax.losses import LOSSES, Loss, LossTables
from pdl_jax.losses.heads import CodeHead, LinearHead
from pdl_jax.model import api, vq_logits
from pdl_jax.model.config import HeadConfig, ModelConfig

FOLDER = Path(__file__).parent
V, D, ROUNDS = 49_152, 576, 20
STATES = (1, 64)
CODES = {
  'VQ-Logits, 1 x 1,024': HeadConfig('vq', codes=1024),
  'VQ-Logits, 8 x 256': HeadConfig('vq', codes=256, codebooks=8),
  'VQ-Logits, 16 x 256': HeadConfig('vq', codes=256, codebooks=16),
  'VQ-Logits, 48 x 256': HeadConfig('vq', codes=256, codebooks=48),
  'VQ-Logits, 96 x 256': HeadConfig('vq', codes=256, codebooks=96),
  'VQ-Logits, 192 x 256 for 4,096 types, 16 x 128 for the rest': HeadConfig(
    'vq', codes=256, codebooks=192, tail_from=4096, tail_codes=128,
    tail_codebooks=16,
  ),
}
RANKS = (5, 64)
# Of the loss: types, width, codes, tokens.
LOSS = {'V': 131_072, 'D': 512, 'K': 1024, 'N': 1024}
LOSS_ROUNDS = 5
Arrays = tuple[Any, ...]


def main() -> None:
  """Measures, writes records.jsonl and table.md, prints the table."""
  records = [_logits(count) for count in STATES] + [_losses()]
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (FOLDER / 'records.jsonl').write_text(lines)
  (FOLDER / 'table.md').write_text(table(records))
  print(table(records))


def _random(*shape: int) -> jax.Array:
  made = np.random.default_rng(0).normal(size=shape)
  return jnp.asarray(made, jnp.float32)


def _head(config: HeadConfig) -> dict[str, jax.Array]:
  """Of random codes; types in the order of their ids, were there tiers."""
  model = ModelConfig(
    vocab_size=V, width=D, layers=1, heads=1, kv_heads=1, head_dim=2, mlp=1,
    context=1, head=config,
  )  # fmt: skip
  random = np.random.default_rng(1)

  def fill(path: tuple, x: jax.Array) -> jax.Array:
    name = path[-1].key
    if name == 'codes_MxV':
      made = random.integers(0, int(x.max()) + 1, x.shape)
    elif name == 'places_V':
      made = random.permutation(x.size)
    else:
      made = random.normal(size=x.shape)
    return jnp.asarray(made, x.dtype)

  own = api.with_head(model, {}, jax.random.key(0))['head']
  return jax.tree_util.tree_map_with_path(fill, own)


def _logits(states: int) -> dict[str, Any]:
  """Seconds of every round for so many hidden states."""
  hidden = _random(states, D)
  dense = LinearHead(_random(V, D))
  calls: dict[str, tuple[Callable[..., Any], Arrays]] = {
    'dense': (lambda head, h: head.logits(h), (dense, hidden)),
    'softmax of V logits': (
      partial(jax.nn.softmax, axis=-1), (dense.logits(hidden),)
    ),
  }  # fmt: skip
  for rank in RANKS:
    low = LinearHead(_random(V, rank), None, _random(D, rank))
    calls[f'low rank {rank}'] = (lambda head, h: head.logits(h), (low, hidden))
  for name, config in CODES.items():
    calls[name] = (partial(vq_logits.logits, config), (_head(config), hidden))
  one = _head(CODES['VQ-Logits, 1 x 1,024'])
  book, codes = one['codebooks_MxKxS'][0], one['codes_MxV'][0].astype(jnp.int32)
  head = CodeHead(book, codes)
  found = head.code_logits(hidden)
  calls['1 x 1,024: matmul alone'] = (
    lambda head, h: head.code_logits(h), (head, hidden)
  )  # fmt: skip
  calls['1 x 1,024: look-up alone'] = (
    lambda z, codes: jnp.take(z, codes, axis=-1), (found, codes)
  )  # fmt: skip
  return {
    'what': 'logits', 'states': states, 'cpus': os.cpu_count(),
    'seconds': _in_turn(calls, ROUNDS),
  }  # fmt: skip


def _losses() -> dict[str, Any]:
  """Seconds and bytes of value and gradient of two heads' losses."""
  v, d, k, n = (LOSS[key] for key in ('V', 'D', 'K', 'N'))
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
  calls = {
    'dense': (run, ((_random(v, d),), (), hidden)),
    f'1 x {k:,}': (run, ((_random(k, d),), (codes,), hidden)),
  }
  return {
    'what': 'loss', **LOSS, 'cpus': os.cpu_count(),
    'seconds': _in_turn(calls, LOSS_ROUNDS),
    'temporary_bytes': {
      name: jax.jit(f).lower(*x).compile().memory_analysis().temp_size_in_bytes
      for name, (f, x) in calls.items()
    },
  }  # fmt: skip


def _in_turn(
  calls: dict[str, tuple[Callable[..., Any], Arrays]], rounds: int
) -> dict[str, list[float]]:
  compiled = {name: (jax.jit(f), x) for name, (f, x) in calls.items()}
  for f, x in compiled.values():
    jax.block_until_ready(f(*x))
  seconds: dict[str, list[float]] = {name: [] for name in compiled}
  for _ in range(rounds):
    for name, (f, x) in compiled.items():
      began = time.perf_counter()
      jax.block_until_ready(f(*x))
      seconds[name].append(time.perf_counter() - began)
  return seconds


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown: ratios to the dense head within each round."""
  lines = []
  for record in records:
    seconds = record['seconds']
    if record['what'] == 'logits':
      title = f'Logits of all {V:,} types, D {D}, {record["states"]} states'
    else:
      title = (
        f'Loss, value and gradient, V {record["V"]:,}, D {record["D"]}, '
        f'{record["N"]:,} tokens'
      )
    count = len(seconds['dense'])
    lines += [
      f'## {title}', '',
      f'Medians of {count} rounds on {record["cpus"]} CPUs; times faster than '
      'the dense head in the same round, with quartiles.', '',
      '| head | ms | times faster |', '| --- | ---: | ---: |',
    ]  # fmt: skip
    for name, values in seconds.items():
      ratio = np.divide(seconds['dense'], values)
      low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
      lines.append(
        f'| {name} | {1e3 * np.median(values):.2f} | {middle:.2f} ({low:.2f} '
        f'to {high:.2f}) |'
      )
    if 'temporary_bytes' in record:
      lines += ['', '| head | temporary MB |', '| --- | ---: |']
      lines += [
        f'| {name} | {size / 1e6:.1f} |'
        for name, size in record['temporary_bytes'].items()
      ]
    lines.append('')
  return '\n'.join(lines)


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  lines = (FOLDER / 'records.jsonl').read_text().splitlines()
  return {'table.md': table([json.loads(line) for line in lines])}


if __name__ == '__main__':
  main()
