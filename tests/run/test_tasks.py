"""The main job on every task, from JSONL files, packed or in buckets."""

import json

import pytest

from pdl_jax.errors import DataError
from pdl_jax.run import prepare
from tests.run.conftest import (
  TASKS,
  predictions_of,
  run_task,
  settings_of,
  write,
)


@pytest.mark.parametrize('task', TASKS)
def test_every_task_runs_and_learns(tasks, task):
  results, workdir = tasks[task]
  before, after = results['columns'].values()
  assert after['perplexity']['value'] < before['perplexity']['value']
  assert before['examples'] == 8
  assert results['task'] == task
  lines = (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
  rows = [row for row in map(json.loads, lines) if 'loss' in row]
  used = sum(row['input_tokens'] for row in rows)
  positions = sum(row['positions'] for row in rows)
  assert results['padding_share'] == pytest.approx(1 - used / positions)


@pytest.mark.slow
def test_buckets_and_packing_save_padding(tasks, tmp_path):
  results, workdir = tasks['dialogue']
  padded = run_task(workdir.parent / 'data', 'dialogue', tmp_path / 'padded')
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
  data = write(tmp_path / 'data', 'dialogue')
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
