"""The main job with attention other than RoPE."""

import json

import numpy as np
import pytest

from pdl_jax import setup
from pdl_jax.errors import ConfigError
from pdl_jax.records import config_hash
from tests import small


@pytest.fixture(scope='module')
def angles(data_dir, tmp_path_factory):
  """A finished run from scratch with complex attention."""
  changes = {'model.attention': 'complex', 'model.complex.start': 'published'}
  return small.run_job(data_dir, tmp_path_factory.mktemp('angles'), **changes)


def test_it_learns_and_keeps_its_angles(angles, data_dir):
  columns = json.loads((angles / 'results.json').read_text())['columns']
  before, after = (x['perplexity']['value'] for x in columns.values())
  assert after < before
  options = small.settings(data_dir, **{'model.pretrained': f'run:{angles}'})
  model = setup.prepare(options, None).model
  assert model.config.attention.kind == 'complex'
  (blocks,) = model.params['blocks']
  # They began around 0; a model that was read as RoPE would have none.
  assert 0 < np.abs(blocks['attention']['delta']).mean() < 1
  assert np.abs(blocks['attention']['offset']).max() > 0


def test_what_was_not_trained_with_rope_cannot_become_another(angles, data_dir):
  options = small.settings(
    data_dir,
    **{'model.pretrained': f'run:{angles}', 'model.attention': 'alibi'},
  )
  with pytest.raises(ConfigError, match='alibi is no extension of complex'):
    setup.prepare(options, None)


def test_only_what_is_read_names_a_run(data_dir):
  def name(**changes):
    config = small.job_config(data_dir, **changes)
    return config_hash(json.loads(config.to_json()))

  plain = name()
  assert name(**{'model.complex.delta': 'shared'}) == plain
  found = {
    name(**changes)
    for changes in (
      {'model.attention': 'complex'},
      {'model.attention': 'complex', 'model.complex.delta': 'shared'},
      {'model.attention': 'alibi'},
      {'model.rope_base': 500.0},
    )
  }
  assert len(found | {plain}) == 5
