"""Which program attends to whole rows, and the kernels of accelerators.

  xla      makes all scores at once
  chunked  makes them in blocks, in plain JAX: `chunked_attention`
  splash   a TPU kernel that comes with JAX, in blocks too
  cudnn    a GPU kernel that JAX calls, in blocks too, for rows that are one
           document, padded on the right

A kernel needs static windows: with several, each layer chooses its branch.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from pdl_jax.errors import ConfigError
from pdl_jax.mesh import partition_spec, parts, platform
from pdl_jax.model.layers import KEPT
from pdl_jax.model.positions import KINDS

if TYPE_CHECKING:
  from pdl_jax.model.chunked_attention import Rule
  from pdl_jax.model.config import ModelConfig

IMPLEMENTATIONS = ('auto', 'xla', 'chunked', 'splash', 'cudnn')
# Rows longer than this are attended to in blocks by 'auto'. Rows of 512 would
# gain too (benchmarks/long_rows), but records were made of them otherwise.
LONG = 1024
# Runs splash without a TPU, operation by operation, for tests.
INTERPRET = False
# Splash works on blocks of at most _BLOCK tokens, in whole _LANES of a TPU.
_BLOCK, _LANES = 512, 128
# The setting of JAX that `model.matmul_precision` sets.
_PRECISION = 'jax_default_matmul_precision'
# What each kernel runs on, as JAX names it.
_DEVICES = {'splash': 'tpu', 'cudnn': 'gpu'}
# Widths of a head that cuDNN takes: some GPUs only the smaller.
_CUDNN_WIDTHS = (128, 256)

Kernel = Callable[[Array, Array, Array, Array], Array]
"""(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, segments_BxL) -> [B, L, H, Dh]."""


def chosen(c: 'ModelConfig', length: int) -> str:
  """Returns what attends to rows of so many tokens.

  'auto' is splash on a TPU, for rows of whole lanes; elsewhere it is chunked
  beyond LONG tokens and xla up to there. `for_rows` adds cudnn.
  """
  if c.attention_impl != 'auto':
    return c.attention_impl
  on_tpu = length >= _LANES and platform() == 'tpu'
  if on_tpu and not refusal('splash', c):
    return 'splash'
  return 'chunked' if length > LONG else 'xla'


def for_rows(c: 'ModelConfig', packed: bool) -> 'ModelConfig':
  """Lets 'auto' be cudnn on a GPU, if no row is of several documents.

  Only the caller knows whether rows are `packed`.
  """
  if c.attention_impl != 'auto' or packed or platform() != 'gpu':
    return c
  if refusal('cudnn', c) or c.head_dim > _CUDNN_WIDTHS[0]:
    return c
  return dataclasses.replace(c, attention_impl='cudnn')


def for_prompts(c: 'ModelConfig') -> 'ModelConfig':
  """Returns the config for rows padded on the left, which cudnn cannot read."""
  if c.attention_impl != 'cudnn':
    return c
  return dataclasses.replace(c, attention_impl='auto')


def check(c: 'ModelConfig') -> None:
  """Refuses a kernel that does not compute this model's attention."""
  if why := refusal(c.attention_impl, c):
    raise ConfigError(
      f'model.attention_impl {c.attention_impl} {why}; take chunked'
    )


def check_device(implementation: str) -> None:
  """Refuses a kernel of another device than this process computes on."""
  needed, here = _DEVICES.get(implementation), jax.default_backend()
  if needed not in (None, here) and not INTERPRET:
    raise ConfigError(
      f'model.attention_impl {implementation} needs a {needed.upper()}, and '
      f'this process computes on {here}; take auto or chunked'
    )


def refusal(implementation: str, c: 'ModelConfig') -> str:
  """Says why a kernel cannot compute this model's attention; '' if it can."""
  if implementation not in _DEVICES:
    return ''
  if KINDS[c.attention.kind].bias is not None:
    return f'adds no bias to scores, and model.attention {c.attention.kind} has'
  if implementation == 'splash':
    # Mosaic refuses the kernel with another.
    asked = getattr(jax.config, _PRECISION)
    if c.dtype == 'bfloat16' and asked not in (None, 'default', 'bfloat16'):
      return f'multiplies bfloat16 in one pass, and the precision is {asked}'
    return ''
  if c.attention_softcap is not None:
    return f'has no soft cap of scores, and the model has {c.attention_softcap}'
  if c.dtype != 'bfloat16':
    return f'computes in bfloat16, and model.dtype is {c.dtype}'
  if c.head_dim % 8 or c.head_dim > _CUDNN_WIDTHS[1]:
    return (
      f'takes a head_dim that is a multiple of 8 up to {_CUDNN_WIDTHS[1]}, and '
      f'the model has {c.head_dim}'
    )
  return ''


def attend(
  c: 'ModelConfig',
  q_BxLxHxDh: Array,
  k_BxLxKxDh: Array,
  v_BxLxKxDh: Array,
  segments_BxL: Array,
  window: Array | None,
  rule: 'Rule',
) -> Array:
  """Returns softmax(scale q k) v of one layer by a kernel, [B, L, H, Dh].

  Args:
    window: of this layer, int32 scalar; None means all. It may be traced, but
      is one of the model's.
    rule: scale and soft cap.
  """
  length = q_BxLxHxDh.shape[1]
  run = {'splash': _splash, 'cudnn': _cudnn}[chosen(c, length)]
  sizes = sorted({min(size or length, length) for size in c.windows or (0,)})
  kernels = [_on_mesh(partial(run, rule, size)) for size in sizes]
  inputs = q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, segments_BxL
  if window is None or len(kernels) == 1:
    return kernels[0](*inputs)
  which = jnp.searchsorted(jnp.asarray(sizes), jnp.minimum(window, length))
  return jax.lax.switch(which, kernels, *inputs)


def _on_mesh(kernel: Kernel) -> Kernel:
  """Splits rows and heads over the mesh: the compiler cannot split a kernel."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel
  q, k = (
    partition_spec('batch', 'length', heads, 'head_dim')
    for heads in ('heads', 'kv_heads')
  )
  split = jax.shard_map(
    kernel, in_specs=(q, k, k, partition_spec('batch', 'length')), out_specs=q,
    check_vma=False,
  )  # fmt: skip

  def checked(*inputs: Array) -> Array:
    rows, count = inputs[0].shape[0], parts(mesh, 'batch')
    if rows % count:
      raise ConfigError(
        f'{rows} rows do not divide over {count} (data x fsdp) devices, as a '
        'kernel of attention needs; take model.attention_impl chunked'
      )
    return split(*inputs)

  return checked


def _splash(
  rule: 'Rule', window: int, q: Array, k: Array, v: Array, segments_BxL: Array
) -> Array:
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  length, heads = q.shape[1:3]
  whole = length + -length % _LANES
  block = math.gcd(whole, _BLOCK)
  mask = splash.CausalMask((whole, whole))
  if window < length:
    mask = splash.LocalMask((whole, whole), (window - 1, 0), 0)
  sizes = splash.BlockSizes(**dict.fromkeys(_BLOCKS, block))
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1,
    q_seq_shards=1, attn_logits_soft_cap=rule.softcap, interpret=INTERPRET,
    residual_checkpoint_name=KEPT,
  )  # fmt: skip

  def heads_first(x: Array) -> Array:
    room = [(0, 0), (0, whole - length), (0, 0), (0, 0)]
    return jnp.pad(x, room).swapaxes(1, 2)

  # The kernel has no scale. One rounding, of the product.
  q = (q.astype(jnp.float32) * rule.scale).astype(q.dtype)
  segments = jnp.pad(
    segments_BxL, [(0, 0), (0, whole - length)], constant_values=-1
  ).astype(jnp.int32)
  out: Any = jax.vmap(kernel)(
    heads_first(q), heads_first(k), heads_first(v),
    splash.SegmentIds(segments, segments),
  )  # fmt: skip
  return out[:, :, :length].swapaxes(1, 2)


_BLOCKS = (
  'block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv',
  'block_kv_dkv_compute', 'block_q_dq', 'block_kv_dq',
)  # fmt: skip


def _cudnn(
  rule: 'Rule', window: int, q: Array, k: Array, v: Array, segments_BxL: Array
) -> Array:
  """A row that is not one document, padded on the right, comes out as NaN."""
  length = q.shape[1]
  sizes_B = (segments_BxL != 0).sum(1, dtype=jnp.int32)
  filled_BxL = jnp.arange(length)[None] < sizes_B[:, None]
  alone_BxL = jnp.where(filled_BxL, segments_BxL[:, :1], 0)
  is_one_B = (segments_BxL == alone_BxL).all(1)
  sizes_B = jnp.maximum(sizes_B, 1)
  out = jax.nn.dot_product_attention(
    q, k, v, scale=rule.scale, is_causal=True, query_seq_lengths=sizes_B,
    key_value_seq_lengths=sizes_B, implementation='cudnn',
    local_window_size=(window - 1, 0) if window < length else None,
  )  # fmt: skip
  # What cuDNN leaves at padding is not defined.
  out = jnp.where(filled_BxL[..., None, None], out, 0)
  return jnp.where(is_one_B[:, None, None, None], out, jnp.nan)
