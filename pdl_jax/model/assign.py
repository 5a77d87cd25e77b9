"""Which codes each type gets, and where codebooks begin: on the host, once.

Mappings of VQ-Logits: random, blocks (of ids), frequency_blocks (of equal
frequency), kmeans_output and kmeans_input (of a trained output or input
embedding), learned (they follow training, from the nearest codes of the
output embedding).
"""

from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from pdl_jax.errors import ConfigError
from pdl_jax.model.config import HeadConfig, Tier, code_dtype

MAPPINGS = (
  'random', 'blocks', 'frequency_blocks', 'kmeans_output', 'kmeans_input',
  'learned',
)  # fmt: skip
STARTS = ('rows', 'random')
_SCALE = 0.02
# Of k-means; the last improvements do not matter to what is trained on.
_ROUNDS, _BATCH = 30, 8192


def blocks(order_V: np.ndarray, codes: int) -> np.ndarray:
  """Equal runs of an order of the types, [V] codes."""
  rank_V = np.empty_like(order_V)
  rank_V[order_V] = np.arange(order_V.size)
  return (rank_V * codes // order_V.size).astype(np.int32)


def kmeans(
  rows: np.ndarray, weight: np.ndarray, codes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Nearest centroid of each row, and centroids [codes, width].

  Args:
    rows: [types, width].
    weight: [types], what a row's squared distance is multiplied by.
    codes: how many centroids.
    seed: of the first ones.

  Raises:
    ConfigError: fewer different rows than codes.
  """
  different = len(np.unique(rows, axis=0))
  if different < codes:
    raise ConfigError(
      f'model.vq.codes {codes} are more than the {different} different rows '
      'that they are to be the means of'
    )
  found = MiniBatchKMeans(
    codes, max_iter=_ROUNDS, batch_size=_BATCH, random_state=seed,
    n_init='auto', reassignment_ratio=0.0,
  ).fit(rows, sample_weight=weight)  # fmt: skip
  centers = np.asarray(found.cluster_centers_)
  return np.asarray(found.labels_, np.int32), centers


def means(
  rows: np.ndarray, weight: np.ndarray, code_V: np.ndarray, codes: int
) -> np.ndarray:
  """Weighted mean row of the types of each code; 0 where there is none."""
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
  seed: int,
) -> np.ndarray:
  """codes_MxV of a mapping, of the types of one tier.

  With a single codebook and no other tiers, the own codes of the commonest
  types come first.

  Args:
    config: of the head.
    tier: its codebooks.
    mapping: one of MAPPINGS; learned ones begin at kmeans_output.
    counts_V: of the types of the tier in training targets.
    rows_VxD: their trained embedding; None from scratch.
    seed: of what is random.

  Raises:
    ConfigError: k-means of a model that is not trained.
  """
  vocab = counts_V.size
  common_V = np.argsort(-counts_V, kind='stable')
  single = 0 if config.in_tiers else config.own
  rest_V, codes = np.sort(common_V[single:]), tier.codes - single
  random = np.random.default_rng(seed)
  # Commoner types get nearer codes: squared errors count by the root of the
  # frequency. Plain k-means spends its codes on the many types never used.
  weight_V = np.sqrt(counts_V[rest_V] + 1.0)
  made, leftover = [], None
  for m in range(tier.codebooks):
    code_V = np.empty(vocab, code_dtype(tier.codes))
    code_V[common_V[:single]] = np.arange(single)
    if mapping == 'random':
      # Of equal sizes: a permutation in blocks.
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
      part = _part(config, tier, rows_VxD, m)[rest_V]
      if config.compose == 'sum' and leftover is not None:
        part = leftover
      found, centers = kmeans(part, weight_V, codes, seed + m)
      leftover = part - centers[found]
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
  """codebooks_MxKxS: means of trained rows, or random.

  Args:
    config: of the head.
    tier: its codebooks.
    start: one of STARTS.
    codes_MxV: of `assign`.
    counts_V: of the types of the tier in training targets.
    outputs_VxD: their trained output embedding, None from scratch.
    width: D.
    seed: of random ones.

  Raises:
    ConfigError: rows of a model that is not trained.
  """
  if start == 'random':
    shape = (tier.codebooks, tier.codes, config.code_width(width, tier))
    made = np.random.default_rng(seed).normal(0, _SCALE, shape)
    return made.astype(np.float32)
  if outputs_VxD is None:
    raise ConfigError(
      'model.vq.start rows needs a trained embedding: set model.pretrained, or '
      'take random'
    )
  made, rest_VxD, weight_V = [], outputs_VxD, np.sqrt(counts_V + 1.0)
  for m in range(tier.codebooks):
    part = _part(config, tier, rest_VxD, m)
    book = means(part, weight_V, codes_MxV[m], tier.codes)
    made.append(book)
    if config.compose == 'sum':
      rest_VxD = rest_VxD - book[codes_MxV[m]]
  return np.stack(made).astype(np.float32)


def _part(
  config: HeadConfig, tier: Tier, rows_VxD: np.ndarray, m: int
) -> np.ndarray:
  if config.compose == 'sum':
    return rows_VxD
  size = config.code_width(rows_VxD.shape[1], tier)
  return rows_VxD[:, m * size : (m + 1) * size]


def fit(
  config: HeadConfig,
  mapping: str,
  start: str,
  counts_V: np.ndarray,
  outputs_VxD: np.ndarray | None,
  inputs_VxD: np.ndarray | None,
  width: int,
  seed: int,
) -> dict[str, Any]:
  """What of a vq head follows from the data and from trained rows.

  Args:
    config: of the head.
    mapping, start: of MAPPINGS and STARTS.
    counts_V: of the types in training targets.
    outputs_VxD, inputs_VxD: trained embeddings, None from scratch.
    width: D.
    seed: of what is random.

  Returns:
    entries of params['head'].
  """
  order_V = np.arange(counts_V.size)
  if config.in_tiers:
    order_V = np.argsort(-counts_V, kind='stable')
  take = lambda rows, types: None if rows is None else rows[types]  # noqa: E731
  made: dict[str, Any] = {}
  for number, tier in enumerate(config.tiers(counts_V.size)):
    types = order_V[tier.first : tier.end]
    counts, outputs = counts_V[types], take(outputs_VxD, types)
    near = outputs
    if mapping == 'kmeans_input':
      near = take(inputs_VxD, types)
    codes = assign(config, tier, mapping, counts, near, seed)
    books = codebooks(
      config, tier, start, codes, counts, outputs, width, seed
    )
    part = {'codebooks_MxKxS': books}
    if not config.learned:
      part['codes_MxV'] = codes
    elif outputs is not None:
      part['shadow_VxD'] = outputs
    made |= {'tail': part} if number else part
  if config.in_tiers:
    places_V = np.empty(counts_V.size, np.int32)
    places_V[order_V] = np.arange(counts_V.size)
    made['places_V'] = places_V
  if config.in_tiers and config.own and outputs_VxD is not None:
    made['own_NxD'] = outputs_VxD[order_V[: config.own]]
  return made


def describe(
  codes_MxV: np.ndarray, codes: int, counts_V: np.ndarray
) -> str:
  """How evenly the types are spread, in one line."""
  sizes = [np.bincount(c, minlength=codes) for c in codes_MxV]
  mass = [np.bincount(c, counts_V, codes) for c in codes_MxV]
  shares = [m.max() / max(m.sum(), 1) for m in mass]
  return (
    f'{len(sizes)} x {codes:,} codes, {sum((s == 0).sum() for s in sizes):,} '
    f'empty, largest of {max(s.max() for s in sizes):,} types, '
    f'{100 * max(shares):.1f} % of the training tokens in one'
  )

