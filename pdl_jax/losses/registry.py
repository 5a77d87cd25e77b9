"""Registry of losses: what a loss is, and the decorator that adds one."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jax import Array

from pdl_jax import own_files
from pdl_jax.errors import ConfigError
from pdl_jax.losses.core import LossTerms, StatsLoss

Function = TypeVar('Function', bound=Callable[..., Any])

# Keys below `loss` that a loss reads if it has a weight per type, any table, or
# the terms of cross-entropy.
SCHEDULE = ('schedule', 'schedule_start', 'schedule_steps')
TABLE = ('frequency_table', 'background_table', 'background_weight')
PLAIN = ('label_smoothing', 'z_loss')
# Positional arguments, without shape suffixes -> field of LossSpec.
_FORMS = {
  ('frequency',): 'weights',
  ('stats', 'weight'): 'terms',
  ('logits', 'labels', 'context', 'weight'): 'on_logits',
}


class LossSpec(NamedTuple):
  """A loss that the main job can train with; at most one function is set.

  Attributes:
    keys: keys directly below `loss` that it reads instead of loss.NAME.*.
    weights: (frequency_V, *, special_ids, **settings) -> weights_V, finite even
      at frequency 0. None means ones.
    bias: (frequency_V, **settings) -> bias_V, added to the logits in training.
    terms: (stats, weight, **settings) -> LossTerms; None means cross-entropy.
    wants: the `fused.api.STATS` that the terms read.
    temperature: name of the setting that is T of the softmax; '' means T = 1.
    on_logits: (logits, labels, context, weight, **settings) -> LossTerms, in
      place of terms, for a loss that needs all logits of a token.
    file: source of a user's own loss; None for the library's losses.
  """

  keys: tuple[str, ...] = ()
  weights: Callable[..., Array] | None = None
  bias: Callable[..., Array] | None = None
  terms: StatsLoss | None = None
  wants: tuple[str, ...] = ()
  temperature: str = ''
  on_logits: Callable[..., LossTerms] | None = None
  file: Path | None = None

  @property
  def settings(self) -> dict[str, Any]:
    """The keys below loss.NAME with their defaults."""
    function = self.weights or self.bias or self.terms or self.on_logits
    if function is None or self.keys:
      return {}
    return {
      argument.name: argument.default
      for argument in inspect.signature(function).parameters.values()
      if argument.default is not argument.empty
    }

  @property
  def read(self) -> tuple[str, ...]:
    """The keys directly below `loss` that affect a run with this loss."""
    by_weight = self.weights is not None
    plain = self.terms is None and self.on_logits is None
    return (
      'name', 'reduction', 'memory_mb', 'exp_accuracy', *self.keys,
      *(SCHEDULE if by_weight else ()),
      *(TABLE if by_weight or self.bias is not None else ()),
      *(PLAIN if plain else ()),
    )  # fmt: skip


LOSSES = {'cross_entropy': LossSpec()}


def register(
  name: str,
  *,
  form: str = '',
  keys: tuple[str, ...] = (),
  wants: tuple[str, ...] = (),
  temperature: str = '',
) -> Callable[[Function], Function]:
  """Registers the decorated function as a loss.

  The names of its positional arguments say which field of `LossSpec` it is,
  unless `form` does. Its keyword-only arguments with defaults become the config
  keys loss.NAME.KEY. For the others see `LossSpec`.

  Raises:
    ConfigError: the name is taken, or the arguments match no form.
  """

  def add(function: Function) -> Function:
    found = form or _form(name, function)
    made = LossSpec(keys, wants=wants, temperature=temperature)
    returns = LossTerms if found in ('terms', 'on_logits') else object
    named = own_files.explained(f'loss {name}', function, returns)
    made = made._replace(**{found: named}, file=own_files.note(function))
    for key, default in made.settings.items():
      if not isinstance(default, int | float | str):
        raise ConfigError(
          f'loss {name}: the default of {key} must be a number, a text, or '
          f'True or False, got {default!r}'
        )
    # A sweep runs a config file again, with the loss that it defines.
    if name in LOSSES and (made.file is None or made.file != LOSSES[name].file):
      raise ConfigError(f'two losses are called {name!r}; rename one')
    LOSSES[name] = made
    return function

  return add


def _form(name: str, function: Callable[..., Any]) -> str:
  arguments = tuple(
    argument.name.partition('_')[0]
    for argument in inspect.signature(function).parameters.values()
    if argument.kind is not argument.KEYWORD_ONLY
  )
  if arguments not in _FORMS:
    known = '; '.join(', '.join(form) for form in _FORMS)
    raise ConfigError(
      f'loss {name} takes ({", ".join(arguments)}) before the *; a loss takes '
      f'one of: {known}'
    )
  return _FORMS[arguments]
