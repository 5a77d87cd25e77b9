"""Assigns codes to types and makes initial codebooks, once, on the host.

Mappings of VQ-Logits: random, blocks (of ids), frequency_blocks (of equal
frequency), kmeans_output and kmeans_input (of the trained output or input
embedding), learned (starts at kmeans_output and follows training).

Rows are compared by their logits. An error e of a row changes its logit by
h . e, with variance e^T C e over the data, where C is the covariance of the
hidden state. Commoner types count more. So k-means and low-rank factors use the
rows times the root of C.

Everywhere `counts` are of training targets, trained rows are None for a model
from scratch, and a covariance of None means unit variance.
"""

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pdl_jax.errors import ConfigError
from pdl_jax.model.config import HeadConfig
from pdl_jax.model.heads.vq import Tier, code_dtype

_SCALE = 0.02
# Share of the mean variance added to a covariance estimated from few states.
_RIDGE = 1e-2
# Settings of k-means; training makes its last improvements irrelevant.
_ROUNDS, _BATCH = 10, 8192
# Initial centroids are chosen from at least _SEEN rows, and _SEEN_EACH per
# centroid. With all rows this took longer than all later steps.
_SEEN, _SEEN_EACH = 1024, 8


def blocks(order_V: np.ndarray, codes: int) -> np.ndarray:
  """Returns codes of equal runs in an order of the types, [V]."""
  rank_V = np.empty_like(order_V)
  rank_V[order_V] = np.arange(order_V.size)
  return (rank_V * codes // order_V.size).astype(np.int32)


def kmeans(
  rows: np.ndarray, weight: np.ndarray, codes: int, seed: int, key: str
) -> np.ndarray:
  """Returns the cluster of each row, [types].

  Args:
    rows: [types, width].
    weight: [types], factor of a row's squared distance.
    key: configuration key of the number of codes, for the error.
  """
  # Imported here, because every command would wait a second for it.
  from sklearn.cluster import MiniBatchKMeans

  different = len(np.unique(rows, axis=0))
  if different < codes:
    raise ConfigError(
      f'{key}: {codes} codes are more than the {different} different rows '
      f'that they are to be the means of; take at most {different}'
    )
  # Threads cost more than they gain in hundreds of small successive problems.
  with threadpool_limits(1):
    found = MiniBatchKMeans(
      codes, max_iter=_ROUNDS, batch_size=_BATCH,
      init_size=max(_SEEN, _SEEN_EACH * codes), random_state=seed,
      n_init='auto', reassignment_ratio=0.0,
    ).fit(rows, sample_weight=weight)  # fmt: skip
  return np.asarray(found.labels_, np.int32)


def root(covariance_DxD: np.ndarray) -> np.ndarray:
  """Returns the symmetric root of a covariance."""
  values, vectors = np.linalg.eigh(covariance_DxD)
  return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def smoothed(covariance_DxD: np.ndarray) -> np.ndarray:
  """Makes a covariance full rank, however few states it comes from."""
  mean = np.trace(covariance_DxD) / len(covariance_DxD)
  return covariance_DxD + _RIDGE * mean * np.eye(len(covariance_DxD))


def importance(counts: np.ndarray) -> np.ndarray:
  """Returns the weight of a type's squared row error, from its frequency.

  Plain k-means spends its codes on the many types that are never used.
  """
  return np.sqrt(counts + 1.0)


def centered(rows_VxD: np.ndarray, counts_V: np.ndarray) -> np.ndarray:
  """Subtracts the rows' weighted mean, which a softmax does not see."""
  return rows_VxD - np.average(rows_VxD, axis=0, weights=counts_V + 1.0)


def truncate(
  rows: np.ndarray,
  counts: np.ndarray,
  covariance_DxD: np.ndarray | None,
  rank: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns factors left [types, rank] and right [D, rank] of the rows.

  left right^T approximates the rows best for the logits at that rank; commoner
  types count more. The covariance is that of the hidden state.
  """
  inverse, near = np.eye(rows.shape[1]), rows
  if covariance_DxD is not None:
    metric = root(smoothed(covariance_DxD))
    inverse, near = np.linalg.inv(metric), rows @ metric
  weighted = near * importance(counts)[:, None]
  values, vectors_DxD = np.linalg.eigh(weighted.T @ near)
  kept_DxR = vectors_DxD[:, np.argsort(-values)[:rank]]
  return (
    np.asarray(near @ kept_DxR, np.float32),
    np.asarray(inverse @ kept_DxR, np.float32),
  )


def spread(rows: np.ndarray, count: int) -> np.ndarray:
  """Orders columns so that runs of equal length vary alike.

  Each of `count` codebooks then carries the same information. Columns, most
  varied first, go to the codebook with the least so far.
  """
  bits = np.log(rows.var(axis=0) + 1e-12)
  bits -= bits.min()
  parts: list[list[int]] = [[] for _ in range(count)]
  loads = np.zeros(count)
  for column in np.argsort(-bits):
    full = [len(part) * count >= bits.size for part in parts]
    part = int(np.argmin(np.where(full, np.inf, loads)))
    parts[part].append(int(column))
    loads[part] += bits[column]
  return np.concatenate(parts)


def means(
  rows: np.ndarray, weight: np.ndarray, code_V: np.ndarray, codes: int
) -> np.ndarray:
  """Returns the weighted mean row of each code's types; 0 for an empty code."""
  total, size = np.zeros((codes, rows.shape[1])), np.zeros(codes)
  np.add.at(total, code_V, rows * weight[:, None])
  np.add.at(size, code_V, weight)
  return total / np.where(size > 0, size, 1.0)[:, None]


def assign(
  config: HeadConfig,
  tier: Tier,
  mapping: str,
  counts_V: np.ndarray,
  rows_VxD: np.ndarray | None,
  covariance_DxD: np.ndarray | None,
  seed: int,
) -> np.ndarray:
  """Returns codes_MxV of a mapping, for the types of one tier.

  With one codebook and no other tiers, the commonest types' own codes come
  first. Without trained rows, k-means is refused. The covariance is that of
  what the rows multiply.
  """
  vocab = counts_V.size
  common_V = np.argsort(-counts_V, kind='stable')
  single = 0 if config.in_tiers else config.num_exact
  rest_V, codes = np.sort(common_V[single:]), tier.codebook_size - single
  random = np.random.default_rng(seed)
  weight_V = importance(counts_V[rest_V])
  key = (
    'model.vq.tail_codebook_size' if tier.first else 'model.vq.codebook_size'
  )
  made, leftover = [], None
  for m in range(tier.num_codebooks):
    code_V = np.empty(vocab, code_dtype(tier.codebook_size))
    code_V[common_V[:single]] = np.arange(single)
    if mapping == 'random':
      # Blocks of a permutation make codes of equal sizes.
      found = blocks(random.permutation(rest_V.size), codes)
    elif mapping == 'blocks':
      found = blocks(np.roll(np.arange(rest_V.size), m), codes)
    elif mapping == 'frequency_blocks':
      order = np.argsort(-counts_V[rest_V], kind='stable')
      found = blocks(np.roll(order, m), codes)
    elif rows_VxD is None:
      raise ConfigError(
        f'model.vq.mapping {mapping} needs a trained embedding: set '
        'model.pretrained, or take random, blocks or frequency_blocks'
      )
    else:
      columns = _columns(config, tier, rows_VxD.shape[1], m)
      part = rows_VxD[:, columns][rest_V]
      if config.combine == 'sum' and leftover is not None:
        part = leftover
      near = part
      if covariance_DxD is not None:
        near = part @ root(smoothed(covariance_DxD)[columns, columns])
      found = kmeans(near, weight_V, codes, seed + m, key)
      leftover = part - means(part, weight_V, found, codes)[found]
    code_V[rest_V] = single + found
    made.append(code_V)
  return np.stack(made)


def codebooks(
  config: HeadConfig,
  tier: Tier,
  start: str,
  codes_MxV: np.ndarray,
  counts_V: np.ndarray,
  outputs_VxD: np.ndarray | None,
  width: int,
  seed: int,
) -> np.ndarray:
  """Returns codebooks_MxKxS: means of trained rows, or random.

  Without trained output rows, start 'rows' is refused.
  """
  if start == 'random':
    size = config.code_width(width, tier)
    shape = (tier.num_codebooks, tier.codebook_size, size)
    made = np.random.default_rng(seed).normal(0, _SCALE, shape)
    return made.astype(np.float32)
  if outputs_VxD is None:
    raise ConfigError(
      'model.vq.start rows needs a trained embedding: set model.pretrained, or '
      'take random'
    )
  made, rest_VxD, weight_V = [], outputs_VxD, importance(counts_V)
  for m in range(tier.num_codebooks):
    part = rest_VxD[:, _columns(config, tier, rest_VxD.shape[1], m)]
    book = means(part, weight_V, codes_MxV[m], tier.codebook_size)
    made.append(book)
    if config.combine == 'sum':
      rest_VxD = rest_VxD - book[codes_MxV[m]]
  return np.stack(made).astype(np.float32)


def _columns(config: HeadConfig, tier: Tier, width: int, m: int) -> slice:
  """Returns the columns of a row that codebook m gives."""
  size = config.code_width(width, tier)
  start = m * size if config.combine == 'concat' else 0
  return slice(start, start + size)


def fit(
  config: HeadConfig,
  mapping: str,
  start: str,
  counts_V: np.ndarray,
  outputs_VxD: np.ndarray | None,
  inputs_VxD: np.ndarray | None,
  covariance_DxD: np.ndarray | None,
  width: int,
  seed: int,
) -> dict[str, Any]:
  """Returns the entries of params['head'] made from data and trained rows."""
  order_V = np.arange(counts_V.size)
  if config.in_tiers:
    order_V = np.argsort(-counts_V, kind='stable')
  if config.tail_rank and outputs_VxD is not None:
    outputs_VxD = centered(outputs_VxD, counts_V)
  made: dict[str, Any] = {}
  for number, tier in enumerate(config.tiers(counts_V.size)):
    types = order_V[tier.first : tier.end]
    counts, outputs = counts_V[types], _rows(outputs_VxD, types)
    part: dict[str, Any] = {}
    near, metric = outputs, covariance_DxD
    if tier.rank and outputs is not None:
      outputs, right = truncate(outputs, counts, covariance_DxD, tier.rank)
      if config.combine == 'concat':
        order = spread(outputs, tier.num_codebooks)
        outputs, right = outputs[:, order], right[:, order]
      # The projected hidden state has unit variance.
      near, metric, part['projection_DxR'] = outputs, None, right
    if mapping == 'kmeans_input':
      near, metric = _rows(inputs_VxD, types), None
    codes = assign(config, tier, mapping, counts, near, metric, seed)
    part['codebooks_MxKxS'] = codebooks(
      config, tier, start, codes, counts, outputs, tier.rank or width, seed
    )
    if not config.learned:
      part['codes_MxV'] = codes
    elif outputs is not None:
      part['shadow_VxD'] = outputs
    made |= {'tail': part} if number else part
  if config.in_tiers:
    places_V = np.empty(counts_V.size, np.int32)
    places_V[order_V] = np.arange(counts_V.size)
    made['places_V'] = places_V
  if config.in_tiers and config.num_exact and outputs_VxD is not None:
    made['own_NxD'] = outputs_VxD[order_V[: config.num_exact]]
  return made


def _rows(rows_VxD: np.ndarray | None, types: np.ndarray) -> Any:
  return None if rows_VxD is None else rows_VxD[types]


def describe(
  codes_MxV: np.ndarray, codes: int, counts_V: np.ndarray
) -> str:
  """Describes in one line how evenly the types are spread over codes."""
  sizes = [np.bincount(c, minlength=codes) for c in codes_MxV]
  mass = [np.bincount(c, counts_V, codes) for c in codes_MxV]
  shares = [m.max() / max(m.sum(), 1) for m in mass]
  return (
    f'{len(sizes)} x {codes:,} codes, {sum((s == 0).sum() for s in sizes):,} '
    f'empty, largest of {max(s.max() for s in sizes):,} types, '
    f'{100 * max(shares):.1f} % of the training tokens in one'
  )

