"""Commands that start pods: as text, through real shells, and on failure.

After a wanted change, write the golden plans again and look at their diff:

  python -m tests.cluster.test_pods
"""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from pdl_jax import run_folder
from pdl_jax.cluster import multihost, pod_plan, pods
from pdl_jax.cluster.pod_plan import Plan, Step, Training, to_shell
from pdl_jax.cluster.pods import Pod
from pdl_jax.errors import ConfigError, HostError

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / 'pdl_jax' / 'cluster' / 'pods'
GOLDEN = ROOT / 'tests' / 'golden' / 'pods'
COMMIT = '0123456789abcdef0123456789abcdef01234567'
AWKWARD = '--config.data.name=a "b" $HOME it\'s `d` & é'
PODS = {
  'tpu_vm': Pod(
    'tpu-vm', 'v6', 'us-east5-a', 'v6e-16', share='10.0.0.2:/runs',
    capacity='spot',
  ),
  'tpu_vm_there': Pod('tpu-vm', 'v6', 'us-east5-a'),
  'queued_resource': Pod(
    'queued-resource', 'v5', 'us-west4-a', 'v5litepod-16',
    share='gs://my-runs', capacity='reserved',
  ),
  'mig': Pod(
    'mig', 'gpu', 'us-central1-a', 'a3-highgpu-8g', hosts=2,
    image='deeplearning-platform-release/my-family', share='10.0.0.2:/runs',
    capacity='spot',
  ),
  'xpk': Pod(
    'xpk', 'first', 'us-west4-a', 'v5litepod-16', share='my-storage',
    cluster='my-cluster',
  ),
  'slurm': Pod('slurm', 'first', accelerator='h100:8', hosts=2),
}  # fmt: skip
# Values that a shell would act on.
TRAP = "a';>ran;' \";>ran;\" $(>ran) `>ran` & >ran"
TRAPS = {
  'tpu_vm': Pod(
    'tpu-vm', 'v6', TRAP, 'v6e-16', image=TRAP, share=f'x:/a{TRAP}'
  ),
  'mig': Pod(
    'mig', 'gpu', TRAP, TRAP, 1, f'{TRAP}/{TRAP}', f'x:/a{TRAP}'
  ),
  'xpk': Pod('xpk', 'x', TRAP, TRAP, 0, TRAP, TRAP, cluster=TRAP),
  'slurm': Pod('slurm', 'x', accelerator=f'{TRAP}:8', hosts=2),
}  # fmt: skip


def told(*arguments, workdir='/mnt/shared/runs/a run'):
  arguments = ('--config=configs/summarize.py', *arguments)
  packed = Path('/tmp', f'pdl_jax-{COMMIT[:12]}.tar.gz')
  return Training(arguments, Path(workdir), COMMIT, packed)


def plan(name, *arguments, **options):
  return pod_plan.make(PODS[name], told(*arguments, **options))


def executable(folder, name, text):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(f'#!/bin/bash\n{text}\n', 'utf-8')
  (folder / name).chmod(0o755)


@pytest.fixture
def stubs(tmp_path, monkeypatch):
  """A folder of programs before all others; sleep does nearly nothing."""
  executable(tmp_path / 'bin', 'sleep', 'exec /bin/sleep 0.2')
  monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  return tmp_path / 'bin'


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A committed tree of all that is shipped, and the working folder."""
  folder = tmp_path / 'checkout'
  for name in run_folder.CODE:
    path = folder / name / 'x.py' if '.' not in name else folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('', 'utf-8')
  config = (ROOT / 'configs' / 'summarize.py').read_text('utf-8')
  (folder / 'configs' / 'summarize.py').write_text(config, 'utf-8')
  monkeypatch.chdir(folder)
  for key in ('AUTHOR', 'COMMITTER'):
    monkeypatch.setenv(f'GIT_{key}_NAME', 'x')
    monkeypatch.setenv(f'GIT_{key}_EMAIL', 'x@example.org')
  for line in ('init --quiet', 'add .', 'commit --quiet --message=x'):
    subprocess.run(['git', *line.split()], check=True)
  return folder


def bash(*arguments, text=None, **options):
  return subprocess.run(
    ['bash', *arguments], input=text, capture_output=True, encoding='utf-8',
    check=False, **options,
  )  # fmt: skip


def wait_for(words, file):
  """The text of a file, once it ends with these words."""
  while not (file.exists() and file.read_text('utf-8').endswith(words)):
    time.sleep(0.05)
  return file.read_text('utf-8')


@pytest.mark.parametrize('name', PODS)
def test_plans_are_the_golden_ones(name, monkeypatch):
  monkeypatch.chdir('/')
  kept = (GOLDEN / f'{name}.sh').read_text('utf-8')
  assert to_shell(plan(name)) + '\n' == kept


def test_xpk_makes_the_slices_of_the_mesh():
  two = pod_plan.make(PODS['xpk'], told()._replace(slices=2))
  added = set(to_shell(two).split()) - set(to_shell(plan('xpk')).split())
  assert added == {'--num-slices=2'}
  pods.check_slices('xpk', 2)
  pods.check_slices('tpu-vm', 1)
  with pytest.raises(ConfigError, match='tpu-vm is one slice; mesh.slices 2'):
    pods.check_slices('tpu-vm', 2)


@pytest.mark.parametrize(
  ('slices', 'number'), [({}, 1), ({'MEGASCALE_SLICE_ID': '2'}, 5)]
)
def test_workers_of_every_slice_have_numbers_of_their_own(
  monkeypatch, slices, number
):
  environment = {'TPU_WORKER_ID': '1', 'TPU_WORKER_HOSTNAMES': 'a,b', **slices}
  for key, value in environment.items():
    monkeypatch.setenv(key, value)
  assert multihost.number_here() == number


@pytest.mark.parametrize('name', ['mig', 'slurm'])
def test_a_pasted_plan_runs_its_commands(name, tmp_path):
  """With functions in place of programs, which print their arguments."""
  made = plan(name, AWKWARD, workdir=tmp_path / 'a run')
  programs = {command[0] for step in made.steps for command in step.commands}
  text = ''.join(
    f"{each}() {{ printf '%s\\0' {each} \"$@\" END; }}\n" for each in programs
  )
  done = bash(text=text + to_shell(made))
  ran = [tuple(each.split('\0')) for each in done.stdout.split('\0END\0')]
  # Those of one step may come in any order.
  assert sorted(ran[:-1]) == sorted(
    command for step in made.steps for command in step.commands
  )
  for file, written in made.files.items():
    assert file.read_text('utf-8') == written


@pytest.mark.parametrize('name', TRAPS)
def test_no_value_is_read_as_shell(name, tmp_path, monkeypatch):
  """Neither where the plan is pasted nor by the shells of the hosts."""
  monkeypatch.chdir(tmp_path)
  made = pod_plan.make(TRAPS[name], told(TRAP, workdir=tmp_path / TRAP))
  commands = [
    command for step in (*made.steps, *made.later) for command in step.commands
  ]
  lines = [*map(shlex.join, commands), *made.files.values()]
  lines += [
    word.removeprefix('--command=') for command in commands for word in command
    if word.startswith('--command=')
  ]  # fmt: skip
  programs = {command[0] for command in commands}
  nothing = ''.join(
    f'{each}() {{ :; }}\n'
    for each in (*programs, 'bash', 'cd', 'exec', 'tar', 'tail', 'srun')
  )
  for line in lines:
    bash(text=f'{nothing}{line}\n')
    assert not Path('ran').exists(), line
  assert sum(line.count('>ran') for line in lines) > len(made.steps)


@pytest.mark.parametrize('name', ['tpu_vm', 'mig', 'xpk'])
def test_arguments_arrive_as_they_were(name, tmp_path, stubs, monkeypatch):
  """Through the pasted line, the shell of the host, and start.sh."""
  monkeypatch.setenv('TPU_WORKER_ID', '3')
  monkeypatch.setenv('MEGASCALE_SLICE_ID', '1')
  made = plan(name, AWKWARD, workdir=tmp_path / 'a run')
  line = shlex.split(shlex.join(made.steps[-1].commands[-1]))[-1]
  remote = line.removeprefix('--command=')
  code = told().code if 'cd ' in remote else '.'
  scripts = tmp_path / code / 'pdl_jax' / 'cluster' / 'pods'
  executable(scripts, 'start.sh', (SCRIPTS / 'start.sh').read_text('utf-8'))
  executable(scripts, 'setup.sh', 'test $1 = tpu')
  executable(tmp_path / code / '.venv' / 'bin', 'python', 'printf "%s\\n" "$@"')
  executable(stubs, 'curl', 'echo 5')
  bash('-c', remote, cwd=tmp_path)
  number = {'tpu_vm': 5, 'mig': 1, 'xpk': '1-3'}[name]
  own = [
    '--coordinator=gpu-0:8476', '--num_processes=2', '--process_id=1'
  ]  # fmt: skip
  last = own[-1] if name == 'mig' else '--multihost'
  log = wait_for(f'{last}\n', tmp_path / f'a run/logs/host-{number}.log')
  assert log.splitlines()[:5] == [
    'launch.py', '--config=configs/summarize.py', AWKWARD,
    f'--workdir={tmp_path}/a run', '--multihost',
  ]  # fmt: skip
  assert log.splitlines()[5:] == (own if name == 'mig' else [])


@pytest.mark.parametrize('code', [0, 4, 75])
def test_a_preempted_slurm_job_is_queued_again(
  code, tmp_path, stubs, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('SLURM_JOB_ID', '17')
  (tmp_path / '.cache' / 'pods' / told().code).mkdir(parents=True)
  executable(stubs, 'srun', f'printf "%s\\n" "$@"; exit {code}')
  executable(stubs, 'scontrol', 'echo scontrol "$@"')
  (text,) = plan('slurm', AWKWARD).files.values()
  done = bash(text=text)
  lines = done.stdout.splitlines()
  assert done.returncode == code
  assert AWKWARD in lines
  assert '--output=/mnt/shared/runs/a run/logs/host-%n.log' in lines
  assert ('scontrol requeue 17' in lines) == (code == 75)


def test_a_training_outlives_its_session_and_is_not_doubled(tmp_path, stubs):
  start = [
    SCRIPTS / 'start.sh', '0', tmp_path / 'logs', 'bash', '-c',
    'trap "echo saved; exit 75" TERM; echo begun; while :; do /bin/sleep 0.05; '
    'done',
  ]  # fmt: skip
  first = bash(*start)
  pid = int((tmp_path / 'pdl_jax.pid').read_text('utf-8'))
  try:
    assert first.returncode == 0, first.stderr
    assert os.getsid(pid) == pid
    second = bash(*start)
    assert second.returncode == 1
    assert second.stderr == 'host 0 trains already; stop that first\n'
  finally:
    os.kill(pid, signal.SIGTERM)
  log = wait_for('saved\n', tmp_path / 'logs' / 'host-0.log')
  assert log == 'begun\nsaved\n'


def test_what_fails_at_once_is_seen_at_once(tmp_path, stubs):
  # For as long as the program needs to end, on a busy machine too.
  log = tmp_path / 'host-0.log'
  executable(stubs, 'sleep', f'until test -s {log}; do :; done; /bin/sleep 1')
  done = bash(
    SCRIPTS / 'start.sh', '0', tmp_path, 'bash', '-c',
    'echo error: no config; exit 2',
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr == 'error: no config\n'


@pytest.mark.parametrize(
  ('last', 'code'), [('ACTIVE', 0), ('FAILED', 1), ('SUSPENDED', 1)]
)
def test_a_queued_resource_is_waited_for(last, code, tmp_path, stubs):
  states = tmp_path / 'states'
  states.write_text(f'ACCEPTED\nPROVISIONING\n{last}\nnever asked\n', 'utf-8')
  executable(stubs, 'gcloud', f'head -n 1 {states}; sed -i 1d {states}')
  executable(stubs, 'sleep', '')
  done = bash(SCRIPTS / 'wait.sh', 'v5', 'us-west4-a')
  assert done.returncode == code
  assert states.read_text('utf-8') == 'never asked\n'
  assert [line.split()[1] for line in done.stdout.splitlines()] == [
    'ACCEPTED', 'PROVISIONING', last
  ]  # fmt: skip


def test_packages_are_installed_once(tmp_path, stubs):
  uv = tmp_path / '.tools' / 'bin'
  executable(uv, 'uv', f'echo uv "$@" >> {tmp_path}/told; mkdir -p .venv')
  executable(stubs, 'python3', f'echo python3 "$@" >> {tmp_path}/told')
  scripts = tmp_path / 'pdl_jax' / 'cluster' / 'pods'
  executable(scripts, 'setup.sh', (SCRIPTS / 'setup.sh').read_text('utf-8'))
  for _ in range(2):
    assert bash(scripts / 'setup.sh', 'cuda12').returncode == 0
  lines = (tmp_path / 'told').read_text('utf-8').splitlines()
  assert len(lines) == 4
  assert lines[2].endswith('jax[cuda12] --requirement requirements.txt')
  assert lines[3].endswith('--no-deps --requirement requirements-nodeps.txt')


MIG = {'pod_kind': 'mig', 'zone': 'z', 'hosts': 2, 'accelerator': 'a3'}


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({}, '--pod_kind=tpu-vm needs --zone'),
    ({'pod_kind': 'mig'}, '--pod_kind=mig needs --zone, --hosts'),
    ({'pod_kind': 'slurm', 'hosts': 2}, 'needs --accelerator'),
    ({'zone': 'z', 'hosts': 2}, 'tpu-vm does not read --hosts'),
    ({'zone': 'z', 'pod': 'My_Pod'}, '--pod=My_Pod has to be lower case'),
    ({'zone': 'z', 'pod': 'a' * 61}, 'at most 60 long'),
    ({'zone': 'z', 'capacity': 'spot'}, 'without --accelerator'),
    ({'zone': 'z', 'accelerator': 'nonsense'}, 'is no accelerator type'),
    ({'zone': 'z', 'accelerator': 'tpu7x-16'}, 'take --pod_kind=xpk'),
    ({'zone': 'z', 'share': 'gs://b/folder'}, 'neither IP:/EXPORT'),
    (MIG, '--image=PROJECT/FAMILY'),
    ({**MIG, 'image': 'p/f', 'capacity': 'reserved'}, 'a matching reservation'),
    (
      {'pod_kind': 'slurm', 'hosts': 2, 'accelerator': 'h100'}, '8 or h100:8'
    ),
  ],
)  # fmt: skip
def test_pods_that_cannot_be(fields, words):
  with pytest.raises(ConfigError, match=words) as caught:
    Pod(**{'pod_kind': 'tpu-vm', 'pod': 'x', **fields})
  assert '\n' not in str(caught.value)


def test_runtime_of_a_tpu():
  for accelerator, runtime in (
    ('v6e-16', 'v2-alpha-tpuv6e'), ('v5p-8', 'v2-alpha-tpuv5'),
    ('v5litepod-16', 'v2-alpha-tpuv5-lite'), ('v4-8', 'tpu-ubuntu2204-base'),
  ):  # fmt: skip
    assert Pod('tpu-vm', 'x', 'z', accelerator).runtime == runtime
    assert Pod('tpu-vm', 'x', 'z', accelerator, image='y').runtime == 'y'


def test_flags_of_a_pod_need_a_pod(monkeypatch):
  monkeypatch.setitem(vars(flags.FLAGS), '__flags_parsed', True)
  given = {'zone': 'z', 'capacity': 'spot', 'accelerator': 'v6e-8'}
  assert pods.pod() is None
  with flagsaver.as_parsed(pod='v6', **given):
    assert pods.pod() == Pod('tpu-vm', 'v6', 'z', 'v6e-8', capacity='spot')
  for more, words in (
    ({'pod': ''}, '--pod= has to be lower case'),
    ({}, '--zone belongs to --pod=NAME'),
  ):
    refused = pytest.raises(ConfigError, match=words)
    with flagsaver.as_parsed(**more, **given), refused:
      pods.pod()
  mine = ['--config', 'pod', '--config.a=--pod', '--config.pod=x']
  pod = ['--pod=x', '-zone', 'z', '--workdir=w', '--hosts', '2']
  assert pods.without([*mine, *pod]) == mine


@pytest.mark.parametrize(
  ('name', 'here', 'given', 'there'),
  [
    ('tpu_vm', 'runs/x', False, '/mnt/shared/runs/x'),
    ('tpu_vm', '/mnt/shared/x', True, '/mnt/shared/x'),
    ('tpu_vm', 'runs/x', True, 'has to be below /mnt/shared'),
    ('mig', '/home/me/x', True, 'has to be below /mnt/shared'),
    ('xpk', '/data/x', True, '/data/x'),
    ('xpk', 'runs/x', False, 'needs --workdir=FOLDER'),
    ('slurm', 'runs/x', False, '/runs/x'),
  ],
)
def test_run_folders_are_where_all_hosts_see_them(
  name, here, given, there, monkeypatch
):
  monkeypatch.chdir('/')
  if there.startswith('/'):
    found = pods.workdir(PODS[name], Path(here), given)
    assert found == Path(there)
  else:
    with pytest.raises(ConfigError, match=there):
      pods.workdir(PODS[name], Path(here), given)


def test_only_what_is_committed_is_shipped(checkout, monkeypatch):
  (checkout / 'notes.txt').write_text('not shipped', 'utf-8')
  made = pod_plan.committed(['--a'], Path('/w'))
  assert made.arguments == ('--a',)
  subprocess.run(made.pack, check=True)
  subprocess.run(['tar', '-xf', made.packed], check=True)
  made.packed.unlink()
  shipped = checkout / made.code
  # Where there is no checkout, env.json has the commit from there.
  assert (shipped / run_folder.COMMIT).read_text('utf-8') == made.commit
  assert (shipped / 'launch.py').exists()
  assert not (shipped / 'notes.txt').exists()
  shutil.rmtree(shipped)
  (checkout / 'configs' / 'mine.py').write_text('', 'utf-8')
  with pytest.raises(ConfigError, match=r'from which configs/mine\.py differs'):
    pod_plan.committed([], Path('/w'))
  (checkout / 'launch.py').write_text('1', 'utf-8')
  with pytest.raises(ConfigError, match=r'launch\.py and 1 more differs'):
    pod_plan.committed([], Path('/w'))
  monkeypatch.chdir(checkout / 'configs')
  with pytest.raises(HostError, match='start it in that folder'):
    pod_plan.committed([], Path('/w'))


def test_a_run_stops_at_the_step_that_fails(tmp_path, stubs, capfd):
  executable(stubs, 'gcloud', 'echo to $1; test $1 != bad || exit 3')
  steps = (
    Step('good', (('gcloud', 'one'), ('gcloud', 'two'))),
    Step('bad', (('gcloud', 'good'), ('gcloud', 'bad'))),
    Step('never', (('gcloud', 'three'),)),
  )
  file = tmp_path / 'new' / 'file'
  later = Step('To mend it', (('mend',),))
  made = Plan({file: 'text'}, steps, (later,))
  with pytest.raises(HostError) as caught:
    pod_plan.run(made)
  assert str(caught.value) == 'the step "bad" ended with exit code 3: to bad'
  printed = capfd.readouterr().out
  assert {'to one', 'to two', 'to bad'} < set(printed.splitlines())
  assert 'three' not in printed
  assert printed.endswith('# To mend it:\n#   mend\n')
  assert file.read_text('utf-8') == 'text'


def test_an_interrupted_run_says_how_to_clean_up(
  tmp_path, monkeypatch, capsys
):
  def interrupt(_):
    raise KeyboardInterrupt

  monkeypatch.setattr(pod_plan, '_run_command', interrupt)
  step = Step('create', (('true',),))
  later = Step('To delete it', (('delete', 'x'),))
  with pytest.raises(HostError, match='interrupted in the step "create"'):
    pod_plan.run(Plan({}, (step,), (later,)))
  assert capsys.readouterr().out.endswith('# To delete it:\n#   delete x\n')
  # What it needs is looked for before anything is begun.
  monkeypatch.setenv('PATH', str(tmp_path))
  missing = Step('submit', (('xpk', 'workload'),))
  with pytest.raises(HostError, match=r'xpk, which .* by pip install xpk'):
    pod_plan.run(Plan({}, (step, missing), ()))
  assert capsys.readouterr().out == ''


def test_the_command_prints_a_plan_or_runs_it(main, checkout, stubs):
  executable(
    stubs, 'gcloud',
    'touch ran; test $4 = scp || { echo ERROR: no quota; exit 1; }',
  )  # fmt: skip
  told = (
    '--config=configs/summarize.py:tiny', '--config.loss.alpha=0.5',
    '--pod=v5', '--zone=us-west4-a',
  )  # fmt: skip
  code, out, err = main(*told, '--dry_run')
  assert (code, err) == (0, '')
  assert '# 4/4 start the training\ngcloud compute tpus' in out
  assert (
    ' --config.loss.alpha=0.5 '
    '--workdir=/mnt/shared/runs/summarize-tiny/alpha=0.5 ' in out
  )
  assert not (checkout / 'ran').exists()
  code, out, err = main(*told)
  assert code == 4
  assert err == (
    'error: the step "unpack and install" ended with exit code 1: '
    'ERROR: no quota\n'
  )
  assert '# To delete the machines' in out


if __name__ == '__main__':
  os.chdir('/')
  GOLDEN.mkdir(exist_ok=True)
  for each in PODS:
    (GOLDEN / f'{each}.sh').write_text(to_shell(plan(each)) + '\n', 'utf-8')
