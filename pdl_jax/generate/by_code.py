"""Chooses a token in two steps: its code, then the type within the code.

It serves a head with one code per type (`losses.heads.CodeHead`). The second
step does not depend on the hidden state, so no array has the logits of all
types.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdl_jax.generate.settings import DecodeSettings
from pdl_jax.losses.heads import CodeHead, CodeTables


def suffices(settings: DecodeSettings) -> bool:
  """Returns whether the choice needs no logits of single types."""
  truncates = (
    settings.top_k or settings.top_p < 1 or settings.min_p
    or settings.typical_p < 1
  )  # fmt: skip
  bans = settings.no_repeat_ngram or settings.min_new_tokens
  return settings.method != 'beam' and not truncates and not bans


class Sorted(NamedTuple):
  """The types in the order of their codes."""

  types_V: Array  # in order of codes, then of types
  mass_V: Array  # sum of exp(b / T) over types of the same code up to it
  first_K: Array  # the places of each code: [first, end)
  end_K: Array


def sort_types(head: CodeHead, temperature: float) -> Sorted:
  """Sorts the types, once before any token is drawn."""
  types_V = jnp.argsort(head.codes_V, stable=True)
  codes_V = head.codes_V[types_V]
  bias_V = head.bias_V
  if bias_V is None:
    bias_V = jnp.zeros(head.vocab_size)
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
  """Draws one type per row from softmax(z / T), by its key and the step alone.

  `head`, `tables` and `order` must have one bias and this temperature T.
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


def chooser(
  head: CodeHead, temperature: float, keys_B: Array | None, bias_V: Array | None
) -> Callable[..., tuple[Array, Array]]:
  """Makes a function that chooses without the logits of all types.

  Args:
    temperature: used only with keys.
    keys_B: a key per row; None takes the likeliest type, of equals the first.
    bias_V: added to the logits before the choice.

  Returns:
    (hidden_BxD, step, tokens) -> types_B, log p under the unbiased head in
      nats.
  """
  heat = 1.0 if keys_B is None else temperature
  biased = head.with_bias(bias_V)
  tables, plain = biased.tables(heat), head.tables()
  order = None if keys_B is None else sort_types(biased, heat)

  def choose(hidden_BxD: Array, index: Array, _: Array) -> tuple[Array, Array]:
    code_logits = head.code_logits(hidden_BxD)
    if order is None or keys_B is None:
      nothing_B = jnp.zeros(len(code_logits), jnp.int32)
      chosen_B = biased.code_stats(tables, code_logits, nothing_B).argmax
    else:
      chosen_B = draw(biased, tables, order, code_logits, keys_B, index, heat)
    return chosen_B, -head.code_stats(plain, code_logits, chosen_B).nll

  return choose
