"""What all benchmarks share, and the counts and calls of loss_speed."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import harness
from benchmarks.loss_speed import flops

ROOT = Path(__file__).parent.parent.parent


def test_what_measures_leaves_its_environment(tmp_path, capsys):
  records = [{'seconds': 1.5}, {'seconds': 2.5}]
  harness.keep(tmp_path, records, lambda found: f'{len(found)} rows\n')
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
