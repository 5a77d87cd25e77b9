"""Claims: one winner, the living are left alone, the dead are replaced."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pdl_jax import process
from pdl_jax.errors import HostError
from pdl_jax.sweep import claims
from pdl_jax.sweep.claims import PREEMPTED, Attempt, Cell, End
from tests.sweep.stand_in import wait_for

HASH = '0123abcd'


@pytest.fixture
def root(tmp_path):
  (tmp_path / 'sweep').mkdir()
  return tmp_path


@pytest.fixture
def sleeper(tmp_path):
  """A process with a name that looks like fields of /proc/PID/stat."""
  odd = tmp_path / 'a) Z 1 (b'
  odd.symlink_to('/bin/sleep')
  with subprocess.Popen([odd, '600']) as child:
    comm = Path(f'/proc/{child.pid}/comm')
    wait_for(lambda: 'a) Z' in comm.read_text('utf-8'))
    yield child
    child.kill()


def name_of(pid):
  return {'pid': pid, 'started': process.start_time(pid)}


def claimed(root, **changes):
  """A claim of this process, except for the changes."""
  attempt = claims.claim(root, HASH, [])
  path = attempt.path('claim')
  found = json.loads(path.read_text('utf-8'))
  path.write_text(json.dumps(found | changes), 'utf-8')
  return attempt


def at_once(action, arguments):
  """Results of calls from threads that begin together."""
  barrier, found = threading.Barrier(len(arguments)), []

  def call(argument):
    barrier.wait()
    found.append((argument, action(argument)))

  threads = [threading.Thread(target=call, args=(x,)) for x in arguments]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return found


def test_of_all_who_claim_at_once_one_gets_it(root):
  """Attempts are listed by number, and nothing else is left."""
  made = []
  for number in range(1, 12):
    won = at_once(lambda _: claims.claim(root, HASH, made), range(8))
    (winner,) = [attempt for _, attempt in won if attempt is not None]
    assert winner == Attempt(root / 'sweep', HASH, number)
    made.append(winner)
  other = claims.claim(root, 'ffffffff', [])
  assert claims.attempts(root) == {HASH: made, 'ffffffff': [other]}
  left = {attempt.path('claim') for attempt in (*made, other)}
  assert set((root / 'sweep').iterdir()) == left
  assert claims.attempts(root / 'no_such_folder') == {}


def test_a_claim_lasts_as_long_as_its_sweeper_or_its_run(root, sleeper):
  now = process.clock(root / 'sweep')
  own = name_of(os.getpid())
  reused = {**own, 'started': own['started'] - 1}
  attempt = claimed(root)
  assert attempt.lasts(now) and attempt.end is None
  attempt.path('claim').unlink()
  attempt = claimed(root, **reused)
  assert not attempt.lasts(now)
  worker = attempt.path('worker')
  worker.write_text(json.dumps(name_of(sleeper.pid)), 'utf-8')
  assert attempt.lasts(now)
  sleeper.kill()
  # A zombie is dead.
  os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
  assert not attempt.lasts(now)
  sleeper.wait()
  assert not attempt.lasts(now)
  worker.write_text(json.dumps(own), 'utf-8')
  attempt.write_end(End(5, 1.5, 'error: diverged'))
  assert not attempt.lasts(now)
  assert attempt.end == End(5, 1.5, 'error: diverged')


@pytest.mark.parametrize(
  ('age', 'lasts'), [(0, True), (claims.STALE - 5, True), (claims.STALE, False)]
)
def test_on_another_machine_the_heartbeat_decides(root, age, lasts):
  """Its process ids say nothing here."""
  attempt = claimed(root, machine='another', pid=1)
  now = process.clock(root / 'sweep')
  os.utime(attempt.path('claim'), (now - age, now - age))
  assert attempt.lasts(now) == lasts
  attempt.beat()
  assert attempt.lasts(now)


def test_the_start_of_a_process_is_read_whatever_its_name(sleeper):
  fields = Path(f'/proc/{sleeper.pid}/stat').read_text('utf-8').split()
  assert process.start_time(sleeper.pid) == int(fields[21 + 3])


def test_another_boot_is_another_machine(monkeypatch):
  here = process.machine()
  monkeypatch.setattr(
    Path, 'read_text', lambda *_, **__: '00000000-0000-0000-0000-000000000000'
  )
  assert process.machine() != here


def become(parent, file, *command):
  """How a process ends that was to become a command."""
  line = [sys.executable, '-I', '-S', process.__file__, str(parent), str(file)]
  return subprocess.run(
    [*line, *command], capture_output=True, encoding='utf-8', check=False
  )


def test_without_its_parent_or_its_program_no_command_runs(tmp_path):
  file, made = tmp_path / 'worker', tmp_path / 'made'
  ended = become(os.getpid() + 1, file, 'touch', str(made))
  assert ended.returncode == PREEMPTED and not made.exists()
  ended = become(os.getpid(), file, 'no_such_program')
  assert (ended.returncode, ended.stderr) == (
    1, 'error: there is no program no_such_program\n'
  )  # fmt: skip


def test_a_command_ends_with_its_parent_even_by_kill_9(tmp_path):
  file = tmp_path / 'worker'
  code = (
    'import os, subprocess, sys\n'
    'line = [sys.argv[1], "-I", "-S", sys.argv[2], str(os.getpid())]\n'
    'subprocess.run([*line, sys.argv[3], "sleep", "600"])\n'
  )
  parent = subprocess.Popen([
    sys.executable, '-S', '-c', code, sys.executable, process.__file__,
    str(file),
  ])  # fmt: skip
  wait_for(file.exists)
  child = json.loads(file.read_text('utf-8'))
  comm = Path(f'/proc/{child["pid"]}/comm')
  wait_for(lambda: comm.read_text('utf-8') == 'sleep\n')
  parent.kill()
  parent.wait()
  wait_for(lambda: process.start_time(child['pid']) != child['started'])


def cell(digest=HASH, name='a=1'):
  return Cell((name,), {}, {'train': {'steps': 3}}, name, digest)


def configured(root, name, text=f'{{"hash": "{HASH}"}}'):
  (root / name).mkdir()
  (root / name / 'config.json').write_text(text, 'utf-8')
  return root / name


def test_run_folders_are_found_by_their_config_or_their_old_name(root):
  """A torn one stands under its own name."""
  for name in ('b-ffffffff', 'runs', 'c-12'):
    (root / name).mkdir()
  (root / 'c-eeeeeeee.preview.html').touch()
  # A name may end like a hash by chance.
  found = configured(root, 'pretrained=run:b-ffffffff')
  configured(root, 'd=1', '{')
  configured(root, 'e=1-99999999', '{')
  assert claims.run_folders(root) == {
    HASH: found, 'ffffffff': root / 'b-ffffffff', 'd=1': root / 'd=1',
    '99999999': root / 'e=1-99999999',
  }  # fmt: skip


@pytest.mark.parametrize('finished', ['a', 'b', 'c'])
def test_of_two_folders_of_one_run_the_finished_one(tmp_path, finished):
  for name in 'abc':
    configured(tmp_path, name)
  (tmp_path / finished / 'results.json').touch()
  assert claims.run_folders(tmp_path)[HASH].name == finished


@pytest.mark.parametrize('name', [f'a=1-{HASH}', 'by=hand', 'a=1'])
def test_a_folder_that_is_there_is_continued(root, name):
  """That of an older version, one made by hand, and a torn one."""
  if name.endswith(HASH):
    (root / name).mkdir()
  else:
    configured(root, name, *['{'] * (name == 'a=1'))
  assert claims.open_run(root, cell()) == root / name


def test_of_all_who_make_a_folder_at_once_each_finds_the_same(root):
  """Two runs of one name: one of them has its hash in it."""
  digests = [HASH, 'ffffffff'] * 4
  made = at_once(lambda digest: claims.open_run(root, cell(digest)), digests)
  assert len(made) == 8 and len(set(made)) == 2
  folders = dict(made)
  assert claims.run_folders(root) == folders
  (second,) = [x for x, path in folders.items() if path.name != 'a=1']
  assert folders[second] == root / f'a=1-{second}'
  kept = json.loads((root / 'a=1' / 'config.json').read_text('utf-8'))
  assert kept == {'hash': kept['hash'], 'train': {'steps': 3}}
  assert list((root / 'sweep').iterdir()) == []


def test_a_single_run_goes_where_it_was_or_where_its_name_is_free(tmp_path):
  where = lambda: claims.default_folder(tmp_path, 'a=1', HASH).name
  assert where() == 'a=1'
  configured(tmp_path, 'a=1')
  assert where() == 'a=1'
  (tmp_path / 'a=1' / 'config.json').write_text('{"hash": "0"}', 'utf-8')
  assert where() == f'a=1-{HASH}'
  # It is refused there in a line that names the file.
  (tmp_path / 'a=1' / 'config.json').write_text('{', 'utf-8')
  assert where() == 'a=1'
  (tmp_path / f'a=1-{HASH}').mkdir()
  assert where() == f'a=1-{HASH}'


def test_other_systems_than_linux_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(Path, 'is_symlink', lambda _: False)
  with pytest.raises(HostError, match='needs Linux'):
    claims.open_folder(tmp_path, [cell()])
  assert list(tmp_path.iterdir()) == []
