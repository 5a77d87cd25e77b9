"""Files of a run that are torn, altered or of another kind: a line each."""

import json
import re
import signal
from typing import Literal

import pytest
from absl.testing import flagsaver

import launch
from pdl_jax import stored
from pdl_jax.errors import DataError
from pdl_jax.records import CONFIG, STATUS, RunFolder, note_failure
from pdl_jax.settings import Settings
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


@pytest.fixture
def run(tmp_path):
  """A finished run, by its files: none was trained."""
  path = tmp_path / f'one-{"0" * 8}'
  write_run(path, settings().resolved, seed=1)
  folder = RunFolder(path, settings().resolved)
  folder.write('results.json', folder.read('results.json') | {
    'task': 'summarize', 'padding_share': 0.5, 'examples': [],
  })  # fmt: skip
  folder.write_status('finished', 2)
  return path


@pytest.fixture
def main(monkeypatch, capfd):
  """Calls launch.main; gives the exit code and what it printed."""
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

  def call(*arguments):
    line = ['launch.py', *arguments]
    monkeypatch.setattr('sys.argv', line)
    with flagsaver.flagsaver():
      code = launch.main(line)
    out, err = capfd.readouterr()
    return code, out, err

  yield call
  for number, handler in before.items():
    signal.signal(number, handler)


def command(name, run):
  return {
    'run': [f'--config={CONFIG_FILE}', f'--workdir={run}'],
    'evaluate': [f'--evaluate={run}'],
    'export': [f'--export={run}', f'--to={run.parent / "export"}'],
    'run:': [f'--config={CONFIG_FILE}', '--dry_run',
             f'--config.model.pretrained=run:{run}'],
    'status': [f'--status={run.parent}'],
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
  elif how == 'a loop' and file.startswith('predictions'):
    refused(main(*command(name, run)), run / 'predictions')
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
  lines = [json.loads(x) for x in path.read_text('utf-8').splitlines()] if (
    file.endswith('l')
  ) else [json.loads(path.read_text('utf-8'))]
  found = lines[-1]
  del found[field]
  if change != 'missing':
    found[field] = {'null': None, 'text': 'x', 'list': ['x']}[change]
    if change == 'text' and field == 'hash':
      found[field] = 1
  path.write_text('\n'.join(map(json.dumps, lines)) + '\n', 'utf-8')
  result = main(*command(name, run))
  refused(result, path)
  assert field in result[2]
  if file.endswith('l'):
    assert f'{path}:{len(lines)}: ' in result[2]


def test_an_altered_value_of_the_config_is_seen(run, main):
  path = run / 'config.json'
  found = json.loads(path.read_text('utf-8'))
  found['train']['steps'] += 1
  path.write_text(json.dumps(found), 'utf-8')
  code, _, err = main(*command('evaluate', run))
  assert code == 2 and 'config.json was altered: its hash is' in err


def test_a_finished_run_without_predictions_is_refused(run, main):
  (run / 'predictions/after.jsonl').unlink()
  refused(main(*command('evaluate', run)), run / 'predictions')


@pytest.mark.parametrize('how', SPOILT)
@pytest.mark.parametrize('file', ['status.json', 'config.json'])
def test_one_broken_run_does_not_hide_the_others(run, main, file, how):
  other = run.parent / f'two-{"1" * 8}'
  write_run(other, settings().resolved, seed=2)
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
def test_a_broken_status_is_written_anew_by_an_error(run, how):
  (run / 'results.json').unlink()
  path = run / 'status.json'
  path.write_bytes(SPOILT[how](path.read_text('utf-8')))
  note_failure(run, settings().resolved, 'error', 'it broke')
  found = json.loads(path.read_text('utf-8'))
  assert found['state'] == 'error' and found['error'] == 'it broke'


@pytest.mark.parametrize('how', [x for x in SPOILT if x != 'empty'])
def test_what_a_stopped_run_continues_from_is_checked(run, how):
  """A torn last line is a crash's; what is wrong before it is not."""
  folder = RunFolder(run, settings().resolved)
  for path, read in (
    (run / 'metrics.jsonl', lambda: folder.cut_metrics(9)),
    (run / 'predictions/x.parts', lambda: folder.partial_predictions('x')),
  ):
    text = (run / 'predictions/after.jsonl').read_text('utf-8')
    spoilt = SPOILT[how](text.splitlines()[0]).rstrip(b'\n')
    path.write_bytes(spoilt + b'\n{"to')
    with pytest.raises(DataError, match=re.escape(str(path))):
      read()


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
    found = stored.fault(value, shape)
    assert found.startswith(words) and bool(found) == bool(words)


def test_what_is_written_has_the_shape_that_is_read(run):
  folder = RunFolder(run, settings().resolved)
  for name, shape in (('config.json', CONFIG), ('status.json', STATUS)):
    assert not stored.fault(folder.read(name), shape)
