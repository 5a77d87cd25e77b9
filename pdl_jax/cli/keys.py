"""Every key of a configuration, as `--help_config` prints it."""

import textwrap
from itertools import groupby

from pdl_jax import config


def text() -> str:
  """Keys with their defaults, and below each or each pair what it means."""
  lines: list[str] = []
  for meaning, keys in groupby(config.keys(), lambda key: key.meaning):
    lines += [f'{key.name} = {key.default!r}' for key in keys]
    lines += textwrap.wrap(
      meaning, 80, initial_indent='    ', subsequent_indent='    '
    )
  return '\n'.join(lines)
