"""VQ-Logits (arXiv:2505.10202): output rows composed of a few codebooks' rows.

  row_v = C[c(v)]                          one codebook, eqs. 2 and 3
  row_v = [C_1[c_1(v)], ..., C_M[c_M(v)]]  product
  row_v = C_1[c_1(v)] + ... + C_M[c_M(v)]  sum

The paper has the first. Types may be in tiers by frequency: rows of their own
for the commonest, many codes for the next, few for the rest. Parameters of a
head, below params['head']:

  codebooks_MxKxS  floats, trained; S = D / M (product) or D (sum)
  codes_MxV        of the least unsigned type that holds them, fixed; absent
                   while codes are learned
  shadow_VxD       rows that learned codes follow, of training alone
  tail             a dict of these three, of the last tier, and perhaps
  projection_DxR   what the state is multiplied with first: its rows have R
  own_NxD          rows of the first tier
  places_V         int32, the place of each type in the order of the tiers
  bias_V           trained, or prior_V, fixed
  left_VxR, right_DxR  low-rank residual
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from pdl_jax.losses.heads import CodeHead, LinearHead, along
from pdl_jax.model.config import HeadConfig, code_dtype

Params = dict
# Never trained, whatever trains.
FIXED = ('codes_MxV', 'prior_V', 'places_V')


def bias_of(params: Params) -> Array | None:
  """The bias of each type, trained or not; None if there is none."""
  return params.get('bias_V', params.get('prior_V'))


def combine(codebooks_MxKxS: Array, codes_MxV: Array, how: str) -> Array:
  """rows_VxD; the gradient of a code adds up over its types."""
  found_MxVxS = jax.vmap(lambda book, codes: book[codes])(
    codebooks_MxKxS, codes_MxV
  )
  if how == 'sum':
    return found_MxVxS.sum(0)
  return jnp.moveaxis(found_MxVxS, 0, 1).reshape(codes_MxV.shape[1], -1)


def nearest(
  codebooks_MxKxS: Array, rows_VxD: Array, how: str
) -> Array:
  """codes_MxV of least squared distance; of equals the first.

  For a sum one codebook after the other, each taking what those before it
  leave (residual quantization), which need not be the best composition.
  """
  rest, codes = rows_VxD, []
  _, count, width = codebooks_MxKxS.shape
  for m, book_KxS in enumerate(codebooks_MxKxS):
    part = rest
    if how == 'concat':
      part = rest[:, m * width : (m + 1) * width]
    # |x - c|^2 without |x|^2, the same for all codes.
    distance_VxK = jnp.square(book_KxS).sum(-1)[None] - 2 * part @ book_KxS.T
    code_V = jnp.argmin(distance_VxK, axis=1)
    codes.append(code_V)
    if how == 'sum':
      rest = rest - book_KxS[code_V]
  return jnp.stack(codes).astype(code_dtype(count))


def _tiers(params: Params) -> list[Params]:
  """What is composed: the types, or those of the middle and the tail."""
  return [params, params['tail']] if 'tail' in params else [params]


def fix_codes(config: HeadConfig, params: Params) -> Params:
  """A head whose learned codes are written down; others as they are."""
  fixed = dict(params)
  if 'shadow_VxD' in fixed:
    shadow = fixed.pop('shadow_VxD')
    fixed['codes_MxV'] = nearest(
      params['codebooks_MxKxS'], shadow, config.combine
    )
  if 'tail' in fixed:
    fixed['tail'] = fix_codes(config, fixed['tail'])
  return fixed


def _rows(config: HeadConfig, tier: Params) -> Array:
  """Composed rows of a tier.

  While codes are learned, the gradient of a row reaches its codes and, as if
  it were the row itself, its shadow.
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


def head(config: HeadConfig, params: Params) -> LinearHead | CodeHead:
  """What a loss takes: codes where there is one a type, else a matrix."""
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


def logits(config: HeadConfig, params: Params, hidden: Array) -> Array:
  """[..., V] in fp32 by fixed codes: M products with K rows, M look-ups a type.
  """
  lead = hidden.shape[:-1]
  hidden_NxD = hidden.reshape(-1, hidden.shape[-1])
  # A row of N a type, so that a look-up copies neighbours.
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
  config: HeadConfig, tier: Params, hidden_NxD: Array
) -> Array:
  """[types, N]: one codebook after the other, which was measured fastest."""
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
  """Rows at places that exist: nothing is spent on those that do not."""
  return rows.at[places].get(mode='promise_in_bounds')


def float_parameters(params: Params) -> int:
  """Floats that the logits need: neither codes nor shadows; fixed ones too."""
  return sum(
    float_parameters(x) if name == 'tail' else x.size
    for name, x in params.items()
    if name not in ('codes_MxV', 'places_V', 'shadow_VxD')
  )


def index_bits(config: HeadConfig, vocab_size: int) -> int:
  """Bits of the codes of all types, and of their order if it parts them."""
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
