"""The programs that are compiled, and what must hold of each."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from benchmarks.harness import Record
from benchmarks.scale_on_paper import step
from pdl_jax.cluster import aot
from pdl_jax.generate.sampling import first_argmax
from pdl_jax.mesh import MeshSettings
from pdl_jax.model import decoding, lm
from pdl_jax.model.config import ModelConfig
from pdl_jax.train import optimizer, state

# Topologies of 16 chips, and the bytes of a chip's HBM as the compiler grants
# them: what it says in refusing a program that is too large.
CHIPS = {'v5e:4x4': 15.75 * 2**30, 'v6e:4x4': 31.24 * 2**30,
         'v5p:2x2x4': 95.73 * 2**30}  # fmt: skip
MODELS = {
  'SmolLM2-135M': ModelConfig(
    vocab_size=49_152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64,
    mlp=1536, context=8192, dtype='bfloat16', remat=True,
  ),
  # The shape of Llama 3.2 1B (huggingface.co/meta-llama/Llama-3.2-1B).
  '1B': ModelConfig(
    vocab_size=128_256, width=2048, layers=16, heads=32, kv_heads=8,
    head_dim=64, mlp=8192, context=8192, dtype='bfloat16', remat=True,
  ),
  '7B': step.MODEL,
}  # fmt: skip
# A chip has two rows. No axis of a model is as long as a row.
ROWS, LENGTH = 2, 3072
# What splits parameters gathers them, also bit by bit while it multiplies
# (collective-permute). What does not only adds gradients up: in one step, or in
# parts where they go over slices, so that each chip sends a part of them there.
_OF_DATA = {'all-reduce'}
_OF_FSDP = {'all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute'}
_REDUCTIONS = {'SUM', 'MAX', 'MIN'}


def mesh_of(name: str, devices: list[Any], slices: int) -> Mesh:
  """Splits the smallest model's batch alone, parameters of the others too."""
  split = name != 'SmolLM2-135M'
  axes = (slices, -1, 1) if split else (-1, 1, 1)
  return MeshSettings(*axes, slices).make(devices)


def rows(mesh: Mesh) -> int:
  """Returns the rows of a global batch."""
  return ROWS * mesh.size


def lower(program: str, model: ModelConfig, mesh: Mesh) -> jax.stages.Lowered:
  """Lowers a program, from shapes."""
  if program == 'train':
    return aot.lower_step(
      model, step.OPTIMIZER, mesh, rows(mesh), LENGTH, LENGTH
    )
  return _lower_decode(model, mesh)


def _lower_decode(model: ModelConfig, mesh: Mesh) -> jax.stages.Lowered:
  """Lowers a step of greedy decoding with a full cache."""

  def decode(
    params: Any, cache: decoding.Cache, tokens_B: Array
  ) -> tuple[Array, decoding.Cache]:
    hidden_BxD, cache = decoding.decode_step(model, params, cache, tokens_B)
    return first_argmax(lm.head_logits(model, params, hidden_BxD)), cache

  made = optimizer.make_optimizer(step.OPTIMIZER, steps=10_000)
  params = jax.eval_shape(partial(lm.init, model), jax.random.key(0))
  start = state.describe(params, model, step.OPTIMIZER, made, mesh)
  params = optimizer.merge(start.trained, start.frozen)
  tokens = jax.ShapeDtypeStruct((rows(mesh), 1), jnp.int32)
  filled = tokens.update(dtype=bool)
  _, cache = jax.eval_shape(
    partial(decoding.prefill, model, size=LENGTH), params, tokens, filled
  )
  heads = aot.place((cache.keys, cache.values), mesh, 'batch', 'kv_heads')
  filled, positions, tokens_B = aot.place(
    (cache.filled_BxS, cache.positions_B, tokens.update(shape=(rows(mesh),))),
    mesh, 'batch',
  )  # fmt: skip
  slot = aot.place(cache.slot, mesh)
  cache = decoding.Cache(*heads, filled, slot, positions)
  with jax.set_mesh(mesh):
    return jax.jit(decode, donate_argnums=1).lower(params, cache, tokens_B)


def too_large(
  shapes: Iterable[tuple[int, ...]], model: ModelConfig
) -> list[list[int]]:
  """Lists arrays as large as a chip's logits in training, or L x L."""
  vocab = model.vocab_size
  return [
    list(shape)
    for shape in sorted(shapes)
    if (vocab in shape and math.prod(shape) >= ROWS * LENGTH * vocab)
    or shape.count(LENGTH) > 1
  ]


def check(record: Record) -> None:
  """Checks a record: room on a chip, collectives, no array that is too large.

  Raises:
    ValueError: something does not hold; says what, with the numbers.
  """
  case = record['case']
  total = record['arguments'] + record['temporaries'] + record['output']
  room = CHIPS[case['topology']]
  alone = record['mesh'][1] == 1 and case['slices'] == 1
  kinds = _OF_DATA if alone else _OF_FSDP
  crossing = record['between_slices']
  counts = (*record['sent_bytes'].values(), *crossing.values())
  found = {
    'collectives are in loops of unknown turns': not all(
      map(math.isfinite, counts)
    ),
    f'{total / 1e9:.2f} GB, more than {room / 1e9:.2f}': total > room,
    f'sends {record["sent_bytes"]}': set(record['sent_bytes']) - kinds,
    f'{crossing} goes between {case["slices"]} slices': (
      set(crossing) - _REDUCTIONS or bool(crossing) != (case['slices'] > 1)
    ),
    'attention is not by the kernel splash': (
      case['program'] == 'train' and not record['kernels']
    ),
    f'arrays that should not be: {record["too_large"]}': record['too_large'],
  }
  if wrong := [told for told, holds in found.items() if holds]:
    raise ValueError(f'{"; ".join(wrong)}: {record}')
