"""The main job on every task, from JSONL files, packed or in buckets."""

import json
import shutil
import signal

import numpy as np
import pytest

from pdl_jax.config import Settings
from pdl_jax.errors import ConfigError, DataError, PreemptedError
from pdl_jax.generate import DecodeSettings
from pdl_jax.run import finetune, prepare, rescore
from pdl_jax.run_folder import RunFolder
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


@pytest.fixture(autouse=True)
def signals(monkeypatch):
  """Handlers of this process stay as they are."""
  monkeypatch.setattr(signal, 'signal', lambda *_: None)


def settings_of(data, task, **changes):
  return Settings.from_config(small.job_config(data, **{
    'data.name': f'jsonl:{data}', 'data.task': task, 'data.max_prompt': 110,
    'train.steps': 16, 'train.checkpoint_every': 16,
    **changes,
  }))  # fmt: skip


def run(data, task, workdir, **changes):
  settings = settings_of(data, task, **changes)
  finetune.run(settings, workdir, loop.StopRequest())
  return json.loads((workdir / 'results.json').read_text('utf-8'))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of every task: (results, workdir)."""
  runs = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(signal, 'signal', lambda *_: None)
    for task in TASKS:
      folder = tmp_path_factory.mktemp(task)
      data, workdir = write(folder / 'data', task), folder / 'run'
      buckets = 1 if task == 'language_model' else 3
      found = run(data, task, workdir, **{'data.buckets': buckets})
      runs[task] = (found, workdir)
  return runs


@pytest.mark.parametrize('task', TASKS)
def test_every_task_runs_and_learns(finished, task):
  results, workdir = finished[task]
  before, after = results['columns'].values()
  assert after['perplexity']['value'] < before['perplexity']['value']
  assert before['examples'] == 8
  assert results['task'] == task
  lines = (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
  rows = [row for row in map(json.loads, lines) if 'loss' in row]
  used = sum(row['input_tokens'] for row in rows)
  positions = sum(row['positions'] for row in rows)
  assert results['padding_share'] == pytest.approx(1 - used / positions)


def test_buckets_and_packing_save_padding(finished, tmp_path):
  results, workdir = finished['dialogue']
  data = workdir.parent / 'data'
  padded = run(data, 'dialogue', tmp_path / 'padded')
  assert results['padding_share'] < 0.85 * padded['padding_share']
  assert finished['language_model'][0]['padding_share'] < 0.2


def test_styles_are_measured_and_each_has_its_instruction(finished):
  results, workdir = finished['style_transfer']
  _, after = results['columns'].values()
  keys = [key for key in after if 'accuracy' in key]
  assert keys
  assert all('scikit-learn' in after[key]['signature'] for key in keys)
  lines = (
    (workdir / 'predictions' / 'after.jsonl').read_text('utf-8').splitlines()
  )
  for record in map(json.loads, lines):
    basic = 'Basic English' in record['prompt']
    assert basic == (record['style'] == 'basic')


def test_a_split_that_leaks_is_refused(tmp_path):
  data = write(tmp_path / 'data', 'dialogue')
  lines = (data / 'train.jsonl').read_text('utf-8').splitlines()
  with (data / 'test.jsonl').open('a', encoding='utf-8') as file:
    file.write(json.dumps({**json.loads(lines[3]), 'id': 'copy'}) + '\n')
  with pytest.raises(DataError, match='train3'):
    run(data, 'dialogue', tmp_path / 'run')


def test_another_way_of_decoding_and_every_number_from_the_files(
  finished, capsys, monkeypatch
):
  """evaluate: generates once, then measures what is stored."""
  results, workdir = finished['dialogue']
  decode = {**results['decode'], 'method': 'beam', 'beams': 2}
  stop = loop.StopRequest()
  rescore.run(workdir, decode, ('before', 'after'), stop)
  assert '| after-beam,beams=2' in capsys.readouterr().out.replace(' (n=8)', '')
  found = json.loads((workdir / rescore.RESULTS).read_text('utf-8'))
  assert list(found) == [
    'before', 'after', 'after-beam,beams=2', 'before-beam,beams=2',
  ]
  # What the run reported follows from its files, to the last digit.
  assert [found['before'], found['after']] == list(results['columns'].values())
  stored = workdir / 'predictions' / 'after-beam,beams=2.jsonl'
  records = [
    json.loads(line) for line in stored.read_text('utf-8').splitlines()
  ]
  assert all(record['decode']['beams'] == 2 for record in records)
  # Neither a model nor a device is touched for a second table.
  with monkeypatch.context() as patch:
    patch.setattr(finetune, 'predict', None)
    patch.setattr(rescore.prepare, 'prepare', None)
    rescore.run(workdir, None, (), stop)
  assert json.loads((workdir / rescore.RESULTS).read_text('utf-8')) == found


def test_greedy_again_writes_what_the_run_wrote(finished):
  results, workdir = finished['language_model']
  decode, stop = results['decode'], loop.StopRequest()
  rescore.run(workdir, decode, ('after',), stop)
  folder = workdir / 'predictions'
  again = (folder / 'after-greedy.jsonl').read_text('utf-8')
  assert again == (folder / 'after.jsonl').read_text('utf-8')


def test_stopped_generation_continues(finished, monkeypatch):
  results, workdir = finished['style_transfer']
  decode = {
    **results['decode'], 'method': 'sample', 'top_p': 0.9, 'samples': 3,
  }
  append, calls = RunFolder.append_predictions, []

  def append_and_stop(self, name, records):
    append(self, name, records)
    calls.append(len(records))
    if len(calls) == 1:
      raise PreemptedError('stopped')

  with monkeypatch.context() as patch:
    patch.setattr(RunFolder, 'append_predictions', append_and_stop)
    with pytest.raises(PreemptedError):
      rescore.run(workdir, decode, ('after',), loop.StopRequest())
  folder, name = workdir / 'predictions', 'after-sample,top_p=0.9,samples=3'
  parts = folder / f'{name}.parts'
  assert len(parts.read_text('utf-8').splitlines()) == calls[0] == 8
  with parts.open('a', encoding='utf-8') as file:
    file.write('{"torn')
  rescore.run(workdir, decode, ('after',), loop.StopRequest())
  lines = (folder / f'{name}.jsonl').read_text('utf-8').splitlines()
  ids = [json.loads(line)['id'] for line in lines]
  assert len(ids) == len(set(ids)) == 24
  assert [x.split('#')[1] for x in ids[:3]] == ['0', '1', '2']
  assert not parts.exists()
  # The same, had it never been stopped.
  (folder / f'{name}.jsonl').unlink()
  rescore.run(workdir, decode, ('after',), loop.StopRequest())
  assert (folder / f'{name}.jsonl').read_text('utf-8').splitlines() == lines


def test_data_that_has_changed_is_refused_and_the_counts_stay(
  finished, tmp_path
):
  results, workdir = finished['dialogue']
  copy, file = tmp_path / 'run', workdir.parent / 'data' / 'train.jsonl'
  shutil.copytree(workdir, copy)
  text, counts = file.read_text('utf-8'), (copy / 'frequency.npz').read_bytes()
  try:
    file.write_text(''.join(text.splitlines(keepends=True)[:250]), 'utf-8')
    with pytest.raises(DataError, match='has changed since the run'):
      stop = loop.StopRequest()
      rescore.run(copy, results['decode'], ('after',), stop)
  finally:
    file.write_text(text, 'utf-8')
  assert (copy / 'frequency.npz').read_bytes() == counts


def test_texts_longer_than_the_context_are_refused(finished):
  results, workdir = finished['dialogue']
  decode = {**results['decode'], 'max_new_tokens': 5000}
  with pytest.raises(ConfigError, match='5000 tokens more .* context'):
    rescore.run(workdir, decode, ('after',), loop.StopRequest())


def test_ways_of_decoding_have_names_of_their_own():
  names = {
    rescore.prediction_name('after', DecodeSettings(**settings))
    for settings in (
      {'method': 'sample', 'seed': 1_234_567},
      {'method': 'sample', 'seed': 1_234_568},
      {'tilt': 0.1234567}, {'tilt': 0.1234568}, {},
    )
  }  # fmt: skip
  assert len(names) == 5
  assert 'after-greedy' in names


def test_skipped_records_are_counted_on_the_terminal(tmp_path, capsys):
  data = write(tmp_path / 'data', 'dialogue')
  with (data / 'train.jsonl').open('a', encoding='utf-8') as file:
    file.write('{"id": "torn\n')
  settings = settings_of(data, 'dialogue', **{'data.bad_records': 'skip'})
  prepare.prepare(settings, None)
  assert 'not read at all: 1 ' in capsys.readouterr().out


@pytest.mark.parametrize('what', ['nothing', 'unfinished', 'old'])
def test_only_a_finished_run_of_this_version(tmp_path, finished, what):
  _, workdir = finished['dialogue']
  config = json.loads((workdir / 'config.json').read_text('utf-8'))
  messages = {
    'nothing': 'there is no run in', 'unfinished': 'has not finished',
    'old': 'not the keys of this version',
  }
  if what != 'nothing':
    if what == 'old':
      del config['decode']
      (tmp_path / 'results.json').write_text('{}', 'utf-8')
    (tmp_path / 'config.json').write_text(json.dumps(config), 'utf-8')
  with pytest.raises(ConfigError, match=messages[what]):
    rescore.run(tmp_path, None, (), loop.StopRequest())
