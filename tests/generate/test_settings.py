"""Settings of decoding: what is refused, and what a record says."""

import dataclasses
import json
import re

import pytest

from pdl_jax.errors import ConfigError
from pdl_jax.generate import METHODS, DecodeSettings


@pytest.mark.parametrize('method', METHODS)
def test_defaults_go_with_every_method(method):
  settings = DecodeSettings(method)
  record = settings.record(17)
  assert record == {**dataclasses.asdict(settings), 'max_new_tokens': 17}
  assert json.loads(json.dumps(record)) == record
  assert record['tilt'] == 0 and record['method'] == method


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'method': 'best'}, "decode.method 'best' is not one of greedy, sample"),
    (
      {'min_new_tokens': 5, 'max_new_tokens': 4},
      'decode.min_new_tokens 5 is above decode.max_new_tokens 4',
    ),
    (
      {'method': 'greedy', 'top_k': 4},
      'decode.top_k 4 is read by decode.method sample only, not by greedy',
    ),
    ({'method': 'beam', 'samples': 2}, 'decode.samples 2 .* not by beam'),
    ({'samples': 2}, 'decode.samples 2 .* not by greedy; leave it at 1'),
    ({'seed': 1}, 'decode.seed 1 .* not by greedy'),
    ({'method': 'sample', 'beams': 2}, 'decode.beams 2 is read .* beam only'),
    ({'length_penalty': 0.0}, 'decode.length_penalty 0.0 .* not by greedy'),
  ],
)
def test_what_is_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    DecodeSettings(**changes)


# The range of each number, and finite numbers outside of it.
INTERVALS = {
  'temperature': ('(0, inf)', 0.0), 'top_p': ('(0, 1]', 0.0, 1.5),
  'min_p': ('[0, 1]', -0.1, 1.1), 'typical_p': ('(0, 1]', 0.0, 1.5),
  'length_penalty': ('[0, inf)', -1.0), 'tilt': ('(-inf, inf)',),
}  # fmt: skip


def test_what_is_outside_a_range_or_no_number_is_refused_with_the_range():
  for field in dataclasses.fields(DecodeSettings)[1:]:
    least = int(field.default > 0)
    interval, *outside = INTERVALS.get(field.name, ('', least - 1, 2.5))
    wanted = f'a whole number >= {least}'
    if interval:
      wanted = f'a number in {interval}'
    infinite = float('nan'), float('inf'), -float('inf')
    for value in (*infinite, '0.5', None, *outside):
      said = f'decode.{field.name} must be {wanted}, got {value!r}'
      for method in METHODS:
        with pytest.raises(ConfigError, match=f'^{re.escape(said)}$'):
          DecodeSettings(method, **{field.name: value})


@pytest.mark.parametrize(
  ('method', 'changes'),
  [
    ('sample', {'temperature': 1e-3, 'top_p': 1, 'min_p': 1, 'typical_p': 0.1}),
    ('sample', {'temperature': 1e9, 'top_p': 1e-9, 'min_p': 0}),
    ('beam', {'length_penalty': 0}),
    ('greedy', {'tilt': -3}),
  ],
)
def test_ends_of_the_ranges(method, changes):
  settings = DecodeSettings(method, **changes)
  assert changes.items() <= settings.record(9).items()
