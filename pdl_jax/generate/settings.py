"""The settings under `decode`: how text is generated."""

import dataclasses
import math
from typing import Any

from pdl_jax.errors import ConfigError, one_of

# Keys that one method alone reads; all methods read the others.
_READS = {
  'greedy': (),
  'sample': (
    'temperature', 'top_k', 'top_p', 'min_p', 'typical_p', 'samples', 'seed',
  ),
  'beam': ('beams', 'length_penalty'),
}  # fmt: skip
METHODS = tuple(_READS)
_LEAST = {
  'top_k': 0, 'beams': 1, 'no_repeat_ngram': 0, 'min_new_tokens': 0,
  'max_new_tokens': 0, 'samples': 1, 'seed': 0, 'prompt_buckets': 1,
}  # fmt: skip
# NaN is in no range, since its comparisons are false.
_RANGES = {
  'temperature': ('(0, inf)', lambda x: 0 < x < math.inf),
  'top_p': ('(0, 1]', lambda x: 0 < x <= 1),
  'min_p': ('[0, 1]', lambda x: 0 <= x <= 1),
  'typical_p': ('(0, 1]', lambda x: 0 < x <= 1),
  'length_penalty': ('[0, inf)', lambda x: 0 <= x < math.inf),
  'tilt': ('(-inf, inf)', lambda x: -math.inf < x < math.inf),
}


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
  """A method of choosing tokens, and its parameters."""

  # greedy, sample or beam. Keys that only another method reads must stay at
  # their defaults.
  method: str = 'greedy'
  # sample: the temperature divides the logits. Then truncations keep, in this
  # order: the top_k likeliest (0 is all), the smallest set of mass top_p, those
  # of at least min_p of the top probability, the most typical set of mass
  # typical_p.
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  typical_p: float = 1.0
  # beam: the number of hypotheses, and alpha of GNMT's length penalty.
  beams: int = 4
  length_penalty: float = 0.6
  # No n-gram of so many tokens occurs twice in a text; 0 is off.
  no_repeat_ngram: int = 0
  # Limits include the end of turn; max_new_tokens 0 means data.max_target.
  min_new_tokens: int = 0
  max_new_tokens: int = 0
  # sample: texts per prompt, and their seed.
  samples: int = 1
  seed: int = 0
  # Post-hoc logit adjustment: so many times log prior(t), counted on training
  # targets, is subtracted from the logits of any model. > 0 favours rare
  # tokens, < 0 common ones. -alpha nearly inverts Power-Law Decay Loss, but
  # ignores special tokens and epsilon. Scores do not change.
  tilt: float = 0.0
  # Number of lengths to which prompts are padded; each compiles once.
  prompt_buckets: int = 4

  def __post_init__(self):
    one_of('decode.method', self.method, METHODS)
    self._check_ranges()
    self._check_unread()
    if 0 < self.max_new_tokens < self.min_new_tokens:
      raise ConfigError(
        f'decode.min_new_tokens {self.min_new_tokens} is above '
        f'decode.max_new_tokens {self.max_new_tokens}'
      )

  def _check_ranges(self) -> None:
    for name, least in _LEAST.items():
      value = getattr(self, name)
      if not isinstance(value, int) or value < least:
        raise ConfigError(
          f'decode.{name} must be a whole number >= {least}, got {value!r}'
        )
    for name, (interval, holds) in _RANGES.items():
      value = getattr(self, name)
      if not isinstance(value, int | float) or not holds(value):
        raise ConfigError(
          f'decode.{name} must be a number in {interval}, got {value!r}'
        )

  def _check_unread(self) -> None:
    for method, names in _READS.items():
      for name in names:
        value, default = getattr(self, name), getattr(type(self), name)
        if method != self.method and value != default:
          raise ConfigError(
            f'decode.{name} {value} is read by decode.method {method} only, '
            f'not by {self.method}; leave it at {default}'
          )

  def record(self, max_new_tokens: int) -> dict[str, Any]:
    """Returns all settings as JSON values, with the limit that was used."""
    return {**dataclasses.asdict(self), 'max_new_tokens': max_new_tokens}
