"""Lists which steps of a run were saved, and how good they are."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from orbax.checkpoint import checkpoint_managers as policies

Metrics = Mapping[str, float]


class Saves(policies.PreservationPolicy):
  """`saves.json`: each step that was saved, with its metrics.

  As a policy it keeps the step with the lowest loss. Orbax's BestN is not used:
  at start it reads a metrics file without a checksum, and one flipped bit there
  keeps the folder from opening. `torn` says that saves.json cannot be read.
  """

  def __init__(self, path: Path, metric: str) -> None:
    self.path, self._metric = path, metric
    found = _read(path)
    self.torn = found is None
    self._saved = found or {}
    self._begun: dict[int, Metrics] = {}

  def loss(self, step: int) -> float | None:
    """Returns a step's loss, perhaps not finite; None if unknown."""
    return {**self._saved, **self._begun}.get(step, {}).get(self._metric)

  def best(self, steps: Sequence[int]) -> int | None:
    """Returns the step with the lowest finite loss; the later one of a tie."""
    losses = {step: self.loss(step) for step in steps}
    known = [
      (loss, -step)
      for step, loss in losses.items()
      if loss is not None and math.isfinite(loss)
    ]
    return -min(known)[1] if known else None

  def should_preserve(
    self,
    checkpoints: Sequence[policies.PolicyCheckpointInfo],
    *,
    context: policies.PreservationContext,
  ) -> Sequence[bool]:
    """Tells Orbax which steps to keep."""
    best = self.best([info.step for info in checkpoints])
    return [info.step == best for info in checkpoints]

  def add(self, step: int, metrics: Metrics) -> None:
    """Adds metrics of a step without writing the file."""
    self._saved[step] = {**self._saved.get(step, {}), **metrics}

  def begin(self, step: int, metrics: Metrics) -> None:
    """Notes a save under way; later steps of earlier runs no longer count."""
    self._saved = {x: known for x, known in self._saved.items() if x < step}
    self._begun = {step: metrics}

  def end(self) -> None:
    """Writes down the save that was under way."""
    if self._begun:
      self._saved |= self._begun
      self.write()

  def forget(self) -> None:
    """Forgets a save that is not on disk."""
    self._begun = {}

  def write(self) -> None:
    """Replaces the file atomically."""
    if jax.process_index() == 0:
      partial = self.path.with_suffix('.partial')
      partial.write_text(json.dumps(self._saved), encoding='utf-8')
      partial.replace(self.path)

  def after(self, step: int) -> list[int]:
    """Returns the steps that were saved after this one."""
    return [x for x in self._saved if x > step]


def _read(path: Path) -> dict[int, Metrics] | None:
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
    return {
      int(step): {name: float(value) for name, value in metrics.items()}
      for step, metrics in found.items()
    }
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, TypeError, AttributeError):
    return None
