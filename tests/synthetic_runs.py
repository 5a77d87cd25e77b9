"""Run folders as the job leaves them, with made-up numbers, for reports."""

import json

import numpy as np

from pdl_jax.config import Settings
from pdl_jax.evaluate.run import evaluate
from pdl_jax.losses.frequency import FrequencyTable
from pdl_jax.run_folder import RunFolder
from tests.prediction_records import STOP, VOCAB, make_record

COUNTS = np.arange(VOCAB) + 1


def predictions(seed, count=4):
  random = np.random.default_rng(seed)
  return [
    make_record(
      f'r{i}', source=f'question {i}',
      text=' '.join(random.choice(['the', 'cat', 'sat', 'quokka'], 4)),
      reference_nll=random.uniform(0, 4, 4).tolist(),
    )
    for i in range(count)
  ]  # fmt: skip


def write_run(path, config, seed, examples=4):
  """A finished run of a resolved configuration."""
  path.mkdir(parents=True, exist_ok=True)
  folder = RunFolder(path, Settings.from_resolved(dict(config)))
  before, after = predictions(99, examples), predictions(seed, examples)
  folder.write_predictions('before', before)
  folder.write_predictions('after', after)
  measured = {
    'before': evaluate(before, COUNTS, [STOP]),
    'after': evaluate(after, COUNTS, [STOP]),
  }
  folder.write('items.json', {k: found.items for k, found in measured.items()})
  FrequencyTable(COUNTS, 'tok', 'tok', 'data', 'data', 'train').save(
    path / 'frequency.npz'
  )
  folder.write('env.json', {
    'commit': 'a' * 40, 'dirty': False, 'packages': {}, 'devices': ['cpu'],
  })  # fmt: skip
  rows = [{'step': 1, 'loss': 2.0}, {'step': 2, 'validation_nats': 1.5}]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  folder.write_text('metrics.jsonl', lines)
  folder.write('results.json', {
    'columns': {
      'model': measured['before'].results,
      'loss': measured['after'].results,
    },
    'loss': {}, 'split': 'chitchat/test', 'steps': 2, 'skipped_steps': 0,
    'seconds_this_call': 1.0, 'decode': {}, 'neutral_ids': [STOP],
    'examples': ['a text of the data'],
  })  # fmt: skip
