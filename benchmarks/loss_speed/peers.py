"""Makes other libraries' losses of a linear head comparable with ours.

Each maker returns a call whose loss is sum(weight * nll) / sum(weight). The
weights are constant, and 0 at masked tokens, whose labels must still be types.
The makers import the packages, so a report needs none.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Batch(NamedTuple):
  """What every contender is given; each reads what it can use.

  Attributes:
    labels_N: types, at masked tokens too.
    weight_N: of each token, 0 if masked; for those who cannot look weights up.
    weights_V: of each type.
    where_N: tokens that count; None means all.
  """

  hidden_NxD: Any
  head_DxV: Any
  labels_N: Any
  weight_N: Any
  weights_V: Any
  where_N: Any


Call = Callable[[Batch], tuple]
"""batch -> (loss, d_hidden[, d_head])."""


def with_gradients(
  value: Callable[[Array, Array, Batch], Array], frozen: bool = False
) -> Call:
  """Makes the call for a loss of (hidden, head, batch), and its gradients.

  With `frozen`, the gradient of the head is left out.
  """
  graded = jax.value_and_grad(value, (0,) if frozen else (0, 1))

  def call(batch: Batch) -> tuple:
    loss, gradients = graded(batch.hidden_NxD, batch.head_DxV, batch)
    return loss, *gradients

  return call


def make_optax(frozen: bool = False) -> Call:
  """Baseline: [N, V] logits, in fp32 whatever the inputs are, both ways."""
  import optax

  def value(hidden: Array, head: Array, batch: Batch) -> Array:
    logits_NxV = jnp.dot(hidden, head, preferred_element_type=jnp.float32)
    nll_N = optax.losses.softmax_cross_entropy_with_integer_labels(
      logits_NxV, batch.labels_N
    )
    return jnp.sum(batch.weight_N * nll_N) / jnp.sum(batch.weight_N)

  return with_gradients(value, frozen)


# --- tokamax ------------------------------------------------------------------


def make_tokamax() -> Call:
  """Uses tokamax's own forward and VJP, with weights that they do not have.

  The VJP takes exp(x @ w - log_z) - onehot from the residual log_z. So
  log_z - log(weight) makes it weight * p - onehot. What remains is
  (1 - weight) * onehot, a gather and a scatter of N*D. The compiler drops the
  unused unweighted value and its one-hot. `tokamax._src` is not a public API.
  """
  from tokamax._src.ops.linear_softmax_cross_entropy_loss import api

  op = api.IMPLEMENTATIONS['xla']

  def call(batch: Batch) -> tuple:
    hidden, head, labels, weight, *_ = batch
    out, (log_z_N,) = op(
      hidden, labels, head, reduction='sum', return_residuals=True
    )
    of_label_NxD = head[:, labels].T
    nll_N = log_z_N - jnp.sum(hidden * of_label_NxD, axis=-1)
    # Divided by sum(weight) last, so that exponents keep their usual size.
    shifted = (log_z_N - jnp.log(weight),)
    d_hidden, _, d_head = op.vjp(
      shifted, out, jnp.float32(1.0), hidden, labels, head, reduction='sum'
    )
    rest = (1.0 - weight)[:, None]
    d_hidden = d_hidden + rest * of_label_NxD
    d_head = d_head.at[:, labels].add((rest * hidden).T)
    scale = 1.0 / jnp.sum(weight)
    return scale * jnp.sum(weight * nll_N), scale * d_hidden, scale * d_head

  return call


def make_tokamax_public() -> Call:
  """Uses the public function: a mean over all tokens, without weights."""
  import tokamax

  def value(hidden: Array, head: Array, batch: Batch) -> Array:
    return tokamax.linear_softmax_cross_entropy_loss(
      hidden, batch.labels_N, head, reduction='mean', implementation='xla'
    )

  return with_gradients(value)


# --- levanter -----------------------------------------------------------------


def make_levanter(v_block: int | None = None) -> Call:
  """Uses levanter's own weights per token.

  Args:
    v_block: columns of a block of all tokens; None means levanter's choice,
      8192. If it is V or more, levanter uses its unfused reference.
  """
  kernel = _levanter_kernel()

  def value(hidden: Array, head: Array, batch: Batch) -> Array:
    blocks = None
    if v_block is not None:
      blocks = kernel.BlockSizes(b_block_size=len(hidden), v_block_size=v_block)
    return kernel.fused_cross_entropy_loss_and_logsumexp_penalty(
      hidden, batch.labels_N, head, reduction='mean', weight=batch.weight_N,
      logsumexp_weight=0.0, block_sizes=blocks, dtype=jnp.float32,
      implementation='xla',
    )  # fmt: skip

  return with_gradients(value)


def _levanter_kernel() -> Any:
  """Imports only the kernel's package.

  `import levanter` needs a training stack. So its parents become bare packages
  that point at the installed files. The cache of Pallas block sizes, which the
  XLA path never calls, becomes a stub.
  """
  name = 'levanter.kernels.pallas.fused_cross_entropy_loss'
  if name in sys.modules:
    return sys.modules[name]
  spec = importlib.util.find_spec('levanter')
  if spec is None or not spec.submodule_search_locations:
    raise ImportError('levanter: see benchmarks/loss_speed/requirements.txt')
  path = Path(next(iter(spec.submodule_search_locations)))
  pallas: Any = None
  for parent, folder in (
    ('levanter', path),
    ('levanter.kernels', path / 'kernels'),
    ('levanter.kernels.pallas', path / 'kernels' / 'pallas'),
  ):
    sys.modules[parent] = pallas = types.ModuleType(parent)
    pallas.__path__ = [str(folder)]
  stub: Any = types.ModuleType('levanter.kernels.pallas.autotune_cache_utils')
  stub.is_enabled_from_env = lambda *_, **__: False
  stub.kernel_autotune_cache_url = lambda **_: None
  sys.modules[stub.__name__] = pallas.autotune_cache_utils = stub
  return importlib.import_module(name)


# --- torch --------------------------------------------------------------------


def make_torch(chunk: int) -> Call:
  """Weights tokens outside of torch's loss; backward recomputes the logits.

  Args:
    chunk: tokens at a time. The default, 'auto', takes 16 at V/D 16, which is
      several times slower on a CPU.
  """
  import torch

  options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)

  def value(x: Any, w: Any, batch: Batch) -> Any:
    nll = torch.nn.functional.linear_cross_entropy(
      x, w, batch.labels_N.long(), reduction='none', options=options
    )
    return (batch.weight_N * nll).sum() / batch.weight_N.sum()

  return _torch_call(value)


def make_torch_class(chunk: int) -> Call:
  """Uses torch's own weights by type, with the gradient in the forward pass.

  For `chunk` see `make_torch`.
  """
  import torch

  options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)

  def value(x: Any, w: Any, batch: Batch) -> Any:
    target = torch.where(batch.weight_N > 0, batch.labels_N.long(), -100)
    return torch.nn.functional.linear_cross_entropy(
      x, w, target, weight=batch.weights_V, reduction='mean',
      ignore_index=-100, options=options,
    )  # fmt: skip

  return _torch_call(value)


def _torch_call(value: Callable[[Any, Any, Batch], Any]) -> Call:
  """As `with_gradients`; torch sees the head as a [V, D] view."""
  import torch

  def call(batch: Batch) -> tuple:
    x = batch.hidden_NxD.detach().requires_grad_()
    w = batch.head_DxV.detach().t().requires_grad_()
    loss = value(x, w, batch)
    # Not .backward(), which may copy the gradient of a transposed leaf.
    d_x, d_w = torch.autograd.grad(loss, (x, w))
    return loss.detach(), d_x, d_w.t()

  return call


def torch_peak_bytes(f: Callable[[], Any]) -> int:
  """Returns torch's peak allocation above the start, outputs included.

  It misses scratch memory inside MKL or oneDNN. It is slow, so do not time it.
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
