"""Measures one case, in a process of its own, and prints its record.

  python -m benchmarks.loss_speed.measure '{"kind": "speed", ...}'

Called by experiment.py, which says what a case holds.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.loss_speed import flops, peers
from benchmarks.loss_speed.contenders import (
  CONTENDERS,
  Batch,
  Contender,
  draw,
)

PACKAGES = (
  'jax', 'jaxlib', 'numpy', 'optax', 'tokamax', 'marin-levanter', 'torch'
)  # fmt: skip
# Standard deviation of the logits.
SCALES = {'flat': 0.02, 'peaked': 8.0}


def main() -> None:
  """Prints the record of the case on the command line, as one JSON line."""
  case = json.loads(sys.argv[1])
  before = environment()
  found = {'speed': speed, 'error': errors}[case['kind']](case)
  after = {'load_end': list(os.getloadavg())}
  record = {'case': case, 'environment': before | after, 'contenders': found}
  print(json.dumps(record))


def environment() -> dict[str, Any]:
  """What the numbers depend on beside the code."""
  versions = {'python': platform.python_version()}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  return {
    'versions': versions,
    'machine': platform.machine(),
    'cpus': len(os.sched_getaffinity(0)),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'load_start': list(os.getloadavg()),
  }


# --- time and memory ----------------------------------------------------------


def speed(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """Every contender once a round, in an order that changes every round."""
  batch = draw(
    case['tokens'], case['width'], case['vocabulary'], case['masked'],
    SCALES['flat'],
  )  # fmt: skip
  arrays = jax.device_put(batch)
  found, calls = {}, {}
  for name in case['contenders']:
    contender = CONTENDERS[name]
    print(f'  {name}', file=sys.stderr, flush=True)
    calls[name], found[name] = _prepare(contender, batch, arrays)
    found[name]['seconds'] = []
  for number in range(case['rounds']):
    order = np.random.default_rng([1, number]).permutation(list(calls))
    for name in order.tolist():
      found[name]['seconds'].append(_seconds(calls[name]))
    print(f'  round {number + 1}', file=sys.stderr, flush=True)
  return found


def _prepare(
  contender: Contender, batch: Batch, arrays: Batch
) -> tuple[Callable[[], Any], dict[str, Any]]:
  """A call that has run once, and what is known without timing it."""
  if contender.torch:
    call = _torch_call(contender, batch)
    call()
    outputs = sum(
      x.size * x.itemsize for x in (batch.hidden_NxD, batch.head_DxV)
    )
    peak = peers.torch_peak_bytes(call)
    return call, {'temporary_bytes': peak - outputs}
  f = contender.make(arrays)
  began = time.perf_counter()
  compiled = jax.jit(f).lower(arrays).compile()
  took = time.perf_counter() - began
  call = lambda: jax.block_until_ready(compiled(arrays))  # noqa: E731
  call()
  return call, {
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
    'compile_seconds': took,
    'flops': flops.of_call(f, arrays),
    'flops_of_compiler': compiled.cost_analysis()['flops'],
  }


def _torch_call(contender: Contender, batch: Batch) -> Callable[[], Any]:
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  tensors = Batch(*(None if x is None else torch.from_numpy(x) for x in batch))
  f = contender.make(tensors)
  return lambda: f(tensors)


def _seconds(call: Callable[[], Any]) -> float:
  began = time.perf_counter()
  result = call()
  took = time.perf_counter() - began
  del result
  return took


# --- errors -------------------------------------------------------------------


def errors(case: dict[str, Any]) -> dict[str, dict[str, float]]:
  """Relative errors of the loss and its gradients, against fp64."""
  batch = draw(
    case['tokens'], case['width'], case['vocabulary'], 0.0,
    SCALES[case['logits']], jnp.dtype(case['dtype']),
  )  # fmt: skip
  arrays = jax.device_put(batch)
  exact = {
    weighted: reference(batch, weighted)
    for weighted in {CONTENDERS[name].weighted for name in case['contenders']}
  }
  found = {}
  for name in case['contenders']:
    contender = CONTENDERS[name]
    print(f'  {name}', file=sys.stderr, flush=True)
    if contender.torch:
      result = _torch_call(contender, batch)()
    else:
      result = jax.jit(contender.make(arrays))(arrays)
    wanted = exact[contender.weighted]
    found[name] = {
      part: _distance(got, want)
      for part, got, want in zip(
        ('loss', 'd_hidden', 'd_head'), result, wanted, strict=False
      )
    }
  return found


def _distance(got: Any, want: np.ndarray) -> float:
  difference = np.asarray(got).astype(np.float64) - want
  return float(np.linalg.norm(difference) / np.linalg.norm(want))


def reference(
  batch: Batch, weighted: bool, rows: int = 256
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Loss and gradients by numpy in fp64, some rows at a time."""
  hidden, head = (np.asarray(x, np.float64) for x in batch[:2])
  weight = batch.weight_N.astype(np.float64)
  weight = weight if weighted else np.ones_like(weight)
  weight /= weight.sum()
  loss, d_hidden, d_head = 0.0, np.zeros_like(hidden), np.zeros_like(head)
  for start in range(0, len(hidden), rows):
    part = slice(start, start + rows)
    label = (np.arange(len(hidden[part])), batch.labels_N[part])
    z = hidden[part] @ head
    z -= z.max(axis=1, keepdims=True)
    nll = np.log(np.exp(z).sum(axis=1)) - z[label]
    loss += float(weight[part] @ nll)
    slope = np.exp(z)
    slope /= slope.sum(axis=1, keepdims=True)
    slope[label] -= 1.0
    slope *= weight[part, None]
    d_hidden[part] = slope @ head.T
    d_head += hidden[part].T @ slope
  return np.asarray(loss), d_hidden, d_head


if __name__ == '__main__':
  main()
