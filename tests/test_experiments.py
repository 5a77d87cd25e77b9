"""Committed tables follow from committed records, byte for byte."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import harness
from benchmarks.loss_speed import flops
from experiments import rehash
from pdl_jax.errors import DataError
from pdl_jax.report import index, plan, write

ROOT = Path(__file__).parent.parent
LISTS = [Path('experiments'), Path('benchmarks')]
FOLDERS = [path for folder in LISTS for path in index.experiments(folder)]
# Some are declared, and not measured yet.
RECORDED = [path for path in FOLDERS if (path / 'records.jsonl').exists()]


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_files_follow_from_records(folder):
  assert write.check(folder) >= 1


@pytest.mark.parametrize('folder', LISTS, ids=str)
def test_index_follows_from_the_experiments(folder):
  index.write(folder, check=True)


@pytest.mark.parametrize('folder', RECORDED, ids=lambda path: path.name)
def test_records_hold_no_text_of_the_data_and_no_paths(folder):
  text = (folder / 'records.jsonl').read_text('utf-8')
  assert '"examples": [' not in text
  assert str(Path.home()) not in text


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_declared_runs_have_configurations_that_exist(folder):
  declared = getattr(plan.module(folder), 'EXPERIMENT', None)
  for study in declared.studies if declared else ():
    runs = [run for seed in study.seeds for _, run in plan.runs(study, seed)]
    assert len(runs) == len(study.seeds) * len(study.variants)


DECLARED = [
  path for path in RECORDED if hasattr(plan.module(path), 'EXPERIMENT')
]


@pytest.mark.parametrize('folder', DECLARED, ids=lambda path: path.name)
def test_every_record_is_of_a_declared_run(folder):
  runs = rehash.declared(plan.load(folder))
  lines = (folder / 'records.jsonl').read_text('utf-8').splitlines(True)
  assert rehash.rehashed(folder, runs, runs) == lines


def test_records_are_carried_over_to_a_new_hash():
  folder = Path('experiments/smollm2')
  now = rehash.declared(plan.load(folder))
  before = {
    study: {row: f'old-{digest}' for row, digest in rows.items()}
    for study, rows in now.items()
  }
  with pytest.raises(DataError, match=r'jsonl:1: .* 0 declared runs had the'):
    rehash.rehashed(folder, before, now)
  with pytest.raises(DataError, match='declared runs had the hash'):
    rehash.rehashed(folder, now, {})
  new = {
    study: {row: digest[::-1] for row, digest in rows.items()}
    for study, rows in now.items()
  }
  lines = rehash.rehashed(folder, now, new)
  assert lines != rehash.rehashed(folder, now, now)
  reversed_ = [json.loads(line)['hash'][::-1] for line in lines]
  assert reversed_ == [
    json.loads(line)['hash'] for line in rehash.rehashed(folder, now, now)
  ]


def test_what_measures_leaves_its_environment(tmp_path, capsys):
  records = [{'seconds': 1.5}, {'seconds': 2.5}]

  def report_files(folder):
    return {'table.md': f'{len(harness.read(folder))} rows\n'}

  harness.keep(tmp_path, records, report_files)
  assert harness.read(tmp_path) == records
  found = json.loads((tmp_path / 'env.json').read_text('utf-8'))
  assert {'commit', 'dirty', 'packages', 'cpus', 'devices'} <= found.keys()
  assert (tmp_path / 'table.md').read_text('utf-8') == '2 rows\n'
  assert '2 rows' in capsys.readouterr().out


def test_cases_are_measured_once(tmp_path):
  """A benchmark that was stopped continues with the cases that are missing."""
  options = harness.Options(tiny=False, place=tmp_path, only='')
  cases = [{'size': size, 'rounds': 3} for size in (1, 2, 3)]

  def measure(case):
    if case['size'] == stops_at:
      raise KeyboardInterrupt
    return {'case': case}

  stops_at = 2
  with pytest.raises(KeyboardInterrupt):
    harness.by_case(options, cases, measure)
  stops_at = 1
  few = harness.by_case(options._replace(only='"size": 3'), cases, measure)
  assert [record['case']['size'] for record in few] == [1, 3]
  cases[0]['rounds'] = 9
  found = harness.by_case(options, cases, measure)
  assert [record['case']['size'] for record in found] == [1, 3, 2]


def test_contenders_take_turns():
  assert list(harness.in_turns('abc', 4)) == list('abcbcacababc')
  seconds = harness.take_turns({'a': lambda: 1, 'b': lambda: 2}, 3)
  assert {name: len(found) for name, found in seconds.items()} == {
    'a': 3, 'b': 3
  }  # fmt: skip
  assert harness.spread([1.0, 2.0, 3.0]) == '2.00 (1.50 to 2.50)'


@pytest.mark.slow
def test_loss_speed_runs(tmp_path):
  """Every part of the benchmark at tiny sizes."""
  command = [
    sys.executable, '-m', 'benchmarks.loss_speed', '--tiny',
    f'--folder={tmp_path}',
  ]  # fmt: skip
  subprocess.run(command, check=True, cwd=ROOT)
  table = (tmp_path / 'table.md').read_text('utf-8')
  assert 'optax, unfused' in table
  assert 'ours, vocabulary' in table
  assert (tmp_path / 'loss_speed.svg').exists()


def test_matmuls_of_a_scan_are_counted_by_what_its_turns_know():
  def repeat(weights_NxN, count, all_xs_TxN):
    def turn(carry_N, x_N):
      # As often as a constant of the scan says.
      grown_N = jax.lax.fori_loop(
        0, count, lambda _, y_N: weights_NxN @ y_N, x_N + carry_N
      )
      return carry_N, grown_N

    return jax.lax.scan(turn, jnp.zeros(3), all_xs_TxN)

  arrays = jnp.ones((3, 3)), jnp.asarray(2), jnp.ones((4, 3))
  # 2 x 3 x 3 in each of the 2 turns in each of the 4.
  assert flops.of_call(lambda x: repeat(*x), arrays) == 4 * 2 * 18


def test_tuned_rivals_are_the_best_of_their_tuning():
  from experiments.rivals import experiment as rivals

  lines = (
    Path('experiments/rivals/records.jsonl').read_text('utf-8').splitlines()
  )
  found = {
    record['row']: record['metrics']['rougeL']
    for record in map(json.loads, lines)
    if record['study'] == 'tuning'
  }
  for key, values in rivals.VALUES.items():
    rows = [row.label for row in rivals.of_constants({key: values})[1:]]
    best = max(rows, key=lambda row: found[row])
    assert rivals.of_constants({key: (rivals.CHOSEN[key],)})[1].label == best
