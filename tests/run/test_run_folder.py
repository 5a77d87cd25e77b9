"""Claims of a run folder, and what is written into it by whom."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest

from pdl_jax import process, run_claim, run_folder
from pdl_jax.config import Settings
from pdl_jax.errors import ConfigError, HostError, PreemptedError
from pdl_jax.run import finetune
from pdl_jax.run_folder import RunFolder
from tests import small
from tests.run.conftest import read


def claim_of(workdir, number=1, **changes):
  """A claim in a run folder, of this process except for the changes."""
  workdir.mkdir(exist_ok=True)
  path = workdir / f'run.{number}.claim'
  assert process.claim(path)
  found = read(path)
  path.write_text(json.dumps(found | changes), 'utf-8')
  return path


@pytest.fixture
def sleeper():
  with subprocess.Popen(['sleep', '600']) as child:
    yield {'pid': child.pid, 'started': process.start_time(child.pid)}
    child.kill()


def test_a_second_process_in_a_run_folder_is_refused(
  tmp_path, stop, sleeper
):
  settings = small.settings(tmp_path)
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
  with run_claim.claimed(tmp_path):
    (own,) = tmp_path.glob('*.claim')
    assert own.name == 'run.11.claim'
    with run_claim.claimed(tmp_path):  # by the same process
      assert [*tmp_path.glob('*.claim')] == [own]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('error', [PreemptedError, HostError, KeyError])
def test_a_run_that_ends_gives_its_folder_back(tmp_path, error):
  (tmp_path / 'predictions').mkdir()
  with pytest.raises(error), run_claim.claimed(tmp_path):
    raise error('so')
  assert [path.name for path in tmp_path.iterdir()] == ['predictions']


def test_of_another_machine_its_silence_decides(tmp_path):
  claim = claim_of(tmp_path, machine='another', host='there')
  with pytest.raises(HostError, match='on there since .*works after 120 s'):
    run_claim.check_unclaimed(tmp_path)
  then = claim.stat().st_mtime - 121
  os.utime(claim, (then, then))
  run_claim.check_unclaimed(tmp_path)


def test_a_torn_claim_is_one_of_another_machine(tmp_path):
  for text in ('', '[]', '{}', '{"pid": 1', 'null'):
    claim = claim_of(tmp_path)
    claim.write_text(text, 'utf-8')
    with pytest.raises(HostError, match='in use by process None'):
      run_claim.check_unclaimed(tmp_path)
    os.utime(claim, (0, 0))
    with run_claim.claimed(tmp_path):
      assert not claim.exists()


@pytest.mark.slow
def test_of_two_that_claim_at_once_one_is_let_in(tmp_path):
  code = (
    'import sys, time\n'
    'from pathlib import Path\n'
    'from pdl_jax import run_claim\n'
    'from pdl_jax.errors import HostError\n'
    'print("ready", flush=True)\n'
    'sys.stdin.readline()\n'
    'try:\n'
    '  with run_claim.claimed(Path(sys.argv[1])):\n'
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
  with run_claim.claimed(tmp_path), run_claim.claimed(tmp_path):
    assert list(tmp_path.iterdir()) == []
  assert capsys.readouterr().out.count('without hard links') == 1


def test_a_failure_is_noted_in_its_own_unfinished_run(finished, tmp_path):
  stored = read(finished / 'config.json')
  stored.pop('hash')
  own = Settings.from_resolved(stored)
  other = Settings.from_resolved({**stored, 'seed': 7})
  before = (finished / 'status.json').read_text('utf-8')
  run_folder.note_failure(finished, own, 'error', 'of a finished run')
  assert (finished / 'status.json').read_text('utf-8') == before
  RunFolder(tmp_path, own).write_status('running', 3)
  run_folder.note_failure(tmp_path, other, 'error', 'of another run')
  run_folder.note_failure(tmp_path, own, 'error', 'a full disk')
  status = read(tmp_path / 'status.json')
  assert (status['state'], status['error']) == ('error', 'a full disk')
  assert status['step'] == 3


def test_a_folder_of_other_runs_is_refused(tmp_path):
  settings = small.settings(tmp_path)
  RunFolder(tmp_path / 'alpha=0', settings)
  with pytest.raises(ConfigError, match=r'holds other runs; .*/NAME'):
    RunFolder(tmp_path, settings)
  assert {path.name for path in tmp_path.iterdir()} == {'alpha=0'}
