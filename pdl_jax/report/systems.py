"""What was measured on each document, as sums from which a metric follows.

A metric here is a function of sums over documents: nats and tokens for
perplexity; matches, generated and reference counts for F1. A metric that looks
across documents, such as corpus distinct-n, is none: a document drawn twice
would repeat all its n-grams.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from pdl_jax.errors import DataError

# Sums [..., K] over documents -> metric [...]. Called with zero denominators;
# NaN means that the metric is undefined there.
Statistic = Callable[[np.ndarray], np.ndarray]


def item_sums(values_SxD: np.ndarray) -> np.ndarray:
  """Values of items [S, D] -> [S, D, 2]; their `ratio` is the plain mean."""
  return np.stack([values_SxD, np.ones_like(values_SxD)], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class System:
  """What was measured on each document with each seed of one system.

  Seeds and documents are sorted here, so that the order in which runs finished
  changes no digit of a report.

  Attributes:
    name: of the system, for tables and errors.
    seeds: the seed of each run, [S].
    documents: the id of each document, [D].
    sums_SxDxK: sufficient statistics; all finite.

  Raises:
    DataError: shapes that do not fit, nothing measured, a seed or document
      there twice, or a statistic that is not finite.
  """

  name: str
  seeds: Sequence[int]
  documents: Sequence[str]
  sums_SxDxK: np.ndarray

  def __post_init__(self):
    sums = np.asarray(self.sums_SxDxK, dtype=np.float64)
    self._check(sums)
    seed_order = sorted(range(len(self.seeds)), key=self.seeds.__getitem__)
    order = sorted(range(len(self.documents)), key=self.documents.__getitem__)
    for field, value in {
      'seeds': tuple(self.seeds[i] for i in seed_order),
      'documents': tuple(self.documents[i] for i in order),
      'sums_SxDxK': sums[np.ix_(seed_order, order)],
    }.items():
      object.__setattr__(self, field, value)

  def _check(self, sums: np.ndarray) -> None:
    wanted = (len(self.seeds), len(self.documents))
    if sums.ndim != 3 or sums.shape[:2] != wanted or not sums.size:
      raise DataError(
        f'system {self.name!r}: statistics of shape {sums.shape} for '
        f'{wanted[0]} seeds and {wanted[1]} documents; at least one of each '
        'is wanted, and (seeds, documents, statistics)'
      )
    for kind, names in (('seed', self.seeds), ('document', self.documents)):
      name, times = Counter(names).most_common(1)[0]
      if times > 1:
        raise DataError(
          f'system {self.name!r}: {kind} {name!r} is there {times} times'
        )
    bad = np.argwhere(~np.isfinite(sums))
    if len(bad):
      s, d, k = bad[0]
      raise DataError(
        f'system {self.name!r}: statistic {k} of document '
        f'{self.documents[d]!r} with seed {self.seeds[s]} is {sums[s, d, k]}; '
        f'{len(bad)} of {sums.size} are not finite. Leave such a run out'
      )


def check_pair(a: System, b: System) -> None:
  """Raise a DataError unless both have the same documents and statistics."""
  odd = sorted(set(a.documents) ^ set(b.documents))
  if odd:
    owner = a if odd[0] in a.documents else b
    raise DataError(
      f'systems {a.name!r} and {b.name!r} were measured on different documents '
      f'({len(a.documents)} and {len(b.documents)}, {len(odd)} not shared): '
      f'{odd[0]!r} is only in {owner.name!r}'
    )
  if a.sums_SxDxK.shape[2] != b.sums_SxDxK.shape[2]:
    raise DataError(
      f'systems {a.name!r} and {b.name!r} have {a.sums_SxDxK.shape[2]} and '
      f'{b.sums_SxDxK.shape[2]} statistics a document; not the same metric'
    )
