"""Shape of a transformer: every model is an instance of one config."""

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

# How types get codes, and what codebooks start with; see heads/fit.py.
MAPPINGS = (
  'random', 'blocks', 'frequency_blocks', 'kmeans_output', 'kmeans_input',
  'learned',
)  # fmt: skip
STARTS = ('rows', 'random')
# Output head -> keys of `model`, or groups of keys, that it reads.
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

  There are M codebooks of K rows; D is the width of the model.

  Attributes:
    bias: added to each type's logit; it tells types of equal codes apart.
    combine: 'concat' joins rows of width D / M; 'sum' adds rows of width D.
    learned: whether codes follow training. A type takes the codes nearest to
      its own row, which exists in training alone (straight-through,
      arXiv:1711.00937).
    num_exact: an adaptive head has these types in no cluster.
    tail_start: an adaptive head begins its second cluster there.
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
    """Refuses a head that does not fit the model."""
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
    """Whether types are ordered by frequency."""
    several = self.num_codebooks > 1 or self.tail_start > 0
    return self.kind == 'vq' and (
      self.tail_start > 0 or self.num_exact * several > 0
    )

  def tiers(self, vocab_size: int) -> tuple['Tier', ...]:
    """Returns the tiers of composed rows, the commonest types first."""
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
    """Returns S, the width of a codebook row in a tier with rows of `width`."""
    return width // tier.num_codebooks if self.combine == 'concat' else width


class Tier(NamedTuple):
  """Types of frequency ranks [first, end), and what composes their rows.

  Rows are as wide as the model, or as `rank` if that is not 0.
  """

  first: int
  end: int
  codebook_size: int
  num_codebooks: int
  rank: int


def code_dtype(codes: int) -> np.dtype:
  """Returns the smallest unsigned integer type that holds so many codes.

  Reading the codes dominates the time of a look-up.
  """
  return np.min_scalar_type(codes - 1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A pre-norm decoder; the defaults are the Llama family.

  V is vocab_size and D the width of the residual stream. H and K are the
  numbers of query and key-value heads, Dh is head_dim (even), F is mlp.

  Attributes:
    kv_heads: divides `heads` (grouped-query attention).
    context: longest sequence in tokens that the model was made for.
    norm_eps: added to the mean square in norms.
    dtype: of activations and matmul inputs. Norms, phases and logits are fp32.
    param_dtype: of parameters that do not train, see `state.create`. Trained
      parameters are fp32.
    norm: 'rms'; 'rms_offset', which multiplies with 1 + scale; or 'layer', with
      a mean and a bias.
    post_norms: also normalise the outputs of attention and feed-forward layer.
    qk_norm: normalise each head of queries and keys, before rotation.
    gated: down(act(gate x) * up x) instead of down(act(up x)).
    embed_scale: factor of the embeddings.
    query_scale: factor of the scores; None means Dh**-0.5.
    attention_softcap: c of scores c tanh(score / c); None means no cap.
    logit_softcap: the same for the logits of a head with rows.
    windows: how many of the last tokens each layer sees, itself included. 0
      means all; () means all in every layer.
    local_rope_base: unscaled base in layers with a window; None is `rope_base`.
    learned_positions: add an embedding of the position; needs attention 'none'.
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
    """Dtype of activations and matmul inputs."""
    return jnp.dtype(self.dtype)
