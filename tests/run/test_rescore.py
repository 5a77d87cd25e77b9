"""A finished run decoded in another way, and measured from its files."""

import json
import shutil

import pytest

from pdl_jax.errors import ConfigError, DataError, PreemptedError
from pdl_jax.generate import DecodeSettings
from pdl_jax.run import finetune, rescore
from pdl_jax.run_folder import RunFolder
from pdl_jax.train import loop
from tests.run.conftest import predictions_of, read

pytestmark = pytest.mark.usefixtures('quick_compile')


def evaluate(workdir, decode=None, models=('after',)):
  rescore.run(workdir, decode, models, loop.StopRequest())
  return read(workdir / rescore.RESULTS)


def headers(printed):
  """The names of the systems of all tables."""
  return [
    cell.split(' (n=')[0].strip()
    for line in printed.splitlines()
    if 'Better' in line
    for cell in line.split('|')[3:-2]
  ]


def test_another_way_of_decoding_and_every_number_from_the_files(
  tasks, capsys, monkeypatch
):
  results, workdir = tasks['dialogue']
  decode = {**results['decode'], 'method': 'beam', 'beams': 2}
  found = evaluate(workdir, decode, ('before', 'after'))
  made = [
    f'{model}-beam,beams=2,prompt_buckets=1' for model in ('after', 'before')
  ]  # fmt: skip
  assert list(found) == ['before', 'after', *made]
  # What the run reported follows from its files, to the last digit.
  assert [found['before'], found['after']] == list(results['columns'].values())
  records = predictions_of(workdir, made[0])
  assert all(record['decode']['beams'] == 2 for record in records)
  assert headers(capsys.readouterr().out) == list(found)
  # Neither a model nor a device is touched for a second table.
  with monkeypatch.context() as patch:
    patch.setattr(finetune, 'Predictor', None)
    patch.setattr(rescore.prepare, 'prepare', None)
    assert evaluate(workdir) == found
  printed = capsys.readouterr().out
  assert max(map(len, printed.splitlines()[:-1])) <= 120
  assert f'all 4 stored sets, every value with its definition: {workdir}' in (
    printed
  )


def test_tables_hold_what_was_made_now_beside_the_run():
  stored = ('before', 'after', 'after-beam', 'after-greedy', 'before-greedy')
  results = {name: {'examples': i} for i, name in enumerate(stored)}
  for made, names in (
    ([], list(stored)),
    (['after-beam'], ['before', 'after', 'after-beam']),
    (
      ['before-greedy', 'after-greedy'],
      ['before', 'after', 'after-greedy', 'before-greedy'],
    ),
  ):
    shown = rescore.shown(results, made)
    assert list(shown) == names
    assert shown.items() <= results.items()


@pytest.mark.slow
def test_greedy_again_writes_what_the_run_wrote(tasks):
  results, workdir = tasks['language_model']
  evaluate(workdir, results['decode'])
  name = rescore.prediction_name('after', DecodeSettings(**results['decode']))
  again = predictions_of(workdir, name)
  assert again == predictions_of(workdir, 'after')


@pytest.mark.slow
def test_stopped_generation_continues(tasks, monkeypatch):
  results, workdir = tasks['style_transfer']
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
      evaluate(workdir, decode)
  folder = workdir / 'predictions'
  name = rescore.prediction_name('after', DecodeSettings(**decode))
  parts = folder / f'{name}.parts'
  assert len(parts.read_text('utf-8').splitlines()) == calls[0] == 8
  with parts.open('a', encoding='utf-8') as file:
    file.write('{"torn')
  evaluate(workdir, decode)
  records = predictions_of(workdir, name)
  ids = [record['id'] for record in records]
  assert len(ids) == len(set(ids)) == 24
  assert [x.split('#')[1] for x in ids[:3]] == ['0', '1', '2']
  assert not parts.exists()
  # The same, had it never been stopped.
  (folder / f'{name}.jsonl').unlink()
  evaluate(workdir, decode)
  assert predictions_of(workdir, name) == records


def test_data_that_has_changed_is_refused_and_the_counts_stay(tasks, tmp_path):
  results, workdir = tasks['dialogue']
  copy, file = tmp_path / 'run', workdir.parent / 'data' / 'train.jsonl'
  shutil.copytree(workdir, copy)
  text, counts = file.read_text('utf-8'), (copy / 'frequency.npz').read_bytes()
  try:
    file.write_text(''.join(text.splitlines(keepends=True)[:150]), 'utf-8')
    with pytest.raises(DataError, match='has changed since the run'):
      evaluate(copy, results['decode'])
  finally:
    file.write_text(text, 'utf-8')
  assert (copy / 'frequency.npz').read_bytes() == counts


def test_texts_longer_than_the_context_are_refused(tasks):
  results, workdir = tasks['dialogue']
  decode = {**results['decode'], 'max_new_tokens': 5000}
  with pytest.raises(ConfigError, match='5000 tokens more .* context'):
    evaluate(workdir, decode)


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


def test_only_a_finished_run_of_this_version(tmp_path, tasks):
  _, workdir = tasks['dialogue']
  for number in range(12):
    run = tmp_path / 'runs' / f'a{number:02}'
    run.mkdir(parents=True)
    (run / 'config.json').touch()
  inside = 'no run in .*runs a00, a01, .* a09 and 2 more'
  for folder, words in (('runs', inside), ('', 'there is no run in .*[0-9]$')):
    with pytest.raises(ConfigError, match=words):
      evaluate(tmp_path / folder)
  config = read(workdir / 'config.json')
  (tmp_path / 'config.json').write_text(json.dumps(config), 'utf-8')
  with pytest.raises(ConfigError, match='has not finished'):
    evaluate(tmp_path)
  del config['decode']
  (tmp_path / 'config.json').write_text(json.dumps(config), 'utf-8')
  (tmp_path / 'results.json').write_text('{}', 'utf-8')
  with pytest.raises(ConfigError, match='not the keys of this version'):
    evaluate(tmp_path)
