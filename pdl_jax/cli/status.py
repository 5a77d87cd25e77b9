"""Says how far the runs and sweeps in a folder are.

  python launch.py status FOLDER

FOLDER contains run folders; runs/summarize is an example. Each run is running
(with its step and last heartbeat), done, failed (with its last error), stopped
(the command that began it continues it), queued, if it is a cell that a sweep
has yet to begin or to continue, or broken, if one of its files is torn. Nothing
is written: any machine that sees the folder may ask at any time.
"""

from collections.abc import Sequence

from pdl_jax.cli import given
from pdl_jax.errors import ConfigError
from pdl_jax.sweep.status import format_status, status


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  folder = given.folder('status', 'FOLDER', arguments)
  rows = status(folder) if folder.is_dir() else []
  if not rows:
    raise ConfigError(
      f'status: there are no runs in {folder}; it takes the folder that run '
      'folders are in, such as runs/summarize'
    )
  print(format_status(rows))
  return 0
