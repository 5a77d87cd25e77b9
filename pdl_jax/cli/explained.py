"""Turns every exception into an error of one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pdl_jax.errors import HostError, PdlError, PreemptedError, printable

if TYPE_CHECKING:
  from pdl_jax.config import Settings


@contextlib.contextmanager
def explained(
  workdir: Path | None = None, settings: 'Settings | None' = None
) -> Iterator[None]:
  """Turns every exception into a PdlError.

  Args:
    workdir: the run folder, which need not exist. It gets the traceback of an
      unforeseen error.
    settings: those of the run made there, whose status.json gets the error.
  """
  try:
    yield
  except (SystemExit, KeyboardInterrupt):
    raise
  except BaseException as error:
    # BaseException, because a panic of Rust is no Exception.
    told = _explain(error, workdir, settings is not None)
    if workdir is not None and settings is not None:
      from pdl_jax import run_folder

      run_folder.note_failure(
        workdir, settings, word(told), printable(str(told))
      )
    if told is error:
      raise
    raise told from error


def word(error: PdlError) -> str:
  """Returns how an error is announced, and called in status.json."""
  return 'stopped' if isinstance(error, PreemptedError) else 'error'


def _explain(
  error: BaseException, workdir: Path | None, makes_run: bool
) -> PdlError:
  if isinstance(error, PdlError):
    return error
  if isinstance(error, BrokenPipeError):
    return HostError(
      'what reads the output has ended, as | head does; write it to a file '
      'instead, and the same command goes on'
    )
  if isinstance(error, OSError):
    # The operating system refuses: a full disk, a read-only folder.
    where = f' ({error.filename})' if error.filename else ''
    hint = ''
    if makes_run:
      hint = f', with --workdir={workdir}; free space there or choose another'
    return HostError(f'{error.strerror or error}{where}{hint}')
  from pdl_jax.cluster import fault

  return fault.explain(error, workdir)
