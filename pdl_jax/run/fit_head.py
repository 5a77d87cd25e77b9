"""Fits a new output head to the rows of the old one and to the data."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from pdl_jax.data import pipeline
from pdl_jax.data.examples import Examples
from pdl_jax.errors import ConfigError
from pdl_jax.model.config import HeadConfig
from pdl_jax.model.heads import fit, vq
from pdl_jax.model.settings import ModelSettings
from pdl_jax.run.open_model import Model
from pdl_jax.train.step import target_hidden

Tree = Any
# Examples whose hidden states are measured, and how many at a time.
_READ, _READ_BATCH = 128, 8


class Moments(NamedTuple):
  """Mean and covariance of the hidden states that an output head reads."""

  mean_D: np.ndarray
  covariance_DxD: np.ndarray


def measure_moments(model: Model, examples: Examples) -> Moments | None:
  """Measures moments of hidden states; None if the head needs none."""
  if model.outputs_VxD is None or model.config.head.kind in ('tied', 'dense'):
    return None
  read = jax.jit(partial(target_hidden, model.config))
  numbers = pipeline.sample(examples, _READ)
  states = np.concatenate([
    np.asarray(read(model.params, batch), np.float64)[batch['where']]
    for batch in pipeline.evaluation_batches(examples, numbers, _READ_BATCH)
  ])
  return Moments(states.mean(0), np.cov(states, rowvar=False))


def fit_head(
  options: ModelSettings,
  model: Model,
  counts_V: np.ndarray,
  moments: Moments | None,
  seed: int,
) -> Model:
  """Fits codes, codebooks, factors and bias of a model's new head.

  A head that the model was trained with stays as it is.

  Args:
    model: from `load_model`, with the new head as it was initialized.
    counts_V: how often each type occurs in the training targets.
    moments: of hidden states: rows are near if they give near logits. None
      assumes unit variance.
  """
  if options.output is None or not model.head_is_new:
    return model
  head, rows_VxD = model.config.head, model.outputs_VxD
  own = dict(model.params.get('head', {}))
  covariance_DxD = None if moments is None else moments.covariance_DxD
  if head.kind == 'vq' and options.vq is not None:
    inputs_VxD = None
    if rows_VxD is not None:
      inputs_VxD = np.asarray(model.params['embed_VxD'])
    fitted = fit.fit(
      head, options.vq.mapping, options.vq.start, counts_V,
      rows_VxD, inputs_VxD, covariance_DxD, model.config.width, seed,
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
    own[name] = _bias(model, own, counts_V, moments)
  params = {**model.params, 'head': own} if own else model.params
  return dataclasses.replace(model, params=params)


def _clusters(
  head: HeadConfig,
  own: Tree,
  counts_V: np.ndarray,
  rows_VxD: np.ndarray | None,
  covariance_DxD: np.ndarray | None,
) -> Tree:
  """Clusters types by frequency; a cluster starts as the mean of its rows."""
  order_V = np.argsort(-counts_V, kind='stable')
  places_V = np.empty(counts_V.size, np.int32)
  places_V[order_V] = np.arange(counts_V.size)
  if rows_VxD is None:
    return {'places_V': places_V}
  common, *clusters = np.split(order_V, (head.num_exact, head.tail_start))
  ranks = [x['right_DxR'].shape[1] for x in (own, own['tail'])]
  # A cluster's own softmax ignores what all its rows share.
  middle, rare = (
    fit.truncate(
      fit.centered(rows_VxD[types], counts_V[types]), counts_V[types],
      covariance_DxD, rank,
    )
    for types, rank in zip(clusters, ranks, strict=True)
  )  # fmt: skip
  means = np.stack([rows_VxD[types].mean(0) for types in clusters])
  names = ('left_VxR', 'right_DxR')
  return {
    'first_HxD': np.concatenate([rows_VxD[common], means]),
    'places_V': places_V,
    **dict(zip(names, middle, strict=True)),
    'tail': dict(zip(names, rare, strict=True)),
  }


def _bias(
  model: Model, own: Tree, counts_V: np.ndarray, moments: Moments | None
) -> np.ndarray:
  """Returns the initial bias.

  From scratch it is the log unigram distribution. Where a code is all that is
  left of a trained row, types of one code share its mass by frequency.
  Otherwise a learned bias keeps the trained one, and adds the mean logit that
  the new rows lost.
  """
  least_V = np.maximum(counts_V, 1.0)
  log_V, head = np.log(least_V), model.config.head
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
    mass_K = np.bincount(code_V, least_V)
    size_K = np.bincount(code_V)
    log_V += np.log(size_K[code_V] / mass_K[code_V])
  else:
    log_V -= np.log(least_V.sum())
  return log_V.astype(np.float32)


def effective_rows(head: HeadConfig, own: Tree) -> np.ndarray:
  """Returns the output matrix [V, D] that a vq or low_rank head stands for."""
  if head.kind == 'low_rank':
    return own['left_VxR'] @ own['right_DxR'].T
  return np.asarray(vq.head(head, own).rows())
