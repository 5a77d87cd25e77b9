"""A cell: what every engine, and who looks on, knows of one run of a sweep."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep; several points of the product can be the same run.

  Attributes:
    labels: of its points, as in 'alpha=0.5 seed=1'.
    overrides: of the first of them, dotted key -> value.
    config: resolved, as the run folder keeps it.
    run_id: what its folder is called, unless the run has one already.
    digest: hash of everything that changes numbers; who the cell is.
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
