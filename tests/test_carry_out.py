"""An experiment from its declaration to its files, with made-up runs."""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.report import carry_out, compare, index, plan, write
from pdl_jax.report.declare import Experiment, Start, Study, Variant
from pdl_jax.sweep import claims
from pdl_jax.sweep.claims import End
from pdl_jax.sweep.local import Outcome
from tests.synthetic_runs import write_run

ROOT = Path(__file__).parent.parent
METRICS = (
  'perplexity',
  'distinct_2',
)


def study(**changes):
  return Study(**{
    'name': 'talk', 'title': 'Talk',
    'config': f'{ROOT}/configs/dialogue.py:tiny',
    'variants': (
      Variant('CE', {'loss.name': 'cross_entropy'}),
      Variant('alpha 0', {'loss.alpha': 0.0}),
      Variant('PDL', {'loss.alpha': 0.5}),
    ),
    'baseline': 'CE', 'metrics': METRICS, 'seeds': (0, 1), **changes,
  })  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
  """An empty place to work in, with a folder for an experiment."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'experiments' / 'talk').mkdir(parents=True)
  return Path('experiments/talk')


class Sweep:
  """Makes runs at once; those of `failing` labels end with an exit code."""

  def __init__(self, failing=()):
    self.made, self.failing, self.commands = [], dict(failing), []

  def __call__(self, cells, root, command):
    claims.open_folder(root)
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


def records(folder):
  return carry_out.read(folder)


@pytest.mark.parametrize(
  'field',
  ['study', 'row', 'seed', 'hash', 'predictions', 'state', 'split', 'examples',
   'tokenizer', 'metrics', 'nats_by_count', 'tokens_by_count', 'curve',
   'items', 'groups', 'definitions', 'seconds'],
)  # fmt: skip
def test_a_record_that_lacks_a_field_is_named(here, field):
  experiment = Experiment('Q?', (study(),))
  carry_out.carry_out(experiment, here, Sweep())
  path = here / carry_out.RECORDS
  lines = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  for value in (None, [None], {'x': 'y'}, 'gone'):
    spoilt = dict(lines[-1])
    spoilt[field] = value
    if value == 'gone':
      del spoilt[field]
    text = ''.join(json.dumps(x) + '\n' for x in [*lines[:-1], spoilt])
    path.write_text(text, 'utf-8')
    with pytest.raises(DataError, match=f'{path}:{len(lines)}: .*{field}'):
      records(here)


@pytest.mark.parametrize('how', ['torn', 'bytes', 'blank', 'list', 'empty'])
@pytest.mark.parametrize('name', [carry_out.RECORDS, carry_out.DEFINITIONS])
def test_spoilt_records_and_definitions_are_refused(here, name, how):
  carry_out.carry_out(Experiment('Q?', (study(),)), here, Sweep())
  path = here / name
  data = path.read_bytes()
  path.write_bytes({
    'torn': data[:-40], 'bytes': b'\xff' + data, 'blank': b'\n',
    'list': b'[]', 'empty': b'',
  }[how])  # fmt: skip
  if (name, how) == (carry_out.RECORDS, 'empty'):
    assert records(here) == []
    return
  read = carry_out.read if name == carry_out.RECORDS else (
    carry_out.read_definitions
  )
  with pytest.raises(DataError, match=f'^{path}.* git checkout {path} brings'):
    read(here)


def test_every_cell_is_run_once_and_recorded(here):
  sweep = Sweep()
  assert carry_out.carry_out(Experiment('Q?', (study(),)), here, sweep) == 0
  # alpha 0 is cross-entropy: one run for both rows.
  assert len(sweep.made) == 4
  found = records(here)
  assert [(r['row'], r['seed']) for r in found] == [
    ('before fine-tuning', 0), ('CE', 0), ('alpha 0', 0), ('PDL', 0),
    ('CE', 1), ('alpha 0', 1), ('PDL', 1),
  ]  # fmt: skip
  by_row = {(r['row'], r['seed']): r for r in found}
  assert by_row['CE', 1]['hash'] == by_row['alpha 0', 1]['hash']
  assert by_row['PDL', 0]['overrides'] == {'loss.alpha': 0.5}
  assert by_row['PDL', 0]['curve'] == [[2, 1.5]]
  text = (here / 'records.jsonl').read_text('utf-8')
  assert 'a text of the data' not in text and 'quokka' not in text


def test_a_second_call_runs_what_is_new_and_keeps_the_rest(here):
  sweep = Sweep()
  carry_out.carry_out(Experiment('Q?', (study(seeds=(0,)),)), here, sweep)
  before = (here / 'records.jsonl').read_text('utf-8').splitlines()
  sweep.made.clear()
  carry_out.carry_out(Experiment('Q?', (study(),)), here, sweep)
  assert len(sweep.made) == 2
  after = (here / 'records.jsonl').read_text('utf-8').splitlines()
  assert set(before) < set(after)


def test_records_of_runs_on_other_machines_stay(here):
  declared = Experiment('Q?', (study(),))
  carry_out.carry_out(declared, here, Sweep())
  before = (here / 'records.jsonl').read_text('utf-8')
  Path('runs').rename('elsewhere')
  carry_out.keep(declared, here)
  assert (here / 'records.jsonl').read_text('utf-8') == before


def test_runs_of_earlier_versions_are_named(here):
  declared = Experiment('Q?', (study(),))
  carry_out.carry_out(declared, here, Sweep())
  run = next(Path('runs/dialogue-tiny').glob('alpha=0.5*'))
  (run / 'items.json').unlink()
  with pytest.raises(DataError, match='alpha=0.5.* evaluate .* adds them'):
    carry_out.keep(declared, here)


def test_what_is_declared_no_more_goes(here):
  carry_out.carry_out(Experiment('Q?', (study(),)), here, Sweep())
  carry_out.keep(Experiment('Q?', (study(seeds=(0,)),)), here)
  assert {r['seed'] for r in records(here)} == {0}


def test_failed_and_diverged_cells_have_records_too(here):
  sweep = Sweep(failing={'alpha=0.5': 5})
  assert carry_out.carry_out(Experiment('Q?', (study(),)), here, sweep) == 2
  states = {(r['row'], r['seed']): r['state'] for r in records(here)}
  assert states['PDL', 0] == 'diverged' and states['CE', 0] == 'done'
  carry_out.carry_out(
    Experiment('Q?', (study(seeds=(0, 1, 2)),)), here,
    Sweep(failing={'alpha=0.5,seed=2': 3}),
  )  # fmt: skip
  states = {(r['row'], r['seed']): r['state'] for r in records(here)}
  assert states['PDL', 2] == 'failed' and states['PDL', 0] == 'done'


def test_a_base_is_made_first_and_all_start_from_it(here):
  base = Start(
    f'{ROOT}/configs/language_model.py:tiny', {'train.steps': 50}
  )
  sweep = Sweep()
  declared = Experiment('Q?', (study(base=base, seeds=(0,)),))
  carry_out.carry_out(declared, here, sweep)
  start = plan.base(declared.studies[0])
  assert sweep.made[0] == start.cell.run_id
  assert '--config.train.steps=50' in sweep.commands[0]
  wanted = f'--config.model.pretrained=run:{start.folder}'
  assert all(wanted in command for command in sweep.commands[1:])
  assert wanted not in sweep.commands[0]


def test_rows_that_are_decoded_in_another_way(here, monkeypatch):
  calls = []

  def evaluate(command, check):
    assert check
    calls.append(command)
    run = Path(command[3])
    measured = json.loads((run / 'results.json').read_text('utf-8'))['columns']
    stored = json.loads((run / 'items.json').read_text('utf-8'))
    name = 'after-tilt=0.5'
    for file, found in (
      ('evaluations.json', {name: measured['loss']}),
      ('items.json', {**stored, name: stored['after']}),
    ):
      (run / file).write_text(json.dumps(found), 'utf-8')

  monkeypatch.setattr(subprocess, 'run', evaluate)
  tilted = Variant('CE, tilt', {'loss.name': 'cross_entropy'}, {'tilt': 0.5})
  declared = Experiment('Q?', (study(
    variants=(Variant('CE', {'loss.name': 'cross_entropy'}), tilted)
  ),))  # fmt: skip
  sweep = Sweep()
  carry_out.carry_out(declared, here, sweep)
  carry_out.carry_out(declared, here, sweep)
  assert len(sweep.made) == 2
  assert {call[2] for call in calls} == {'evaluate'}
  assert [call[4:] for call in calls] == [['--decode.tilt=0.5']] * 2
  found = {(r['row'], r['seed']): r for r in records(here)}
  assert found['CE, tilt', 1]['predictions'] == 'after-tilt=0.5'


def declare(here, monkeypatch, declared):
  """As if experiments/talk/experiment.py said so."""
  module = type('module', (), {'EXPERIMENT': declared, '__doc__': 'Which?\n'})
  monkeypatch.setattr(plan, 'module', lambda folder: module)
  (here / 'experiment.py').touch()


def test_report_follows_from_records_alone(here, monkeypatch):
  declared = Experiment('Q?', (study(),))
  carry_out.carry_out(declared, here, Sweep())
  declare(here, monkeypatch, declared)
  Path('runs').rename('elsewhere')
  made = write.write(here)
  assert {path.name for path in made} >= {'table.md', 'table.tex', 'table.csv'}
  assert write.check(here) == len(made)
  (here / 'report.html').unlink()
  assert write.check(here) == len(made) - 1


def test_check_names_the_cell_whose_record_is_gone(here, monkeypatch):
  declared = Experiment('Q?', (study(),))
  carry_out.carry_out(declared, here, Sweep())
  declare(here, monkeypatch, declared)
  write.write(here)
  path = here / 'records.jsonl'
  lines = path.read_text('utf-8').splitlines(keepends=True)
  path.write_text(''.join(lines[:-1]), 'utf-8')
  message = r"no record any more of study talk, row 'PDL', seed 1 \(1 "
  with pytest.raises(DataError, match=message):
    write.check(here)
  path.write_text(''.join(lines), 'utf-8')
  write.check(here)
  text = (here / 'table.tex').read_text('utf-8')
  (here / 'table.tex').write_text(text.replace('PDL', 'PLD', 1), 'utf-8')
  with pytest.raises(DataError, match=r'table.tex does not follow .* line \d+'):
    write.check(here)


def test_index(here, monkeypatch):
  declared = Experiment('Q?', (study(),))
  carry_out.carry_out(declared, here, Sweep())
  declare(here, monkeypatch, declared)
  with pytest.raises(ConfigError, match='has no answer'):
    index.write(here.parent, check=False)
  (here / 'README.md').write_text(
    '# Q?\n\n**Answer: it\ndepends.** More.\n', 'utf-8'
  )
  index.write(here.parent, check=False)
  row = '| Which? | it depends. | 6 of 6 | [talk](talk/README.md) |'
  assert row in (here.parent / 'README.md').read_text('utf-8')
  index.write(here.parent, check=True)
  (here / 'README.md').write_text('# Q?\n\n**Answer: no.**\n', 'utf-8')
  with pytest.raises(DataError, match='does not follow from the experiments'):
    index.write(here.parent, check=True)


def test_no_such_experiment():
  with pytest.raises(ConfigError, match='no .*nothing/experiment.py; experim'):
    plan.module(Path('experiments/nothing'))
  with pytest.raises(ConfigError, match='declares no EXPERIMENT'):
    plan.load(Path('experiments/causal_leak'))


def test_what_is_recorded_is_not_run_again_without_its_folders(here, capsys):
  """As in a fresh clone: an added seed is all that is run."""
  experiment = Experiment('Q?', (study(),))
  carry_out.carry_out(experiment, here, Sweep())
  shutil.rmtree('runs')
  again = Sweep()
  assert carry_out.carry_out(experiment, here, again) == 0
  assert not again.made
  assert f'all runs are in {here}/records.jsonl' in capsys.readouterr().out
  more = Experiment('Q?', (study(seeds=(0, 1, 2)),))
  carry_out.carry_out(more, here, again)
  assert len(again.made) == 2
  assert all('seed=2' in run for run in again.made)
  assert len(records(here)) == 10


def test_a_record_that_its_examples_contradict_is_refused(here):
  carry_out.carry_out(Experiment('Q?', (study(),)), here, Sweep())
  path = here / 'records.jsonl'
  lines = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  lines[1]['metrics']['perplexity'] *= 1.01
  definitions = carry_out.read_definitions(here)
  make = partial(
    compare.make_report, 'talk', '', Experiment('Q?', (study(),)),
    definitions=definitions,
  )  # fmt: skip
  with pytest.raises(DataError, match="row 'CE', seed 0: the record says perp"):
    make(lines)


def test_a_metric_that_no_run_has_is_named(here):
  carry_out.carry_out(Experiment('Q?', (study(),)), here, Sweep())
  wrong = study(metrics=(*METRICS, 'style_accuracy'))
  with pytest.raises(DataError, match="metric 'style_accuracy', which row"):
    compare.make_report(
      'talk', '', Experiment('Q?', (wrong,)), carry_out.read(here),
      carry_out.read_definitions(here),
    )  # fmt: skip


def test_a_metric_that_is_misspelt_is_refused_at_once():
  with pytest.raises(ConfigError, match="no metric 'rougeLL'; there are perpl"):
    study(metrics=('perplexity', 'rougeLL'))
