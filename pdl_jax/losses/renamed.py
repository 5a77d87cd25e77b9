"""Accepts argument names of version 0.1, with a warning."""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
  """Accepts old keyword arguments, with a DeprecationWarning.

  Args:
    names: OLD=NEW, or OLD='ARGUMENT.FIELD' for a field of a dataclass argument
      that has a default.
  """

  def decorate(function: Callable[P, R]) -> Callable[P, R]:
    arguments = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> R:
      for old in names.keys() & given.keys():
        new, _, field = names[old].partition('.')
        if new in given and not field:
          raise TypeError(f'{function.__name__}: {old} and {new} are the same')
        warnings.warn(
          f'{function.__name__}: {old} is called {names[old]} now',
          DeprecationWarning, stacklevel=2,
        )  # fmt: skip
        value = given.pop(old)
        if field:
          group = given.get(new, arguments[new].default)
          value = dataclasses.replace(group, **{field: value})
        given[new] = value
      return function(*args, **given)

    return call

  return decorate
