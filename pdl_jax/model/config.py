"""The shape of a transformer; every model is fields of this, not a subclass."""

import dataclasses

import jax.numpy as jnp

from pdl_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A pre-norm decoder of the Llama family with a tied output head.

  Attributes:
    vocab_size: V.
    width: D, of the residual stream.
    layers: number of blocks.
    heads: H query heads.
    kv_heads: K key and value heads; divides H (grouped-query attention).
    head_dim: Dh, even.
    mlp: F, of the gated feed-forward layer.
    context: longest sequence in tokens that the model was made for.
    rope_base: base of the rotary frequencies.
    norm_eps: added to the mean square in RMSNorm.
    dtype: of activations; parameters, norms, phases and logits stay fp32.
    remat: recompute each block in the backward pass: memory for time.
  """

  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  context: int
  rope_base: float = 10_000.0
  norm_eps: float = 1e-5
  dtype: str = 'float32'
  remat: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type in (int, float) and not value > 0:
        raise ConfigError(f'model {field.name} must be > 0, got {value}')
    if self.heads % self.kv_heads:
      raise ConfigError(
        f'model heads {self.heads} is not a multiple of kv_heads '
        f'{self.kv_heads}'
      )
    if self.head_dim % 2:
      raise ConfigError(f'model head_dim must be even, got {self.head_dim}')
    if self.dtype not in ('float32', 'bfloat16'):
      raise ConfigError(
        f'model dtype must be float32 or bfloat16, got {self.dtype!r}'
      )

  @property
  def compute_dtype(self) -> jnp.dtype:
    """The dtype of activations and of matmul inputs."""
    return jnp.dtype(self.dtype)
