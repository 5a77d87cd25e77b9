"""The main job as a whole: what it leaves behind, stopping, going on."""

import os
import re
import shutil
import signal

import jax.numpy as jnp
import pytest

from pdl_jax.errors import (
  CheckpointError,
  ConfigError,
  DataError,
  DivergedError,
  HostError,
  PreemptedError,
)
from pdl_jax.evaluate.predict import Predictor
from pdl_jax.losses import LossTables, frequency
from pdl_jax.run import finetune, prepare
from pdl_jax.run_folder import RunFolder
from pdl_jax.train import loop, step
from pdl_jax.train.checkpoint import Checkpointer
from tests.run.conftest import (
  perplexities,
  predictions_of,
  read,
  results_of,
  rows,
  settings_of,
)

pytestmark = pytest.mark.usefixtures('quick_compile')


def run(texts, workdir, stop=None, **changes):
  settings = settings_of(texts, **changes)
  finetune.run(settings, workdir, stop or loop.StopRequest())
  return workdir


def losses(workdir):
  """The rows of metrics.jsonl, less what depends on the clock."""
  return [
    {k: v for k, v in row.items() if k != 'tokens_per_second'}
    for row in rows(workdir / 'metrics.jsonl')
  ]


def test_a_run_folder_proves_what_ran(finished):
  names = {path.name for path in finished.iterdir()}
  assert names == {
    'config.json', 'env.json', 'status.json', 'metrics.jsonl', 'checkpoints',
    'predictions', 'results.json', 'frequency.npz', 'tokenizer.json',
    'items.json', 'data.json', 'saves.json',
    'table.md',
  }  # fmt: skip
  results = results_of(finished)
  assert results['loss']['name'] == 'power_law'
  assert len(results['loss']['weights_crc32']) == 8
  assert results['skipped_steps'] == 0
  before, after = perplexities(finished)
  assert after < before
  assert read(finished / 'status.json')['state'] == 'finished'
  environment = read(finished / 'env.json')
  devices = len(environment['devices'])
  assert environment['mesh'] == {'data': devices, 'fsdp': 1, 'tensor': 1}
  assert environment['packages']['jax']
  for name in ('before', 'after'):
    assert len(predictions_of(finished, name)) == 8
  steps = [row['step'] for row in losses(finished)]
  assert steps == [1, 2, 3, 4, 4, 5, 6, 6]


def test_a_finished_run_is_not_run_again(finished, texts, capsys):
  before = (finished / 'results.json').stat().st_mtime_ns
  run(texts, finished)
  assert (finished / 'results.json').stat().st_mtime_ns == before
  assert 'is finished' in capsys.readouterr().out
  with pytest.raises(ConfigError) as error:
    run(texts, finished, **{'loss.alpha': 0.75, 'train.log_every': 3})
  assert 'loss.alpha: 0.25 there, 0.75 here' in str(error.value)
  assert 'log_every' not in str(error.value)


def test_runs_side_by_side_share_what_the_model_says_before(
  texts, tmp_path, monkeypatch, capsys
):
  calls, predict = [], Predictor.predict

  def counted(self, *args):
    calls.append(self)
    return predict(self, *args)

  monkeypatch.setattr(Predictor, 'predict', counted)
  short = {'train.steps': 1}
  one = run(texts, tmp_path / 'one', **short) / 'predictions' / 'before.jsonl'
  assert len(calls) == 2
  two = run(texts, tmp_path / 'two', **short, **{'loss.alpha': 1.0})
  assert len(calls) == 3
  assert f'they are those of {tmp_path / "one"}' in capsys.readouterr().out
  assert (two / 'predictions' / 'before.jsonl').read_bytes() == (
    one.read_bytes()
  )
  # Other predictions, and an altered file.
  run(texts, tmp_path / 'three', **short, **{'decode.max_new_tokens': 3})
  assert len(calls) == 5
  for path in tmp_path.glob('*/predictions/before.jsonl'):
    path.write_bytes(path.read_bytes().replace(b'a', b'b', 1))
  run(texts, tmp_path / 'four', **short, **{'loss.alpha': 0.5})
  assert len(calls) == 7


def send_at(step_number, monkeypatch):
  """A real SIGTERM while that step is being reported."""
  append = RunFolder.append_metrics

  def append_and_stop(self, row):
    append(self, row)
    if row['step'] == step_number and 'loss' in row:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(RunFolder, 'append_metrics', append_and_stop)


def stopped_at(step_number, texts, workdir, monkeypatch):
  with monkeypatch.context() as patch:
    send_at(step_number, patch)
    with pytest.raises(PreemptedError, match='same command continues'):
      run(texts, workdir)


@pytest.mark.slow
def test_a_stopped_run_continues_bit_for_bit_and_its_validation_is_made_up(
  finished, texts, tmp_path, monkeypatch
):
  stopped_at(4, texts, tmp_path, monkeypatch)
  assert [row['step'] for row in losses(tmp_path)] == [1, 2, 3, 4]
  with monkeypatch.context() as patch:
    # Killed when the row is written, and nothing else.
    patch.setattr(Checkpointer, 'measure', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(texts, tmp_path)
  stopped_at(5, texts, tmp_path, monkeypatch)  # heard in the last step
  run(texts, tmp_path)
  assert losses(tmp_path) == losses(finished)
  for name in ('before', 'after'):
    assert predictions_of(tmp_path, name) == predictions_of(finished, name)
  saves = read(tmp_path / 'saves.json')
  assert {*saves['4'], *saves['6']} == {'validation_nats'}


@pytest.mark.slow
def test_a_crash_after_a_checkpoint_leaves_no_double_rows(
  finished, texts, tmp_path, monkeypatch
):
  append = RunFolder.append_metrics

  def append_or_crash(self, row):
    if row['step'] == 6:
      (self.path / 'metrics.jsonl').open('a', encoding='utf-8').write(
        '{"step": 6, "lo'
      )
      raise RuntimeError('power cut')
    append(self, row)

  with monkeypatch.context() as patch:
    patch.setattr(RunFolder, 'append_metrics', append_or_crash)
    with pytest.raises(RuntimeError, match='power cut'):
      run(texts, tmp_path)
  run(texts, tmp_path)
  assert losses(tmp_path) == losses(finished)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
  finished, texts, tmp_path, monkeypatch, capsys
):
  workdir = tmp_path / 'run'
  stopped_at(5, texts, workdir, monkeypatch)
  shutil.copytree(workdir, tmp_path / 'all_damaged')
  steps = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())
  last = workdir / 'checkpoints' / str(steps[-1])
  for file in (last / 'state').rglob('d/*'):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
  run(texts, workdir)
  printed = capsys.readouterr().out
  assert f'checkpoint {last} is damaged' in printed
  assert f'resumed from step {steps[-2]}' in printed
  assert last.with_name(f'{last.name}.damaged').exists()
  assert losses(workdir) == losses(finished)
  for file in (tmp_path / 'all_damaged' / 'checkpoints').rglob('d/*'):
    file.write_bytes(b'')
  with pytest.raises(CheckpointError, match='no intact checkpoint'):
    run(texts, tmp_path / 'all_damaged')


@pytest.mark.slow
def test_divergence_stops_and_keeps_the_good_checkpoint(
  texts, tmp_path, monkeypatch
):
  pure = step.train_step

  def poisoned(config, state, batch, tables):
    return pure(
      config, state, batch,
      LossTables(tables.weights_V / jnp.where(state.step >= 4, 0.0, 1.0)),
    )

  monkeypatch.setattr(finetune, 'train_step', poisoned)
  changes = {'train.steps': 12, 'train.max_nonfinite_steps': 3}
  with pytest.raises(DivergedError, match='3 steps in a row.*step 4'):
    run(texts, tmp_path, **changes)
  kept = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  assert kept == ['4']
  assert not (tmp_path / 'results.json').exists()


def other_order(texts):
  return ''.join(reversed(texts.splitlines(keepends=True)))


def half_of(texts):
  return ''.join(texts.splitlines(keepends=True)[::2])


def other_text(texts):
  return texts.replace('small', 'large', 1)


@pytest.mark.slow
def test_data_that_changed_in_between_is_refused(texts, tmp_path, monkeypatch):
  data, workdir = tmp_path / 'data', tmp_path / 'run'
  shutil.copytree(texts, data)
  with monkeypatch.context() as patch:
    send_at(3, patch)
    with pytest.raises(PreemptedError):
      run(data, workdir)
  kept = (workdir / 'data.json').read_text('utf-8')
  for split, change in (
    ('train', other_order), ('train', other_text), ('validation', half_of),
    ('test', other_text),
  ):  # fmt: skip
    file = data / f'{split}.jsonl'
    text = file.read_text('utf-8')
    file.write_text(change(text), 'utf-8')
    with pytest.raises(DataError) as error:
      run(data, workdir)
    file.write_text(text, 'utf-8')
    size = len(text.splitlines())
    now = size // 2 if change is half_of else size
    words = rf'{split} was {size} records \(\w+\) and is {now} records'
    assert re.search(words, str(error.value))
    assert str(error.value).count(' was ') == 1
    assert (workdir / 'data.json').read_text('utf-8') == kept
  # A run from before data was written down goes on.
  (workdir / 'data.json').unlink()
  run(data, workdir)
  assert (workdir / 'results.json').exists()
  assert (workdir / 'data.json').read_text('utf-8') == kept


UNSEEN = {'loss.unseen': 'formula'}


@pytest.mark.parametrize(
  ('changes', 'error', 'words'),
  [
    ({'mesh.data': 3}, ConfigError, 'mesh data 3.*8 devices'),
    ({'train.batch_size': 12}, ConfigError, 'batch_size 12 .*multiple of 8'),
    ({'mesh.data': 1, 'mesh.tensor': 8}, ConfigError, 'not divide over 8'),
    ({**UNSEEN, 'loss.epsilon': 0.0}, ConfigError, r'epsilon 0 gives .* of \d'),
    ({**UNSEEN, 'loss.epsilon': 1e-6, 'loss.alpha': 60.0}, ConfigError,
     'overflow fp32 at alpha 60'),
    ({'data.name': 'botocor'}, ConfigError, "did you mean 'botocore'"),
    ({'data.name': 'jsonl:no/such/folder'}, DataError, 'no/such/folder'),
    ({'data.max_prompt': 12}, ConfigError, 'leaves no room'),
    ({'data.max_target': 1}, DataError, '0 of .* records remain; raise data'),
    ({'train.steps': 10**30}, ConfigError, 'train.steps must be a whole'),
    ({'model.pretrained': 'no_such_package'}, HostError, 'no_such_package'),
    ({'optimizer.trainable': 'last_layers'}, ConfigError, 'last_layers'),
    ({'model.pretrained': 'run:none'}, ConfigError, 'there is no run in'),
  ],
)  # fmt: skip
def test_bad_settings_end_in_one_line_and_leave_no_folder(
  texts, tmp_path, changes, error, words
):
  with pytest.raises(error, match=words) as raised:
    run(texts, tmp_path / 'run', **changes)
  assert '\n' not in str(raised.value)
  assert list(tmp_path.iterdir()) == []


def test_tables_of_another_tokenizer_are_refused(finished, texts, tmp_path):
  table = str(finished / 'frequency.npz')
  for changes, words in (
    ({'loss.frequency_table': table}, 'counts its own training split'),
    (
      {'loss.background_table': table, 'loss.background_weight': 0.5},
      'was counted with tokenizer',
    ),
  ):
    with pytest.raises(DataError, match=words):
      run(texts, tmp_path / 'run', **changes, **{'model.vocab_size': 270})


@pytest.mark.slow
def test_a_rival_with_a_tilt_and_a_mixed_table(
  finished, texts, tmp_path, capsys
):
  """What only the job puts together: schedule, general corpus, tilt."""
  workdir = run(texts, tmp_path / 'rival', **{
    'loss.name': 'class_balanced',
    'loss.class_balanced.beta': 0.99,
    'loss.schedule': 'cross_entropy_first',
    'loss.schedule_start': 3,
    'loss.background_table': str(finished / 'frequency.npz'),
    'loss.background_weight': 0.25,
    'decode.tilt': 0.5,
  })  # fmt: skip
  results = results_of(workdir)
  assert results['decode']['tilt'] == 0.5
  assert results['loss']['settings']['beta'] == 0.99
  assert 'class_balanced beta=0.99' in results['columns'].popitem()[0]
  assert 'class_balanced beta=0.99' in capsys.readouterr().out
  predictions = predictions_of(workdir, 'after')
  assert all(record['decode']['tilt'] == 0.5 for record in predictions)
  logged = [row for row in losses(workdir) if 'loss' in row]
  same = [row['loss'] == pytest.approx(row['plain_loss']) for row in logged]
  assert same == [True] * 3 + [False] * 3
  own, mixed = (
    results_of(path)['loss']['frequency_table_fingerprint']
    for path in (finished, workdir)
  )
  assert own != mixed


def test_weights_by_words(texts):
  tokens, words = (
    prepare.prepare(settings_of(texts, **{'loss.level': level}), None)
    for level in ('token', 'word')
  )
  assert words.frequencies.words_V is not None
  assert (tokens.tables.weights_V != words.tables.weights_V).any()


@pytest.mark.slow
@pytest.mark.usefixtures('full_compile')
def test_alpha_zero_and_cross_entropy_are_the_same_training(texts, tmp_path):
  changes = {'train.steps': 3, 'evaluate.examples': 1}
  a = run(texts, tmp_path / 'a', **changes, **{'loss.alpha': 0.0})
  b = run(
    texts, tmp_path / 'b', **changes, **{'loss.name': 'cross_entropy'}
  )
  assert losses(a) == losses(b)


@pytest.mark.slow
def test_a_run_can_start_from_what_another_ended_with(
  finished, texts, tmp_path
):
  from_it = {'model.pretrained': f'run:{finished}', 'train.steps': 3}
  workdir = run(texts, tmp_path / 'run', **from_it)
  before = predictions_of(workdir, 'before')
  assert before == predictions_of(finished, 'after')
  assert before != predictions_of(workdir, 'after')
  one, other = (
    frequency.read(path / 'frequency.npz') for path in (finished, workdir)
  )
  assert one.fingerprint == other.fingerprint
  half = tmp_path / 'half'
  half.mkdir()
  shutil.copy(finished / 'config.json', half)
  with pytest.raises(ConfigError, match='half has not finished; the command'):
    run(texts, tmp_path / 'b', **{'model.pretrained': f'run:{half}'})
