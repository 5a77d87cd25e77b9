"""Explains unforeseen errors in one line, with the traceback in a file."""

import contextlib
import tempfile
import traceback
from pathlib import Path

from pdl_jax.errors import ConfigError, FaultError, HostError, PdlError

# In a run folder, or its hosts folder.
FILE = 'traceback.txt'
# The module names that user programs run under: the config file, also when its
# sweeps are looked up, and the code of an experiment.
_PROGRAMS = ('config_config', '<run_path>')


def explain(error: BaseException, run: Path | None) -> PdlError:
  """Makes the line for an error that pdl_jax.errors does not define.

  The run folder need not exist.
  """
  if where := in_config(error):
    return ConfigError(f'{where}: {words(error)}')
  told = f'{words(error)}; the traceback is in {_keep(error, run)}'
  if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
    return HostError(
      f'out of memory, of this host or of a device: {told}; take a smaller '
      'batch, shorter texts or more devices'
    )
  return FaultError(f'a fault of pdl_jax or of a library: {told}')


def in_config(error: BaseException) -> str:
  """Returns file and line if the config file raised it, otherwise ''."""
  if isinstance(error, SyntaxError):
    return f'{error.filename or "the config file"}:{error.lineno or 1}'
  found = [
    f'{frame.f_code.co_filename}:{line}'
    for frame, line in traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get('__name__') in _PROGRAMS
  ]
  return found[-1] if found else ''


def words(error: BaseException) -> str:
  """Returns the type of an error and its first line."""
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:300]}'.removesuffix(': ')


def _keep(error: BaseException, run: Path | None) -> str:
  from pdl_jax.cluster.multihost import Place

  text = ''.join(traceback.format_exception(error))
  kept = None
  if (place := Place.here()) is not None:
    kept = place.file(FILE)  # Each host has its own.
  elif run is not None and (run / 'config.json').exists():
    kept = run / FILE
  # A full disk may be the very error.
  with contextlib.suppress(OSError):
    if kept is not None:
      kept.write_text(text, 'utf-8', 'backslashreplace')
      return str(kept)
  with (
    contextlib.suppress(OSError),
    tempfile.NamedTemporaryFile(
      'w', prefix='pdl_jax-', suffix=f'.{FILE}', delete=False,
      encoding='utf-8', errors='backslashreplace',
    ) as file,
  ):  # fmt: skip
    file.write(text)
    return file.name
  return 'no file, as none could be written'
