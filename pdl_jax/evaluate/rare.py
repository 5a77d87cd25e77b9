"""Rare tokens: does the model write those the reference has, or just more?"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate.inputs import (
  Record,
  check_counts,
  ids_array,
  neutral_mask,
)
from pdl_jax.evaluate.metric import Metric, ratio


def rare_types(
  counts_V: np.ndarray, percent: float, neutral_ids: Sequence[int] = ()
) -> np.ndarray:
  """The types that hold the rarest `percent` % of running training tokens.

  Types enter by ascending training count while the tokens of those inside are
  at most `percent` % of all; types that training never saw are always rare.
  All types of one count enter together or not at all, so that the set does not
  depend on the order of ids. On a small corpus it can therefore hold far fewer
  tokens than `percent` %: `rare_metrics` gives the share it does hold.

  Args:
    counts_V: integers [V], tokens of each type in the training split's targets.
    percent: in (0, 100], of running tokens (not of types).
    neutral_ids: special tokens, never rare and no part of the running tokens.

  Returns:
    Boolean [V], True where rare.

  Raises:
    ConfigError: percent or a neutral id out of range.
    DataError: bad counts, or no counted token apart from the neutral ones.
  """
  if not 0 < percent <= 100:
    raise ConfigError(f'rarest {percent} % of tokens: not in (0, 100]')
  counts_V = check_counts(counts_V)
  neutral_V = neutral_mask(neutral_ids, len(counts_V))
  levels, types = np.unique(counts_V[~neutral_V], return_counts=True)
  running = np.cumsum(levels * types)
  if not running.size or not running[-1]:
    raise DataError(
      f'none of the {len(counts_V)} types was counted in training, apart from '
      f'the {neutral_V.sum()} neutral ones; which are rare is undefined'
    )
  enters = running * 100 <= percent * running[-1]
  # Cumulative sums ascend, so that the levels which enter are the first ones.
  return ~neutral_V & np.isin(counts_V, levels[enters])


def clipped_matches(generated: Iterable[int], reference: Iterable[int]) -> int:
  """Size of the intersection of two multisets; symmetric."""
  return (Counter(generated) & Counter(reference)).total()


def rare_metrics(
  records: Sequence[Record],
  counts_V: np.ndarray,
  percent: float,
  neutral_ids: Sequence[int] = (),
) -> dict[str, Metric]:
  """Precision, recall, F1 and mass of the rare tokens, all in [0, 1].

  Summed over the records before dividing (micro-average), against
  `reference_ids` (the first reference). Where there is nothing to divide by
  the value is None: precision of outputs without a rare token, recall of
  references without one, F1 where neither has any.

  Args:
    records: prediction records.
    counts_V: integers [V], tokens of each type in the training split's targets.
    percent: see `rare_types`.
    neutral_ids: special tokens, the stop token among them; left out everywhere.

  Returns:
    rare_precision, rare_recall, rare_f1, rare_mass, reference_rare_mass and
    rare_training_share, the share of training tokens that the rare types hold.

  Raises:
    ConfigError: percent or a neutral id out of range.
    DataError: bad counts, or a token id outside [0, V).
  """
  counts_V = check_counts(counts_V)
  neutral_V = neutral_mask(neutral_ids, len(counts_V))
  rare_V = rare_types(counts_V, percent, neutral_ids)
  by_record = rare_by_record(records, counts_V, percent, neutral_ids)
  matches, rare_generated, generated, rare_targets, targets = (
    sum(getattr(counts, name) for counts in by_record)
    for name in RareCounts._fields
  )

  def mass(rare: int, total: int, which: str) -> Metric:
    return Metric(
      value=ratio(rare, total),
      n=total,
      unit='tokens',
      definition=f'share in [0, 1] of the {which} tokens that are of the types '
      f'{_which_types(percent)}',
    )

  return {
    **_match_metrics(matches, rare_generated, rare_targets, percent),
    'rare_mass': mass(rare_generated, generated, 'generated'),
    'reference_rare_mass': mass(rare_targets, targets, 'target'),
    'rare_training_share': mass(
      int(counts_V[rare_V].sum()), int(counts_V[~neutral_V].sum()), 'training'
    ),
  }


class RareCounts(NamedTuple):
  """Tokens of one record; `targets` are those of its first reference."""

  matches: int
  rare_generated: int
  generated: int
  rare_targets: int
  targets: int


def rare_by_record(
  records: Sequence[Record],
  counts_V: np.ndarray,
  percent: float,
  neutral_ids: Sequence[int] = (),
) -> list[RareCounts]:
  """What `rare_metrics` sums, one a record; arguments and errors as there."""
  counts_V = check_counts(counts_V)
  neutral_V = neutral_mask(neutral_ids, len(counts_V))
  rare_V = rare_types(counts_V, percent, neutral_ids)
  found = []
  for record in records:
    rare_ids, totals = [], []
    for field in ('token_ids', 'reference_ids'):
      ids_L = ids_array(record, field, len(counts_V))
      rare_ids.append(ids_L[rare_V[ids_L]].tolist())
      totals.append(int((~neutral_V[ids_L]).sum()))
    found.append(RareCounts(
      clipped_matches(*rare_ids),
      len(rare_ids[0]), totals[0], len(rare_ids[1]), totals[1],
    ))  # fmt: skip
  return found


def _which_types(percent: float) -> str:
  return (
    f'that hold the rarest {percent:g} % of running training tokens (unseen '
    'types included, special tokens left out)'
  )


def _match_metrics(
  matches: int, generated: int, reference: int, percent: float
) -> dict[str, Metric]:
  rule = (
    'clipped multiset matches of token ids with the target, among the types '
    f'{_which_types(percent)}, summed over records'
  )
  return {
    'rare_precision': Metric(
      value=ratio(matches, generated),
      n=generated,
      unit='tokens',
      definition=f'{rule} / rare tokens generated, in [0, 1]',
    ),
    'rare_recall': Metric(
      value=ratio(matches, reference),
      n=reference,
      unit='tokens',
      definition=f'{rule} / rare tokens in the targets, in [0, 1]',
    ),
    'rare_f1': Metric(
      value=ratio(2 * matches, generated + reference),
      n=generated + reference,
      unit='tokens',
      definition=f'twice the {rule} / rare tokens generated and in the '
      'targets together, in [0, 1]',
    ),
  }
