"""The manifest of a run: which steps were saved, and how good they are."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from orbax.checkpoint import checkpoint_managers as policies

Metrics = Mapping[str, float]


class Saves(policies.PreservationPolicy):
  """`saves.json`: each step that was saved, with its metrics.

  As a policy it keeps the step of the lowest loss. It is not Orbax's BestN,
  which reads a metrics file without a checksum when the manager starts: one
  flipped bit in it keeps the folder from opening.

  Attributes:
    path: where the file is.
    torn: whether the file could not be read.
  """

  def __init__(self, path: Path, metric: str) -> None:
    self.path, self._metric = path, metric
    found = _read(path)
    self.torn = found is None
    self._saved = found or {}
    self._begun: dict[int, Metrics] = {}

  def loss(self, step: int) -> float | None:
    """The loss of a step, perhaps not finite; None if it is not known."""
    return {**self._saved, **self._begun}.get(step, {}).get(self._metric)

  def best(self, steps: Sequence[int]) -> int | None:
    """The step of the lowest finite loss; the later one of two equals."""
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
    """Says which steps Orbax has to keep."""
    best = self.best([info.step for info in checkpoints])
    return [info.step == best for info in checkpoints]

  def add(self, step: int, metrics: Metrics) -> None:
    """Adds metrics of a step, as long as the file is not written."""
    self._saved[step] = {**self._saved.get(step, {}), **metrics}

  def begin(self, step: int, metrics: Metrics) -> None:
    """Notes a save that is under way.

    What an earlier run saved later than it is no longer expected.
    """
    self._saved = {x: known for x, known in self._saved.items() if x < step}
    self._begun = {step: metrics}

  def end(self) -> None:
    """Writes the save that was under way down."""
    if self._begun:
      self._saved |= self._begun
      self.write()
    self.forget()

  def forget(self) -> None:
    """Forgets a save that is not on disk."""
    self._begun = {}

  def write(self) -> None:
    """Replaces the file in one piece."""
    if jax.process_index() == 0:
      partial = self.path.with_suffix('.partial')
      partial.write_text(json.dumps(self._saved), encoding='utf-8')
      partial.replace(self.path)

  def after(self, step: int) -> list[int]:
    """The steps that were saved after one."""
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
