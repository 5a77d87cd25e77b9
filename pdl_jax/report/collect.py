"""From run folders to the records of an experiment, one line a run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdl_jax import frequency
from pdl_jax.errors import DataError, DivergedError
from pdl_jax.sweep import queue

Record = dict[str, Any]
_DIGITS = 6


def collect(
  run: Path, predictions: str, attempts: Sequence[queue.Attempt]
) -> tuple[Record, dict[str, Any]] | None:
  """What a report needs of one run, without a word of the data.

  Args:
    run: its folder.
    predictions: which set of them: 'before', 'after', or of another decoding.
    attempts: of the sweep at this run.

  Returns:
    the record, and the definitions of its metrics (of a run that failed, an
    error and none); None for a run that is not finished, or was not decoded
    in this way.

  Raises:
    DataError: a run of an earlier version, without what a report resamples.
  """
  if not queue.finished(run):
    end = attempts[-1].end if attempts else None
    if end is None or not end.failed:
      return None
    diverged = end.code == DivergedError.exit_code
    return {
      'state': 'diverged' if diverged else 'failed', 'error': end.error
    }, {}  # fmt: skip
  measured = _read(run / 'results.json')
  found = _results(run, measured, predictions)
  if found is None:
    return None
  items = _items(run, predictions)
  table = frequency.read(run / 'frequency.npz')
  environment = _read(run / 'env.json')
  definitions = {
    key: {k: v for k, v in metric.items() if k not in ('value', 'n', 'buckets')}
    for key, metric in found.items()
    if isinstance(metric, dict)
  }
  return {
    'state': 'done',
    'commit': environment['commit'],
    'dirty': environment['dirty'],
    'packages': environment['packages'],
    'devices': environment['devices'],
    'loss': measured['loss'],
    'split': measured['split'],
    'steps': measured['steps'],
    'seconds': measured['seconds_this_call'],
    'skipped_steps': measured['skipped_steps'],
    'decode': measured['decode'],
    'examples': items['examples'],
    'groups': items['groups'],
    'tokenizer': table.tokenizer[:8],
    'training_data': table.data[:8],
    'definitions': fingerprint(definitions),
    'metrics': {
      key: _rounded(metric['value'])
      for key, metric in found.items()
      if isinstance(metric, dict) and 'value' in metric
    },
    'nats_by_count': {
      bucket: _rounded(cells['nats_per_token'])
      for bucket, cells in found['perplexity_by_frequency']['buckets'].items()
    },
    'tokens_by_count': {
      bucket: cells['tokens']
      for bucket, cells in found['perplexity_by_frequency']['buckets'].items()
    },
    'curve': _curve(run / 'metrics.jsonl'),
    'items': items['sums'],
  }, definitions


def fingerprint(value: Any) -> str:
  """8 hex digits of anything that is JSON."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _results(
  run: Path, measured: Mapping[str, Any], predictions: str
) -> dict[str, Any] | None:
  """Those of --evaluate, which are newer, or of the run itself."""
  names = ('before', 'after')
  columns = measured['columns'].values()
  found: dict[str, Any] = dict(zip(names, columns, strict=True))
  if (run / 'evaluations.json').exists():
    found |= _read(run / 'evaluations.json')
  chosen = found.get(predictions)
  if chosen is None or 'head' not in measured:
    return chosen  # Runs of earlier versions do not say.
  return chosen | _head(measured['head'])


def _head(size: Mapping[str, Any]) -> dict[str, Any]:
  """Of the output head, whatever was predicted."""
  return {
    'head_percent': {
      'value': 100 * size['floats'] / size['dense_floats'],
      'n': size['dense_floats'], 'unit': 'floats',
      'definition': 'floats that the logits need, a bias and a residual '
      'included, in percent of a dense matrix of vocabulary x width',
    },
    'head_index_bits': {
      'value': size['index_bits'] / 1e6,
      'n': size['dense_floats'], 'unit': 'floats',
      'definition': 'bits of the codes of all types, and of their order where '
      'they are in tiers, as integers of equal width, in millions',
    },
  }  # fmt: skip


def _items(run: Path, predictions: str) -> dict[str, Any]:
  path = run / 'items.json'
  found = _read(path).get(predictions, {}) if path.exists() else {}
  if not {'examples', 'groups', 'sums'} <= set(found):
    raise DataError(
      f'{run} keeps no sums of its examples, as runs of earlier versions; '
      f'python launch.py --evaluate={run} adds them'
    )
  return found


def _curve(path: Path) -> list[tuple[int, float]]:
  rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  return [
    (row['step'], _rounded(row['validation_nats']))
    for row in rows
    if 'validation_nats' in row
  ]


def _rounded(value: float | None) -> Any:
  return None if value is None else float(f'{value:.{_DIGITS}g}')


def _read(path: Path) -> Any:
  return json.loads(path.read_text('utf-8'))
