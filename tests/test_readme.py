"""The README's examples, run as they stand."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pdl_jax import pdl_loss
from pdl_jax.report import plan

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text('utf-8')
V, D = 50, 16
RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 100, V)
TOKENS = jnp.asarray(RNG.integers(0, V, (4, 12)))
LABELS = jnp.roll(TOKENS, -1, axis=1)
MASK = jnp.asarray(RNG.random((4, 12)) < 0.8)


def example(name, **given):
  """The names that an example defines."""
  (code,) = re.findall(rf'```python {name}\n(.*?)```', README, re.DOTALL)
  names = {'counts_V': COUNTS, **given}
  exec(code, names)
  return SimpleNamespace(**names)


def test_only_the_loss():
  (code,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  logits = jnp.asarray(RNG.normal(size=(4, 12, V)))
  names = {
    'counts_V': COUNTS, 'eos_id': 3, 'logits_BxLxV': logits,
    'labels_BxL': LABELS, 'is_target_BxL': MASK,
  }  # fmt: skip
  exec(code, names)
  assert names['weights_V'][3] == 1
  assert jnp.isfinite(names['loss'])


def test_optax_loop():
  made = example(
    'optax', body=lambda params, tokens: jnp.tanh(params['embed'][tokens])
  )
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
  made = example('nnx')

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
  made = example('trainer')
  table = jnp.asarray(RNG.normal(size=(V, V)), jnp.float32)
  model = lambda tokens, positions, cache, mask: (table[tokens], None)
  loss, gradient = jax.value_and_grad(
    lambda t: made.loss_fn(
      lambda tokens, *_: (t[tokens], None), TOKENS, MASK.astype(int), None, None
    )
  )(table)
  expected = pdl_loss(
    model(TOKENS, None, None, None)[0][:, :-1], TOKENS[:, 1:], made.weights_V,
    where=MASK[:, 1:],
  )
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)
  assert jnp.isfinite(gradient).all()
  assert gradient.any()


def test_the_table_of_losses_is_the_registry():
  from pdl_jax.losses import LOSSES

  section = README.split('## The losses')[1].split('\n## ')[0]
  rows = re.findall(r'^\| ([a-z_, ]+) \|', section, re.MULTILINE)
  named = {name for row in rows[1:] for name in row.split(', ')}
  assert named == set(LOSSES)


def test_a_declared_experiment():
  declared = example('study').EXPERIMENT
  [study] = declared.studies
  runs = [run for seed in study.seeds for _, run in plan.runs(study, seed)]
  assert len({run.folder for run in runs}) == 4
  assert runs[0].command(runs[0].folder)[1] == 'launch.py'


def test_the_first_table_is_that_of_the_records():
  lines = (
    (ROOT / 'experiments/smollm2/records.jsonl').read_text('utf-8').splitlines()
  )
  measured = {
    (r['study'], r['row'].split(',')[0]): r['metrics']
    for r in map(json.loads, lines)
    if r['seed'] == 0
  }
  shown = [
    ('perplexity', 1, 2), ('rougeL', 100, 1), ('rare_f1_10', 100, 1),
    ('rare_mass_10', 100, 1), ('distinct_2', 1, 3),
  ]  # fmt: skip
  studies = (
    'summarize', 'debian', 'dialogue', 'style_transfer', 'language_model',
  )  # fmt: skip
  names = {
    'pretrained': 'before fine-tuning', 'cross-entropy': 'cross-entropy',
    'PDL': 'PDL', 'people': 'before fine-tuning',
  }  # fmt: skip
  table = README[README.index('| task | model |') :].splitlines()[2:22]
  for number, line in enumerate(table):
    _, name, *cells = (cell.strip() for cell in line.strip('|').split('|'))
    found = measured.get((studies[number // 4], names[name]))
    prefix = 'reference_' if name == 'people' else ''
    for cell, (key, scale, digits) in zip(cells, shown, strict=True):
      value = found and found.get(prefix + key)
      if found is None:
        assert cell == 'not run yet'
      elif value is None:
        assert cell == '-'
      else:
        assert cell == f'{value * scale:.{digits}f}'
