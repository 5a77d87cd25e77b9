"""Measures one case, in a process of its own."""

import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import harness, hlo
from benchmarks.harness import Record
from benchmarks.loss_speed import flops, peers
from benchmarks.loss_speed.contenders import CONTENDERS, Contender
from benchmarks.loss_speed.peers import Batch
from pdl_jax.losses.fused.api import FusedConfig, linear_pdl_loss
from pdl_jax.mesh import make_mesh

PACKAGES = (
  'jax', 'jaxlib', 'numpy', 'optax', 'tokamax', 'marin-levanter', 'torch'
)  # fmt: skip
# Standard deviation of the logits.
SCALES = {'flat': 0.02, 'peaked': 8.0}


def measure(case: Record) -> Record:
  """Returns the record of a case."""
  before = harness.measured_on(PACKAGES)
  if case['kind'] == 'collectives':
    logits = case['tokens'] * case['vocabulary'] * 4
    return {
      'case': case,
      'environment': before,
      'collectives': collectives(case),
      'logits_bytes': logits,
      'logits_bytes_of_device': logits // math.prod(case['mesh']),
    }
  found = {'speed': speed, 'error': errors}[case['kind']](case)
  after = {'load_end': list(os.getloadavg())}
  return {'case': case, 'environment': before | after, 'contenders': found}


def draw(
  case: Record, scale: float, masked: float = 0.0, dtype: Any = np.float32
) -> Batch:
  """Draws the arrays of one seed, as numpy.

  Args:
    scale: standard deviation of the logits.
    masked: share of the tokens that do not count, spread at random.
    dtype: of hidden states and head.
  """
  tokens, width = case['tokens'], case['width']
  vocabulary = case['vocabulary']
  random = np.random.default_rng(0)
  normal = partial(random.standard_normal, dtype=np.float32)
  weights_V = random.uniform(0.1, 5, vocabulary).astype(np.float32)
  labels_N = random.integers(0, vocabulary, tokens).astype(np.int32)
  hidden = normal((tokens, width)).astype(dtype)
  head = (normal((width, vocabulary)) * (scale / width**0.5)).astype(dtype)
  where_N = np.ones(tokens, bool)
  where_N[random.permutation(tokens)[: round(masked * tokens)]] = False
  weight_N = np.where(where_N, weights_V[labels_N], 0).astype(np.float32)
  return Batch(
    hidden, head, labels_N, weight_N, weights_V, where_N if masked else None
  )


# --- time and memory ----------------------------------------------------------


def speed(case: Record) -> dict[str, Record]:
  """Measures time and memory of every contender."""
  batch = draw(case, SCALES['flat'], case['masked'])
  arrays = jax.device_put(batch)
  found, calls = {}, {}
  for name in case['contenders']:
    print(f'  {name}', file=sys.stderr, flush=True)
    calls[name], found[name] = _prepare(CONTENDERS[name], batch, arrays)
  for name, seconds in harness.take_turns(calls, case['rounds']).items():
    found[name]['seconds'] = seconds
  return found


def _prepare(
  contender: Contender, batch: Batch, arrays: Batch
) -> tuple[Callable[[], Any], Record]:
  """Returns a call that has run once, and what is known without timing it."""
  if contender.torch:
    call = _torch_call(contender, batch)
    call()
    outputs = batch.hidden_NxD.nbytes + batch.head_DxV.nbytes
    return call, {'temporary_bytes': peers.torch_peak_bytes(call) - outputs}
  f = contender.make()
  began = time.perf_counter()
  compiled = jax.jit(f).lower(arrays).compile()
  took = time.perf_counter() - began
  call = partial(compiled, arrays)
  jax.block_until_ready(call())
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
  return partial(contender.make(), tensors)


# --- errors -------------------------------------------------------------------


def errors(case: Record) -> dict[str, dict[str, float]]:
  """Measures relative errors of the loss and its gradients, against fp64."""
  batch = draw(
    case, SCALES[case['logits']], dtype=jnp.dtype(case['dtype'])
  )
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
      result = jax.jit(contender.make())(arrays)
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
  """Computes loss and gradients by numpy in fp64, some rows at a time."""
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


# --- collectives --------------------------------------------------------------


def collectives(case: Record) -> list[Record]:
  """Lists what the loss with both gradients sends on a mesh of fake devices.

  It is compiled from shapes alone, sharded like the inputs; nothing runs.
  """
  n, width, columns = case['tokens'], case['width'], case['vocabulary']
  mesh = make_mesh(case['mesh'])
  rows, head, whole = (
    NamedSharding(mesh, spec)
    for spec in (P(('data', 'fsdp')), P('fsdp', 'tensor'), P())
  )
  shape = lambda size, dtype, at: jax.ShapeDtypeStruct(  # noqa: E731
    size, dtype, sharding=at
  )

  def value(hidden: Any, head: Any, labels: Any, weights: Any) -> Any:
    return linear_pdl_loss(
      hidden, head, labels, weights, ignore_index=None,
      config=FusedConfig(method=case['method'], mesh=mesh),
    )  # fmt: skip

  step = jax.jit(
    jax.value_and_grad(value, (0, 1)), out_shardings=(whole, (rows, head))
  )
  compiled = step.lower(
    shape((n, width), jnp.float32, rows),
    shape((width, columns), jnp.float32, head),
    shape((n,), jnp.int32, rows),
    shape((columns,), jnp.float32, whole),
  ).compile()
  program = hlo.parse(compiled.as_text())
  return [x._asdict() for x in hlo.collectives(program, mesh.size)]
