"""One finished run per task, for the session: few words, compiled fast."""

import contextlib
import json
import signal

import jax
import numpy as np
import pytest

from pdl_jax.run import finetune
from pdl_jax.train import loop
from tests import small

WORDS = [
  'we', 'you', 'they', 'see', 'make', 'know', 'the', 'small', 'old', 'tree',
]
SIZES = {'train': 200, 'validation': 12, 'test': 12}


def sentence(rng, low=2, high=9):
  return ' '.join(rng.choice(WORDS, rng.integers(low, high)))


def summarize(rng):
  text = sentence(rng, 4, 12)
  return {'source': text, 'target': ' '.join(text.split()[:4])}


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
  'dialogue': dialogue, 'style_transfer': style_transfer,
  'language_model': language_model,
}  # fmt: skip
BUCKETS = {'dialogue': 3, 'style_transfer': 1, 'language_model': 1}


def write(folder, make):
  """A folder of JSONL files, the same one for the same maker of records."""
  rng = np.random.default_rng(0)
  folder.mkdir(exist_ok=True)
  for split, size in SIZES.items():
    records = [
      {'id': f'{split}{i}', 'group': f'{split}{i}', **make(rng)}
      for i in range(size)
    ]
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / f'{split}.jsonl').write_text(lines, 'utf-8')
  return folder


def settings_of(data, task='summarize', **changes):
  """Shapes are alike, so that what one run compiles is there for another."""
  return small.settings(data, **{
    'data.name': f'jsonl:{data}', 'data.task': task, 'data.max_prompt': 110,
    'decode.prompt_buckets': 1, 'model.vocab_size': 288, **changes,
  })  # fmt: skip


def read(path):
  return json.loads(path.read_text('utf-8'))


def rows(path):
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def results_of(workdir):
  return read(workdir / 'results.json')


def perplexities(workdir):
  """Before and after training."""
  columns = results_of(workdir)['columns'].values()
  return [column['perplexity']['value'] for column in columns]


def predictions_of(workdir, name):
  return rows(workdir / 'predictions' / f'{name}.jsonl')


def run_task(data, workdir, task='summarize', **changes):
  """A run to its end, with the handlers of signals left alone."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(signal, 'signal', lambda *_: None)
    settings = settings_of(data, task, **changes)
    finetune.run(settings, workdir, loop.StopRequest())
  return workdir


@contextlib.contextmanager
def quick():
  """What the fixture quick_compile does, which is of a module."""
  before = jax.config.values['jax_disable_most_optimizations']
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)
  jax.clear_caches()


@pytest.fixture(scope='session')
def texts(tmp_path_factory):
  """Texts and their beginnings."""
  return write(tmp_path_factory.mktemp('texts'), summarize)


@pytest.fixture(scope='session')
def finished(texts, tmp_path_factory):
  """The folder of a run of summarization, never disturbed."""
  with quick():
    return run_task(texts, tmp_path_factory.mktemp('summarize'))


@pytest.fixture(scope='session')
def tasks(tmp_path_factory):
  """A run of every other task: (results, workdir); data are beside it."""
  runs = {}
  with quick():
    for task, make in TASKS.items():
      folder = tmp_path_factory.mktemp(task)
      data, workdir = write(folder / 'data', make), folder / 'run'
      run_task(data, workdir, task, **{'data.buckets': BUCKETS[task]})
      runs[task] = (results_of(workdir), workdir)
  return runs
