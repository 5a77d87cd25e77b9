"""Files of a run that are torn, altered or of another kind: a line each."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import jax
import pytest

from pdl_jax.config import Settings
from pdl_jax.errors import DataError
from pdl_jax.run_folder import CONFIG, STATUS, RunFolder, note_failure
from pdl_jax.storage import files
from tests.synthetic_runs import write_run

CONFIG_FILE = 'configs/summarize.py:tiny'
# How a file is spoilt: its text -> what is written in its place.
SPOILT = {
  'empty': lambda text: b'',
  'torn': lambda text: text[: len(text) // 2].encode(),
  'not UTF-8': lambda text: b'\xff\xfe' + text.encode(),
  'a list': lambda text: b'[]\n',
  'a number': lambda text: b'7\n',
  'null': lambda text: b'null\n',
  'nested': lambda text: b'[' * 100_000,
}
FILES = {
  'config.json': ('run', 'evaluate', 'export', 'run:'),
  'results.json': ('run', 'evaluate', 'export', 'run:', 'status'),
  'predictions/after.jsonl': ('evaluate',),
}


def settings():
  from configs import summarize

  return Settings.from_config(summarize.get_config('tiny'))


@pytest.fixture(scope='module')
def template(tmp_path_factory):
  """A finished run, by its files: none was trained."""
  path = tmp_path_factory.mktemp('template') / 'run'
  write_run(path, settings().resolved, seed=1)
  folder = RunFolder(path, settings())
  folder.write('results.json', folder.read('results.json') | {
    'task': 'summarize', 'padding_share': 0.5, 'examples': [],
  })  # fmt: skip
  folder.write_status('finished', 2)
  return path


@pytest.fixture
def run(template, tmp_path):
  """A copy of it."""
  return shutil.copytree(template, tmp_path / f'one-{"0" * 8}')


def command(name, run):
  return {
    'run': [f'--config={CONFIG_FILE}', f'--workdir={run}'],
    'evaluate': ['evaluate', str(run)],
    'export': ['export', str(run), f'--to={run.parent / "export"}'],
    'run:': [f'--config={CONFIG_FILE}', '--dry_run',
             f'--config.model.pretrained=run:{run}'],
    'status': ['status', str(run.parent)],
  }[name]  # fmt: skip


def refused(result, file):
  code, out, err = result
  assert code in (2, 3), (code, out, err)
  (line,) = err.splitlines()
  assert line.startswith('error: ') and str(file) in line, line


@pytest.mark.parametrize('how', [*SPOILT, 'a folder', 'a loop'])
@pytest.mark.parametrize(
  ('file', 'name'), [(f, name) for f, names in FILES.items() for name in names]
)
def test_a_spoilt_file_is_refused_in_a_line(run, main, file, name, how):
  path = run / file
  text = path.read_text('utf-8')
  path.unlink()
  if how == 'a folder':
    path.mkdir()
  elif how == 'a loop':
    path.symlink_to(path)
  else:
    path.write_bytes(SPOILT[how](text))
  if name == 'status':
    code, out, _ = main(*command(name, run))
    assert code == 0 and out.startswith('broken') and str(path) in out
  else:
    refused(main(*command(name, run)), path)
  assert not (run.parent / 'export').exists()


@pytest.mark.parametrize('change', ['null', 'missing', 'text', 'list'])
@pytest.mark.parametrize(
  ('file', 'field', 'name'),
  [
    ('config.json', 'loss', 'evaluate'), ('config.json', 'hash', 'export'),
    ('config.json', 'train', 'run'), ('results.json', 'columns', 'run'),
    ('results.json', 'columns', 'evaluate'),
    ('results.json', 'neutral_ids', 'evaluate'),
    ('results.json', 'steps', 'run:'),
    ('predictions/before.jsonl', 'reference_nll', 'evaluate'),
    ('predictions/after.jsonl', 'decode', 'evaluate'),
  ],
)  # fmt: skip
def test_a_spoilt_field_is_named(run, main, file, field, name, change):
  path = run / file
  text = path.read_text('utf-8')
  texts = text.splitlines() if file.endswith('l') else [text]
  lines = [json.loads(each) for each in texts]
  del lines[-1][field]
  if change != 'missing':
    values = {'null': None, 'text': 'x', 'list': ['x']}
    is_text = (change, field) == ('text', 'hash')
    lines[-1][field] = 1 if is_text else values[change]
  path.write_text('\n'.join(map(json.dumps, lines)) + '\n', 'utf-8')
  result = main(*command(name, run))
  refused(result, path)
  assert field in result[2]
  if file.endswith('l'):
    assert f'{path}:{len(lines)}: ' in result[2]


def test_altered_values_and_lost_predictions_are_refused(run, main):
  (run / 'predictions/after.jsonl').unlink()
  refused(main(*command('evaluate', run)), run / 'predictions')
  path = run / 'config.json'
  found = json.loads(path.read_text('utf-8'))
  found['train']['steps'] += 1
  path.write_text(json.dumps(found), 'utf-8')
  code, _, err = main(*command('evaluate', run))
  assert code == 2 and 'config.json was altered: its hash is' in err


@pytest.mark.parametrize('how', SPOILT)
@pytest.mark.parametrize('file', ['status.json', 'config.json'])
def test_one_broken_run_does_not_hide_the_others(run, main, file, how):
  other = run.parent / f'two-{"1" * 8}'
  write_run(other, {**settings().resolved, 'seed': 1}, seed=2)
  (run / 'results.json').unlink()
  path = run / file
  path.write_bytes(SPOILT[how](path.read_text('utf-8')))
  code, out, _ = main(*command('status', run))
  assert code == 0
  first, second, last = out.splitlines()
  assert first.startswith('broken') and str(path) in first
  assert second.startswith('done') and other.name in second
  assert last == '2 cells: 1 done, 1 broken'


@pytest.mark.parametrize('how', SPOILT)
def test_what_a_stopped_run_continues_from_is_checked(run, how):
  """A torn last line is a crash's; what is wrong before it is not."""
  folder = RunFolder(run, settings())
  for path, read in (
    (run / 'metrics.jsonl', lambda: folder.cut_metrics(9)),
    (run / 'predictions/x.parts', lambda: folder.partial_predictions('x')),
  ):
    text = (run / 'predictions/after.jsonl').read_text('utf-8')
    spoilt = SPOILT[how](text.splitlines()[0]).rstrip(b'\n')
    path.write_bytes(spoilt + b'\n{"to')
    if how != 'empty':
      with pytest.raises(DataError, match=re.escape(str(path))):
        read()
  # A broken status is written anew by an error.
  (run / 'results.json').unlink()
  path = run / 'status.json'
  path.write_bytes(SPOILT[how](path.read_text('utf-8')))
  note_failure(run, settings(), 'error', 'it broke')
  found = json.loads(path.read_text('utf-8'))
  assert found['state'] == 'error' and found['error'] == 'it broke'


class PanicException(BaseException):
  """As a panic of Rust comes to Python."""


@pytest.mark.parametrize(
  ('error', 'code', 'words'),
  [
    (ValueError('by 0\nmore'), 70, 'a fault of .*ValueError: by 0'),
    (PanicException('unwrap'), 70, 'a fault of .*PanicException: unwrap'),
    (RecursionError('deep'), 70, 'a fault of .*RecursionError: deep'),
    (MemoryError(), 4, 'out of memory'),
    (
      jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 GiB'), 4,
      'out of memory.*RESOURCE_EXHAUSTED: 9 GiB',
    ),
  ],
)
@pytest.mark.parametrize('begun', [True, False])
def test_what_nobody_foresaw_is_a_line(
  run, main, monkeypatch, error, code, words, begun
):
  """With its traceback in a file, and status.json says error."""
  def fail(*_):
    raise error

  monkeypatch.setattr('pdl_jax.run.finetune.run', fail)
  (run / 'results.json').unlink()
  RunFolder(run, settings()).write_status('starting', 0)
  workdir = run if begun else run.parent / 'none'
  found, _, err = main(*command('run', workdir))
  (line,) = err.splitlines()
  assert found == code
  assert re.match(f'error: {words}.*the traceback is in', line)
  (kept,) = re.findall(r'[^ ]*traceback.txt', line)
  assert 'in fail' in Path(kept).read_text('utf-8')
  assert (Path(kept) == run / 'traceback.txt') == begun
  if begun:
    status = json.loads((run / 'status.json').read_text('utf-8'))
    assert status['state'] == 'error' and line == f'error: {status["error"]}'
  else:
    Path(kept).unlink()
    assert not workdir.exists()


@pytest.mark.parametrize(
  ('code', 'words'),
  [
    ('def get_config(:', 'x.py:1: SyntaxError'),
    ('\n1 / 0', 'x.py:2: ZeroDivisionError: division by zero'),
    ('import nothere', 'x.py:1: ModuleNotFoundError: No module named'),
    ('def get_config():\n  return {}["k"]', "x.py:2: KeyError: 'k'"),
    ('x = 1', 'has no function get_config'),
    ('def get_config(): pass', 'returns a NoneType, not a ConfigDict'),
    ('def get_config(): return 3', 'returns a int, not a ConfigDict'),
    (
      'from ml_collections import ConfigDict\n'
      'def get_config(): return ConfigDict()', 'there is no field seed',
    ),
    ('\0', 'SyntaxError: source code'),
    ('def get_config(): return open("/nope")', 'No such file or directory'),
  ],
)  # fmt: skip
def test_a_config_that_is_no_program_is_refused(tmp_path, main, code, words):
  (tmp_path / 'x.py').write_text(code, 'utf-8')
  found, _, err = main(f'--config={tmp_path}/x.py', '--dry_run')
  (line,) = [x for x in err.splitlines() if x.startswith('error: ')]
  assert words in line and 'Traceback' not in err
  assert found == (4 if 'open' in code else 2)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['status', 'README.md'], 'there are no runs in README.md'),
    (['report', 'README.md'], 'there is no README.md/experiment.py'),
    *(
      ([f'--config={CONFIG_FILE}', '--sweep=seed', '--dry_run',
        f'--resources=TPU={n}'], f'TPU={n} is not NAME=NUMBER')
      for n in ('-1', 'nan', 'inf', '')
    ),
  ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(main, arguments, words):
  code, _, err = main(*arguments)
  (line,) = err.splitlines()
  assert code == 2 and words in line


def test_an_absolute_path_of_an_experiment_is_that_experiment(main):
  where = Path('experiments/reduction').absolute()
  code, out, err = main('report', str(where), '--check')
  assert code == 0 and out.startswith('experiments/reduction: '), err


def test_a_terminal_of_ascii_is_no_reason_to_stop(tmp_path):
  """Nor a locale: names and texts of files are UTF-8."""
  folder = tmp_path / 'über'
  folder.mkdir()
  done = subprocess.run(
    [sys.executable, 'launch.py', 'status', folder], check=False,
    capture_output=True, encoding='utf-8',
    env=os.environ | {
      'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0',
      'PYTHONIOENCODING': 'ascii:strict',
    },
  )  # fmt: skip
  (line,) = done.stderr.splitlines()
  assert done.returncode == 2 and 'there are no runs in' in line
  assert r'\xfcber' in line or r'\udcc3' in line


def test_shapes():
  for value, shape, words in (
    (True, int, 'the whole is true or false, not an integer'),
    (1, float, ''),
    (1.5, int, 'the whole is a number, not an integer'),
    ('y', Literal['x', 'z'], 'the whole is text, not one of x, z'),
    ('x', int | None, 'the whole is text, not an integer or null'),
    ({}, {'a': int}, 'there is no field a'),
    ({}, {'a?': int}, ''),
    ({'a': {'b': 'x'}}, {'a': {'b?': int}}, 'a.b is text, not an integer'),
    ([[1], [1, 'x']], list[list[float]], '[1][1] is text, not a number'),
    ({'a': [True]}, dict[str, list[int]], 'a[0] is true or false'),
  ):  # fmt: skip
    found = files.fault(value, shape)
    assert found.startswith(words) and bool(found) == bool(words)


def test_what_is_written_has_the_shape_that_is_read(run):
  folder = RunFolder(run, settings())
  for name, shape in (('config.json', CONFIG), ('status.json', STATUS)):
    assert not files.fault(folder.read(name), shape)
