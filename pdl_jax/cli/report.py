"""Makes tables, figures and page of an experiment from its records alone.

  python launch.py report experiments/NAME [--check]
  python launch.py report experiments [--check]
  python launch.py report benchmarks [--check]

The last two cover all experiments or benchmarks, and write their list into
README.md of the folder. --check writes nothing: it compares the files with what
the records say, byte for byte. The first difference ends it with exit code 3.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pdl_jax.cli import given


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  folder = given.folder('report', 'experiments/NAME', arguments)
  from pdl_jax.report import index, write

  given.begin()
  folder = Path(os.path.relpath(folder))
  check = given.CHECK.value
  for each in index.experiments(folder):
    if check:
      print(f'{each}: all follow from the records, files: {write.check(each)}')
    else:
      print('\n'.join(f'wrote {path}' for path in write.write(each)))
  index.write(folder, check=check)
  return 0
