"""VQ-Logits (arXiv:2505.10202): output rows composed of codebook rows.

  row_v = C[c(v)]                          one codebook, eqs. 2 and 3
  row_v = [C_1[c_1(v)], ..., C_M[c_M(v)]]  product
  row_v = C_1[c_1(v)] + ... + C_M[c_M(v)]  sum

The paper has one codebook. Types may be in tiers by frequency: own rows for
the commonest, many codes for the next, few for the rest. Parameters of a head,
in params['head']:

  codebooks_MxKxS  floats, trained; S = D / M (product) or D (sum)
  codes_MxV        fixed, smallest unsigned type; absent while codes are learned
  shadow_VxD       rows that learned codes follow, in training only
  tail             dict of the three above for the last tier, and optionally
  projection_DxR   multiplies the state, where the tail's rows have width R
  own_NxD          rows of the first tier
  places_V         int32, place of each type in the order of the tiers
  bias_V           trained bias; or prior_V, fixed
  left_VxR, right_DxR  low-rank residual
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import stop_gradient

from pdl_jax.errors import ConfigError
from pdl_jax.losses.heads import CodeHead, LinearHead, along
from pdl_jax.model.heads.plain import check_rank, factors, places

if TYPE_CHECKING:
  from pdl_jax.model.config import HeadConfig, ModelConfig

Params = dict
# Parameters that never train.
FIXED = ('codes_MxV', 'prior_V', 'places_V')


class Tier(NamedTuple):
  """Types of frequency ranks [first, end), and what composes their rows.

  Rows are as wide as the model, or as `rank` if that is not 0.
  """

  first: int
  end: int
  codebook_size: int
  num_codebooks: int
  rank: int


def code_dtype(codes: int) -> np.dtype:
  """Returns the smallest unsigned integer type that holds so many codes.

  Reading the codes dominates the time of a look-up.
  """
  return np.min_scalar_type(codes - 1)


def check(config: 'ModelConfig') -> None:
  """Refuses sizes that do not fit the model."""
  c, vocab_size, width = config.head, config.vocab_size, config.width
  if c.tail_rank and not c.tail_start:
    raise ConfigError(
      f'model.vq.tail_rank {c.tail_rank} needs a tail: set tail_start'
    )
  check_rank('model.rank', c.rank, width)
  check_rank('model.vq.tail_rank', c.tail_rank, width)
  alone = c.num_codebooks == 1 and not c.tail_start
  most = (c.codebook_size if alone else c.tail_start or vocab_size) - 1
  if c.num_exact > most >= 0:
    raise ConfigError(
      f'model.vq.num_exact {c.num_exact} must be at most {most}: the '
      f'other types need {"a code" if alone else "codebooks"}'
    )
  if c.num_exact and c.learned and alone:
    raise ConfigError(
      'model.vq.num_exact with one codebook whose codes are learned: there is '
      'nothing that would keep them apart; take fixed codes, or several '
      'codebooks'
    )
  if c.tail_start >= vocab_size:
    raise ConfigError(
      f'model.vq.tail_start {c.tail_start} leaves nothing of {vocab_size} types'
    )
  for tier, tail in zip(c.tiers(vocab_size), ('', 'tail_'), strict=False):
    size, count = tier.codebook_size, tier.num_codebooks
    types, wide = tier.end - tier.first, tier.rank or width
    if size < 1 or count < 1:
      raise ConfigError(
        f'model.vq.{tail}codebook_size and {tail}num_codebooks must be >= 1, '
        f'got {size} and {count}'
      )
    if size > types:
      raise ConfigError(
        f'model.vq.{tail}codebook_size {size} are more than the {types} types '
        f'that they are for; take at most {types}'
      )
    if c.combine == 'concat' and wide % count:
      raise ConfigError(
        f'the width {wide} does not divide into {count} codebooks'
        f"{' of the tail' if tail else ''}; take a divisor, or combine 'sum'"
      )


def init(config: 'ModelConfig', make: Any) -> Params:
  """Makes codebooks and codes by tiers, own rows, and a residual of 0."""
  c, v, d = config.head, config.vocab_size, config.width
  made, *tail = (_init_tier(c, tier, d, make) for tier in c.tiers(v))
  if tail:
    made['tail'] = tail[0]
  if c.in_tiers and c.num_exact:
    made['own_NxD'] = make((None, 'embed'), (c.num_exact, d))
  if c.in_tiers:
    made['places_V'] = make(('vocab',), (v,), places)
  if c.rank:
    made |= factors(make, v, d, c.rank, 'vocab', nn.initializers.zeros)
  return made


def _init_tier(c: 'HeadConfig', tier: Tier, width: int, make: Any) -> Params:
  """Makes codebooks, and codes or the rows that learned codes follow."""
  # Tiers have any size, which need not divide over a mesh.
  types = None if c.in_tiers else 'vocab'
  wide, count = tier.rank or width, tier.end - tier.first
  embed = 'embed' if c.combine == 'sum' and not tier.rank else None
  shape = (tier.num_codebooks, tier.codebook_size, c.code_width(wide, tier))
  made = {'codebooks_MxKxS': make((None, 'codes', embed), shape)}
  if tier.rank:
    scale, axes = nn.initializers.normal(width**-0.5), ('embed', None)
    made['projection_DxR'] = make(axes, (width, tier.rank), scale)
  if c.learned:
    axes = (types, None if tier.rank else 'embed')
    return made | {'shadow_VxD': make(axes, (count, wide))}

  def in_turn(_: Array, shape: tuple[int, int]) -> Array:
    row_V = jnp.arange(shape[1]) % tier.codebook_size
    return jnp.broadcast_to(row_V.astype(code_dtype(tier.codebook_size)), shape)

  codes = make((None, types), (tier.num_codebooks, count), in_turn)
  return made | {'codes_MxV': codes}


def bias_of(params: Params) -> Array | None:
  """Returns the bias of each type, trained or fixed; None without a bias."""
  return params.get('bias_V', params.get('prior_V'))


def combine(codebooks_MxKxS: Array, codes_MxV: Array, how: str) -> Array:
  """Returns rows_VxD; the gradient of a code adds up over its types."""
  found_MxVxS = jax.vmap(lambda book, codes: book[codes])(
    codebooks_MxKxS, codes_MxV
  )
  if how == 'sum':
    return found_MxVxS.sum(0)
  return jnp.moveaxis(found_MxVxS, 0, 1).reshape(codes_MxV.shape[1], -1)


def nearest(
  codebooks_MxKxS: Array, rows_VxD: Array, how: str
) -> Array:
  """Returns codes_MxV of least squared distance; ties go to the first.

  For a sum, each codebook in turn fits what those before it leave (residual
  quantization). This need not give the best composition.
  """
  rest, codes = rows_VxD, []
  _, count, width = codebooks_MxKxS.shape
  for m, book_KxS in enumerate(codebooks_MxKxS):
    part = rest
    if how == 'concat':
      part = rest[:, m * width : (m + 1) * width]
    # |x - c|^2 without |x|^2, which is the same for all codes.
    distance_VxK = jnp.square(book_KxS).sum(-1)[None] - 2 * part @ book_KxS.T
    code_V = jnp.argmin(distance_VxK, axis=1)
    codes.append(code_V)
    if how == 'sum':
      rest = rest - book_KxS[code_V]
  return jnp.stack(codes).astype(code_dtype(count))


def _tiers(params: Params) -> list[Params]:
  """Returns the composed tiers: all types, or the middle and the tail."""
  return [params, params['tail']] if 'tail' in params else [params]


def fix_codes(config: 'HeadConfig', params: Params) -> Params:
  """Writes learned codes of a head down; other heads stay as they are."""
  fixed = dict(params)
  if 'shadow_VxD' in fixed:
    shadow = fixed.pop('shadow_VxD')
    fixed['codes_MxV'] = nearest(
      params['codebooks_MxKxS'], shadow, config.combine
    )
  if 'tail' in fixed:
    fixed['tail'] = fix_codes(config, fixed['tail'])
  return fixed


def _rows(config: 'HeadConfig', tier: Params) -> Array:
  """Returns the composed rows of a tier.

  While codes are learned, a row's gradient reaches its codes. It also reaches
  its shadow, as if that were the row.
  """
  books, shadow = tier['codebooks_MxKxS'], tier.get('shadow_VxD')
  if shadow is None:
    rows = combine(books, tier['codes_MxV'], config.combine)
  else:
    fixed = stop_gradient(shadow)
    codes = nearest(stop_gradient(books), fixed, config.combine)
    rows = combine(books, codes, config.combine) + shadow - fixed
  projection = tier.get('projection_DxR')
  return rows if projection is None else rows @ projection.T


def head(config: 'HeadConfig', params: Params) -> LinearHead | CodeHead:
  """Returns the head as losses take it: codes if one per type, or a matrix."""
  books, bias_V = params['codebooks_MxKxS'], bias_of(params)
  plain = 'places_V' not in params and 'left_VxR' not in params
  if plain and len(books) == 1 and 'codes_MxV' in params:
    codes_V = params['codes_MxV'][0].astype(jnp.int32)
    return CodeHead(books[0], codes_V, bias_V)
  parts = [_rows(config, tier) for tier in _tiers(params)]
  if 'own_NxD' in params:
    parts = [params['own_NxD'], *parts]
  rows_VxD = jnp.concatenate(parts)
  if 'places_V' in params:
    rows_VxD = rows_VxD[params['places_V']]
  if 'left_VxR' in params:
    rows_VxD += params['left_VxR'] @ params['right_DxR'].T
  return LinearHead(rows_VxD, bias_V)


def logits(config: 'HeadConfig', params: Params, hidden: Array) -> Array:
  """Returns fp32 logits [..., V] of fixed codes.

  It takes M products with K rows, and M look-ups per type.
  """
  lead = hidden.shape[:-1]
  hidden_NxD = hidden.reshape(-1, hidden.shape[-1])
  # One row of N values per type, so that a look-up copies contiguous memory.
  parts = [_tier_logits(config, tier, hidden_NxD) for tier in _tiers(params)]
  if 'own_NxD' in params:
    parts = [LinearHead(params['own_NxD']).logits(hidden_NxD).T, *parts]
  z_VxN = jnp.concatenate(parts)
  if 'places_V' in params:
    z_VxN = _look_up(z_VxN, params['places_V'])
  z = z_VxN.T.reshape(*lead, -1)
  if 'left_VxR' in params:
    residual = LinearHead(params['left_VxR'], None, params['right_DxR'])
    z += residual.logits(hidden)
  bias_V = bias_of(params)
  return z if bias_V is None else z + along(z, bias_V)


def _tier_logits(
  config: 'HeadConfig', tier: Params, hidden_NxD: Array
) -> Array:
  """Returns [types, N], one codebook at a time, which was measured fastest."""
  books, codes_MxV = tier['codebooks_MxKxS'], tier['codes_MxV']
  count, _, width = books.shape
  states = len(hidden_NxD)
  if 'projection_DxR' in tier:
    hidden_NxD @= tier['projection_DxR'].astype(hidden_NxD.dtype)
  if config.combine == 'concat':
    parts = hidden_NxD.reshape(states, count, width)
  else:
    parts = jnp.broadcast_to(hidden_NxD[:, None], (states, count, width))
  found_MxKxN = jnp.einsum(
    'nms,mks->mkn', parts, books.astype(hidden_NxD.dtype),
    preferred_element_type=jnp.float32,
  )  # fmt: skip

  def add(z_VxN: Array, book: tuple[Array, Array]) -> tuple[Array, None]:
    return z_VxN + _look_up(*book), None

  z_VxN = _look_up(found_MxKxN[0], codes_MxV[0])
  return jax.lax.scan(add, z_VxN, (found_MxKxN[1:], codes_MxV[1:]))[0]


def _look_up(rows: Array, places: Array) -> Array:
  """Returns rows at places without bounds checks; the places must exist."""
  return rows.at[places].get(mode='promise_in_bounds')


def float_parameters(params: Params) -> int:
  """Counts the floats that logits need, fixed ones too, without shadows."""
  return sum(
    float_parameters(x) if name == 'tail' else x.size
    for name, x in params.items()
    if name not in ('codes_MxV', 'places_V', 'shadow_VxD')
  )


def index_bits(config: 'HeadConfig', vocab_size: int) -> int:
  """Returns the bits of all types' codes, and of their order if in tiers."""
  order = vocab_size * (vocab_size - 1).bit_length()
  if config.kind == 'adaptive':
    return order
  if config.kind != 'vq':
    return 0
  codes = sum(
    (tier.end - tier.first) * tier.num_codebooks
    * (tier.codebook_size - 1).bit_length()
    for tier in config.tiers(vocab_size)
  )
  return codes + order * config.in_tiers
