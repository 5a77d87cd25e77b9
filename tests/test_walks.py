"""What one adds is one file: each walk is done here, trained and swept with.

All of them stand in one config file, which is what a user would write; a
module that the config file imports does as well.
"""

import importlib
import json

import pytest

from pdl_jax import own_files
from pdl_jax.data.sources import TEXTS
from pdl_jax.data.tasks import TASKS
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate.registry import METRICS, SOURCES
from pdl_jax.losses import LOSSES

pytestmark = pytest.mark.usefixtures('quick_compile')
TASK = """
from pdl_jax.data.tasks import register_task

@register_task('count')
def count():
  return 'Count the words.'
"""
TEXT = """
from pdl_jax.data.packaged import texts

@texts.register_text('words', package='nobody', package_version='1')
def words(dropped):
  made = [
    texts.Example(f'{n}', f'{n}', ' '.join(['word'] * n), f'{n} words?')
    for n in range(1, 200)
  ]
  return texts.by_split(made, texts.split_by_hash)
"""
METRIC = """
from pdl_jax.evaluate import Metric, register

@register(Metric(
  'question_rate', 'Questions', unit='outputs', definition='share of outputs',
  sums=('questions', 'outputs'),
))
def questions(inputs):
  return {'questions': [int('?' in r['text']) for r in inputs.records]}
"""
LOSS = """
from pdl_jax.losses import register as register_loss
from pdl_jax.losses.core import LossTerms

@register_loss('scaled')
def scaled(stats, weight, *, factor=0.5):
  return LossTerms(factor * weight * stats.nll, weight)
"""
CONFIG = """
from configs import base

def get_config():
  config = base.get_config('tiny')
  config.data.name, config.data.task = 'words', 'count'
  config.data.max_prompt, config.data.max_target = 48, 12
  config.model.width, config.model.heads, config.model.head_dim = 32, 2, 16
  config.model.kv_heads, config.model.mlp = 1, 48
  config.model.vocab_size, config.model.layers = 300, 1
  config.decode.prompt_buckets = 1
  config.train.steps = config.train.checkpoint_every = 2
  config.optimizer.warmup_steps = 1
  config.evaluate.examples = config.evaluate.validation_examples = 8
  return config
"""


@pytest.fixture
def given(tmp_path):
  """A config file of one's own, as a flag; what it registers is forgotten."""
  file = tmp_path / 'own.py'
  file.write_text(''.join((TASK, TEXT, METRIC, LOSS, CONFIG)), 'utf-8')
  importlib.import_module('pdl_jax.evaluate.run')  # registers the metrics
  registries = TASKS, TEXTS, METRICS, LOSSES
  known, sources = [dict(each) for each in registries], list(SOURCES)
  seen = set(own_files._seen)
  yield f'--config={file}', f'--config.data.data_dir={tmp_path / "data"}'
  for registry, before in zip(registries, known, strict=True):
    registry.clear()
    registry.update(before)
  SOURCES[:] = sources
  own_files._seen.intersection_update(seen)


def check(run, loss):
  """A finished run was made with everything of the config file."""
  results = json.loads((run / 'results.json').read_text('utf-8'))
  assert (results['task'], results['split']) == ('count', 'words/test')
  assert results['loss']['name'] == loss
  assert all(
    column['question_rate']['unit'] == 'outputs'
    for column in results['columns'].values()
  )
  lines = (run / 'predictions' / 'after.jsonl').read_text('utf-8').splitlines()
  assert all('Count the words.' in json.loads(line)['prompt'] for line in lines)


def test_a_run_with_a_task_a_text_a_metric_and_a_loss_of_ones_own(
  given, main, tmp_path, monkeypatch
):
  code, _, err = main(
    *given, f'--workdir={tmp_path / "run"}', '--config.loss.name=scaled'
  )
  assert code == 0, err
  check(tmp_path / 'run', 'scaled')
  # The run knows its file: a command that gets no config file loads it again.
  names = 'count', 'words', 'question_rate', 'scaled'
  registries = TASKS, TEXTS, METRICS, LOSSES
  for registry, name in zip(registries, names, strict=True):
    del registry[name]
  SOURCES[:] = [each for each in SOURCES if each.__name__ != 'questions']
  monkeypatch.setattr(own_files, '_seen', set())
  code, told, err = main('evaluate', str(tmp_path / 'run'))
  assert code == 0, err
  assert 'Questions' in told
  (tmp_path / 'own.py').unlink()
  monkeypatch.setattr(own_files, '_seen', set())
  code, _, err = main('evaluate', str(tmp_path / 'run'))
  assert 'own.py; what it registers is unknown' in err


@pytest.mark.slow
def test_the_children_of_a_sweep_have_them_too(given, main, tmp_path):
  code, _, err = main(
    *given, f'--workdir={tmp_path / "cells"}',
    '--sweep=loss.name=power_law,scaled',
  )  # fmt: skip
  assert code == 0, err
  cells = sorted((tmp_path / 'cells').glob('*/results.json'))
  for run, loss in zip(cells, ('power_law', 'scaled'), strict=True):
    check(run.parent, loss)


def test_a_name_that_is_taken_is_refused():
  with pytest.raises(ConfigError, match="two tasks are called 'dialogue'"):
    exec(TASK.replace("'count'", "'dialogue'"), {})
  message = "two packaged texts are called 'bible'.*bible_styles.py.*rename"
  with pytest.raises(ConfigError, match=message):
    exec(TEXT.replace("'words'", "'bible'"), {})


def test_a_task_that_fails_is_named_with_the_line(given, main, tmp_path):
  failing = TASK.replace("'Count the words.'", '1 / 0')
  (tmp_path / 'own.py').write_text(failing + CONFIG, 'utf-8')
  code, _, err = main(*given)
  assert code == 2 and err.count('\n') == 1
  assert f'task count of {tmp_path / "own.py"}:6: ZeroDivisionError' in err


def test_a_config_file_may_be_executed_twice(given):
  for source in (TASK, TEXT) * 2:
    exec(source, {})
