"""The main job as a whole: what it leaves behind, stopping, going on."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from pdl_jax import process, run_folder
from pdl_jax.config import Settings
from pdl_jax.errors import (
  CheckpointError,
  ConfigError,
  DataError,
  DivergedError,
  HostError,
  PreemptedError,
)
from pdl_jax.losses import LossTables, frequency
from pdl_jax.run import finetune
from pdl_jax.run_folder import RunFolder
from pdl_jax.train import loop, step
from pdl_jax.train.checkpoint import Checkpointer
from tests import small


def run(data_dir, workdir, stop, **changes):
  config = small.job_config(data_dir, **changes)
  finetune.run(Settings.from_config(config), workdir, stop)
  return workdir


def losses(workdir):
  """The rows of metrics.jsonl, less what depends on the clock."""
  lines = (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
  rows = [json.loads(line) for line in lines]
  return [
    {k: v for k, v in row.items() if k != 'tokens_per_second'} for row in rows
  ]


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
  """A run of the whole job, never disturbed."""
  workdir = tmp_path_factory.mktemp('run')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(signal, 'signal', lambda *_: None)
    return run(data_dir, workdir, loop.StopRequest())


def test_a_run_folder_proves_what_ran(finished):
  names = {path.name for path in finished.iterdir()}
  assert names == {
    'config.json', 'env.json', 'status.json', 'metrics.jsonl', 'checkpoints',
    'predictions', 'results.json', 'frequency.npz', 'tokenizer.json',
    'items.json', 'data.json', 'saves.json',
    'table.md',
  }  # fmt: skip
  results = json.loads((finished / 'results.json').read_text('utf-8'))
  assert results['loss']['name'] == 'power_law'
  assert len(results['loss']['weights_crc32']) == 8
  assert results['skipped_steps'] == 0
  before, after = results['columns'].values()
  assert after['perplexity']['value'] < before['perplexity']['value']
  assert json.loads((finished / 'status.json').read_text('utf-8'))['state'] == (
    'finished'
  )
  environment = json.loads((finished / 'env.json').read_text('utf-8'))
  assert environment['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert environment['packages']['jax']
  for name in ('before', 'after'):
    lines = (finished / 'predictions' / f'{name}.jsonl').read_text('utf-8')
    assert len(lines.splitlines()) == 8
  steps = [row['step'] for row in losses(finished)]
  assert steps == [1, 2, 3, 4, 4, 5, 6, 6]


def test_a_finished_run_is_not_run_again(finished, data_dir, stop, capsys):
  before = (finished / 'results.json').stat().st_mtime_ns
  run(data_dir, finished, stop)
  assert (finished / 'results.json').stat().st_mtime_ns == before
  assert 'is finished' in capsys.readouterr().out


def test_the_folder_of_another_run_is_refused(finished, data_dir, stop):
  with pytest.raises(ConfigError) as error:
    run(data_dir, finished, stop, **{'loss.alpha': 0.75, 'train.log_every': 3})
  assert 'loss.alpha: 0.25 there, 0.75 here' in str(error.value)
  assert 'log_every' not in str(error.value)


def send_at(step_number, monkeypatch):
  """A real SIGTERM while that step is being reported."""
  append = RunFolder.append_metrics

  def append_and_stop(self, row):
    append(self, row)
    if row['step'] == step_number and 'loss' in row:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(RunFolder, 'append_metrics', append_and_stop)


def test_a_stopped_run_continues_bit_for_bit(
  finished, data_dir, tmp_path, stop, monkeypatch
):
  with monkeypatch.context() as patch:
    send_at(2, patch)
    with pytest.raises(PreemptedError, match='same command continues'):
      run(data_dir, tmp_path, stop)
  saved = [row['step'] for row in losses(tmp_path)]
  assert saved[-1] < 6
  run(data_dir, tmp_path, loop.StopRequest())
  assert losses(tmp_path) == losses(finished)
  after = (tmp_path / 'predictions' / 'after.jsonl').read_text('utf-8')
  assert after == (finished / 'predictions' / 'after.jsonl').read_text('utf-8')


def test_a_validation_that_a_signal_prevented_is_made_up_once(
  finished, data_dir, tmp_path, stop, monkeypatch
):
  with monkeypatch.context() as patch:
    send_at(4, patch)
    with pytest.raises(PreemptedError):
      run(data_dir, tmp_path, stop)
  rows = losses(tmp_path)
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  with monkeypatch.context() as patch:
    # Killed when the row is written, and nothing else.
    patch.setattr(Checkpointer, 'measure', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(data_dir, tmp_path, loop.StopRequest())
  with monkeypatch.context() as patch:
    send_at(5, patch)  # heard in the last step
    with pytest.raises(PreemptedError):
      run(data_dir, tmp_path, loop.StopRequest())
  run(data_dir, tmp_path, loop.StopRequest())
  assert losses(tmp_path) == losses(finished)
  saves = json.loads((tmp_path / 'saves.json').read_text('utf-8'))
  assert {*saves['4'], *saves['6']} == {'validation_nats'}


def claim_of(workdir, number=1, **changes):
  """A claim in a run folder, of this process but for the changes."""
  workdir.mkdir(exist_ok=True)
  path = workdir / f'run.{number}.claim'
  assert process.claim(path)
  found = json.loads(path.read_text('utf-8'))
  path.write_text(json.dumps(found | changes), 'utf-8')
  return path


@pytest.fixture
def sleeper():
  with subprocess.Popen(['sleep', '600']) as child:
    yield {'pid': child.pid, 'started': process.start_time(child.pid)}
    child.kill()


def test_a_second_process_in_a_run_folder_is_refused(
  data_dir, tmp_path, stop, sleeper
):
  settings = small.settings(data_dir)
  RunFolder(tmp_path, settings).write_status('running', 3)
  claim_of(tmp_path, 7, **sleeper)
  before = {path: path.read_bytes() for path in tmp_path.glob('*.*')}
  with pytest.raises(HostError) as error:
    finetune.run(settings, tmp_path, stop)
  words = rf'in use by process {sleeper["pid"]} on .* since 20\d\d-.*: wait for'
  assert re.search(words, str(error.value))
  assert f'kill {sleeper["pid"]} stops it' in str(error.value)
  said = str(error.value)
  run_folder.note_failure(tmp_path, settings, 'error', said)
  assert {path: path.read_bytes() for path in tmp_path.glob('*.*')} == before


def test_claims_of_the_dead_are_taken_over(tmp_path, sleeper):
  gone = {**sleeper, 'started': sleeper['started'] - 1}  # its id, used again
  claim_of(tmp_path, 9, **gone)
  claim_of(tmp_path, 10, **gone)
  with run_folder.claimed(tmp_path):
    (own,) = tmp_path.glob('*.claim')
    assert own.name == 'run.11.claim'
    with run_folder.claimed(tmp_path):  # by the same process
      assert [*tmp_path.glob('*.claim')] == [own]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('error', [PreemptedError, HostError, KeyError])
def test_a_run_that_ends_gives_its_folder_back(tmp_path, error):
  (tmp_path / 'predictions').mkdir()
  with pytest.raises(error), run_folder.claimed(tmp_path):
    raise error('so')
  assert [path.name for path in tmp_path.iterdir()] == ['predictions']


def test_of_another_machine_its_silence_decides(tmp_path):
  claim = claim_of(tmp_path, machine='another', host='there')
  with pytest.raises(HostError, match='on there since .*works after 120 s'):
    run_folder.check_unclaimed(tmp_path)
  then = claim.stat().st_mtime - 121
  os.utime(claim, (then, then))
  run_folder.check_unclaimed(tmp_path)


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"pid": 1', 'null'])
def test_a_torn_claim_is_one_of_another_machine(tmp_path, text):
  claim = claim_of(tmp_path)
  claim.write_text(text, 'utf-8')
  with pytest.raises(HostError, match='in use by process None'):
    run_folder.check_unclaimed(tmp_path)
  os.utime(claim, (0, 0))
  with run_folder.claimed(tmp_path):
    assert not claim.exists()


def test_of_two_that_claim_at_once_one_is_let_in(tmp_path):
  code = (
    'import sys, time\n'
    'from pathlib import Path\n'
    'from pdl_jax import run_folder\n'
    'from pdl_jax.errors import HostError\n'
    'print("ready", flush=True)\n'
    'sys.stdin.readline()\n'
    'try:\n'
    '  with run_folder.claimed(Path(sys.argv[1])):\n'
    '    print("in", flush=True)\n'
    '    sys.stdin.readline()\n'
    'except HostError:\n'
    '  print("refused", flush=True)\n'
  )
  line = [sys.executable, '-c', code, str(tmp_path / 'run')]
  pipe = subprocess.PIPE
  both = [
    subprocess.Popen(line, stdin=pipe, stdout=pipe, encoding='utf-8')
    for _ in range(2)
  ]
  for one in both:
    assert one.stdout.readline() == 'ready\n'
  for one in both:
    one.stdin.write('\n')
    one.stdin.flush()
  words = sorted(one.stdout.readline().strip() for one in both)
  for one in both:
    one.communicate('\n')
  assert words == ['in', 'refused']


def test_where_there_are_no_hard_links_a_run_goes_on(
  tmp_path, monkeypatch, capsys
):
  def refuse(*_):
    raise OSError(errno.EPERM, 'Operation not permitted')

  monkeypatch.setattr(os, 'link', refuse)
  with run_folder.claimed(tmp_path), run_folder.claimed(tmp_path):
    assert list(tmp_path.iterdir()) == []
  assert capsys.readouterr().out.count('without hard links') == 1


@pytest.mark.parametrize(
  ('changes', 'error'),
  [
    ({'data.max_target': 1}, DataError),
    ({'loss.epsilon': 0.0, 'loss.unseen': 'formula'}, ConfigError),
    ({'data.name': 'jsonl:no/such/folder'}, DataError),
    ({'model.pretrained': 'no_such_package'}, HostError),
    ({'optimizer.trainable': 'last_layers'}, ConfigError),
  ],
)
def test_a_refused_run_leaves_no_folder(
  data_dir, tmp_path, stop, changes, error
):
  with pytest.raises(error):
    run(data_dir, tmp_path / 'run', stop, **changes)
  assert list(tmp_path.iterdir()) == []


def other_order(texts):
  return ''.join(reversed(texts.splitlines(keepends=True)))


def half_of(texts):
  return ''.join(texts.splitlines(keepends=True)[::2])


def other_text(texts):
  return texts.replace('small', 'large', 1)


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """A run on JSONL files that a signal stopped at its third step."""
  folder = tmp_path_factory.mktemp('stopped')
  (folder / 'data').mkdir()
  for split, size in (('train', 64), ('validation', 16), ('test', 16)):
    lines = [
      {'id': f'{split}{i}', 'source': f'the small tree {i}', 'target': f'a {i}'}
      for i in range(size)
    ]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'data' / f'{split}.jsonl').write_text(text, 'utf-8')
  with pytest.MonkeyPatch.context() as patch:
    heard = []
    patch.setattr(signal, 'signal', lambda *_: None)
    patch.setattr(os, 'kill', lambda *_: heard[0]._receive(signal.SIGTERM))
    heard.append(loop.StopRequest())
    send_at(3, patch)
    with pytest.raises(PreemptedError):
      run_jsonl(folder / 'data', folder / 'run', heard[0])
  return folder


def run_jsonl(data, workdir, stop):
  changes = {'data.name': f'jsonl:{data}', 'data.max_prompt': 110}
  return run(data, workdir, stop, **changes)


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
@pytest.mark.parametrize('change', [other_order, half_of, other_text])
def test_data_that_changed_in_between_is_refused(
  stopped, stop, split, change
):
  file = stopped / 'data' / f'{split}.jsonl'
  text = file.read_text('utf-8')
  kept = (stopped / 'run' / 'data.json').read_text('utf-8')
  size = len(text.splitlines())
  file.write_text(change(text), 'utf-8')
  try:
    with pytest.raises(DataError) as error:
      run_jsonl(stopped / 'data', stopped / 'run', stop)
  finally:
    file.write_text(text, 'utf-8')
  now = size // 2 if change is half_of else size
  words = rf'{split} was {size} records \(\w+\) and is {now} records'
  assert re.search(words, str(error.value))
  assert str(error.value).count(' was ') == 1
  assert (stopped / 'run' / 'data.json').read_text('utf-8') == kept


def test_a_run_from_before_data_was_written_down_goes_on(
  stopped, stop, tmp_path
):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped / 'run', workdir)
  (workdir / 'data.json').unlink()
  run_jsonl(stopped / 'data', workdir, stop)
  assert (workdir / 'results.json').exists()
  before = (stopped / 'run' / 'data.json').read_text('utf-8')
  assert (workdir / 'data.json').read_text('utf-8') == before


def test_a_crash_after_a_checkpoint_leaves_no_double_rows(
  finished, data_dir, tmp_path, stop, monkeypatch
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
      run(data_dir, tmp_path, stop)
  run(data_dir, tmp_path, stop)
  assert losses(tmp_path) == losses(finished)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
  finished, data_dir, tmp_path, stop, monkeypatch, capsys
):
  with monkeypatch.context() as patch:
    send_at(5, patch)
    with pytest.raises(PreemptedError):
      run(data_dir, tmp_path, stop)
  steps = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  last = tmp_path / 'checkpoints' / str(steps[-1])
  for file in (last / 'state').rglob('d/*'):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
  run(data_dir, tmp_path, loop.StopRequest())
  printed = capsys.readouterr().out
  assert f'checkpoint {last} is damaged' in printed
  assert f'resumed from step {steps[-2]}' in printed
  assert last.with_name(f'{last.name}.damaged').exists()
  assert losses(tmp_path) == losses(finished)


def test_divergence_stops_and_keeps_the_good_checkpoint(
  data_dir, tmp_path, stop, monkeypatch
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
    run(data_dir, tmp_path, stop, **changes)
  kept = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  assert kept == ['4']
  assert not (tmp_path / 'results.json').exists()


def test_alpha_zero_and_cross_entropy_are_the_same_training(
  data_dir, tmp_path, stop
):
  changes = {'train.steps': 3, 'evaluate.examples': 1}
  a = run(data_dir, tmp_path / 'a', stop, **changes, **{'loss.alpha': 0.0})
  b = run(
    data_dir, tmp_path / 'b', stop, **changes,
    **{'loss.name': 'cross_entropy'},
  )  # fmt: skip
  assert losses(a) == losses(b)


def test_another_tokenizers_table_is_refused(
  finished, data_dir, tmp_path, stop
):
  table = str(finished / 'frequency.npz')
  with pytest.raises(DataError, match='counts its own training split'):
    run(
      data_dir, tmp_path, stop,
      **{'loss.frequency_table': table, 'model.vocab_size': 600},
    )  # fmt: skip


@pytest.mark.parametrize(
  ('changes', 'error', 'words'),
  [
    ({'mesh.data': 3}, ConfigError, 'mesh data 3.*8 devices'),
    ({'train.batch_size': 12}, ConfigError, 'batch_size 12 .*multiple of 8'),
    (
      {'mesh.data': 1, 'mesh.tensor': 8},
      ConfigError,
      'does not divide over 8',
    ),
    (
      {'loss.epsilon': 0.0, 'loss.unseen': 'formula'},
      ConfigError,
      'epsilon 0 gives .* of 512',
    ),
    (
      {'loss.alpha': 60.0, 'loss.epsilon': 1e-6, 'loss.unseen': 'formula'},
      ConfigError,
      'overflow fp32 at alpha 60',
    ),
    ({'data.name': 'botocor'}, ConfigError, "did you mean 'botocore'"),
    ({'data.max_prompt': 12}, ConfigError, 'leaves no room'),
    ({'data.max_target': 1}, DataError, '0 of .* records remain; raise data'),
    ({'train.steps': 10**30}, ConfigError, 'train.steps must be a whole'),
  ],
)
def test_bad_settings_end_in_one_line(
  data_dir, tmp_path, stop, changes, error, words
):
  with pytest.raises(error, match=words) as raised:
    run(data_dir, tmp_path, stop, **changes)
  assert '\n' not in str(raised.value)
  assert not (tmp_path / 'results.json').exists()


def test_all_checkpoints_damaged_is_an_error(
  data_dir, tmp_path, stop, monkeypatch
):
  with monkeypatch.context() as patch:
    send_at(1, patch)
    with pytest.raises(PreemptedError):
      run(data_dir, tmp_path, stop)
  for file in (tmp_path / 'checkpoints').rglob('d/*'):
    file.write_bytes(b'')
  with pytest.raises(CheckpointError, match='no intact checkpoint'):
    run(data_dir, tmp_path, loop.StopRequest())


def results_of(workdir):
  return json.loads((workdir / 'results.json').read_text('utf-8'))


def test_a_rival_with_a_tilt_and_a_mixed_table(
  finished, data_dir, tmp_path, stop, capsys
):
  """What only the job puts together: schedule, general corpus, tilt."""
  workdir = run(data_dir, tmp_path / 'rival', stop, **{
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
  lines = (
    (workdir / 'predictions' / 'after.jsonl').read_text('utf-8').splitlines()
  )
  assert all(json.loads(line)['decode']['tilt'] == 0.5 for line in lines)
  rows = [row for row in losses(workdir) if 'loss' in row]
  same = [row['loss'] == pytest.approx(row['plain_loss']) for row in rows]
  assert same == [True] * 3 + [False] * 3
  own, mixed = (
    results_of(path)['loss']['frequency_table_fingerprint']
    for path in (finished, workdir)
  )
  assert own != mixed


def test_weights_by_words(finished, data_dir, tmp_path, stop):
  workdir = run(data_dir, tmp_path / 'words', stop, **{'loss.level': 'word'})
  tokens, words = (
    results_of(path)['loss']['weights_crc32'] for path in (finished, workdir)
  )
  assert tokens != words
  assert results_of(workdir)['loss']['level'] == 'word'


def test_a_general_table_of_another_tokenizer_is_refused(
  finished, data_dir, tmp_path, stop
):
  with pytest.raises(DataError, match='was counted with tokenizer'):
    run(data_dir, tmp_path / 'mix', stop, **{
      'loss.background_table': str(finished / 'frequency.npz'),
      'loss.background_weight': 0.5,
      'model.vocab_size': 600,
    })  # fmt: skip


def test_a_refused_command_leaves_the_record_of_another_run(finished):
  """Neither a finished run nor one of another configuration has failed."""
  before = (finished / 'status.json').read_text('utf-8')
  stored = json.loads((finished / 'config.json').read_text('utf-8'))
  stored.pop('hash')
  other = Settings.from_resolved({**stored, 'seed': 7})
  stored = Settings.from_resolved(stored)
  run_folder.note_failure(finished, stored, 'error', 'of a finished run')
  run_folder.note_failure(finished, other, 'error', 'of another run')
  assert (finished / 'status.json').read_text('utf-8') == before


def test_a_failure_is_noted_in_its_own_run(tmp_path, data_dir):
  settings = Settings.from_config(small.job_config(data_dir))
  folder = RunFolder(tmp_path, settings)
  folder.write_status('running', 3)
  run_folder.note_failure(tmp_path, settings, 'error', 'a full disk')
  status = json.loads((tmp_path / 'status.json').read_text('utf-8'))
  assert (status['state'], status['error']) == ('error', 'a full disk')
  assert status['step'] == 3


def read_predictions(workdir, name):
  lines = (
    (workdir / 'predictions' / f'{name}.jsonl').read_text('utf-8').splitlines()
  )
  return [json.loads(line) for line in lines]


def test_a_run_can_start_from_what_another_ended_with(
  finished, data_dir, tmp_path, stop
):
  from_it = {'model.pretrained': f'run:{finished}', 'train.steps': 3}
  workdir = run(data_dir, tmp_path / 'run', stop, **from_it)
  assert read_predictions(workdir, 'before') == read_predictions(
    finished, 'after'
  )
  assert read_predictions(workdir, 'after') != read_predictions(
    workdir, 'before'
  )
  one, other = (
    frequency.read(path / 'frequency.npz') for path in (finished, workdir)
  )
  assert one.fingerprint == other.fingerprint


def test_a_run_to_start_from_has_to_be_there_and_finished(
  finished, data_dir, tmp_path, stop
):
  missing = {'model.pretrained': f'run:{tmp_path}/none'}
  with pytest.raises(ConfigError, match='model.pretrained: there is no run in'):
    run(data_dir, tmp_path / 'a', stop, **missing)
  half = tmp_path / 'half'
  half.mkdir()
  (half / 'config.json').write_text(
    (finished / 'config.json').read_text('utf-8'), 'utf-8'
  )
  with pytest.raises(ConfigError, match='half has not finished; the command'):
    run(data_dir, tmp_path / 'b', stop, **{'model.pretrained': f'run:{half}'})
