"""How text is generated, checked once."""

import dataclasses
import math
from typing import Any

from pdl_jax.errors import ConfigError

# What each method reads on top of what all of them do.
_READS = {
  'greedy': (),
  'sample': (
    'temperature', 'top_k', 'top_p', 'min_p', 'typical_p', 'samples', 'seed',
  ),
  'beam': ('beams', 'length_penalty'),
}  # fmt: skip
METHODS = tuple(_READS)
_ALWAYS = (
  'method', 'no_repeat_ngram', 'min_new_tokens', 'max_new_tokens', 'tilt',
  'prompt_buckets',
)  # fmt: skip
_LEAST = {
  'top_k': 0, 'beams': 1, 'no_repeat_ngram': 0, 'min_new_tokens': 0,
  'max_new_tokens': 0, 'samples': 1, 'seed': 0, 'prompt_buckets': 1,
}  # fmt: skip
# Whatever is compared with nan is false, so that no range holds it.
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
  """A method of choosing tokens, and the numbers that it reads.

  Raises:
    ConfigError: a value out of its range, or one that the method would not
      read and that is not at its default.
  """

  # greedy, sample or beam; each reads some of the keys below, and the others
  # have to stay at their defaults.
  method: str = 'greedy'
  # sample: divides the logits, then the truncations in this order: the k
  # likeliest (0: all), the smallest set of mass top_p, at least min_p of the
  # likeliest one's probability, the most typical set of mass typical_p.
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  typical_p: float = 1.0
  # beam: hypotheses, and alpha of GNMT's length penalty.
  beams: int = 4
  length_penalty: float = 0.6
  # No n-gram of so many tokens twice in a text; 0: off.
  no_repeat_ngram: int = 0
  # The end of turn included; 0: the longest target.
  min_new_tokens: int = 0
  max_new_tokens: int = 0
  # sample: texts of a prompt, and the seed they are drawn with.
  samples: int = 1
  seed: int = 0
  # Post-hoc logit adjustment: log prior(t), counted on the training targets,
  # is taken off the logits so many times. > 0 favours rare tokens, < 0
  # common ones; for any model, whatever it was trained with. -alpha is near
  # to the inverse of Power-Law Decay Loss, not equal: special tokens and
  # epsilon are left out. Scores are not touched.
  tilt: float = 0.0
  # Lengths to which prompts are padded; each compiles once.
  prompt_buckets: int = 4

  def __post_init__(self):
    if self.method not in METHODS:
      raise ConfigError(
        f'decode.method {self.method!r} is not one of {", ".join(METHODS)}'
      )
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
    read = (*_ALWAYS, *_READS[self.method])
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in read and value != field.default:
        users = [name for name in METHODS if field.name in _READS[name]]
        raise ConfigError(
          f'decode.{field.name} {value} is read by decode.method '
          f'{" or ".join(users)} only, not by {self.method}; leave it at '
          f'{field.default}'
        )

  def record(self, max_new_tokens: int) -> dict[str, Any]:
    """Every setting as plain JSON values, with the limit that was used."""
    return {**dataclasses.asdict(self), 'max_new_tokens': max_new_tokens}
