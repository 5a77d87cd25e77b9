"""Who may import whom: each room only what stands to its left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREE = sorted(
  path
  for name in ('pdl_jax', 'configs', 'experiments', 'benchmarks', 'tests')
  for path in (ROOT / name).rglob('*.py')
)
LAYERS = [
  {'errors', 'process'},
  {'own_files'},
  {'storage', 'mesh'},
  {'run_claim'},
  {'run_folder'},
  {'losses'},
  {'model'},
  {'pretrained', 'generate', 'train'},
  {'data'},
  {'evaluate'},
  {'config'},
  {'run'},
  {'preview', 'sweep'},
  {'report', 'cluster'},
  {'cli'},
]
# What a newcomer reads first: one run, from a config to its results.
CORE = [
  f'{room}/{name}' if room else name
  for room, names in {
    '': 'config errors mesh run_folder',
    'losses': 'core cross_entropy power_law frequency registry reduce',
    'model': 'config lm block layers attention',
    'data': 'jsonl external tasks tokenizer chat examples packing pipeline',
    'train': 'state optimizer step loop checkpoint integrity preemption '
             'progress settings',
    'evaluate': 'predict registry settings',
    'run': 'prepare load_model loss_tables finetune',
  }.items()
  for name in names.split()
]  # fmt: skip
# What the core stands on: looked up when a name is met, not read first.
UNDER = [
  'own_files', 'process', 'run_claim', 'storage/files', 'losses/checks',
  'losses/renamed', 'run/slow_data',
  'losses/schedule', 'losses/settings', 'model/decoding', 'model/fingerprint',
  'model/lora', 'model/positions', 'model/rotary', 'model/settings',
  'data/chat_sandbox', 'data/json_index', 'data/parts', 'data/prompt',
  'data/schema', 'data/settings', 'train/checksum', 'train/rules',
  'train/saves',
  'evaluate/inputs', 'run/restore', 'run/summary',
]  # fmt: skip
# Behind these the core finds everything else.
DOORS = [
  'losses', 'losses/loss', 'losses/fused/api', 'losses/heads',
  'losses/sentinel', 'model/heads', 'data/sources', 'generate', 'evaluate',
  'evaluate/run', 'evaluate/style', 'run/open_model', 'run/fit_head',
  'run/head_report', 'run/untrained', 'pretrained/peft',
  'model/chunked_attention', 'model/kernels',
]  # fmt: skip
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}
MODULES = sorted((ROOT / 'pdl_jax').rglob('*.py'))


def imports(path):
  """Full dotted names of everything imported anywhere in a file."""
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
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
      assert target == part(path) or (
        LEVEL[target] < LEVEL[part(path)]
      ), f'{path.name} imports {name}'


def for_types(tree):
  """Every node below `if TYPE_CHECKING`."""
  return {
    inner
    for node in ast.walk(tree)
    if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
    for inner in ast.walk(node)
  }


def modules(path):
  """Modules of the library that a file imports when it runs."""
  tree, known = ast.parse(path.read_text('utf-8')), set()
  for module in MODULES:
    name = module.relative_to(ROOT / 'pdl_jax').with_suffix('').as_posix()
    known.add(name.removesuffix('/__init__'))
  typing = for_types(tree)
  for node in ast.walk(tree):
    if not isinstance(node, ast.ImportFrom) or node in typing:
      continue
    room, *below = (node.module or '').split('.')
    for alias in node.names if room == 'pdl_jax' else ():
      longest = '/'.join([*below, alias.name])
      yield longest if longest in known else '/'.join(below)


@pytest.mark.parametrize('name', CORE)
def test_the_core_imports_no_satellite(name):
  allowed = {*CORE, *UNDER, *DOORS}
  path = ROOT / 'pdl_jax' / f'{name}.py'
  assert not [each for each in modules(path) if each not in allowed]


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_flax_stays_in_the_model_and_flags_at_the_door(path):
  names = set(imports(path))
  if part(path) != 'model':
    assert not any(name.startswith('flax') for name in names)
  if part(path) not in ('cli', 'cluster'):
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


def texts_by_locale(tree):
  """Lines whose calls read or write text in the encoding of the locale."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    by = getattr(getattr(node.func, 'value', None), 'id', '')
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    values = [*node.args, *given.values()]
    told = [n.value for n in values if isinstance(n, ast.Constant)]
    encoded = 'encoding' in given or 'utf-8' in told
    modes = [word for word in told if set(str(word)) <= set('rwaxbt+')]
    text = {
      'read_text': not node.args,
      'write_text': len(node.args) == 1,
      'open': by != 'os' and not any('b' in mode for mode in modes),
      'fdopen': not any('b' in mode for mode in modes),
      'NamedTemporaryFile': any('b' not in mode for mode in modes),
      'TemporaryFile': any('b' not in mode for mode in modes),
      'run': 'text' in given,
      'Popen': 'text' in given,
      'check_output': 'text' in given,
    }
    if text.get(name) and not encoded:
      yield node.lineno


def test_text_is_utf_8_whatever_the_locale():
  """What ruff's PLW1514 looks for, where it does not see that it is a path."""
  found = [
    f'{path.relative_to(ROOT)}:{line}'
    for path in (*TREE, ROOT / 'launch.py')
    for line in texts_by_locale(ast.parse(path.read_text('utf-8')))
  ]
  assert not found, f'no encoding at {found}'


@pytest.mark.parametrize(
  'code, lines',
  [
    ('path.read_text()', [1]),
    ("path.write_text('a')", [1]),
    ("open(path, 'a')", [1]),
    ("path.open('w')", [1]),
    ('subprocess.run(line, text=True)', [1]),
    ("tempfile.NamedTemporaryFile('w')", [1]),
    ("path.read_text('utf-8')", []),
    ("path.open('rb')", []),
    ("open(path, encoding='utf-8')", []),
    ("folder.write_text('table.md', text)", []),
  ],
)
def test_a_text_without_an_encoding_is_found(code, lines):
  assert list(texts_by_locale(ast.parse(code))) == lines
