"""A loss of one's own: one file, imported by a config, and it trains."""

import json
import sys
from pathlib import Path

import pytest

from pdl_jax import own_files
from pdl_jax.config import Settings, config_hash, defaults
from pdl_jax.errors import ConfigError
from pdl_jax.losses import LOSSES, register
from pdl_jax.losses.settings import LossSettings
from pdl_jax.run.restore import open_run

LOSS = """
import jax.numpy as jnp
from pdl_jax.losses import register
from pdl_jax.losses.core import LossTerms


@register('mine')
def mine(stats, weight, *, gamma=1.0):
  return LossTerms(weight * jnp.exp(-gamma * stats.nll) * stats.nll, weight)
"""
CONFIG = """
import my_loss
from configs import summarize


def get_config():
  config = summarize.get_config('tiny')
  config.update_from_flattened_dict({
    'loss.name': 'mine', 'data.train_limit': 100, 'data.max_prompt': 56,
    'data.max_target': 16, 'model.width': 16, 'model.layers': 1,
    'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8,
    'model.mlp': 16, 'model.vocab_size': 512, 'train.steps': 2,
    'optimizer.warmup_steps': 1, 'evaluate.examples': 8,
    'evaluate.validation_examples': 8, 'evaluate.batch_size': 8,
  })
  return config
"""


@pytest.fixture
def registered():
  """Losses that a test registers are forgotten after it."""
  known = dict(LOSSES)
  yield
  LOSSES.clear()
  LOSSES.update(known)


@pytest.fixture
def config_file(tmp_path, monkeypatch, registered):
  (tmp_path / 'my_loss.py').write_text(LOSS, 'utf-8')
  (tmp_path / 'mine.py').write_text(CONFIG, 'utf-8')
  monkeypatch.setattr(sys, 'path', list(sys.path))
  monkeypatch.setattr(own_files, '_seen', set())
  monkeypatch.delitem(sys.modules, 'my_loss', raising=False)
  return f'--config={tmp_path}/mine.py'


@pytest.mark.slow
def test_it_trains_by_its_name_and_key(config_file, data_dir, tmp_path, main):
  code, _, told = main(
    config_file, f'--config.data.data_dir={data_dir}',
    '--config.loss.mine.gamma=2', f'--workdir={tmp_path}/run',
  )  # fmt: skip
  assert code == 0, told
  read = lambda name: json.loads((tmp_path / 'run' / name).read_text('utf-8'))
  assert read('config.json')['loss']['mine'] == {'gamma': 2.0}
  assert read('results.json')['loss']['settings'] == {'gamma': 2.0}
  assert [Path(x).name for x in read('env.json')['own_files']] == ['my_loss.py']
  # Where nothing registers it, the run is still read, and the same one.
  del LOSSES['mine']
  settings, _ = open_run('run', tmp_path / 'run')
  assert settings.loss.name == 'mine'


def test_its_keys_are_like_the_others(config_file, main):
  code, told, _ = main(config_file, '--help_config')
  assert code == 0 and 'loss.mine.gamma = 1.0\n' in told
  code, _, told = main(config_file, '--config.loss.mine.gama=2', '--dry_run')
  assert code == 2 and "did you mean 'loss.mine.gamma'" in told


def test_its_defaults_are_part_of_the_hash(registered):
  """They may change, and no other loss's do."""

  def hash_of(name, **own):
    config = json.loads(json.dumps(defaults()))
    config['loss'] |= {'name': name} | own
    return config_hash(config)

  focal = hash_of('focal')
  for default in (1.0, 2.0):

    @register('mine')
    def mine(frequency_V, *, special_ids, gamma=default):
      del special_ids
      return frequency_V**gamma

    assert defaults()['loss']['mine'] == {'gamma': default}
  assert hash_of('focal') == focal
  assert hash_of('mine') == hash_of('mine', mine={'gamma': 2.0})
  assert hash_of('mine') != hash_of('mine', mine={'gamma': 1.0})
  own = Settings.from_resolved(json.loads(json.dumps(defaults()))).loss
  assert own.rivals['mine'] is None and own.own == {}


def test_refusals(registered):
  with pytest.raises(ConfigError, match="two losses are called 'focal'"):
    register('focal')(lambda stats, weight: None)
  with pytest.raises(ConfigError, match=r'loss odd takes \(logits\) before'):
    register('odd')(lambda logits: None)
  with pytest.raises(ConfigError, match='default of k must be a number'):
    register('odd')(lambda stats, weight, *, k=None: None)
  with pytest.raises(ConfigError, match="'odd' is not one of .* imports its"):
    LossSettings(name='odd')
  register('alpha')(lambda stats, weight: None)
  with pytest.raises(ConfigError, match="'alpha' is a key below loss"):
    defaults()


@pytest.mark.parametrize(('loss', 'said'), [
  (lambda stats, weight: weight, 'has to return LossTerms, got int'),
  (lambda stats, weight: stats['nll'], 'TypeError: .*NoneType'),
])  # fmt: skip
def test_a_loss_of_ones_own_that_fails_says_so_in_a_line(
  registered, loss, said
):
  register('odd')(loss)
  with pytest.raises(ConfigError, match=f'^loss odd of .*{said}'):
    LOSSES['odd'].terms(None, 1)
