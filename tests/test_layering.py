"""Who may import whom: each module only what stands to its left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
  {'errors', 'process', 'stop'},
  {'losses', 'frequency', 'sharding', 'checksum', 'damage',
   'sentinel'},
  {'model'},
  {'optimizer', 'state', 'metrics', 'step'},
  {'data', 'decode', 'checkpoint'},
  {'settings'},
  {'records', 'weighting', 'evaluate'},
  {'train', 'summary', 'preview', 'sweep', 'finished'},
  {'setup', 'report', 'start', 'convert'},
  {'job'},
  {'launch', 'pods'},
  {'reevaluate', 'export'},
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}
MODULES = sorted((ROOT / 'pdl_jax').rglob('*.py'))


def imports(path):
  """Full dotted names of everything imported anywhere in a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def part(path):
  return path.relative_to(ROOT / 'pdl_jax').with_suffix('').parts[0]


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_imports_go_to_the_left(path):
  if part(path) == '__init__':
    return
  for name in imports(path):
    parts = name.split('.')
    if parts[0] == 'pdl_jax':
      target = parts[1]
      assert target in LEVEL, f'{path.name} imports {name}'
      assert LEVEL[target] <= LEVEL[part(path)], f'{path.name} imports {name}'


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_flax_stays_in_the_model_and_flags_at_the_door(path):
  names = set(imports(path))
  if part(path) != 'model':
    assert not any(name.startswith('flax') for name in names)
  if part(path) not in ('launch', 'pods'):
    assert not any(name.startswith('absl.flags') for name in names)
  assert not any(name.startswith('tensorflow.') for name in names)


def test_the_losses_need_jax_and_numpy_alone():
  """The promise of `pip install .`: nothing else is even looked for."""
  code = (
    'import sys\n'
    'from pdl_jax import pdl_loss, power_law_weights\n'
    'heavy = {"flax", "optax", "grain", "orbax", "tensorflow_datasets",\n'
    '         "ml_collections", "absl", "tokenizers", "gguf", "tqdm"}\n'
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
