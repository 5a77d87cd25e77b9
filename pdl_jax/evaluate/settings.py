"""The keys below `evaluate`."""

import dataclasses

from pdl_jax.errors import not_negative, one_of, positive


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
  """How much of the held-out data is scored and generated from."""

  # validation while choosing settings, test for the table.
  split: str = 'test'
  # Scored and generated from, before and after training.
  examples: int = 96
  # Which draw of so many: 0, 1, ... share no example. Settings that were
  # chosen while one was looked at are measured on another.
  sample_index: int = 0
  # Scored at every checkpoint.
  validation_examples: int = 64
  batch_size: int = 32

  def __post_init__(self):
    one_of('evaluate.split', self.split, ('validation', 'test'))
    not_negative('evaluate', self, 'sample_index')
    positive('evaluate', self, 'examples', 'validation_examples', 'batch_size')
