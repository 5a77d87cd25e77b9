"""An experiment from its declaration to its files, with made-up runs."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.report import carry_out, compare, index, plan, write
from pdl_jax.report.declare import Experiment, Start, Study, Variant
from pdl_jax.sweep import claims
from pdl_jax.sweep.claims import End
from pdl_jax.sweep.local import Outcome
from tests.synthetic_runs import write_run

ROOT = Path(__file__).parents[2]
METRICS = ('perplexity', 'distinct_2')
CE = Variant('CE', {'loss.name': 'cross_entropy'})


def declare(**changes):
  return Experiment('Q?', (Study(**{
    'name': 'talk', 'title': 'Talk',
    'config': f'{ROOT}/configs/dialogue.py:tiny',
    'variants': (
      CE,
      Variant('alpha 0', {'loss.alpha': 0.0}),
      Variant('PDL', {'loss.alpha': 0.5}),
    ),
    'baseline': 'CE', 'metrics': METRICS, 'seeds': (0, 1), **changes,
  }),))  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
  """An empty place to work in, with a folder for an experiment."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'experiments' / 'talk').mkdir(parents=True)
  return Path('experiments/talk')


@pytest.fixture(scope='module')
def template(tmp_path_factory):
  """The folder of an experiment that has been carried out, with its runs."""
  folder = tmp_path_factory.mktemp('template')
  (folder / 'experiments' / 'talk').mkdir(parents=True)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    sweep = Sweep()
    assert carry_out.carry_out(declare(), Path('experiments/talk'), sweep) == 0
  # alpha 0 is cross-entropy: one run for both rows.
  assert len(sweep.made) == 4
  return folder


@pytest.fixture
def done(here, template):
  """A copy of it."""
  shutil.copytree(template, Path(), dirs_exist_ok=True)
  return here


class Sweep:
  """Makes runs at once; those of `failing` labels end with an exit code."""

  def __init__(self, failing=()):
    self.made, self.failing, self.commands = [], dict(failing), []

  def __call__(self, cells, root, command):
    claims.open_folder(root, cells)
    failed = {}
    for cell in cells:
      run = claims.open_run(root, cell)
      self.commands.append(command(cell, run))
      code = next((c for x, c in self.failing.items() if x in cell.run_id), 0)
      if code:
        attempt = claims.claim(root, cell.digest, [])
        attempt.write_end(End(code, 1.0, 'error: it went wrong'))
        failed[cell.run_id] = 'error: it went wrong'
      elif not claims.finished(run):
        self.made.append(cell.run_id)
        write_run(run, cell.config, seed=len(self.made))
    return Outcome(len(cells) - len(failed), failed, 0)


def lines_of(folder):
  text = (folder / carry_out.RECORDS).read_text('utf-8')
  return [json.loads(line) for line in text.splitlines()]


def by_row(folder):
  return {(r['row'], r['seed']): r for r in carry_out.read(folder)}


def write_lines(folder, lines):
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / carry_out.RECORDS).write_text(text, 'utf-8')


def report(folder, experiment=None):
  return compare.make_report(
    'talk', '', experiment or declare(), carry_out.read(folder),
    carry_out.read_definitions(folder),
  )  # fmt: skip


# Carrying out.


def test_every_cell_is_run_once_and_recorded(done):
  found = by_row(done)
  assert list(found) == [
    ('before fine-tuning', 0), ('CE', 0), ('alpha 0', 0), ('PDL', 0),
    ('CE', 1), ('alpha 0', 1), ('PDL', 1),
  ]  # fmt: skip
  assert found['CE', 1]['hash'] == found['alpha 0', 1]['hash']
  assert found['PDL', 0]['overrides'] == {'loss.alpha': 0.5}
  assert found['PDL', 0]['curve'] == [[2, 1.5]]
  text = (done / carry_out.RECORDS).read_text('utf-8')
  assert 'a text of the data' not in text and 'quokka' not in text


def test_what_is_recorded_is_not_run_again_without_its_folders(done, capsys):
  """As in a fresh clone: an added seed is all that is run."""
  before, again = lines_of(done), Sweep()
  shutil.rmtree('runs')
  assert carry_out.carry_out(declare(), done, again) == 0
  assert not again.made
  assert f'all runs are in {done}/records.jsonl' in capsys.readouterr().out
  carry_out.keep(declare(), done)
  assert lines_of(done) == before
  carry_out.carry_out(declare(seeds=(0, 1, 2)), done, again)
  assert len(again.made) == 2 and all('seed=2' in run for run in again.made)
  assert lines_of(done)[:7] == before and len(lines_of(done)) == 10
  # What is declared no more goes.
  carry_out.keep(declare(seeds=(0,)), done)
  assert {r['seed'] for r in carry_out.read(done)} == {0}


def test_failed_and_diverged_cells_have_records_too(here):
  sweep = Sweep(failing={'alpha=0.5': 5})
  assert carry_out.carry_out(declare(), here, sweep) == 2
  states = {key: r['state'] for key, r in by_row(here).items()}
  assert states['PDL', 0] == 'diverged' and states['CE', 0] == 'done'
  sweep = Sweep(failing={'alpha=0.5,seed=2': 3})
  carry_out.carry_out(declare(seeds=(0, 1, 2)), here, sweep)
  states = {key: r['state'] for key, r in by_row(here).items()}
  assert states['PDL', 2] == 'failed' and states['PDL', 0] == 'done'


def test_a_base_is_made_first_and_all_start_from_it(here):
  base = Start(f'{ROOT}/configs/language_model.py:tiny', {'train.steps': 50})
  sweep, declared = Sweep(), declare(base=base, seeds=(0,))
  carry_out.carry_out(declared, here, sweep)
  start = plan.base(declared.studies[0])
  assert sweep.made[0] == start.cell.run_id
  assert '--config.train.steps=50' in sweep.commands[0]
  wanted = f'--config.model.pretrained=run:{start.folder}'
  assert all(wanted in command for command in sweep.commands[1:])
  assert wanted not in sweep.commands[0]


def test_a_row_of_another_decoding_is_evaluated_once(here, monkeypatch):
  calls = []

  def evaluate(command):
    calls.append(command)
    if len(calls) == 2:
      return subprocess.CompletedProcess(command, 4)
    run = Path(command[3])
    name = 'after-tilt=0.5'
    measured = json.loads((run / 'results.json').read_text('utf-8'))['columns']
    stored = json.loads((run / 'items.json').read_text('utf-8'))
    for file, found in (
      ('evaluations.json', {name: measured['loss']}),
      ('items.json', {**stored, name: stored['after']}),
    ):
      (run / file).write_text(json.dumps(found), 'utf-8')
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(subprocess, 'run', evaluate)
  tilted = Variant('CE, tilt', {'loss.name': 'cross_entropy'}, {'tilt': 0.5})
  sweep = Sweep()
  tried = [
    carry_out.carry_out(declare(variants=(CE, tilted)), here, sweep)
    for _ in range(3)
  ]
  # The second of two seeds was not evaluated; it is again, and nothing else is.
  assert tried == [1, 0, 0]
  assert len(sweep.made) == 2
  first, second, third = (call[3] for call in calls)
  assert first != second == third
  assert [call[2] for call in calls] == ['evaluate'] * 3
  assert [call[4:] for call in calls] == [['--decode.tilt=0.5']] * 3
  found = by_row(here)
  assert found['CE, tilt', 1]['predictions'] == 'after-tilt=0.5'


# What is refused.


def test_a_record_that_lacks_a_field_or_has_another_in_its_place(done):
  lines = lines_of(done)
  for field in (
    'study', 'row', 'seed', 'hash', 'predictions', 'state', 'split', 'examples',
    'tokenizer', 'metrics', 'nats_by_count', 'tokens_by_count', 'curve',
    'items', 'groups', 'definitions', 'seconds',
  ):  # fmt: skip
    for value in (None, [None], {'x': 'y'}, 'gone'):
      spoilt = {**lines[-1], field: value}
      if value == 'gone':
        del spoilt[field]
      write_lines(done, [*lines[:-1], spoilt])
      with pytest.raises(DataError, match=f'jsonl:{len(lines)}: .*{field}'):
        carry_out.read(done)


@pytest.mark.parametrize(
  ('path', 'value', 'said'),
  [
    (('metrics', 'perplexity'), math.nan, 'metrics.perplexity is nan'),
    (('nats_by_count', '0'), math.inf, 'nats_by_count.0 is inf'),
    (('items', 'nats', 1), -math.inf, 'items.nats is -inf, not a finite'),
    (('items', 'nats'), [1.0], 'items.nats has 1 examples, groups 4'),
    (('groups',), [], 'groups are not numbers from 0 of 0 examples'),
    (('groups', 1), -1, 'groups are not numbers from 0 of 4 examples'),
  ],
)
def test_a_record_with_numbers_that_cannot_be(done, path, value, said):
  lines = lines_of(done)
  at = lines[2]
  for key in path[:-1]:
    at = at[key]
  at[path[-1]] = value
  write_lines(done, lines)
  with pytest.raises(DataError, match=f'jsonl:3: {said}.* brings it back'):
    carry_out.read(done)


@pytest.mark.parametrize('how', ['torn', 'bytes', 'blank', 'list', 'empty'])
@pytest.mark.parametrize('name', [carry_out.RECORDS, carry_out.DEFINITIONS])
def test_spoilt_records_and_definitions_are_refused(done, name, how):
  path = done / name
  data = path.read_bytes()
  path.write_bytes({
    'torn': data[:-40], 'bytes': b'\xff' + data, 'blank': b'\n',
    'list': b'[]', 'empty': b'',
  }[how])  # fmt: skip
  if (name, how) == (carry_out.RECORDS, 'empty'):
    assert carry_out.read(done) == []
    return
  with pytest.raises(DataError, match=f'^{path}.* git checkout {path} brings'):
    carry_out.read(done)
    carry_out.read_definitions(done)


def test_runs_of_earlier_versions_are_named(done):
  run = next(Path('runs/dialogue-tiny').glob('alpha=0.5*'))
  (run / 'items.json').unlink()
  with pytest.raises(DataError, match='alpha=0.5.* evaluate .* adds them'):
    carry_out.keep(declare(), done)


def test_a_record_that_its_examples_contradict_is_refused(done):
  lines = lines_of(done)
  lines[1]['metrics']['perplexity'] *= 1.01
  write_lines(done, lines)
  said = r"row 'CE' \(seed 0\): the record says perp"
  with pytest.raises(DataError, match=said):
    report(done)


def test_metrics_that_no_run_has_or_that_are_misspelt(done):
  wrong = declare(metrics=(*METRICS, 'style_accuracy'))
  with pytest.raises(DataError, match="metric 'style_accuracy', which row"):
    report(done, wrong)
  said = "no metric 'rougeLL'; there are .*perplexity"
  with pytest.raises(ConfigError, match=said):
    declare(metrics=('perplexity', 'rougeLL'))


def test_no_such_experiment(monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(ConfigError, match='no .*nothing/experiment.py; experim'):
    plan.module(Path('experiments/nothing'))
  with pytest.raises(ConfigError, match='declares no EXPERIMENT'):
    plan.load(Path('experiments/choose_alpha'))


# The files of a report.


@pytest.fixture
def module(done, monkeypatch):
  """As if experiments/talk/experiment.py declared it."""
  names = {'EXPERIMENT': declare(), '__doc__': 'Which?\n'}
  code = SimpleNamespace(**names)
  monkeypatch.setattr(plan, 'module', lambda _: code)
  (done / 'experiment.py').touch()
  return done


def test_the_report_follows_from_records_alone(module):
  Path('runs').rename('elsewhere')
  made = write.write(module)
  assert {path.name for path in made} >= {'table.md', 'table.tex', 'table.csv'}
  assert write.check(module) == len(made)
  (module / 'report.html').unlink()
  assert write.check(module) == len(made) - 1
  lines = lines_of(module)
  write_lines(module, lines[:-1])
  message = r"no record any more of study talk, row 'PDL', seed 1 \(1 "
  with pytest.raises(DataError, match=message):
    write.check(module)
  write_lines(module, lines)
  text = (module / 'table.tex').read_text('utf-8')
  (module / 'table.tex').write_text(text.replace('PDL', 'PLD', 1), 'utf-8')
  with pytest.raises(DataError, match=r'table.tex does not follow .* line \d+'):
    write.check(module)


def test_the_index_quotes_questions_and_answers(module, monkeypatch):
  with pytest.raises(ConfigError, match='has no answer'):
    index.write(module.parent, check=False)
  readme = module / 'README.md'
  readme.write_text('# Q?\n\n**Answer: it\ndepends.** More.\n', 'utf-8')
  index.write(module.parent, check=False)
  row = '| Which? | it depends. | 6 of 6 | [talk](talk/README.md) |'
  assert row in (module.parent / 'README.md').read_text('utf-8')
  index.write(module.parent, check=True)
  readme.write_text('# Q?\n\n**Answer: no.**\n', 'utf-8')
  with pytest.raises(DataError, match='does not follow from the experiments'):
    index.write(module.parent, check=True)
  monkeypatch.setattr(plan.module(module), '__doc__', None)
  with pytest.raises(ConfigError, match=r'talk/experiment.py has no question'):
    index.write(module.parent, check=False)
