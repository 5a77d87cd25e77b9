"""The shape of a transformer; every model is fields of this, not a subclass."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.model.layers import ACTIVATIONS
from pdl_jax.model.lora import NO_LORA, LoRAConfig
from pdl_jax.model.positions import ROPE, AttentionConfig
from pdl_jax.model.rotary import UNSCALED, RopeScaling

# How types get codes, and what the codebooks begin with; see heads/fit.py.
MAPPINGS = (
  'random', 'blocks', 'frequency_blocks', 'kmeans_output', 'kmeans_input',
  'learned',
)  # fmt: skip
STARTS = ('rows', 'random')
# Output heads, and the keys of `model`, or groups of them, that each reads.
HEADS = {
  'tied': (),
  'dense': (),
  'low_rank': ('rank',),
  'vq': ('rank', 'vq'),
  'adaptive': ('rank', 'vq.num_exact', 'vq.tail_start'),
}
COMBINATIONS = ('concat', 'sum')
BIASES = ('none', 'unigram', 'learned')
NORMS = ('rms', 'rms_offset', 'layer')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """What turns the last hidden state into logits; see the keys in `settings`.

  Attributes:
    kind: one of HEADS, key `head`.
    bias: added to each type's logit; it tells types of equal codes apart.
    rank: that of low_rank, of vq's residual, or of adaptive's first cluster.
    codebook_size: K, rows of a codebook, key `vq.codebook_size`.
    num_codebooks: M, key `vq.num_codebooks`.
    combine: 'concat' for rows of width D / M end to end, 'sum' for width D.
    learned: whether the codes of a type follow training. They are the nearest
      ones to a row of its own, which exists in training alone
      (straight-through, arXiv:1711.00937).
    num_exact: number of the commonest types with a row of their own, key
      `vq.num_exact`. With one codebook these are its first codes, of one type
      each; in an adaptive head they are in no cluster.
    tail_start: number of commonest types that are not of the tail; 0 is no
      tail. In an adaptive head the second cluster begins there.
    tail_codebook_size, tail_num_codebooks: K and M of the tail.
    tail_rank: R of the tail's rows and of the state's projection to them; 0
      takes the state itself.
  """

  kind: str = 'tied'
  bias: str = 'none'
  rank: int = 0
  codebook_size: int = 0
  num_codebooks: int = 1
  combine: str = 'concat'
  learned: bool = False
  num_exact: int = 0
  tail_start: int = 0
  tail_codebook_size: int = 0
  tail_num_codebooks: int = 0
  tail_rank: int = 0

  def __post_init__(self):
    one_of('head kind', self.kind, HEADS)
    one_of('head bias', self.bias, BIASES)
    one_of('head combine', self.combine, COMBINATIONS)
    if self.kind == 'low_rank' and self.rank < 1:
      raise ConfigError(
        f'model.rank of a low_rank head must be >= 1, got {self.rank}'
      )
    if self.kind == 'vq' and (self.codebook_size < 1 or self.num_codebooks < 1):
      raise ConfigError(
        f'model.vq.codebook_size and num_codebooks must be >= 1, got '
        f'{self.codebook_size} and {self.num_codebooks}'
      )

  def check(self, vocab_size: int, width: int) -> None:
    """Refuses what does not fit a model.

    Raises:
      ConfigError: with the numbers.
    """
    if self.kind in ('low_rank', 'vq') and self.rank >= width:
      raise ConfigError(
        f'model.rank {self.rank} must be below the width of the model, {width}'
      )
    if self.kind == 'adaptive' and not (
      0 < self.num_exact < self.tail_start < vocab_size
      and 0 < self.rank < width
    ):
      raise ConfigError(
        f'model.head adaptive needs 0 < model.vq.num_exact {self.num_exact} < '
        f'model.vq.tail_start {self.tail_start} < {vocab_size} types, and 0 < '
        f'model.rank {self.rank} < width {width}'
      )
    if self.kind == 'adaptive' and self.bias != 'none':
      raise ConfigError(
        "model.head adaptive has no bias; leave model.bias at 'none'"
      )
    if self.kind != 'vq':
      return
    self._check_tiers(vocab_size, width)
    for tier, key in zip(
      self.tiers(vocab_size), ('codebook_size', 'tail_codebook_size'),
      strict=False,
    ):
      types = tier.end - tier.first
      if tier.codebook_size > types:
        raise ConfigError(
          f'model.vq.{key} {tier.codebook_size} are more than the {types} '
          f'types that they are for; take at most {types}'
        )
    if self.combine == 'concat' and width % self.num_codebooks:
      raise ConfigError(
        f'the width {width} does not divide into {self.num_codebooks} '
        "codebooks; take a divisor, or combine 'sum'"
      )

  def _check_tiers(self, vocab_size: int, width: int) -> None:
    alone = self.num_codebooks == 1 and not self.tail_start
    most = self.codebook_size if alone else (self.tail_start or vocab_size)
    most -= 1
    if self.num_exact > most:
      raise ConfigError(
        f'model.vq.num_exact {self.num_exact} must be at most {most}: the '
        f'other types need {"a code" if alone else "codebooks"}'
      )
    if self.num_exact and self.learned and alone:
      raise ConfigError(
        'model.vq.num_exact with one codebook whose codes are learned: there '
        'is '
        'nothing that would keep them apart; take fixed codes, or several '
        'codebooks'
      )
    if not self.tail_start:
      if self.tail_rank:
        raise ConfigError(
          f'model.vq.tail_rank {self.tail_rank} needs a tail: set tail_start'
        )
      return
    if self.tail_start >= vocab_size:
      raise ConfigError(
        f'model.vq.tail_start {self.tail_start} leaves nothing of {vocab_size} '
        'types'
      )
    if self.tail_codebook_size < 1 or self.tail_num_codebooks < 1:
      raise ConfigError(
        'model.vq.tail_codebook_size and tail_num_codebooks must be >= 1, got '
        f'{self.tail_codebook_size} and {self.tail_num_codebooks}'
      )
    if self.tail_rank >= width:
      raise ConfigError(
        f'model.vq.tail_rank {self.tail_rank} must be below the width of the '
        f'model, {width}'
      )
    rank = self.tail_rank or width
    if self.combine == 'concat' and rank % self.tail_num_codebooks:
      raise ConfigError(
        f'the width {rank} does not divide into {self.tail_num_codebooks} '
        "codebooks of the tail; take a divisor, or combine 'sum'"
      )

  @property
  def in_tiers(self) -> bool:
    """Whether types are in the order of their frequency."""
    several = self.num_codebooks > 1 or self.tail_start > 0
    return self.kind == 'vq' and (
      self.tail_start > 0 or self.num_exact * several > 0
    )

  def tiers(self, vocab_size: int) -> tuple['Tier', ...]:
    """What composes the rows of which types, the commonest first."""
    first = self.num_exact if self.in_tiers else 0
    end = self.tail_start or vocab_size
    made = (Tier(first, end, self.codebook_size, self.num_codebooks, 0),)
    if self.tail_start:
      tail = Tier(
        end, vocab_size, self.tail_codebook_size, self.tail_num_codebooks,
        self.tail_rank,
      )  # fmt: skip
      made = (*made, tail)
    return made

  def code_width(self, width: int, tier: 'Tier') -> int:
    """S, of a row of a codebook of a tier, whose rows have some width."""
    return width // tier.num_codebooks if self.combine == 'concat' else width


class Tier(NamedTuple):
  """Types by rank of frequency, [first, end), and what composes their rows.

  Rows are as wide as the model, or as `rank` if that is not 0.
  """

  first: int
  end: int
  codebook_size: int
  num_codebooks: int
  rank: int


def code_dtype(codes: int) -> np.dtype:
  """The least unsigned integers that count so many codes.

  The time of a look-up goes into reading them.
  """
  return np.min_scalar_type(codes - 1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A pre-norm decoder; the defaults are the Llama family.

  Attributes:
    vocab_size: V.
    width: D, of the residual stream.
    layers: number of blocks.
    heads: H query heads.
    kv_heads: K key and value heads; divides H (grouped-query attention).
    head_dim: Dh, even.
    mlp: F, of the feed-forward layer.
    context: longest sequence in tokens that the model was made for.
    rope_base: base of the rotary frequencies.
    norm_eps: added to the mean square in norms.
    dtype: type of activations and of matmul inputs. Norms, phases and logits
      are fp32.
    param_dtype: type of parameters that do not train, see `state.create`. What
      trains is fp32.
    remat: recompute each block in the backward pass: memory for time.
    norm: rms; rms_offset, which multiplies with 1 + scale; or layer, which has
      a mean and a bias.
    post_norms: whether what attention and feed-forward layer add to the
      residual stream is normalised too.
    qk_norm: whether each head of queries and keys is, before it is turned.
    gated: down(act(gate x) * up x), or down(act(up x)).
    activation: one of layers.ACTIVATIONS.
    embed_scale: what embeddings are multiplied with.
    query_scale: what scores are multiplied with; None is Dh**-0.5.
    attention_softcap: c of scores c tanh(score / c); None is no cap.
    logit_softcap: the same of the logits of a head with rows.
    windows: how many of the last tokens each layer sees, itself included. 0
      is all of them, and () is all in every layer.
    local_rope_base: unscaled base in layers with a window; None is `rope_base`.
    learned_positions: whether an embedding of the position is added; the
      attention is then of kind none.
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
  param_dtype: str = 'float32'
  remat: bool = False
  head: HeadConfig = HeadConfig()
  attention: AttentionConfig = ROPE
  norm: str = 'rms'
  post_norms: bool = False
  qk_norm: bool = False
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  gated: bool = True
  activation: str = 'silu'
  embed_scale: float = 1.0
  query_scale: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  windows: tuple[int, ...] = ()
  rope_scaling: RopeScaling = UNSCALED
  local_rope_base: float | None = None
  learned_positions: bool = False
  lora: LoRAConfig = NO_LORA

  def __post_init__(self):
    self.head.check(self.vocab_size, self.width)
    self.lora.check(self.gated, self.head.kind == 'dense')
    self._check_family()
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type in (int, float) and not 0 < value < math.inf:
        raise ConfigError(f'model {field.name} must be > 0, got {value}')
      if field.type in (int, bool) and type(value) is not field.type:
        raise ConfigError(
          f'model {field.name} must be {field.type.__name__}, got {value!r}'
        )
    if self.heads % self.kv_heads:
      raise ConfigError(
        f'model heads {self.heads} is not a multiple of kv_heads '
        f'{self.kv_heads}'
      )
    if self.head_dim % 2:
      raise ConfigError(f'model head_dim must be even, got {self.head_dim}')
    for name in ('dtype', 'param_dtype'):
      if getattr(self, name) not in DTYPES:
        raise ConfigError(
          f'model.{name} must be {" or ".join(DTYPES)}, got '
          f'{getattr(self, name)!r}'
        )

  def _check_family(self) -> None:
    one_of('model norm', self.norm, NORMS)
    one_of('model activation', self.activation, ACTIVATIONS)
    for name in (
      'query_scale', 'attention_softcap', 'logit_softcap', 'local_rope_base'
    ):  # fmt: skip
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ConfigError(f'model {name} must be > 0 or None, got {value}')
    if self.windows and len(self.windows) != self.layers:
      raise ConfigError(
        f'model windows are {len(self.windows)}, the layers {self.layers}'
      )
    if self.logit_softcap is not None and self.head.kind in ('vq', 'adaptive'):
      raise ConfigError(
        f'model.head {self.head.kind} cannot have the soft cap of logits that '
        f'this model has ({self.logit_softcap}); take tied, dense or low_rank'
      )

  @property
  def compute_dtype(self) -> jnp.dtype:
    """The dtype of activations and of matmul inputs."""
    return jnp.dtype(self.dtype)
