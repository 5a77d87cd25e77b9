"""The keys below `evaluate`."""

import dataclasses

from pdl_jax.errors import not_negative, one_of, positive


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
  """How much of the held-out data is scored and generated from."""

  # Use validation while choosing settings, and test for the table.
  split: str = 'test'
  # Examples that are scored and generated from, before and after training.
  examples: int = 96
  # Which draw of that many examples: draws 0, 1, ... share none. Choose
  # settings on one draw, and measure them on another.
  sample_index: int = 0
  # Examples that are scored at every checkpoint.
  validation_examples: int = 64
  # Global batch of scoring and generating, all devices together.
  batch_size: int = 32

  def __post_init__(self):
    one_of('evaluate.split', self.split, ('validation', 'test'))
    not_negative('evaluate', self, 'sample_index')
    positive('evaluate', self, 'examples', 'validation_examples', 'batch_size')
