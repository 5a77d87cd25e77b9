"""Files of a user's own that register a loss, a metric, a task or a text.

A run records them in env.json, and the commands that read a finished run load
them again: their configuration is the run's, without a config file.
"""

import functools
import hashlib
import importlib.util
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pdl_jax.errors import ConfigError, PdlError, reason

Function = TypeVar('Function', bound=Callable[..., Any])
_LIBRARY = Path(__file__).parent
_seen: set[Path] = set()


def note(function: Callable[..., Any]) -> Path | None:
  """Returns the file of a registered function; None for one of this library."""
  file = Path(inspect.getfile(function)).resolve()
  if file.is_relative_to(_LIBRARY) or not file.is_file():
    return None
  _seen.add(file)
  return file


def explained(
  what: str, function: Function, returns: type | types.UnionType = object
) -> Function:
  """Notes a registered function; a user's own says in a line what is wrong.

  Args:
    what: how the line calls it, as in 'metric question_rate'.
    returns: the type that it has to return.

  Returns:
    The function, which raises ConfigError for whatever a user's own raises.
  """
  file = note(function)
  if file is None:
    return function

  @functools.wraps(function)
  def call(*args: Any, **settings: Any) -> Any:
    try:
      found = function(*args, **settings)
    except PdlError:
      raise
    except Exception as error:  # A user's own code may raise anything.
      frames = traceback.extract_tb(error.__traceback__)
      own = [x for x in frames if Path(x.filename).resolve() == file]
      raise ConfigError(
        f'{what} of {file}:{(own or frames)[-1].lineno}: '
        f'{type(error).__name__}: {reason(error)}'
      ) from error
    if not isinstance(found, returns):
      kind = getattr(returns, '__name__', returns)
      raise ConfigError(
        f'{what} of {file} has to return {kind}, got {type(found).__name__}'
      )
    return found

  return cast(Function, call)


def digests() -> dict[str, str]:
  """Returns the SHA-256 of each file that has registered something."""
  return {
    str(file): hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted(_seen)
    if file.is_file()
  }


def load(recorded: Mapping[str, str]) -> None:
  """Loads the files that a run recorded, if they are as they were.

  Of any other, one line says so: a command may not need it.

  Args:
    recorded: SHA-256 by path.

  Raises:
    ConfigError: a file raises an error when it is loaded.
  """
  for name, digest in recorded.items():
    file = Path(name)
    if digest in digests().values():
      continue
    try:
      found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
      found = reason(error)
    if found == digest:
      _execute(file)
    else:
      why = 'it has changed since' if file.is_file() else found
      print(
        f'warning: the run was made with {file}; what it registers is unknown '
        f'here: {why}',
        file=sys.stderr,
      )


def _execute(file: Path) -> None:
  look_beside(file)
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  # Another of the files may import it.
  sys.modules.setdefault(file.stem, module)
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # A user's own code may raise anything.
    raise ConfigError(f'{file}: {reason(error)}') from error


def look_beside(file: Path) -> None:
  """Lets a config file import what lies in its folder."""
  folder = str(file.resolve().parent)
  if folder not in sys.path:
    sys.path.append(folder)
