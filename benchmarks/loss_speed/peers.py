"""Other people's losses of a linear head, as calls that compare with ours.

Each factory returns f(hidden_NxD, head_DxV, labels_N, weight_N) -> (loss,
d_hidden_NxD, d_head_DxV) with loss = sum(weight * nll) / sum(weight), weight a
constant, 0 at masked tokens, whose labels must be types all the same. The
packages are imported by the factories, so that a report needs none of them.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PACKAGES = ('optax', 'tokamax', 'levanter', 'torch')

Loss = Callable[..., tuple[Any, Any, Any]]
"""(hidden, head, labels, weight) -> (loss, d_hidden, d_head)."""


# --- optax, unfused -----------------------------------------------------------


def optax_value(
  hidden_NxD: Array, head_DxV: Array, labels_N: Array, weight_N: Array
) -> Array:
  """The loss over whole logits, which are fp32 whatever the inputs are."""
  import optax

  logits_NxV = jnp.dot(hidden_NxD, head_DxV, preferred_element_type=jnp.float32)
  nll_N = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits_NxV, labels_N
  )
  return jnp.sum(weight_N * nll_N) / jnp.sum(weight_N)


def make_optax() -> Loss:
  """Baseline: [N, V] logits in the forward and in the backward pass."""
  return _with_gradients(optax_value)


# --- tokamax ------------------------------------------------------------------


def make_tokamax() -> Loss:
  """tokamax's own forward and VJP, given weights that they do not have.

  The VJP takes exp(x @ w - log_z) - onehot from the residual log_z, so
  log_z - log(weight) makes it weight * p - onehot; (1 - weight) * onehot is
  left, a gather and a scatter of N*D. The unweighted value and its one-hot go
  unused and are dropped by the compiler. Reads `tokamax._src`, not a public
  API.
  """
  from tokamax._src.ops.linear_softmax_cross_entropy_loss import api

  op = api.IMPLEMENTATIONS['xla']

  def f(hidden: Array, head: Array, labels: Array, weight: Array) -> tuple:
    out, (log_z_N,) = op(
      hidden, labels, head, reduction='sum', return_residuals=True
    )
    of_label_NxD = head[:, labels].T
    nll_N = log_z_N - jnp.sum(hidden * of_label_NxD, axis=-1)
    # Divided by sum(weight) last: what is exponentiated keeps its usual size.
    shifted = (log_z_N - jnp.log(weight),)
    d_hidden, _, d_head = op.vjp(
      shifted, out, jnp.float32(1.0), hidden, labels, head, reduction='sum'
    )
    rest = (1.0 - weight)[:, None]
    d_hidden = d_hidden + rest * of_label_NxD
    d_head = d_head.at[:, labels].add((rest * hidden).T)
    scale = 1.0 / jnp.sum(weight)
    return scale * jnp.sum(weight * nll_N), scale * d_hidden, scale * d_head

  return f


def make_tokamax_public() -> Loss:
  """The public function: a mean over all tokens, `weight` is not read."""
  import tokamax

  def value(hidden: Array, head: Array, labels: Array, _: Array) -> Array:
    return tokamax.linear_softmax_cross_entropy_loss(
      hidden, labels, head, reduction='mean', implementation='xla'
    )

  return _with_gradients(value)


# --- levanter -----------------------------------------------------------------


def make_levanter(tokens: int, v_block: int | None = None) -> Loss:
  """Weights per token, its own feature.

  Args:
    tokens: N, the rows of a block.
    v_block: columns of a block; None: levanter's choice, 8192. From V on it
      falls back to its unfused reference.
  """
  kernel = _levanter_kernel()
  blocks = None
  if v_block is not None:
    blocks = kernel.BlockSizes(b_block_size=tokens, v_block_size=v_block)

  def value(hidden: Array, head: Array, labels: Array, weight: Array) -> Array:
    return kernel.fused_cross_entropy_loss_and_logsumexp_penalty(
      hidden, labels, head, reduction='mean', weight=weight,
      logsumexp_weight=0.0, block_sizes=blocks, dtype=jnp.float32,
      implementation='xla',
    )  # fmt: skip

  return _with_gradients(value)


def _levanter_kernel() -> Any:
  """The kernel's package alone.

  `import levanter` wants a training stack. Its parents become bare packages
  that point at the installed files, and the cache of Pallas block sizes, which
  the XLA path never calls, a stub.
  """
  name = 'levanter.kernels.pallas.fused_cross_entropy_loss'
  if name in sys.modules:
    return sys.modules[name]
  spec = importlib.util.find_spec('levanter')
  if spec is None or not spec.submodule_search_locations:
    raise ImportError('levanter: see benchmarks/loss_speed/requirements.txt')
  folder = Path(next(iter(spec.submodule_search_locations)))
  parents = {
    'levanter': folder,
    'levanter.kernels': folder / 'kernels',
    'levanter.kernels.pallas': folder / 'kernels' / 'pallas',
  }
  for parent, path in parents.items():
    package = types.ModuleType(parent)
    package.__path__ = [str(path)]
    sys.modules[parent] = package
  stub: Any = types.ModuleType('levanter.kernels.pallas.autotune_cache_utils')
  stub.is_enabled_from_env = lambda *_, **__: False
  stub.kernel_autotune_cache_url = lambda **_: None
  sys.modules[stub.__name__] = stub
  pallas: Any = sys.modules['levanter.kernels.pallas']
  pallas.autotune_cache_utils = stub
  return importlib.import_module(name)


def _with_gradients(value: Callable[..., Array]) -> Loss:
  gradients = jax.value_and_grad(value, argnums=(0, 1))

  def f(hidden: Array, head: Array, labels: Array, weight: Array) -> tuple:
    loss, (d_hidden, d_head) = gradients(hidden, head, labels, weight)
    return loss, d_hidden, d_head

  return f


# --- torch --------------------------------------------------------------------


def make_torch(chunk: int) -> Loss:
  """Weights per token, outside: the logits are made again in backward.

  Args:
    chunk: tokens taken at a time. The default, 'auto', takes 16 at V/D 16,
      which is several times slower on a CPU.
  """
  import torch

  options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)

  def f(hidden: Any, head: Any, labels: Any, weight: Any) -> tuple:
    x, w = _torch_leaves(hidden, head)
    nll = torch.nn.functional.linear_cross_entropy(
      x, w, labels.long(), reduction='none', options=options
    )
    return _torch_gradients((weight * nll).sum() / weight.sum(), x, w)

  return f


def make_torch_class(weights_V: Any, chunk: int) -> Loss:
  """Weights by type, its own feature: the gradient in the forward pass.

  Args:
    weights_V: the weights; `weight` then only says, by 0, what is masked.
    chunk: see `make_torch`.
  """
  import torch

  options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)

  def f(hidden: Any, head: Any, labels: Any, weight: Any) -> tuple:
    x, w = _torch_leaves(hidden, head)
    target = torch.where(weight > 0, labels.long(), -100)
    loss = torch.nn.functional.linear_cross_entropy(
      x, w, target, weight=weights_V, reduction='mean', ignore_index=-100,
      options=options,
    )  # fmt: skip
    return _torch_gradients(loss, x, w)

  return f


def _torch_leaves(hidden: Any, head: Any) -> tuple[Any, Any]:
  """Hidden states and the head as torch wants it, [V, D]: a view."""
  return hidden.detach().requires_grad_(), head.detach().t().requires_grad_()


def _torch_gradients(loss: Any, x: Any, w: Any) -> tuple:
  import torch

  # Not .backward(), which may copy the gradient of a transposed leaf.
  d_x, d_w = torch.autograd.grad(loss, (x, w))
  return loss.detach(), d_x, d_w.t()


def torch_peak_bytes(f: Callable[[], Any]) -> int:
  """The most that torch's allocator holds above the start, outputs included.

  Scratch inside of MKL or oneDNN is not seen. Slow: not a call to be timed.
  """
  from torch.profiler import ProfilerActivity, profile

  with profile(
    activities=[ProfilerActivity.CPU], profile_memory=True
  ) as watched:
    kept = f()
  events = watched.profiler.kineto_results.events()
  steps = sorted(
    (event.start_ns(), event.nbytes())
    for event in events if event.name() == '[memory]'
  )  # fmt: skip
  del kept
  held = peak = 0
  for _, size in steps:
    held += size
    peak = max(peak, held)
  return peak
