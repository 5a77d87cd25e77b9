"""Files of a user's own that register a loss, a metric, a task or a text.

A run records them in env.json, and the commands that read a finished run load
them again: their configuration is the run's, without a config file.
"""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pdl_jax.errors import ConfigError, reason

_LIBRARY = Path(__file__).parent
_seen: set[Path] = set()


def note(function: Callable[..., Any]) -> Path | None:
  """Returns the file of a registered function; None for one of this library."""
  file = Path(inspect.getfile(function)).resolve()
  if file.is_relative_to(_LIBRARY) or not file.is_file():
    return None
  _seen.add(file)
  return file


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
