"""Committed tables follow from committed records, byte for byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cells

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(
  path.parent
  for path in (ROOT / 'experiments').glob('*/table.md')
)
NAMES = (
  'choose_alpha', 'dialogue', 'language_model', 'style_transfer', 'summarize',
)  # fmt: skip
IN_CELLS = [folder for folder in FOLDERS if folder.name in NAMES]


@pytest.mark.parametrize('folder', IN_CELLS, ids=lambda path: path.name)
def test_tables_follow_from_records(folder):
  assert cells.table(folder.name) == (folder / 'table.md').read_text()


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_records_hold_no_text_of_the_data_and_no_paths(folder):
  text = (folder / 'records.jsonl').read_text()
  for line in text.splitlines():
    assert 'examples' not in json.loads(line).get('results', {})
  assert str(Path.home()) not in text


def test_loss_speed_table_follows_from_its_records():
  from experiments.loss_speed import experiment

  folder = next(path for path in FOLDERS if path.name == 'loss_speed')
  records = experiment.read(folder / 'records.jsonl')
  assert experiment.table(records) == (folder / 'table.md').read_text()


def test_loss_speed_runs(tmp_path):
  """Every part of the benchmark at tiny sizes, without the peers."""
  command = [
    sys.executable, '-m', 'experiments.loss_speed.experiment', '--smoke',
    '--ours', f'--folder={tmp_path}',
  ]  # fmt: skip
  subprocess.run(command, check=True, cwd=ROOT)
  table = (tmp_path / 'table.md').read_text()
  assert 'optax, unfused' in table
  assert 'ours, vocabulary' in table
  assert len(list(tmp_path.glob('*.png'))) == 1


def test_step_cost_table_follows_from_its_record():
  from experiments.step_cost.experiment import table

  folder = next(path for path in FOLDERS if path.name == 'step_cost')
  record = json.loads((folder / 'records.jsonl').read_text())
  assert table(record) == (folder / 'table.md').read_text()


def test_decode_speed_table_follows_from_its_records():
  from experiments.decode_speed import experiment

  folder = next(path for path in FOLDERS if path.name == 'decode_speed')
  records = experiment.read(folder / 'records.jsonl')
  assert experiment.table(records) == (folder / 'table.md').read_text()


def test_data_speed_table_follows_from_its_records():
  from experiments.data_speed.experiment import read, table

  folder = next(path for path in FOLDERS if path.name == 'data_speed')
  assert table(read()) == (folder / 'table.md').read_text()
