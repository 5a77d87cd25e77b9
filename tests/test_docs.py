"""README and docs/: snippets run, commands parse, links and quotes hold."""

import collections
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import flagsaver
from flax import nnx

from pdl_jax import errors, pdl_loss
from pdl_jax.cli import given
from pdl_jax.cli.main import COMMANDS
from pdl_jax.config import defaults, flatten
from pdl_jax.data.packaged import texts
from pdl_jax.data.tasks import TASKS
from pdl_jax.evaluate import registry
from pdl_jax.evaluate.registry import Inputs
from pdl_jax.losses import LOSSES, Loss
from pdl_jax.model.positions import KINDS, distance_bias
from pdl_jax.model.settings import ModelSettings
from pdl_jax.report import plan

ROOT = Path(__file__).parent.parent
MANUALS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
PAGES = [
  *MANUALS, ROOT / 'CONTRIBUTING.md',
  *sorted(ROOT.glob('experiments/**/README.md')),
  *sorted(ROOT.glob('benchmarks/**/README.md')),
]  # fmt: skip
KEYS = set(flatten(defaults()))
GROUPS = '|'.join(sorted({key.partition('.')[0] for key in KEYS if '.' in key}))
V, D = 50, 16
RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 100, V)
TOKENS = jnp.asarray(RNG.integers(0, V, (4, 12)))
LABELS = jnp.roll(TOKENS, -1, axis=1)
MASK = jnp.asarray(RNG.random((4, 12)) < 0.8)


def name(page):
  return str(page.relative_to(ROOT))


def text(page):
  return (ROOT / page).read_text('utf-8')


def blocks(page, words):
  """The code blocks of a page whose opening fence has these words."""
  found = re.findall(r'^ *```(.*?)\n(.*?)^ *```$', text(page), re.M | re.S)
  return [code for title, code in found if re.fullmatch(words, title)]


def example(page, title, **names):
  """What a snippet, marked with a title, defines."""
  (code,) = blocks(page, f'python {title}')
  names = {'counts_V': COUNTS, **names}
  exec(code, names)
  return SimpleNamespace(**names)


def test_readme_is_one_screen_that_sells_and_one_that_starts():
  assert len(text('README.md').encode()) < 9000


def test_the_loss_alone_in_the_readme():
  (code,) = blocks('README.md', 'python')
  names = {}
  exec(code, names)
  assert names['loss'] == pytest.approx(np.log(V), rel=1e-5)


def test_only_the_loss():
  made = example(
    'docs/losses.md', 'loss', eos_id=3, labels_BxL=LABELS, is_target_BxL=MASK,
    logits_BxLxV=jnp.asarray(RNG.normal(size=(4, 12, V))),
  )  # fmt: skip
  assert made.weights_V[3] == 1
  assert jnp.isfinite(made.loss)


def test_optax_loop():
  made = example(
    'docs/losses.md', 'optax',
    body=lambda params, tokens: jnp.tanh(params['embed'][tokens]),
  )  # fmt: skip
  params = {
    'embed': jnp.asarray(RNG.normal(size=(V, D)), jnp.float32),
    'head_DxV': jnp.asarray(RNG.normal(size=(D, V)) * 0.1, jnp.float32),
  }
  state, losses = made.optimizer.init(params), []
  for _ in range(60):
    params, state, value = made.step(params, state, TOKENS, LABELS, MASK)
    losses.append(float(value))
  assert losses[-1] < 0.5 * losses[0]


def test_nnx():
  made = example('docs/losses.md', 'nnx')

  class Model(nnx.Module):
    def __init__(self, rngs):
      self.embed = nnx.Embed(V, D, rngs=rngs)
      self.head = nnx.Linear(D, V, use_bias=False, rngs=rngs)

    def body(self, tokens):
      return jnp.tanh(self.embed(tokens))

  model = Model(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adamw(1e-1), wrt=nnx.Param)
  losses = [
    float(made.step(model, optimizer, TOKENS, LABELS, MASK)) for _ in range(40)
  ]
  assert losses[-1] < 0.5 * losses[0]


def test_loss_function_of_a_trainer():
  made = example('docs/losses.md', 'trainer')
  table = jnp.asarray(RNG.normal(size=(V, V)), jnp.float32)
  loss, gradient = jax.value_and_grad(
    lambda t: made.loss_fn(
      lambda tokens, *_: (t[tokens], None), TOKENS, MASK.astype(int), None, None
    )
  )(table)
  expected = pdl_loss(
    table[TOKENS][:, :-1], TOKENS[:, 1:], made.weights_V, where=MASK[:, 1:]
  )
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)
  assert jnp.isfinite(gradient).all()
  assert gradient.any()


def test_a_declared_experiment():
  [study] = example('docs/experiments.md', 'study').EXPERIMENT.studies
  runs = [run for seed in study.seeds for _, run in plan.runs(study, seed)]
  assert len({run.folder for run in runs}) == 4
  assert runs[0].command(runs[0].folder)[1] == 'launch.py'


def test_what_the_design_adds():
  page = 'docs/design.md'
  with mock.patch.dict(LOSSES):
    example(page, 'add_loss', __name__='tests.test_docs')
    Loss(LOSSES['sharpened'], {'power': 2.0}).check()
  with mock.patch.dict(TASKS):
    example(page, 'add_task')
    assert TASKS['title'].instruction({}).startswith('Write a title')
  with mock.patch.dict(texts.TEXTS):
    example(page, 'add_text', __name__='tests.test_docs')
    assert all(texts.TEXTS['words'].make(collections.Counter()).values())
  with mock.patch.dict(registry.METRICS), mock.patch.object(
    registry, 'SOURCES', [*registry.SOURCES]
  ):
    made = example(page, 'add_metric')
    pairs = ('Why?', 'Now.'), ('So.', 'So?')
    records = [{'text': a, 'references': [b]} for a, b in pairs]
    found = made.questions(Inputs(records, COUNTS))
    assert (found['questions'], found['asked']) == ([1, 0], [0, 1])
  with mock.patch.dict(KINDS):
    slope = example(page, 'add_attention').slope(2, 3)
    assert slope.shape == distance_bias(2, 3).shape
    assert ModelSettings(attention='slope').positions.kind == 'slope'
  points = [*example(page, 'add_axis').sweep_pace()]
  assert set().union(*points) <= KEYS


@pytest.mark.parametrize('page', MANUALS, ids=name)
def test_every_snippet_is_python(page):
  for code in blocks(page, 'python.*'):
    compile(code, name(page), 'exec')


def commands(page):
  """The calls of launch.py in the blocks of a page, as words."""
  for block in blocks(page, ''):
    names = {}
    for line in block.replace('\\\n', ' ').splitlines():
      if found := re.fullmatch(r'(\w)="(.*)"', line):
        names[f'${found[1]}'] = found[2]
        continue
      for short, long in names.items():
        line = line.replace(short, long)
      _, call, rest = re.sub(r'[\[\]]', '', line).partition('python launch.py')
      if call:
        yield shlex.split(rest, comments=True)


CALLS = [(page, words) for page in PAGES for words in commands(page)]


def test_the_pages_have_commands():
  assert len(CALLS) > 60


@pytest.mark.parametrize(
  ('page', 'words'), CALLS, ids=lambda x: '' if isinstance(x, list) else name(x)
)
def test_every_command_has_flags_and_keys_that_exist(
  page, words, monkeypatch
):
  command = words[0] if words[0] in COMMANDS else ''
  line = ['launch.py', *words[bool(command) :]]
  importlib.import_module('pdl_jax.run.finetune')  # Defines flags of its own.
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)
  monkeypatch.setattr('sys.argv', line)
  monkeypatch.chdir(ROOT)
  with flagsaver.flagsaver():
    folders = given.read(command, line)
    if any(word.startswith('--config=') for word in words):
      given.configured()
    folders += [f for f in given.SWEEP.value if '/' in f.partition('=')[0]]
  for folder in folders:
    known = folder.startswith('experiments') and not folder.endswith('NAME')
    assert not known or (ROOT / folder).is_dir(), folder


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_every_module_and_target_that_is_called_exists(page):
  made = re.findall(r'^([\w$().]+):', text('Makefile'), re.M)
  for block in blocks(page, ''):
    for module in re.findall(r'python -m ([\w.]+)', block):
      assert 'NAME' in module or importlib.util.find_spec(module), module
    for target in re.findall(r'^make ([\w./]+)', block, re.M):
      assert target.replace('.venv/.ready', '$(READY)') in made, target


def anchors(page):
  heads = re.findall(r'^#+ (.*)', page.read_text('utf-8'), re.M)
  plain = [re.sub(r'[^\w\- ]', '', head.lower()) for head in heads]
  return {head.replace(' ', '-') for head in plain}


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_every_link_leads_somewhere(page):
  for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text('utf-8')):
    if link.startswith('https://'):
      continue
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize('page', MANUALS, ids=name)
def test_every_key_and_path_exists(page):
  groups = {key.rpartition('.')[0] for key in KEYS}
  for key in re.findall(rf'`((?:{GROUPS})\.[\w.]+)[`=]', text(page)):
    if not key.endswith(('.json', '.NAME')):
      assert key in KEYS | groups
  rooms = 'pdl_jax|configs|tests|experiments|benchmarks'
  for path in re.findall(rf'`((?:{rooms})/[\w/.]+)`', text(page)):
    assert 'NAME' in path or 'KIND' in path or (ROOT / path).exists()


def test_answers_in_the_readme_are_quoted_from_their_experiments():
  row = r'^\| \[.*?\]\((.*?)\) \| (.*) \|$'
  rows = re.findall(row, text('README.md'), re.M)
  assert len(rows) >= 6
  for path, answer in rows:
    said = ' '.join(text(path).replace('**', '').split())
    assert answer in said, answer


def test_the_table_of_losses_is_the_registry():
  section = text('docs/losses.md').split('## All losses')[1].split('\n## ')[0]
  rows = re.findall(r'^\| ([a-z_, ]+) \|', section, re.M)
  assert {each for row in rows[1:] for each in row.split(', ')} == set(LOSSES)


def test_the_table_of_exit_codes_is_that_of_the_errors():
  rows = re.findall(r'^\| (\d+) \|', text('docs/run_folder.md'), re.M)
  codes = {kind.exit_code for kind in errors.PdlError.__subclasses__()}
  assert {int(row) for row in rows} == {0, 1} | codes


def test_the_table_of_smollm2_is_that_of_the_records():
  folder = 'experiments/smollm2'
  records = map(json.loads, text(f'{folder}/records.jsonl').splitlines())
  measured = {
    (r['study'], r['row'].split(',')[0]): r['metrics']
    for r in records
    if r['seed'] == 0
  }
  shown = (
    ('perplexity', 1, 2), ('rougeL', 100, 1), ('rare_f1_10', 100, 1),
    ('rare_mass_10', 100, 1), ('distinct_2', 1, 3),
  )  # fmt: skip
  studies = (
    'summarize', 'debian', 'dialogue', 'style_transfer', 'language_model',
  )  # fmt: skip
  names = dict.fromkeys(('pretrained', 'references'), 'before fine-tuning')
  page = text(f'{folder}/README.md')
  table = page[page.index('| task | model |') :].splitlines()[2:22]
  for number, line in enumerate(table):
    _, row, *cells = (cell.strip() for cell in line.strip('|').split('|'))
    found = measured[studies[number // 4], names.get(row, row)]
    prefix = 'reference_' if row == 'references' else ''
    for cell, (key, scale, digits) in zip(cells, shown, strict=True):
      value = found.get(prefix + key)
      expected = '-' if value is None else f'{value * scale:.{digits}f}'
      assert cell == expected, line
