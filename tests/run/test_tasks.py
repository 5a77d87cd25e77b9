"""The main job on every task, from JSONL files, packed or in buckets."""

import json

import pytest

from pdl_jax.errors import DataError
from pdl_jax.run import prepare
from tests.run.conftest import (
  TASKS,
  predictions_of,
  results_of,
  rows,
  run_task,
  settings_of,
  write,
)

pytestmark = pytest.mark.usefixtures('quick_compile')


@pytest.mark.parametrize('task', TASKS)
def test_every_task_runs_and_learns(tasks, task):
  results, workdir = tasks[task]
  before, after = results['columns'].values()
  assert after['perplexity']['value'] < before['perplexity']['value']
  assert before['examples'] == 8
  assert results['task'] == task
  logged = [row for row in rows(workdir / 'metrics.jsonl') if 'loss' in row]
  used = sum(row['input_tokens'] for row in logged)
  positions = sum(row['positions'] for row in logged)
  assert results['padding_share'] == pytest.approx(1 - used / positions)


@pytest.mark.slow
def test_buckets_and_packing_save_padding(tasks, tmp_path):
  results, workdir = tasks['dialogue']
  data = workdir.parent / 'data'
  padded = results_of(run_task(data, tmp_path / 'padded', 'dialogue'))
  assert results['padding_share'] < 0.85 * padded['padding_share']
  assert tasks['language_model'][0]['padding_share'] < 0.2


def test_styles_are_measured_and_each_has_its_instruction(tasks):
  results, workdir = tasks['style_transfer']
  _, after = results['columns'].values()
  keys = [key for key in after if 'accuracy' in key]
  assert keys
  assert all('scikit-learn' in after[key]['signature'] for key in keys)
  for record in predictions_of(workdir, 'after'):
    basic = 'Basic English' in record['prompt']
    assert basic == (record['style'] == 'basic')


def test_records_that_leak_are_refused_and_skipped_ones_counted(
  tmp_path, capsys
):
  data = write(tmp_path / 'data', TASKS['dialogue'])
  train = (data / 'train.jsonl').read_text('utf-8')
  (data / 'train.jsonl').write_text(f'{train}{{"id": "torn\n', 'utf-8')
  settings = settings_of(data, 'dialogue', **{'data.bad_records': 'skip'})
  prepare.prepare(settings, None)
  assert 'not read   1 ' in capsys.readouterr().out
  copy = {**json.loads(train.splitlines()[3]), 'id': 'copy'}
  with (data / 'test.jsonl').open('a', encoding='utf-8') as file:
    file.write(json.dumps(copy) + '\n')
  with pytest.raises(DataError, match='train3'):
    prepare.prepare(settings, None)
