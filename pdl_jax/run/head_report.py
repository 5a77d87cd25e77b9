"""The size of an output head, and what its codes hold."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.heads import fit, vq
from pdl_jax.run_folder import RunFolder

Tree = Any
# Most codebooks per tier, codes by tokens, codes by types, types per code.
_CODEBOOKS, _CODES, _FULLEST, _TYPES = 4, 40, 5, 12


class HeadSize(NamedTuple):
  """What an output head has to store.

  Attributes:
    floats: numbers that logits need. Excludes rows behind learned codes, which
      exist in training alone. A tied head counts the matrix it reads.
    dense_floats: V D, the size of a matrix of its own.
    index_bits: bits of the codes of all types, and of their order in tiers.
  """

  kind: str
  floats: int
  dense_floats: int
  index_bits: int


def head_size(config: ModelConfig, params: Tree) -> HeadSize:
  """Measures the output head of a model."""
  head, own = config.head, params.get('head', {})
  dense = config.vocab_size * config.width
  floats = vq.float_parameters(own) if own else 0
  if head.kind == 'tied':
    floats += dense
  return HeadSize(
    head.kind, floats, dense, vq.index_bits(head, config.vocab_size)
  )


def report_head(
  folder: RunFolder | None,
  config: ModelConfig,
  params: Tree,
  tokenizer: Tokenizer,
  counts_V: np.ndarray,
) -> None:
  """Prints the head's size, and writes what its codes hold to codes.txt."""
  size = head_size(config, params)
  percent = 100 * size.floats / size.dense_floats
  bits = f', {size.index_bits:,} index bits' if size.index_bits else ''
  print(
    f'head       {size.kind}, {size.floats:,} floats ({percent:.2f} % of a '
    f'dense head){bits}'
  )
  for types, codes_MxV, count in _tiers(config, params):
    print(f'{"":11s}{fit.describe(codes_MxV, count, counts_V[types])}')
  report = codes_report(config, params, tokenizer, counts_V)
  if folder is not None and report:
    folder.write_text('codes.txt', report)


def _tiers(
  config: ModelConfig, params: Tree
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Yields types, codes_MxV and number of codes of each tier, once learned."""
  own = params.get('head', {})
  if 'codes_MxV' not in own:
    return
  order_V = np.arange(config.vocab_size)
  if 'places_V' in own:
    order_V = np.argsort(np.asarray(own['places_V']))
  tiers = config.head.tiers(config.vocab_size)
  for tier, part in zip(tiers, (own, own.get('tail')), strict=False):
    codes_MxV = np.asarray(part['codes_MxV'])
    yield order_V[tier.first : tier.end], codes_MxV, tier.codebook_size


def codes_report(
  config: ModelConfig, params: Tree, tokenizer: Tokenizer, counts_V: np.ndarray
) -> str:
  """Lists each tier's codes with the most training tokens or types, if any."""
  lines = []
  for number, (types, codes_MxV, count) in enumerate(_tiers(config, params)):
    shown = codes_MxV[:_CODEBOOKS]
    lines.append(
      f'tier {number}: {types.size:,} types, {len(codes_MxV)} codebooks of '
      f'{count:,} codes; codebooks shown: {len(shown)}\n'
    )
    for m, code_V in enumerate(shown):
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
    common = held[np.argsort(-counts_V[held], kind='stable')][:_TYPES]
    listed = ' '.join(
      f'{tokenizer.token(int(v))!r}:{int(counts_V[v])}' for v in common
    )
    rest = held.size - common.size
    more = f' and {rest:,} more' if rest else ''
    yield (
      f'  code {code}: {held.size:,} types, {int(mass_K[code]):,} tokens '
      f'({100 * mass_K[code] / total:.1f} %): {listed}{more}\n'
    )
