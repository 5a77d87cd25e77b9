"""Transformer block: norms, attention, feed-forward layer."""

import flax.linen as nn
from jax import Array

from pdl_jax.mesh import constrain
from pdl_jax.model.attention import Attention, LayerCache, LayerKind
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.layers import ACTIVATIONS, Norm, linear


class MLP(nn.Module):
  """down(silu(gate x) * up x) (SwiGLU, arXiv:2002.05202).

  The config may choose another activation, biases, or no gate: down(act(up x)).
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxLxD: Array) -> Array:
    """Maps each position on its own."""
    c = self.config
    act, width = ACTIVATIONS[c.activation], {'embed': c.width, 'mlp': c.mlp}

    def map_by(name: str, x: Array, axes: tuple[str, str]) -> Array:
      shape = (width[axes[0]], width[axes[1]])
      return linear(self, c, name, x, axes, shape, bias=c.mlp_bias)

    into, out = ('embed', 'mlp'), ('mlp', 'embed')
    if c.gated:
      gate = act(map_by('gate', x_BxLxD, into))
      inner = gate * map_by('up', x_BxLxD, into)
    else:
      inner = act(map_by('up', x_BxLxD, into))
    inner = constrain(inner, 'batch', 'length', 'mlp')
    return map_by('down', inner, out)


class Block(nn.Module):
  """One pre-norm layer of the residual stream."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BxLxD: Array,
    positions_BxL: Array,
    seen: Array,
    cache: LayerCache | None,
    kind: LayerKind,
  ) -> tuple[Array, tuple[Array, Array]]:
    """Returns the new residual stream, and Attention's keys and values."""
    c = self.config
    mixed, keys, values = Attention(c, name='attention')(
      Norm(c, name='attention_norm')(x_BxLxD), positions_BxL, seen,
      cache, kind,
    )  # fmt: skip
    if c.post_norms:
      mixed = Norm(c, name='attention_post_norm')(mixed)
    x = constrain(x_BxLxD + mixed, 'batch', 'length', 'activation')
    mapped = MLP(c, name='mlp')(Norm(c, name='mlp_norm')(x))
    if c.post_norms:
      mapped = Norm(c, name='mlp_post_norm')(mapped)
    x += mapped
    return constrain(x, 'batch', 'length', 'activation'), (keys, values)
