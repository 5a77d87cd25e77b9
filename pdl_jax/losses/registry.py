"""The register of losses: what one is made of, and the decorator that adds it.

A loss is one function. Its keyword-only arguments with defaults are its config
keys, loss.NAME.KEY. The names of its other arguments say of what form it is,
see `register`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jax import Array

from pdl_jax import own_files
from pdl_jax.errors import ConfigError
from pdl_jax.losses.core import LossTerms, StatsLoss

Function = TypeVar('Function', bound=Callable[..., Any])

# Keys below `loss` that losses with a weight per type read, losses with any
# table, and losses whose terms are those of cross-entropy.
SCHEDULE = ('schedule', 'schedule_start', 'schedule_steps')
TABLE = ('frequency_table', 'background_table', 'background_weight')
PLAIN = ('label_smoothing', 'z_loss')
# Names of positional arguments, without their shapes, and the field of
# LossSpec that such a function is.
_FORMS = {
  ('frequency',): 'weights',
  ('stats', 'weight'): 'terms',
  ('logits', 'labels', 'context', 'weight'): 'on_logits',
}


class LossSpec(NamedTuple):
  """A loss the main job can train with: one function of four forms, or none.

  Attributes:
    keys: its keys directly below `loss`, in place of loss.NAME.*.
    weights: (frequency_V, *, special_ids, **settings) -> weights_V, finite for
      every type: those never counted have frequency 0. A mean of 1 over token
      occurrences keeps the meaning of the learning rate. None: ones.
    bias: (frequency_V, **settings) -> bias_V, added to the logits in training.
    terms: (stats, weight, **settings) -> LossTerms; None: cross-entropy.
    wants: which of `fused.api.STATS` the terms read.
    temperature: name of the setting that is T of the softmax; '': T is 1.
    on_logits: (logits, labels, context, weight, **settings) -> LossTerms, in
      place of terms, for a loss that needs all logits of a token.
    file: of a loss of a user's own; None of those in this library.
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
  def function(self) -> Callable[..., Any] | None:
    """The one function; cross-entropy has none."""
    return self.weights or self.bias or self.terms or self.on_logits

  @property
  def settings(self) -> dict[str, Any]:
    """Keys of its own group, with their defaults."""
    if self.function is None or self.keys:
      return {}
    return {
      argument.name: argument.default
      for argument in inspect.signature(self.function).parameters.values()
      if argument.default is not argument.empty
    }

  @property
  def read(self) -> tuple[str, ...]:
    """Every key directly below `loss` that changes a run with this loss."""
    by_weight = self.weights is not None
    plain = self.terms is None and self.on_logits is None
    return (
      'name', 'reduction', *self.keys,
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
  """Adds the function below as a loss, by the names of its arguments.

    (frequency_V, *, special_ids, ...)              a weight per token type
    (stats, weight, *, ...)                         terms of `TokenStats`
    (logits, labels, context, weight, *, ...)       terms of all logits

  Args:
    name: for loss.name.
    form: 'bias' for (frequency_V, *, ...) -> what is added to the logits.
    keys, wants, temperature: see `LossSpec`.

  Raises:
    ConfigError: a name that is taken, or arguments of no form.
  """

  def add(function: Function) -> Function:
    found = form or _form(name, function)
    made = LossSpec(keys, wants=wants, temperature=temperature)
    made = made._replace(**{found: function}, file=own_files.note(function))
    for key, default in made.settings.items():
      if not isinstance(default, int | float | str):
        raise ConfigError(
          f'loss {name}: the default of {key} must be a number, a text, or '
          f'True or False, got {default!r}'
        )
    # A config file that holds its loss is run again by a sweep.
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
