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
from pdl_jax.sweep.cell import Cell
from pdl_jax.sweep.claims import PREEMPTED, Attempt, End
from tests.sweep.stand_in import wait_for

HASH = '0123abcd'


@pytest.fixture
def root(tmp_path):
  claims.open_folder(tmp_path)
  return tmp_path


@pytest.fixture
def sleeper():
  with subprocess.Popen(['sleep', '600']) as child:
    yield child
    child.kill()


def gone():
  """Of a process that was, as a claim has it."""
  child = subprocess.Popen(['sleep', '600'])
  name = name_of(child.pid)
  child.kill()
  child.wait()
  return name


def name_of(pid):
  return {'pid': pid, 'started': process.start_time(pid)}


def rewrite(attempt, **changes):
  path = attempt.path('claim')
  path.write_text(
    json.dumps(json.loads(path.read_text('utf-8')) | changes), 'utf-8'
  )


def test_of_all_who_claim_at_once_one_gets_it(root):
  for number in range(20):
    before = [Attempt(root / 'sweep', HASH, number)] if number else []
    barrier, won = threading.Barrier(8), []

    def claim(before=before, barrier=barrier, won=won):
      barrier.wait()
      won.append(claims.claim(root, HASH, before))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    winners = [attempt for attempt in won if attempt is not None]
    assert winners == [Attempt(root / 'sweep', HASH, number + 1)]


def test_attempts_are_listed_in_their_order(root):
  made = []
  for _ in range(11):
    made.append(claims.claim(root, HASH, made))
  other = claims.claim(root, 'ffffffff', [])
  assert claims.attempts(root) == {HASH: made, 'ffffffff': [other]}
  assert claims.attempts(root / 'no_such_folder') == {}


def test_a_claim_leaves_nothing_else_behind(root):
  attempt = claims.claim(root, HASH, [])
  claims.claim(root, HASH, [])
  assert list((root / 'sweep').iterdir()) == [attempt.path('claim')]


def test_a_claim_of_a_living_sweeper_lasts_until_its_end(root):
  attempt = claims.claim(root, HASH, [])
  assert attempt.lasts(claims.clock(root))
  assert attempt.end is None
  attempt.write_end(End(5, 1.5, 'error: diverged'))
  assert not attempt.lasts(claims.clock(root))
  assert attempt.end == End(5, 1.5, 'error: diverged')


def test_a_claim_of_a_dead_sweeper_does_not_last(root):
  attempt = claims.claim(root, HASH, [])
  rewrite(attempt, **gone())
  assert not attempt.lasts(claims.clock(root))


def test_a_process_id_that_was_used_again_is_not_the_sweeper(root):
  attempt = claims.claim(root, HASH, [])
  started = process.start_time(os.getpid())
  assert started is not None
  rewrite(attempt, started=started - 1)
  assert not attempt.lasts(claims.clock(root))


def test_a_run_that_outlives_its_sweeper_lasts(root, sleeper):
  attempt = claims.claim(root, HASH, [])
  rewrite(attempt, **gone())
  attempt.path('worker').write_text(json.dumps(name_of(sleeper.pid)), 'utf-8')
  assert attempt.lasts(claims.clock(root))
  sleeper.kill()
  sleeper.wait()
  assert not attempt.lasts(claims.clock(root))


@pytest.mark.parametrize(
  ('age', 'lasts'), [(0, True), (claims.STALE - 5, True), (claims.STALE, False)]
)
def test_on_another_machine_the_heartbeat_decides(root, age, lasts):
  """Its process ids say nothing here."""
  attempt = claims.claim(root, HASH, [])
  rewrite(attempt, machine='another', **gone())
  then = claims.clock(root) - age
  os.utime(attempt.path('claim'), (then, then))
  assert attempt.lasts(claims.clock(root)) == lasts
  attempt.beat()
  assert attempt.lasts(claims.clock(root))


def test_another_boot_is_another_machine(monkeypatch):
  here = process.machine()
  monkeypatch.setattr(
    Path, 'read_text', lambda *_, **__: '00000000-0000-0000-0000-000000000000'
  )
  assert process.machine() != here


def test_superseded_by_the_next_attempt(root):
  first = claims.claim(root, HASH, [])
  assert not first.superseded
  second = claims.claim(root, HASH, [first])
  assert (first.superseded, second.superseded) == (True, False)


def test_what_counts_as_a_failure():
  codes = (0, PREEMPTED, 1, 2, 5, -9)
  failed = [End(code, 0.0, '').failed for code in codes]
  assert failed == [False, False, True, True, True, True]


def test_a_zombie_is_dead():
  child = subprocess.Popen(['sleep', '600'])
  assert process.start_time(child.pid) is not None
  child.kill()
  os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
  assert process.start_time(child.pid) is None
  child.wait()
  assert process.start_time(child.pid) is None


def test_names_of_processes_may_hold_anything(tmp_path):
  odd = tmp_path / 'a) Z 1 (b'
  odd.symlink_to('/bin/sleep')
  with subprocess.Popen([odd, '600']) as child:
    wait_for(
      lambda: 'a) Z' in Path(f'/proc/{child.pid}/comm').read_text('utf-8')
    )
    fields = Path(f'/proc/{child.pid}/stat').read_text('utf-8').split()
    assert process.start_time(child.pid) == int(fields[21 + 3])
    child.kill()


def become(parent, file, *command):
  return [
    sys.executable, '-I', '-S', process.__file__, str(parent), str(file),
    *command,
  ]  # fmt: skip


def test_becoming_a_command_leaves_its_name(tmp_path):
  file = tmp_path / 'worker'
  code = 'import os; print(os.getpid())'
  done = subprocess.run(
    become(os.getpid(), file, sys.executable, '-c', code),
    capture_output=True, encoding='utf-8', check=True,
  )  # fmt: skip
  assert json.loads(file.read_text('utf-8'))['pid'] == int(done.stdout)


def test_without_its_parent_the_command_never_runs(tmp_path):
  made = tmp_path / 'made'
  line = become(os.getpid() + 1, tmp_path / 'worker', 'touch', str(made))
  assert subprocess.run(line, check=False).returncode == PREEMPTED
  assert not made.exists()


def test_a_missing_program_is_named(tmp_path):
  line = become(os.getpid(), tmp_path / 'worker', 'no_such_program')
  done = subprocess.run(
    line, capture_output=True, encoding='utf-8', check=False
  )
  assert done.returncode == 1
  assert done.stderr == 'error: there is no program no_such_program\n'


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


def test_a_folder_is_named_by_what_differs_and_has_its_hash_in_it(root):
  made = claims.open_run(root, cell())
  assert made == root / 'a=1'
  kept = json.loads((made / 'config.json').read_text('utf-8'))
  assert kept == {'hash': HASH, 'train': {'steps': 3}}
  assert claims.open_run(root, cell()) == made
  # Another configuration that was swept into the same folder.
  other = claims.open_run(root, cell('ffffffff'))
  assert other == root / 'a=1-ffffffff'
  assert claims.run_folders(root) == {HASH: made, 'ffffffff': other}
  assert list((root / 'sweep').iterdir()) == []


@pytest.mark.parametrize('name', [f'a=1-{HASH}', 'by=hand', 'a=1'])
def test_a_folder_that_is_there_is_continued(root, name):
  """That of an older version, one made by hand, and a torn one."""
  if name.endswith(HASH):
    (root / name).mkdir()
  else:
    configured(root, name, *['{'] * (name == 'a=1'))
  assert claims.open_run(root, cell()) == root / name


def test_of_all_who_make_a_folder_at_once_each_finds_the_same(root):
  barrier, made = threading.Barrier(8), []

  def make(digest):
    barrier.wait()
    made.append((digest, claims.open_run(root, cell(digest))))

  threads = [
    threading.Thread(target=make, args=(digest,))
    for digest in [HASH, 'ffffffff'] * 4
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(made) == 8 and len(set(made)) == 2
  assert list((root / 'sweep').iterdir()) == []
  assert claims.run_folders(root) == dict(made)


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
    claims.open_folder(tmp_path)
  assert list(tmp_path.iterdir()) == []
