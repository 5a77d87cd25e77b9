"""The shape of a transformer; every model is fields of this, not a subclass."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pdl_jax.errors import ConfigError
from pdl_jax.model.lora import NO_LORA, LoRAConfig

HEADS = ('tied', 'dense', 'low_rank', 'vq', 'adaptive')
COMBINATIONS = ('concat', 'sum')
BIASES = ('none', 'unigram', 'learned')
ATTENTIONS = ('rope', 'complex', 'scaled_rope', 'alibi', 'none')
# What a model that was trained with rope can go on with.
EXTENSIONS = ('complex', 'scaled_rope')
DELTAS = ('head', 'shared', 'fixed')
STARTS_OF_DELTA = ('rope', 'published', 'zero')
NORMS = ('rms', 'rms_offset', 'layer')
ACTIVATIONS = ('silu', 'gelu', 'gelu_tanh')
DTYPES = ('float32', 'bfloat16')
ROPE_SCALINGS = ('none', 'linear', 'llama3', 'yarn')


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """What turns the last hidden state into logits.

  Attributes:
    kind: tied, the input embedding; dense, a matrix of its own; low_rank, a
      product of two; vq, rows composed of codebooks' (VQ-Logits,
      arXiv:2505.10202); adaptive, by clusters of types (arXiv:1609.04309).
    bias: of each type, added to its logit: none, unigram (the logarithm of its
      training frequency, fixed), or learned. Of vq, what parts types of equal
      codes.
    rank: of low_rank, and of what is added to the rows of vq; 0: nothing is.
      Of the first cluster of adaptive; the second has a quarter of it.
    codes: K, rows of a codebook.
    codebooks: M.
    combine: how a row is made of M codes: 'concat', end to end, each of width
      D / M; 'sum', each of width D.
    learned: whether the codes of a type follow training: the nearest ones to a
      row of its own, which exists while training alone (straight-through,
      arXiv:1711.00937).
    own: the commonest types, which have a row of their own: with one codebook
      its first codes, of one type each; of adaptive those in no cluster.
    tail_from: how many of the commonest types are not of the tail, whose rows
      are composed of codebooks of its own; 0: there is no tail. Of adaptive,
      where its second cluster begins.
    tail_codes, tail_codebooks: K and M of the tail.
    tail_rank: R, of a projection of the state that the rows of the tail are
      multiplied with, [R] in place of [D]; 0: the state itself.
  """

  kind: str = 'tied'
  bias: str = 'none'
  rank: int = 0
  codes: int = 0
  codebooks: int = 1
  combine: str = 'concat'
  learned: bool = False
  own: int = 0
  tail_from: int = 0
  tail_codes: int = 0
  tail_codebooks: int = 0
  tail_rank: int = 0

  def __post_init__(self):
    for name, allowed in (
      ('kind', HEADS), ('bias', BIASES), ('combine', COMBINATIONS)
    ):  # fmt: skip
      if getattr(self, name) not in allowed:
        raise ConfigError(
          f'head {name} {getattr(self, name)!r} is not one of '
          f'{", ".join(allowed)}'
        )
    if self.kind == 'low_rank' and self.rank < 1:
      raise ConfigError(
        f'model.rank of a low_rank head must be >= 1, got {self.rank}'
      )
    if self.kind == 'vq' and (self.codes < 1 or self.codebooks < 1):
      raise ConfigError(
        f'model.vq.codebook_size and num_codebooks must be >= 1, got '
        f'{self.codes} and {self.codebooks}'
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
      0 < self.own < self.tail_from < vocab_size and 0 < self.rank < width
    ):
      raise ConfigError(
        f'model.head adaptive needs 0 < model.vq.num_exact {self.own} < '
        f'model.vq.tail_start {self.tail_from} < {vocab_size} types, and 0 < '
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
      if tier.codes > types:
        raise ConfigError(
          f'model.vq.{key} {tier.codes} are more than the {types} types that '
          f'they are for; take at most {types}'
        )
    if self.combine == 'concat' and width % self.codebooks:
      raise ConfigError(
        f'the width {width} does not divide into {self.codebooks} codebooks; '
        "take a divisor, or combine 'sum'"
      )

  def _check_tiers(self, vocab_size: int, width: int) -> None:
    alone = self.codebooks == 1 and not self.tail_from
    most = self.codes - 1 if alone else (self.tail_from or vocab_size) - 1
    if self.own > most:
      raise ConfigError(
        f'model.vq.num_exact {self.own} must be at most {most}: the other '
        f'types need '
        + ('a code' if alone else 'codebooks')
      )
    if self.own and self.learned and alone:
      raise ConfigError(
        'model.vq.num_exact with one codebook whose codes are learned: there '
        'is '
        'nothing that would keep them apart; take fixed codes, or several '
        'codebooks'
      )
    if not self.tail_from:
      if self.tail_rank:
        raise ConfigError(
          f'model.vq.tail_rank {self.tail_rank} needs a tail: set tail_start'
        )
      return
    if self.tail_from >= vocab_size:
      raise ConfigError(
        f'model.vq.tail_start {self.tail_from} leaves nothing of {vocab_size} '
        'types'
      )
    if self.tail_codes < 1 or self.tail_codebooks < 1:
      raise ConfigError(
        'model.vq.tail_codebook_size and tail_num_codebooks must be >= 1, got '
        f'{self.tail_codes} and {self.tail_codebooks}'
      )
    if self.tail_rank >= width:
      raise ConfigError(
        f'model.vq.tail_rank {self.tail_rank} must be below the width of the '
        f'model, {width}'
      )
    rank = self.tail_rank or width
    if self.combine == 'concat' and rank % self.tail_codebooks:
      raise ConfigError(
        f'the width {rank} does not divide into {self.tail_codebooks} '
        "codebooks of the tail; take a divisor, or combine 'sum'"
      )

  @property
  def in_tiers(self) -> bool:
    """Whether types are in the order of their frequency."""
    several = self.codebooks > 1 or self.tail_from > 0
    return self.kind == 'vq' and (self.tail_from > 0 or self.own * several > 0)

  def tiers(self, vocab_size: int) -> tuple['Tier', ...]:
    """What composes the rows of which types, the commonest first."""
    first = self.own if self.in_tiers else 0
    end = self.tail_from or vocab_size
    made = (Tier(first, end, self.codes, self.codebooks, 0),)
    if self.tail_from:
      tail = Tier(
        end, vocab_size, self.tail_codes, self.tail_codebooks, self.tail_rank
      )
      made = (*made, tail)
    return made

  def code_width(self, width: int, tier: 'Tier') -> int:
    """S, of a row of a codebook of a tier, whose rows have some width."""
    return width // tier.codebooks if self.combine == 'concat' else width


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
  """How attention knows of positions.

  Attributes:
    kind: rope (arXiv:2104.09864); complex, CMHA (arXiv:2505.10222), which has
      delta and b besides; scaled_rope, RoPE with a learned factor of each head
      and pair instead, a baseline that learns too; alibi, a penalty that
      grows with distance (arXiv:2108.12409); none.
    delta_sharing: of complex: one of each key-value head and pair ('head': keys
      have to be cached once for all queries of their group), one of each pair
      ('shared'), or none that is learned ('fixed').
    phase_bias: of complex: whether each query head and pair has a b.
    delta_init: of complex: delta 1 ('rope'); normal around 0 with standard
      deviation (Dh/2)**-0.5, as in the published code ('published'), which a
      fixed delta cannot be; or 0 ('zero'): of a score moduli and distance are
      left. b 0.
    scale_scores: whether scores are divided by sqrt(Dh); those of the published
      code are not.
    position_sign: 1 or -1; a model with learned projections can make up for it.
  """

  kind: str = 'rope'
  delta_sharing: str = 'head'
  phase_bias: bool = True
  delta_init: str = 'rope'
  scale_scores: bool = True
  position_sign: int = 1

  def __post_init__(self):
    for name, allowed in (
      ('kind', ATTENTIONS), ('delta_sharing', DELTAS), ('delta_init',
      STARTS_OF_DELTA),
      ('position_sign', (1, -1)),
    ):  # fmt: skip
      if getattr(self, name) not in allowed:
        raise ConfigError(
          f'attention {name} {getattr(self, name)!r} is not one of '
          f'{", ".join(map(str, allowed))}'
        )
    if self.delta_sharing == 'fixed' and self.delta_init == 'published':
      raise ConfigError(
        'attention delta_init published draws a delta to be learned, and '
        'delta_sharing is fixed'
      )

  @property
  def learns_delta(self) -> bool:
    """Whether there is a parameter."""
    return self.kind == 'complex' and self.delta_sharing != 'fixed'

  @property
  def extends_rope(self) -> bool:
    """Whether it begins as RoPE, so that a model trained with it stays so."""
    if self.kind != 'complex':
      return self.kind in ('rope', 'scaled_rope')
    plain = self.scale_scores and self.position_sign == 1
    return self.delta_init == 'rope' and plain

  @property
  def learns_offset(self) -> bool:
    """Whether there is a parameter."""
    return self.kind == 'complex' and self.phase_bias


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched to a longer context; see `rope`.

  Attributes:
    kind: none; linear, all divided by the factor (arXiv:2306.15595); llama3,
      only the low ones (arXiv:2407.21783); yarn, by parts
      (arXiv:2309.00071).
    factor: of the context.
    low, high: of llama3 and yarn: turns over the original context from which
      on a frequency is kept (high), up to which it is divided whole (low).
    original: context before it was stretched.
    magnitude: of yarn: what queries and keys are multiplied with.
    whole_dims: of yarn: whether the ends of its ramp are rounded to dims.
  """

  kind: str = 'none'
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: int = 0
  magnitude: float = 1.0
  whole_dims: bool = True

  def __post_init__(self):
    if self.kind not in ROPE_SCALINGS:
      raise ConfigError(
        f'rope scaling {self.kind!r} is not one of {", ".join(ROPE_SCALINGS)}'
      )
    if not (self.factor >= 1 and self.magnitude > 0):
      raise ConfigError(
        f'rope scaling needs factor >= 1 and magnitude > 0, got {self.factor} '
        f'and {self.magnitude}'
      )
    if self.kind in ('llama3', 'yarn') and not (
      self.original > 0 and 0 < self.low < self.high
    ):
      raise ConfigError(
        f'rope scaling {self.kind} needs an original context > 0 and 0 < low < '
        f'high, got {self.original}, {self.low} and {self.high}'
      )


class Tier(NamedTuple):
  """Types by rank of frequency, [first, end), and what composes their rows.

  Rows are as wide as the model, or as `rank` if that is not 0.
  """

  first: int
  end: int
  codes: int
  codebooks: int
  rank: int


def code_dtype(codes: int) -> np.dtype:
  """The least unsigned integers that count so many codes.

  A look-up a type and codebook is bound by reading them.
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
    mlp: F, of the gated feed-forward layer.
    context: longest sequence in tokens that the model was made for.
    rope_base: base of the rotary frequencies.
    norm_eps: added to the mean square in RMSNorm.
    dtype: of activations and of matmul inputs; norms, phases and logits are
      fp32.
    param_dtype: of parameters that do not train, see `state.create`; what
      trains is fp32.
    remat: recompute each block in the backward pass: memory for time.
    head: what turns the last hidden state into logits.
    attention: how it knows of positions.
    norm: rms; rms_offset, which multiplies with 1 + scale; layer, with mean
      and bias (arXiv:1607.06450).
    post_norms: whether what attention and feed-forward layer add to the
      residual stream is normalised too.
    qk_norm: whether each head of queries and keys is, before it is turned.
    qkv_bias, output_bias: of the projections of attention.
    mlp_bias: of the feed-forward layer.
    gated: down(act(gate x) * up x), or down(act(up x)).
    activation: silu, gelu, or gelu_tanh, its approximation.
    embed_scale: what embeddings are multiplied with.
    query_scale: what scores are multiplied with; None: Dh**-0.5.
    attention_softcap: c of scores c tanh(score / c); None: none.
    logit_softcap: the same of the logits of a head with rows.
    windows: of each layer, how many of the last tokens it sees, itself
      included; 0: all; (): all, in every layer.
    rope_scaling: of the rotary frequencies.
    local_rope_base: of layers with a window, unscaled; None: as the others.
    learned_positions: whether an embedding of the position is added; the
      attention is then of kind none.
    lora: adapters of its linear layers.
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
  attention: AttentionConfig = AttentionConfig()
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
  rope_scaling: RopeScaling = RopeScaling()
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
    for name, allowed in (('norm', NORMS), ('activation', ACTIVATIONS)):
      if getattr(self, name) not in allowed:
        raise ConfigError(
          f'model {name} {getattr(self, name)!r} is not one of '
          f'{", ".join(allowed)}'
        )
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
