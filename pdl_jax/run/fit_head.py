"""A head of another kind for a model, from its own rows and the data."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.model.config import HeadConfig, ModelConfig
from pdl_jax.model.heads import fit, vq
from pdl_jax.model.settings import ModelSettings
from pdl_jax.run.load_model import Model

Tree = Any
# Of a report of codes: codebooks of a tier, codes with the most tokens, codes
# of the most types, and the commonest types of each.
_CODEBOOKS, _CODES, _FULLEST, _TYPES = 4, 40, 5, 12


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
    model: from `load_model`, whose new head is as it was initialised; with
      the head that it was trained with it stays as it is.
    counts_V: of the types in training targets.
    moments: of the model on the data, by which rows are near that give near
      logits; None: as if hidden states had unit variance.
    seed: of random codes, and of k-means.

  Raises:
    ConfigError: k-means or rows of a model that was not trained; the unigram
      distribution added to logits that hold it.
  """
  head = model.config.head
  if options.output is None or not model.head_is_new:
    return model
  own, rows_VxD = dict(model.params.get('head', {})), model.outputs_VxD
  covariance_DxD = None if moments is None else moments.covariance_DxD
  if head.kind == 'vq' and options.vq is not None:
    inputs_VxD = None
    if rows_VxD is not None:
      inputs_VxD = np.asarray(model.params['embed_VxD'])
    fitted = fit.fit(
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
    own['left_VxR'], own['right_DxR'] = fit.truncate(
      fit.centered(rows_VxD, counts_V), counts_V, covariance_DxD, head.rank
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
  parts = np.split(order_V, (head.num_exact, head.tail_start))
  common, middle, rare = (rows_VxD[part] for part in parts)
  means = np.stack([middle.mean(0), rare.mean(0)])
  # A cluster has a softmax of its own, and does not see what its rows share.
  (left, right), rarest = (
    fit.truncate(
      fit.centered(rows, counts_V[part]), counts_V[part], covariance_DxD,
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
  if head.bias == 'unigram' and rows_VxD is not None and not alone:
    raise ConfigError(
      f'model.bias unigram of the trained {model.name} is for one codebook, '
      'whose types share a row: the logits of other heads hold the '
      'frequencies already; take learned or none'
    )
  if learned and (not alone or model.bias_V is not None):
    log_V = np.zeros_like(log_V) if model.bias_V is None else model.bias_V
    if moments is not None and not alone and head.kind in ('vq', 'low_rank'):
      lost_VxD = rows_VxD - effective_rows(head, own)
      log_V = log_V + fit.centered(lost_VxD, counts_V) @ moments.mean_D
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
  return np.asarray(vq.head(head, own).rows())


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
  floats = vq.float_parameters(own) if own else 0
  if head.kind == 'tied':
    floats += dense
  return HeadSize(
    head.kind, floats, dense, vq.index_bits(head, config.vocab_size)
  )


def describe_head(config: ModelConfig, params: Tree, counts_V: Any) -> str:
  """Its size against a dense head, and how the codes of each tier are spread.
  """
  size = head_size(config, params)
  percent = 100 * size.floats / size.dense_floats
  parts = [
    f'{size.kind}, {size.floats:,} floats ({percent:.2f} % of a dense head)'
  ]
  if size.index_bits:
    parts.append(f'{size.index_bits:,} index bits')
  # A tier a line.
  spread = [
    fit.describe(codes, count, counts_V[types])
    for types, codes, count in _codes(config, params)
  ]
  return f'\n{"":11s}'.join([', '.join(parts), *spread])


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
    yield order_V[tier.first : tier.end], codes, tier.codebook_size


def codes_report(
  config: ModelConfig, params: Tree, tokenizer: Tokenizer, counts_V: np.ndarray
) -> str:
  """What codes hold, as text: those with the most training tokens or types.

  Of the first codebooks of each tier. Empty for a head without codes, or whose
  codes are yet to be learned.
  """
  lines = []
  for number, (types, codes_MxV, count) in enumerate(_codes(config, params)):
    shown = min(len(codes_MxV), _CODEBOOKS)
    lines.append(
      f'tier {number}: {types.size:,} types, {len(codes_MxV)} codebooks of '
      f'{count:,} codes; codebooks shown: {shown}\n'
    )
    for m, code_V in enumerate(codes_MxV[:shown]):
      lines += _codebook_report(m, code_V, count, types, tokenizer, counts_V)
  return ''.join(lines)


def _codebook_report(
  number: int,
  code_V: np.ndarray,
  count: int,
  types: np.ndarray,
  tokenizer: Tokenizer,
  counts_V: np.ndarray,
) -> Iterator[str]:
  """Lines of one codebook."""
  size_K = np.bincount(code_V, minlength=count)
  mass_K = np.bincount(code_V, counts_V[types], count)
  by_mass = np.argsort(-mass_K, kind='stable')[:_CODES]
  by_size = np.argsort(-size_K, kind='stable')[:_FULLEST]
  chosen = [int(k) for k in dict.fromkeys((*by_mass, *by_size)) if size_K[k]]
  yield (
    f'codebook {number}: {(size_K == 0).sum():,} codes empty; {len(chosen)} of '
    f'{count:,} shown, {by_mass.size} by training tokens and the '
    f'{by_size.size} of most types\n'
  )
  total = max(mass_K.sum(), 1)
  for code in chosen:
    held = types[code_V == code]
    common = held[np.argsort(-counts_V[held], kind='stable')]
    listed = ' '.join(
      f'{tokenizer.token(int(v))!r}:{int(counts_V[v])}'
      for v in common[:_TYPES]
    )
    rest = held.size - len(common[:_TYPES])
    more = f' and {rest:,} more' if rest else ''
    yield (
      f'  code {code}: {held.size:,} types, {int(mass_K[code]):,} tokens '
      f'({100 * mass_K[code] / total:.1f} %): {listed}{more}\n'
    )
