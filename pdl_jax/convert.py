"""A head of another kind for a model, from its own rows and the data."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pdl_jax.model import assign, vq_logits
from pdl_jax.model.config import HeadConfig, ModelConfig
from pdl_jax.settings import ModelSettings
from pdl_jax.start import Model

Tree = Any
# Of a report of codes: the fullest ones, and the commonest types of each.
_CODES, _TYPES = 40, 12


class Moments(NamedTuple):
  """Of the hidden states that an output head reads.

  Attributes:
    mean_D: their mean.
    covariance_DxD: their covariance.
  """

  mean_D: np.ndarray
  covariance_DxD: np.ndarray


def fit_head(
  options: ModelSettings,
  model: Model,
  counts_V: np.ndarray,
  moments: Moments | None,
  seed: int,
) -> Model:
  """The model with its new head fitted: codes, codebooks, biases.

  Args:
    options: what is asked for.
    model: from `load_model`, whose new head is as it was initialised.
    counts_V: of the types in training targets.
    moments: of the model on the data, by which rows are near that give near
      logits; None: as if hidden states had unit variance.
    seed: of random codes, and of k-means.

  Raises:
    ConfigError: k-means or rows of a model that was not trained.
  """
  head = model.config.head
  if options.output is None:
    return model
  own, rows_VxD = dict(model.params.get('head', {})), model.outputs_VxD
  covariance_DxD = None if moments is None else moments.covariance_DxD
  if head.kind == 'vq':
    inputs_VxD = None
    if rows_VxD is not None:
      inputs_VxD = np.asarray(model.params['embed_VxD'])
    fitted = assign.fit(
      head, options.vq.mapping, options.vq.start, counts_V, rows_VxD,
      inputs_VxD, covariance_DxD, model.config.width, seed,
    )  # fmt: skip
    if 'tail' in own:
      fitted['tail'] = own['tail'] | fitted['tail']
    own |= fitted
  elif head.kind == 'adaptive':
    own |= _clusters(head, own, counts_V, rows_VxD, covariance_DxD)
  elif rows_VxD is not None and head.kind == 'dense':
    own['matrix_VxD'] = rows_VxD
  elif rows_VxD is not None and head.kind == 'low_rank':
    own['left_VxR'], own['right_DxR'] = assign.truncate(
      assign.centered(rows_VxD, counts_V), counts_V, covariance_DxD, head.rank
    )
  if head.bias != 'none':
    name = 'bias_V' if head.bias == 'learned' else 'prior_V'
    own[name] = _bias(head, own, counts_V, model, moments)
  params = {**model.params, 'head': own} if own else model.params
  return dataclasses.replace(model, params=params)


def _clusters(
  head: HeadConfig,
  own: Tree,
  counts_V: np.ndarray,
  rows_VxD: np.ndarray | None,
  covariance_DxD: np.ndarray | None,
) -> Tree:
  """Types in clusters by frequency; of a trained model its rows' parts.

  A cluster itself begins as the mean of its rows.
  """
  order_V = np.argsort(-counts_V, kind='stable')
  places_V = np.empty(counts_V.size, np.int32)
  places_V[order_V] = np.arange(counts_V.size)
  if rows_VxD is None:
    return {'places_V': places_V}
  parts = np.split(order_V, (head.own, head.tail_from))
  common, middle, rare = (rows_VxD[part] for part in parts)
  means = np.stack([middle.mean(0), rare.mean(0)])
  # A cluster has a softmax of its own, and does not see what its rows share.
  (left, right), rarest = (
    assign.truncate(
      assign.centered(rows, counts_V[part]), counts_V[part], covariance_DxD,
      rank,
    )
    for rows, part, rank in (
      (middle, parts[1], own['right_DxR'].shape[1]),
      (rare, parts[2], own['tail']['right_DxR'].shape[1]),
    )
  )  # fmt: skip
  return {
    'first_HxD': np.concatenate([common, means]), 'places_V': places_V,
    'left_VxR': left, 'right_DxR': right,
    'tail': dict(zip(('left_VxR', 'right_DxR'), rarest, strict=True)),
  }  # fmt: skip


def _bias(
  head: HeadConfig,
  own: Tree,
  counts_V: np.ndarray,
  model: Model,
  moments: Moments | None,
) -> np.ndarray:
  """Where the bias begins.

  From scratch at the unigram distribution. Types that share all that a trained
  row was turned into share its mass by their frequency; where they do not, a
  learned one begins where it was, and makes good what the rows lost of the
  mean logit.
  """
  log_V = np.log(np.maximum(counts_V, 1.0))
  codes, rows_VxD = own.get('codes_MxV'), model.outputs_VxD
  alone = codes is not None and len(codes) == 1 and not head.in_tiers
  learned = head.bias == 'learned' and rows_VxD is not None
  if learned and (not alone or model.bias_V is not None):
    log_V = np.zeros_like(log_V) if model.bias_V is None else model.bias_V
    if moments is not None and not alone and head.kind in ('vq', 'low_rank'):
      lost_VxD = rows_VxD - effective_rows(head, own)
      log_V = log_V + assign.centered(lost_VxD, counts_V) @ moments.mean_D
  elif rows_VxD is not None and alone:
    code_V = np.asarray(codes)[0]
    mass_K = np.bincount(code_V, np.maximum(counts_V, 1.0))
    size_K = np.bincount(code_V)
    log_V += np.log(size_K[code_V] / mass_K[code_V])
  else:
    log_V -= np.log(np.maximum(counts_V, 1.0).sum())
  return log_V.astype(np.float32)


def effective_rows(head: HeadConfig, own: Tree) -> np.ndarray:
  """The output matrix that a vq or low_rank head stands for, [V, D]."""
  if head.kind == 'low_rank':
    return own['left_VxR'] @ own['right_DxR'].T
  return np.asarray(vq_logits.head(head, own).rows())


class HeadSize(NamedTuple):
  """What an output head has to keep.

  Attributes:
    kind: of it.
    floats: that logits need: none of learned codes' rows, which exist in
      training alone; a fixed bias too.
    dense_floats: V D, of a matrix of its own.
    index_bits: of the codes of all types, and of their order in tiers.
  """

  kind: str
  floats: int
  dense_floats: int
  index_bits: int


def head_size(config: ModelConfig, params: Tree) -> HeadSize:
  """Of a model's head; a tied one is counted as the matrix that it reads."""
  head, own = config.head, params.get('head', {})
  dense = config.vocab_size * config.width
  floats = vq_logits.float_parameters(own) if own else 0
  if head.kind == 'tied':
    floats += dense
  return HeadSize(
    head.kind, floats, dense, vq_logits.index_bits(head, config.vocab_size)
  )


def describe_head(config: ModelConfig, params: Tree, counts_V: Any) -> str:
  """Its size against a dense head, and how its codes are spread."""
  size = head_size(config, params)
  percent = 100 * size.floats / size.dense_floats
  parts = [
    f'{size.kind}, {size.floats:,} floats ({percent:.2f} % of a dense head)'
  ]
  if size.index_bits:
    parts.append(f'{size.index_bits:,} index bits')
  parts += [
    assign.describe(codes, count, counts_V[types])
    for types, codes, count in _codes(config, params)
  ]
  return ', '.join(parts)


def _codes(
  config: ModelConfig, params: Tree
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Types, their codes_MxV, and how many codes there are, of each tier."""
  own = params.get('head', {})
  if config.head.kind != 'vq' or config.head.learned:
    return
  order_V = np.arange(config.vocab_size)
  if 'places_V' in own:
    order_V = np.argsort(np.asarray(own['places_V']))
  tiers = config.head.tiers(config.vocab_size)
  for tier, part in zip(tiers, (own, own.get('tail')), strict=False):
    codes = np.asarray(part['codes_MxV'])
    yield order_V[tier.first : tier.end], codes, tier.codes


def codes_report(
  model: Model, counts_V: np.ndarray
) -> str:
  """What the codes with the most training tokens hold, as text.

  Empty for a head without codes, or whose codes are yet to be learned.
  """
  lines = []
  found = _codes(model.config, model.params)
  for number, (types, codes_MxV, _) in enumerate(found):
    for m, code_V in enumerate(codes_MxV):
      mass_K = np.bincount(code_V, counts_V[types])
      for code in np.argsort(-mass_K, kind='stable')[:_CODES]:
        held = types[code_V == code]
        common = held[np.argsort(-counts_V[held], kind='stable')]
        shown = ' '.join(
          f'{model.tokenizer.token(int(v))!r}:{int(counts_V[v])}'
          for v in common[:_TYPES]
        )
        lines.append(
          f'tier {number} codebook {m} code {code}: {held.size} types, '
          f'{int(mass_K[code])} tokens: {shown}\n'
        )
  return ''.join(lines)
