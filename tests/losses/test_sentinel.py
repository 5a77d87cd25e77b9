"""The compiler is looked at before a run trusts it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
import pdl_jax
from pdl_jax import process
from pdl_jax.errors import HostError
from pdl_jax.losses import LOSSES, Loss, sentinel
from pdl_jax.run_folder import environment

ROOT = Path(__file__).parents[2]
FLAG = '--xla_cpu_experimental_ynn_fusion_type=-reduce'


# Losses by type differ in their tables alone.
@pytest.mark.parametrize(
  'name', ['power_law', *(k for k, spec in LOSSES.items() if not spec.weights)]
)
def test_each_loss_agrees_with_fp64(name):
  told = sentinel.check_backend(Loss(LOSSES[name], {}))
  assert float(told.split(': ')[1].split()[0]) < 1e-5


def test_options_of_cross_entropy_agree():
  options = {'label_smoothing': 0.1, 'z_loss': 1e-4}
  sentinel.check_backend(Loss(LOSSES['cross_entropy'], options))


def spoilt(found, entry):
  wrong = np.array(found, np.float64)
  wrong.flat[entry] = wrong.flat[entry] * 1.003 + 0.003 * abs(wrong).max()
  return wrong


@pytest.fixture(scope='module')
def right():
  return list(sentinel._cases(Loss(LOSSES['power_law'], {})))


@pytest.mark.parametrize('number', range(9))
def test_whatever_differs_is_refused(monkeypatch, right, number):
  assert len(right) == 9
  found = right[number].found
  wrongs = spoilt(found, 0), spoilt(found, -1), np.full(np.shape(found), np.nan)
  for changed in wrongs:
    wrong = right[number]._replace(found=changed)
    cases = [*right[:number], wrong, *right[number + 1:]]
    monkeypatch.setattr(sentinel, '_cases', lambda _, cases=cases: cases)
    with pytest.raises(HostError, match='wrong numbers on this cpu') as caught:
      pdl_jax.check_backend()
    assert wrong.name in str(caught.value)
    assert '\n' not in str(caught.value)


def python(code, **environ):
  """Runs code in a process of its own, without the flags of this one."""
  clean = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, env=clean | environ,
    capture_output=True, text=True, encoding='utf-8',
  )  # fmt: skip
  return done.stdout.strip(), done.stderr


def test_importing_sets_no_flag_and_the_wrong_compiler_is_found():
  code = (
    'import os, pdl_jax\n'
    'assert "XLA_FLAGS" not in os.environ\n'
    'try: pdl_jax.check_backend()\n'
    'except ValueError: raise\n'
    'except Exception as error: print(error)\n'
  )
  found, errors = python(code)
  assert 'wrong numbers on this cpu' in found, errors
  assert f'XLA_FLAGS={FLAG}' in found
  assert python(code, XLA_FLAGS=FLAG)[0] == ''


def test_a_process_that_sets_the_flag_computes_right():
  code = (
    'from pdl_jax import process, check_backend\n'
    'process.set_xla_flags()\n'
    'print(check_backend())\n'
  )
  found, errors = python(code)
  assert found.startswith('self-check'), errors
  user = '--xla_cpu_experimental_ynn_fusion_type=-dot'
  assert python(code, XLA_FLAGS=user)[0].startswith('self-check')


@pytest.mark.parametrize(('given', 'left'), [
  ('', FLAG), ('  ', FLAG), (FLAG, FLAG),
  ('--xla_a=1 --xla_b', f'--xla_a=1 --xla_b {FLAG}'),
  (f'{FLAG} --xla_b', f'{FLAG} --xla_b'),
  ('/no/such/file', FLAG),
])
def test_flags_of_the_user_stay(monkeypatch, given, left):
  monkeypatch.setenv('XLA_FLAGS', given)
  process.set_xla_flags()
  assert os.environ['XLA_FLAGS'] == left


def test_flags_in_a_file_stay(monkeypatch, tmp_path):
  (tmp_path / 'flags').write_text('--xla_a=1\n--xla_b\n', encoding='utf-8')
  monkeypatch.setenv('XLA_FLAGS', str(tmp_path / 'flags'))
  process.set_xla_flags()
  assert os.environ['XLA_FLAGS'] == f'--xla_a=1\n--xla_b {FLAG}'


def test_the_door_sets_the_flag_and_env_json_has_it(monkeypatch):
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  assert launch.main(['launch.py', '--help']) == 0
  found = environment({})
  assert found['xla_flags'] == FLAG
  assert found['jax']['jax_threefry_partitionable'] is True
  with jax.default_matmul_precision('bfloat16'):
    told = environment({})['jax']['jax_default_matmul_precision']
  assert told == 'bfloat16'


@pytest.mark.parametrize(
  'file',
  sorted(ROOT.glob('benchmarks/*/__main__.py')),
  ids=lambda path: path.parent.name,
)
def test_what_measures_sets_the_flag(file):
  """Importing the harness does; children have the environment."""
  assert 'from benchmarks import harness' in file.read_text(encoding='utf-8')


def test_fp64_is_refused(capsys):
  jax.config.update('jax_enable_x64', True)
  try:
    arguments = ['launch.py', '--config=configs/summarize.py:tiny', '--dry_run']
    assert launch.main(arguments) == 4
  finally:
    jax.config.update('jax_enable_x64', False)
  assert 'JAX_ENABLE_X64' in capsys.readouterr().err
