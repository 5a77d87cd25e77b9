"""Choosing a token in two parts, its code and then the type in the code.

For a head of one code a type (`losses.heads.CodeHead`), whose second part
does not depend on the hidden state: no array has a row's logits of all types.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.generate.settings import DecodeSettings
from pdl_jax.losses.heads import CodeHead, CodeTables, code_stats


def suffices(settings: DecodeSettings) -> bool:
  """Whether the choice asks for nothing that depends on single types."""
  truncates = (
    settings.top_k or settings.top_p < 1 or settings.min_p
    or settings.typical_p < 1
  )  # fmt: skip
  bans = settings.no_repeat_ngram or settings.min_new_tokens
  return settings.method != 'beam' and not truncates and not bans


class Sorted(NamedTuple):
  """The types in the order of their codes.

  Attributes:
    types_V: type at each place; equal codes in the order of the types.
    mass_V: sum of exp(b / T) over the types of the same code up to it.
    first_K, end_K: the places of each code, [first, end).
  """

  types_V: Array
  mass_V: Array
  first_K: Array
  end_K: Array


def sort_types(head: CodeHead, temperature: float) -> Sorted:
  """Once, before any token is drawn."""
  types_V = jnp.argsort(head.codes_V, stable=True)
  codes_V = head.codes_V[types_V]
  bias_V = jnp.zeros(head.vocab_size)
  if head.bias_V is not None:
    bias_V = head.bias_V
  top_K = jax.ops.segment_max(bias_V, head.codes_V, head.matrix_KxD.shape[0])
  share_V = jnp.exp((bias_V - top_K[head.codes_V]) / temperature)[types_V]
  starts_V = jnp.diff(codes_V, prepend=-1) != 0

  def add(left: tuple, right: tuple) -> tuple:
    (mass, _), (more, fresh) = left, right
    return jnp.where(fresh, more, mass + more), left[1] | fresh

  mass_V, _ = lax.associative_scan(add, (share_V, starts_V))
  count = jnp.arange(head.matrix_KxD.shape[0])
  return Sorted(
    types_V, mass_V, jnp.searchsorted(codes_V, count, side='left'),
    jnp.searchsorted(codes_V, count, side='right'),
  )  # fmt: skip


def draw(
  head: CodeHead,
  tables: CodeTables,
  order: Sorted,
  code_logits_BxK: Array,
  keys_B: Array,
  index: Array,
  temperature: float,
) -> Array:
  """One type a row from softmax(z / T), by its own key and the step alone.

  Args:
    head: with its bias.
    tables: of the head at this temperature.
    order: of `sort_types` at this temperature.
    code_logits_BxK: of `head.code_logits`.
    keys_B: of each row.
    index: of the step.
    temperature: T.
  """
  rounds = head.vocab_size.bit_length()

  def one(key: Array, logits_K: Array) -> Array:
    of_code, of_type = jax.random.split(jax.random.fold_in(key, index))
    scores_K = logits_K / temperature + tables.log_mass_K
    code = jax.random.categorical(of_code, scores_K)
    first, end = order.first_K[code], order.end_K[code]
    wanted = jax.random.uniform(of_type) * order.mass_V[end - 1]

    def halve(_: int, places: tuple[Array, Array]) -> tuple[Array, Array]:
      low, high = places
      middle = (low + high) // 2
      above = order.mass_V[middle] > wanted
      return (
        jnp.where(above | (low >= high), low, middle + 1),
        jnp.where(above & (low < high), middle, high),
      )

    place, _ = lax.fori_loop(0, rounds, halve, (first, end - 1))
    return order.types_V[place]

  return jax.vmap(one)(keys_B, code_logits_BxK).astype(jnp.int32)


def greedy(
  head: CodeHead, tables: CodeTables, code_logits_BxK: Array
) -> Array:
  """The likeliest type of each row, of equals the first."""
  nothing_B = jnp.zeros(len(code_logits_BxK), jnp.int32)
  return code_stats(head, tables, code_logits_BxK, nothing_B).argmax


def log_probs(
  head: CodeHead, tables: CodeTables, code_logits_BxK: Array, types_B: Array
) -> Array:
  """log p of a type a row, in nats; of the tables at temperature 1."""
  stats = code_stats(head, tables, code_logits_BxK, types_B)
  return -stats.nll
