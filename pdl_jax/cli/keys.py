"""Prints every key of a configuration, for `--help_config`."""

import textwrap
from itertools import groupby

from pdl_jax import config


def text() -> str:
  """Lists keys with their defaults, and below them what they mean."""
  lines: list[str] = []
  for meaning, keys in groupby(config.keys(), lambda key: key.meaning):
    lines += [f'{key.name} = {key.default!r}' for key in keys]
    lines += textwrap.wrap(
      meaning, 80, initial_indent='    ', subsequent_indent='    '
    )
  return '\n'.join(lines)
