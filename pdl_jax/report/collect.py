"""Reduces run folders to the records of an experiment, one line per run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pdl_jax.errors import DataError, DivergedError
from pdl_jax.losses import frequency
from pdl_jax.report.declare import HEAD
from pdl_jax.run_folder import MEASURED, METRICS, RESULTS
from pdl_jax.storage import files
from pdl_jax.sweep import claims

Record = dict[str, Any]
_DIGITS = 6
_ENVIRONMENT = {
  'commit': str | None, 'dirty': bool, 'packages': dict, 'devices': list[str],
}  # fmt: skip
_ITEMS = {
  'examples': str, 'groups': list[int], 'sums': dict[str, list[float]],
}  # fmt: skip
_WHO = {
  'study': str, 'row': str, 'seed': int, 'hash': str, 'predictions': str,
  'overrides': dict,
}  # fmt: skip
# The fields of a line of records.jsonl, by state.
DONE = _WHO | _ENVIRONMENT | {
  'loss': dict, 'split': str, 'steps': int, 'seconds': float,
  'skipped_steps': int, 'decode': dict, 'examples': str, 'groups': list[int],
  'tokenizer': str, 'training_data': str, 'definitions': str,
  'metrics': dict[str, float | None], 'nats_by_count': dict[str, float | None],
  'tokens_by_count': dict[str, int], 'curve': list[list[float]],
  'items': dict[str, list[float]],
}  # fmt: skip
NOT_DONE = _WHO | {'state': Literal['diverged', 'failed'], 'error': str}


def collect(
  run: Path, predictions: str, attempts: Sequence[claims.Attempt]
) -> tuple[Record, dict[str, Any]] | None:
  """Collects what a report needs from one run, without any text of the data.

  Args:
    predictions: 'before', 'after', or the name of another decoding.

  Returns:
    The record and the definitions of its metrics; for a failed run, an error
    and no definitions. None if the run is not finished or not decoded this way.
  """
  if not claims.finished(run):
    end = attempts[-1].end if attempts else None
    if end is None or not end.failed:
      return None
    diverged = end.code == DivergedError.exit_code
    return {
      'state': 'diverged' if diverged else 'failed', 'error': end.error
    }, {}  # fmt: skip
  measured = files.read_json(run / 'results.json', RESULTS)
  found = _results(run, measured, predictions)
  if found is None:
    return None
  items = _items(run, predictions)
  table = frequency.read(run / 'frequency.npz')
  environment = files.read_json(run / 'env.json', _ENVIRONMENT)
  buckets = found['perplexity_by_frequency']['buckets']
  definitions = {
    key: {k: v for k, v in metric.items() if k not in ('value', 'n', 'buckets')}
    for key, metric in found.items()
    if isinstance(metric, dict)
  }
  return {
    'state': 'done',
    **{key: environment[key] for key in _ENVIRONMENT},
    **{key: measured[key] for key in ('loss', 'split', 'steps')},
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
      for bucket, cells in buckets.items()
    },
    'tokens_by_count': {
      bucket: cells['tokens'] for bucket, cells in buckets.items()
    },
    'curve': _curve(run / 'metrics.jsonl'),
    'items': items['sums'],
  }, definitions


def fingerprint(value: Any) -> str:
  """Returns 8 hex digits of any JSON value."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _results(
  run: Path, measured: Mapping[str, Any], predictions: str
) -> dict[str, Any] | None:
  """Prefers results of `evaluate`, which are newer than the run's own."""
  names = ('before', 'after')
  columns = measured['columns'].values()
  if len(columns) != len(names):
    raise DataError(
      f'{run / "results.json"}: columns holds {len(columns)} systems, not '
      f'{" and ".join(names)}; {files.MEND}'
    )
  found: dict[str, Any] = dict(zip(names, columns, strict=True))
  if (run / 'evaluations.json').exists():
    found |= read_evaluations(run)
  chosen = found.get(predictions)
  if chosen is None or 'head' not in measured:
    return chosen  # Runs of earlier versions do not record the head.
  return chosen | _head(measured['head'])


def _head(size: Mapping[str, Any]) -> dict[str, Any]:
  """Metrics of the output head, which do not depend on the predictions."""
  values = 100 * size['floats'] / size['dense_floats'], size['index_bits'] / 1e6
  return {
    metric.key: {
      'value': value, 'n': size['dense_floats'], 'unit': metric.unit,
      'definition': metric.definition,
    }
    for metric, value in zip(HEAD, values, strict=True)
  }  # fmt: skip


def _items(run: Path, predictions: str) -> dict[str, Any]:
  path = run / 'items.json'
  shape = {f'{predictions}?': _ITEMS}
  found = files.read_json(path, shape) if path.exists() else {}
  if predictions not in found:
    raise DataError(
      f'{run} keeps no sums of its examples, as runs of earlier versions; '
      f'python launch.py evaluate {run} adds them'
    )
  return found[predictions]


def _curve(path: Path) -> list[tuple[int, float]]:
  rows = files.read_lines(path, METRICS)
  return [
    (row['step'], _rounded(row['validation_nats']))
    for row in rows
    if 'validation_nats' in row
  ]


def _rounded(value: float | None) -> Any:
  return None if value is None else float(f'{value:.{_DIGITS}g}')


def read_evaluations(run: Path) -> dict[str, Any]:
  """Reads what `evaluate` measured for each stored set of predictions."""
  return files.read_json(run / 'evaluations.json', dict[str, MEASURED])
