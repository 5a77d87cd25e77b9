"""Defines a cell, which is one run of a sweep, for engines and `status`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep; several points of the product can be the same run.

  Attributes:
    labels: one per point, as in 'alpha=0.5 seed=1'.
    overrides: dotted key -> value, of the first point.
    config: resolved, as the run folder keeps it.
    run_id: the name of its folder, unless the run has one already. The hash
      is added where another run of the same root has that name.
    digest: the hash of all settings that change numbers; it identifies the run.
  """

  labels: tuple[str, ...]
  overrides: Overrides
  config: Mapping[str, Any]
  run_id: str
  digest: str

  @property
  def flags(self) -> list[str]:
    """The overrides as arguments of launch.py."""
    return [f'--config.{key}={value}' for key, value in self.overrides.items()]
