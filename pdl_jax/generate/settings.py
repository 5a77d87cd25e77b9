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

  Attributes:
    method: greedy, sample or beam.
    temperature: divides the logits before sampling; > 0.
    top_k: sample among the k likeliest tokens; 0: all.
    top_p: sample from the smallest set of this mass, (0, 1]; 1: all.
    min_p: sample tokens of at least this share of the likeliest one's
      probability, [0, 1]; 0: all.
    typical_p: sample from the most typical set of this mass, (0, 1]; 1: all.
    beams: hypotheses of a prompt that beam search follows.
    length_penalty: alpha of ((5 + |Y|) / 6) ** alpha, which divides a
      hypothesis's log-probability (arXiv:1609.08144, eq. 14); 0: no penalty.
    no_repeat_ngram: no n-gram of this size comes twice in a generated text;
      0: off.
    min_new_tokens: no end before so many tokens.
    max_new_tokens: the stop token included; 0: the data's longest target.
    samples: texts of a prompt.
    seed: of the sampling.
    tilt: of the logits towards rare tokens (`weighting.tilt_bias`), any sign.
    prompt_buckets: lengths to which prompts are padded; each compiles once.

  Raises:
    ConfigError: a value out of its range, or one that the method would not
      read and that is not at its default.
  """

  method: str = 'greedy'
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  typical_p: float = 1.0
  beams: int = 4
  length_penalty: float = 0.6
  no_repeat_ngram: int = 0
  min_new_tokens: int = 0
  max_new_tokens: int = 0
  samples: int = 1
  seed: int = 0
  tilt: float = 0.0
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
