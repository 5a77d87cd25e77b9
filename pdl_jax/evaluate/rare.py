"""Rare tokens: does the model write those of the reference, or just more?"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pdl_jax.errors import DataError
from pdl_jax.evaluate.inputs import ids_array, special_mask
from pdl_jax.evaluate.registry import Found, Inputs, Metric, f1, register

RARE_PERCENTS = (1, 5, 10)
SHOWN_PERCENT = 10


def rare_types(
  counts_V: np.ndarray, percent: float, special_ids: Sequence[int] = ()
) -> np.ndarray:
  """Marks the types in the rarest `percent` % of training tokens; boolean [V].

  Types enter by ascending training count while their tokens are at most
  `percent` % of all. Types that training never saw are always rare. Types of
  equal count enter together, so that the order of ids does not matter. On a
  small corpus the set can hold far fewer tokens than `percent` %.

  Args:
    counts_V: integers [V], tokens of each type in the training targets.
    percent: in (0, 100], of token occurrences (not of types).
    special_ids: never rare, and not counted.
  """
  special_V = special_mask(special_ids, len(counts_V))
  levels, types = np.unique(counts_V[~special_V], return_counts=True)
  running = np.cumsum(levels * types)
  if not running.size or not running[-1]:
    raise DataError(
      f'none of the {len(counts_V)} types was counted in training, apart from '
      f'the {special_V.sum()} special ones; which are rare is undefined'
    )
  enters = running * 100 <= percent * running[-1]
  # Cumulative sums ascend, so the levels that enter come first.
  return ~special_V & np.isin(counts_V, levels[enters])


def clipped_matches(generated: Iterable[int], reference: Iterable[int]) -> int:
  """Returns the size of the intersection of two multisets."""
  return (Counter(generated) & Counter(reference)).total()


def _sums(percent: int) -> dict[str, str]:
  end = '' if percent == SHOWN_PERCENT else f'_{percent}'
  return {
    'matches': f'rare_matches{end}', 'rare_generated': f'rare_generated{end}',
    'rare_targets': f'rare_targets{end}', 'generated': 'generated',
    'targets': 'targets',
  }  # fmt: skip


def _metrics(percent: int) -> Iterator[Metric]:
  names = _sums(percent)
  which = (
    f'that hold the rarest {percent} % of running training tokens (unseen '
    'types included, special tokens left out)'
  )
  rule = (
    'clipped multiset matches of token ids with the target, among the types '
    f'{which}, summed over records'
  )
  rows = 'always' if percent == SHOWN_PERCENT else 'never'
  yield Metric(
    f'rare_precision_{percent}', 'Rare precision (%)', 'higher', 1, 100,
    unit='tokens', sums=(names['matches'], names['rare_generated']), rows=rows,
    definition=f'{rule} / rare tokens generated, in [0, 1]',
  )  # fmt: skip
  yield Metric(
    f'rare_recall_{percent}', 'Rare recall (%)', 'higher', 1, 100,
    unit='tokens', sums=(names['matches'], names['rare_targets']), rows=rows,
    definition=f'{rule} / rare tokens in the targets, in [0, 1]',
  )  # fmt: skip
  yield Metric(
    f'rare_f1_{percent}', 'Rare-token F1 (%)', 'higher', 1, 100,
    unit='tokens', value=f1, rows=rows,
    sums=(names['matches'], names['rare_generated'], names['rare_targets']),
    definition=f'twice the {rule} / rare tokens generated and in the targets '
    'together, in [0, 1]',
  )  # fmt: skip
  yield Metric(
    f'rare_mass_{percent}', 'Rare mass (%)', 'reference', 1, 100,
    unit='tokens', sums=(names['rare_generated'], names['generated']),
    reference_sums=(names['rare_targets'], names['targets']), rows=rows,
    definition=f'share in [0, 1] of the tokens that are of the types {which}',
  )  # fmt: skip


@register(*(m for percent in RARE_PERCENTS for m in _metrics(percent)))
def rares(inputs: Inputs) -> Found:
  """Counts rare tokens of outputs and targets, and how many of them match.

  Targets are `reference_ids`, the first reference. Special tokens do not count.
  """
  counts_V, special_ids = inputs.counts_V, inputs.special_ids
  special_V = special_mask(special_ids, len(counts_V))
  found: dict[str, list[float]] = {}
  ids = {
    field: [ids_array(r, field, len(counts_V)) for r in inputs.records]
    for field in ('token_ids', 'reference_ids')
  }
  for percent in RARE_PERCENTS:
    rare_V, names = rare_types(counts_V, percent, special_ids), _sums(percent)
    written, wanted = (
      [ids_L[rare_V[ids_L]].tolist() for ids_L in of] for of in ids.values()
    )
    found |= {
      names['matches']: list(map(clipped_matches, written, wanted)),
      names['rare_generated']: list(map(len, written)),
      names['rare_targets']: list(map(len, wanted)),
    }
  for field, name in (('token_ids', 'generated'), ('reference_ids', 'targets')):
    found[name] = [int((~special_V[ids_L]).sum()) for ids_L in ids[field]]
  return found
