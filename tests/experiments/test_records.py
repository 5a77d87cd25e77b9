"""Committed tables follow from committed records, byte for byte."""

import json
from pathlib import Path

import pytest

from experiments import rehash
from pdl_jax.errors import DataError
from pdl_jax.report import index, plan, write

LISTS = [Path('experiments'), Path('benchmarks')]
FOLDERS = [path for folder in LISTS for path in index.experiments(folder)]
DECLARED = [
  path for path in FOLDERS if hasattr(plan.module(path), 'EXPERIMENT')
]


def records(folder):
  """The text of the records; some are declared, and not measured yet."""
  path = folder / 'records.jsonl'
  return path.read_text('utf-8') if path.exists() else ''


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_files_follow_from_records(folder):
  assert write.check(folder) >= 1
  text = records(folder)
  # No text of the data, and no paths.
  assert '"examples": [' not in text
  assert str(Path.home()) not in text


@pytest.mark.parametrize('folder', LISTS, ids=str)
def test_index_follows_from_the_experiments(folder):
  index.write(folder, check=True)


@pytest.mark.parametrize('folder', DECLARED, ids=lambda path: path.name)
def test_every_record_is_of_a_declared_run(folder):
  """And every declared run has a configuration that exists."""
  declared = plan.load(folder)
  runs = rehash.declared(declared)
  for study in declared.studies:
    assert len(runs[study.name]) == len(study.seeds) * len(study.variants)
  lines = records(folder).splitlines(keepends=True)
  assert rehash.rehashed(folder, runs, runs) == lines


def test_records_are_carried_over_to_a_new_hash():
  folder = Path('experiments/smollm2')
  now = rehash.declared(plan.load(folder))
  before = {
    study: {row: f'old-{digest}' for row, digest in rows.items()}
    for study, rows in now.items()
  }
  with pytest.raises(DataError, match=r'jsonl:1: .* 0 declared runs had the'):
    rehash.rehashed(folder, before, now)
  with pytest.raises(DataError, match='declared runs had the hash'):
    rehash.rehashed(folder, now, {})
  new = {
    study: {row: digest[::-1] for row, digest in rows.items()}
    for study, rows in now.items()
  }
  hashes, others = (
    [json.loads(line)['hash'] for line in rehash.rehashed(folder, now, after)]
    for after in (now, new)
  )
  assert [digest[::-1] for digest in others] == hashes != others


def test_tuned_rivals_are_the_best_of_their_tuning():
  from experiments.rivals import experiment as rivals

  lines = records(Path('experiments/rivals')).splitlines()
  found = {
    record['row']: record['metrics']['rougeL']
    for record in map(json.loads, lines)
    if record['study'] == 'tuning'
  }
  for key, values in rivals.VALUES.items():
    rows = [row.label for row in rivals.of_constants({key: values})[1:]]
    best = max(rows, key=lambda row: found[row])
    assert rivals.of_constants({key: (rivals.CHOSEN[key],)})[1].label == best
