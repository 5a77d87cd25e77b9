"""The keys below `train`."""

import dataclasses

from pdl_jax.errors import positive


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """Length of the training, and what happens every so many steps."""

  # Optimizer steps.
  steps: int = 60
  # Global batch, over all devices and micro-batches.
  batch_size: int = 8
  # Write metrics and status every so many steps, and at the end.
  log_every: int = 1
  # Validate and save every so many steps, and at the end.
  checkpoint_every: int = 20
  # Keep the last so many, and the best on validation besides.
  keep_checkpoints: int = 2
  # Stop (exit code 5) after so many steps in a row with a loss or gradient
  # that is not finite.
  max_nonfinite_steps: int = 5

  def __post_init__(self):
    positive('train', self, *(f.name for f in dataclasses.fields(self)))
