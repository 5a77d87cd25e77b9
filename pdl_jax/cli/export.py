"""Writes the model of a finished run in the format of Hugging Face.

  python launch.py export RUN --to=FOLDER [--adapter]

RUN is a run folder, whose own configuration is used; --config is not needed.
FOLDER must be new or empty. --adapter writes only the trained adapters (LoRA),
in the format of PEFT.
"""

from collections.abc import Sequence
from pathlib import Path

from pdl_jax.cli import given
from pdl_jax.cli.explained import explained
from pdl_jax.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  folder = given.folder('export', 'RUN --to=FOLDER', arguments)
  if given.TO.value is None:
    raise ConfigError(f'export: say where to: export {folder} --to=FOLDER')
  from pdl_jax.cluster import multihost
  from pdl_jax.run import export

  with explained(folder):
    given.begin()
    multihost.default_backend()
    export.run(folder, Path(given.TO.value), given.ADAPTER.value)
  return 0
