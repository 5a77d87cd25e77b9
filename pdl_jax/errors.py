"""Defines errors that a user can mend: one clear line, a documented exit code.

Any other exception is a fault of pdl_jax or a library. `launch.py` prints it as
one line too, a FaultError, and writes its traceback to a file.
"""

import unicodedata
from typing import Any


class PdlError(Exception):
  """A problem that the user can mend; `launch.py` prints it and exits."""

  exit_code = 1


class ConfigError(PdlError, ValueError):
  """The configuration or an argument is wrong."""

  exit_code = 2


class DataError(PdlError):
  """A data set, record, tokenizer or frequency table is wrong or missing."""

  exit_code = 3


class HostError(PdlError):
  """This machine lacks something: a package, device, folder or disk space."""

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
  """An unforeseen error; the line names the file that has its traceback."""

  exit_code = 70


# Zero-width joiners: they join letters and emoji, and are otherwise harmless.
_JOINERS = '\u200c\u200d'


def printable(text: str, keep: str = '') -> str:
  """Escapes what would act on a terminal or a page, as \\x1b.

  That includes control characters, line separators, direction marks and lone
  surrogates in texts from data, models or libraries. Characters in `keep` stay.
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
