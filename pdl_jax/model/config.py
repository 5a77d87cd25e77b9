"""Shape of a transformer: every model is an instance of one config."""

import dataclasses
import math

import jax.numpy as jnp

from pdl_jax.errors import ConfigError, one_of
from pdl_jax.model import kernels
from pdl_jax.model.heads import HEADS, Tier
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

  @property
  def in_tiers(self) -> bool:
    """Whether types are ordered by frequency."""
    apart = self.num_exact > 0 and self.num_codebooks > 1
    return self.kind == 'vq' and (self.tail_start > 0 or apart)

  def tiers(self, vocab_size: int) -> tuple[Tier, ...]:
    """Returns the tiers of composed rows, the commonest types first."""
    first = self.num_exact if self.in_tiers else 0
    end = self.tail_start or vocab_size
    head = Tier(first, end, self.codebook_size, self.num_codebooks, 0)
    tail = Tier(
      end, vocab_size, self.tail_codebook_size, self.tail_num_codebooks,
      self.tail_rank,
    )  # fmt: skip
    return (head, tail) if self.tail_start else (head,)

  def code_width(self, width: int, tier: Tier) -> int:
    """Returns S, the width of a codebook row in a tier with rows of `width`."""
    return width // tier.num_codebooks if self.combine == 'concat' else width


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
    attention_impl: what attends to whole rows, see `kernels`.
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
  attention_impl: str = 'auto'
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
    HEADS[self.head.kind].check(self)
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

  def _check_family(self) -> None:
    one_of('model.dtype', self.dtype, DTYPES)
    one_of('model.param_dtype', self.param_dtype, DTYPES)
    one_of(
      'model.attention_impl', self.attention_impl, kernels.IMPLEMENTATIONS
    )
    kernels.check(self)
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
    if self.logit_softcap is not None and not HEADS[self.head.kind].has_rows:
      raise ConfigError(
        f'model.head {self.head.kind} cannot have the soft cap of logits that '
        f'this model has ({self.logit_softcap}); take tied, dense or low_rank'
      )

  @property
  def compute_dtype(self) -> jnp.dtype:
    """Dtype of activations and matmul inputs."""
    return jnp.dtype(self.dtype)
