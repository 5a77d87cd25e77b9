"""Settings of decoding: what is refused, and what a record says."""

import dataclasses
import json

import pytest

from pdl_jax.decode import METHODS, DecodeSettings
from pdl_jax.errors import ConfigError


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
    ({'temperature': 0.0}, r'decode.temperature must be in \(0, inf\), got 0'),
    ({'temperature': float('inf')}, 'decode.temperature must be a finite'),
    ({'top_k': -1}, 'decode.top_k must be a whole number >= 0, got -1'),
    ({'top_k': 2.5}, 'decode.top_k must be a whole number >= 0, got 2.5'),
    ({'top_p': 0.0}, r'decode.top_p must be in \(0, 1\], got 0.0'),
    ({'top_p': 1.5}, r'decode.top_p must be in \(0, 1\], got 1.5'),
    ({'typical_p': 0.0}, r'decode.typical_p must be in \(0, 1\]'),
    ({'min_p': 1.1}, r'decode.min_p must be in \[0, 1\], got 1.1'),
    ({'beams': 0}, 'decode.beams must be a whole number >= 1, got 0'),
    ({'length_penalty': -1.0}, 'decode.length_penalty must be a finite'),
    ({'no_repeat_ngram': -1}, 'decode.no_repeat_ngram must be a whole'),
    ({'min_new_tokens': -1}, 'decode.min_new_tokens must be a whole'),
    ({'max_new_tokens': -1}, 'decode.max_new_tokens must be a whole'),
    ({'samples': 0}, 'decode.samples must be a whole number >= 1, got 0'),
    ({'seed': -1}, 'decode.seed must be a whole number >= 0, got -1'),
    ({'prompt_buckets': 0}, 'decode.prompt_buckets must be a whole number'),
    ({'tilt': float('nan')}, 'decode.tilt must be finite, got nan'),
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
