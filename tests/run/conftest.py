"""One finished run per task, for the session."""

import json
import signal

import numpy as np
import pytest

from pdl_jax.config import Settings
from pdl_jax.run import finetune
from pdl_jax.train import loop
from tests import small

WORDS = [
  'we', 'you', 'they', 'see', 'make', 'know', 'the', 'small', 'old', 'tree',
]
SIZES = {'train': 300, 'validation': 12, 'test': 12}


def sentence(rng, low=2, high=9):
  return ' '.join(rng.choice(WORDS, rng.integers(low, high)))


def dialogue(rng):
  turns = [sentence(rng) for _ in range(rng.integers(1, 5))]
  return {'source': '\n'.join(turns), 'target': sentence(rng)}


def style_transfer(rng):
  text, style = sentence(rng), rng.choice(['basic', 'king_james'])
  old = text.replace('you', 'thou').replace('the', 'ye')
  pair = (old, text) if style == 'basic' else (text, old)
  return dict(zip(('source', 'target'), pair, strict=True), style=str(style))


def language_model(rng):
  return {'source': '', 'target': sentence(rng, 2, 60)}


TASKS = {
  'dialogue': dialogue,
  'style_transfer': style_transfer,
  'language_model': language_model,
}


def write(folder, task):
  """A folder of JSONL files, the same one for the same task."""
  rng = np.random.default_rng(0)
  folder.mkdir(exist_ok=True)
  for split, size in SIZES.items():
    records = [
      {'id': f'{split}{i}', 'group': f'{split}{i}', **TASKS[task](rng)}
      for i in range(size)
    ]
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / f'{split}.jsonl').write_text(lines, 'utf-8')
  return folder


def settings_of(data, task, **changes):
  return Settings.from_config(small.job_config(data, **{
    'data.name': f'jsonl:{data}', 'data.task': task, 'data.max_prompt': 110,
    'train.steps': 16, 'train.checkpoint_every': 16,
    **changes,
  }))  # fmt: skip


def results_of(workdir):
  return json.loads((workdir / 'results.json').read_text('utf-8'))


def predictions_of(workdir, name):
  path = workdir / 'predictions' / f'{name}.jsonl'
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def run_task(data, task, workdir, **changes):
  settings = settings_of(data, task, **changes)
  finetune.run(settings, workdir, loop.StopRequest())
  return results_of(workdir)


@pytest.fixture(scope='session')
def finished(data_dir, tmp_path_factory):
  """The folder of a run of summarization, never disturbed."""
  return small.run_job(data_dir, tmp_path_factory.mktemp('summarize'))


@pytest.fixture(scope='session')
def tasks(tmp_path_factory):
  """A run of every other task: (results, workdir); data are beside it."""
  runs = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(signal, 'signal', lambda *_: None)
    for task in TASKS:
      folder = tmp_path_factory.mktemp(task)
      data, workdir = write(folder / 'data', task), folder / 'run'
      buckets = 1 if task == 'language_model' else 3
      found = run_task(data, task, workdir, **{'data.buckets': buckets})
      runs[task] = (found, workdir)
  return runs
