"""Errors that a user can mend: one clear line and a documented exit code.

Any other exception is a fault of ours or of a library. `launch.py` prints it as
a line too, a FaultError, and writes its traceback to a file.
"""

import unicodedata
from typing import Any


class PdlError(Exception):
  """A problem the user can mend; `launch.py` prints it and exits."""

  exit_code = 1


class ConfigError(PdlError, ValueError):
  """The configuration or an argument is wrong."""

  exit_code = 2


class DataError(PdlError):
  """A data set, record, tokenizer or frequency table is wrong or missing."""

  exit_code = 3


class HostError(PdlError):
  """This machine cannot do it: a package, device, folder or disk."""

  exit_code = 4


class DivergedError(PdlError):
  """Too many steps in a row had a loss or gradient that was not finite."""

  exit_code = 5


class CheckpointError(PdlError):
  """A checkpoint is damaged, missing, or of another run."""

  exit_code = 6


class PreemptedError(PdlError):
  """Stopped by a signal after saving; the same command continues."""

  exit_code = 75


class FaultError(PdlError):
  """Nobody foresaw it; the line names the file that has its traceback."""

  exit_code = 70


# They join letters and emoji, and act on nothing else.
_JOINERS = '\u200c\u200d'


def printable(text: str, keep: str = '') -> str:
  """Spells out what would act on a terminal or a page, as \\x1b.

  That is control characters, line separators, marks of direction, and halves
  of characters, in a text that came from data, models or libraries.

  Args:
    text: any text.
    keep: characters that stay, such as a line break.
  """
  if text.isprintable():
    return text
  return ''.join(
    sign
    if sign.isprintable()
    or sign in keep
    or sign in _JOINERS
    or unicodedata.category(sign) == 'Zs'
    else sign.encode('unicode_escape').decode()
    for sign in text
  )


def reason(error: BaseException) -> str:
  """Returns the first line of an error that says something."""
  lines = (line.strip(' :') for line in str(error).splitlines())
  return next(filter(None, lines), type(error).__name__)


def one_of(key: str, value: Any, allowed: Any) -> None:
  """Refuses a value that is not among those allowed."""
  if value not in allowed:
    known = ', '.join(str(name) or "''" for name in allowed)
    raise ConfigError(f'{key} {value!r} is not one of {known}')


def positive(group: str, settings: Any, *names: str) -> None:
  """Refuses fields below 1."""
  _at_least(1, group, settings, names)


def not_negative(group: str, settings: Any, *names: str) -> None:
  """Refuses fields below 0."""
  _at_least(0, group, settings, names)


def _at_least(
  least: int, group: str, settings: Any, names: tuple[str, ...]
) -> None:
  for name in names:
    if not getattr(settings, name) >= least:
      raise ConfigError(
        f'{group}.{name} must be >= {least}, got {getattr(settings, name)}'
      )
