"""Every mode of every config: its resolved form, its settings, its shapes."""

import functools
import importlib
import json
from pathlib import Path

import jax
import pytest

from configs import base, summarize
from pdl_jax.cli import keys as help_config
from pdl_jax.config import (
  RENAMED,
  Settings,
  config_hash,
  defaults,
  flatten,
  keys,
  numbers,
  run_id,
  unread,
)
from pdl_jax.errors import ConfigError
from pdl_jax.model import lm
from pdl_jax.model.config import ModelConfig

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / 'golden'
CONFIGS = [
  (path.stem, mode)
  for path in sorted((ROOT / 'configs').glob('*.py'))
  if path.stem not in ('__init__', 'base')
  for mode in importlib.import_module(f'configs.{path.stem}').MODES
]


def resolved(name, mode):
  config = importlib.import_module(f'configs.{name}').get_config(mode)
  return json.loads(config.to_json())


def test_configs_differ_from_the_defaults_as_the_golden_file_says():
  """After a wanted change: write the new dump, and look at its diff."""
  default = flatten(defaults())
  differing = {
    f'{name}:{mode}': {
      key: value
      for key, value in flatten(resolved(name, mode)).items()
      if value != default[key]
    }
    for name, mode in CONFIGS
  }
  assert differing == json.loads((GOLDEN / 'configs.json').read_text('utf-8'))


def test_one_slice_of_devices_changes_no_hash():
  assert 'mesh.slices' not in numbers({'mesh': {'slices': 1}})
  assert numbers({'mesh': {'slices': 2}})['mesh.slices'] == 2


@pytest.mark.parametrize(('name', 'mode'), CONFIGS)
def test_settings_and_shapes(name, mode):
  config = importlib.import_module(f'configs.{name}').get_config(mode)
  settings = Settings.from_config(config)
  if not settings.model.pretrained:
    options = settings.model
    model = ModelConfig(
      vocab_size=options.vocab_size, width=options.width,
      layers=options.layers, heads=options.heads, kv_heads=options.kv_heads,
      head_dim=options.head_dim, mlp=options.mlp,
      context=settings.data.lengths.sequence,
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: lm.init(model, jax.random.key(0)))
    assert shapes['embed_VxD'].shape == (options.vocab_size, options.width)


def test_every_key_is_explained():
  """By the comment above its field, or above a pair of fields."""
  explained = {key.name: key for key in keys()}
  found = {name: key.default for name, key in explained.items()}
  assert found == flatten(defaults())
  assert set(found) == set(flatten(json.loads(base.get_config().to_json())))
  assert all(key.meaning for key in explained.values())
  assert explained['loss.alpha'].meaning == (
    'Decay exponent, >= 0; 0 is cross-entropy.'
  )
  general = 'loss.background_table', 'loss.background_weight'
  assert len({explained[name].meaning for name in general}) == 1


def test_help_config_prints_keys_with_what_they_mean():
  found = help_config.text()
  assert (
    'loss.epsilon = 1.0\n    Smoothing constant, >= 0, in the unit below.\n'
  ) in found
  assert (
    "data.fields.id = ''\ndata.fields.group = ''\n" in found
    and 'loss.gem.beta = 0.7\n' in found
  )


def test_keys_of_the_first_version_are_gone_and_have_new_names():
  names = {key.name for key in keys()}
  for old, new in RENAMED.items():
    assert new in names and f'{new.rpartition(".")[0]}.{old}' not in names


def test_unknown_modes_and_keys_are_refused():
  with pytest.raises(ValueError, match='default, tiny, small, full'):
    summarize.get_config('tinny')
  with pytest.raises(AttributeError):
    base.get_config().loss.alhpa = 1.0


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('loss.alpha', -1.0), ('loss.alpha', float('nan')),
    ('loss.alpha', float('inf')), ('loss.epsilon', -1e-9),
    ('loss.name', 'powerlaw'), ('loss.unit', 'counts'), ('loss.clip', 0.5),
    ('loss.reduction', 'mean'), ('loss.normalize', 'mean'),
    ('loss.unseen', 'zero'), ('data.task', 'dialog'),
    ('data.max_target', 0), ('data.train_limit', -1), ('train.steps', 0),
    ('train.batch_size', 0), ('optimizer.learning_rate', 0.0),
    ('optimizer.learning_rate', float('nan')), ('optimizer.b2', 1.0),
    ('optimizer.schedule', 'cos'), ('optimizer.trainable', 'some'),
    ('evaluate.split', 'train'), ('evaluate.examples', 0), ('seed', -1),
  ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(key, value):
  config = base.get_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ConfigError) as error:
    Settings.from_config(config)
  assert key.rsplit('.', 1)[-1] in str(error.value)


def changed(**changes):
  config = base.get_config()
  config.update_from_flattened_dict(changes)
  return json.loads(config.to_json())


NONE, FOCAL, CE = {}, {'loss.name': 'focal'}, {'loss.name': 'cross_entropy'}
FACE, LORA = {'loss.name': 'face'}, {'optimizer.trainable': 'lora'}


@pytest.mark.parametrize(
  ('common', 'key', 'value', 'counts'),
  [
    (NONE, 'data.data_dir', '/elsewhere', False),
    (NONE, 'train.log_every', 7, False),
    (NONE, 'train.keep_checkpoints', 9, False),
    (NONE, 'model.width', 64, False),  # That of a pretrained model counts.
    (NONE, 'loss.alpha', 0.3, True),
    (NONE, 'seed', 1, True),
    (NONE, 'train.steps', 61, True),
    (NONE, 'model.dtype', 'bfloat16', True),
    (NONE, 'train.checkpoint_every', 21, True),
    (NONE, 'loss.schedule', 'anneal', True),
    (FOCAL, 'loss.focal.gamma', 1.0, True),
    (FOCAL, 'loss.mile.gamma', 2.0, False),
    (FOCAL, 'loss.schedule_start', 2, False),
    (FOCAL, 'loss.label_smoothing', 0.1, False),
    (CE, 'loss.alpha', 0.9, False),
    (CE, 'loss.label_smoothing', 0.1, True),
    (CE, 'loss.frequency_table', 'x.npz', False),
    ({'loss.name': 'logit_adjustment'}, 'loss.frequency_table', 'x.npz', True),
    (FACE, 'loss.face.normalize', 'corpus_mean', True),
    (FACE, 'loss.alpha', 0.9, False),
    (NONE, 'model.lora.rank', 8, False),
    (LORA, 'model.lora.rank', 8, True),
    (NONE, 'model.param_dtype', 'bfloat16', True),
    (NONE, 'model.adapter', 'some/folder', True),
    (NONE, 'optimizer.mu_dtype', 'bfloat16', True),
  ],
)
def test_a_key_counts_in_the_hash_where_it_is_read(common, key, value, counts):
  before, after = changed(**common), changed(**common, **{key: value})
  assert (config_hash(before) != config_hash(after)) is counts
  assert (key in numbers(after)) is counts


@pytest.mark.parametrize(
  ('asked', 'in_vain'),
  [
    ({'model.lora.rank': 4}, ['model.lora.rank=4']),
    ({'model.lora.rank': 4, 'optimizer.trainable': 'lora'}, []),
    ({'loss.name': 'cross_entropy', 'loss.alpha': 0.5}, ['loss.alpha=0.5']),
    ({'loss.name': 'focal', 'loss.mile.gamma': 2.0}, ['loss.mile.gamma=2.0']),
    ({'model.width': 64, 'model.pretrained': ''}, []),
    ({'model.width': 64, 'seed': 1}, ['model.width=64']),
    (
      {'model.head': 'dense', 'model.vq.codebook_size': 9},
      ['model.vq.codebook_size=9'],
    ),
    ({'model.head': 'vq', 'model.vq.codebook_size': 9}, []),
    # What was left out of fingerprints is read all the same.
    ({'optimizer.head_lr_multiplier': 1.0, 'evaluate.sample_index': 0}, []),
    ({'train.log_every': 2, 'data.data_dir': '/elsewhere'}, []),
  ],
)
def test_what_was_asked_for_in_vain(asked, in_vain):
  assert unread(changed(**asked), asked) == in_vain
  # Of what is not read, only what somebody asked for.
  assert unread(changed(**asked), []) == []


def test_run_ids_are_readable():
  config = changed(**{'loss.alpha': 0.5, 'seed': 3, 'train.log_every': 2})
  keys = ['loss.alpha', 'seed', 'train.log_every']
  assert run_id(config, keys) == 'alpha=0.5,seed=3'
  assert run_id(changed(), []) == 'default'


@pytest.mark.parametrize(
  ('steps', 'warmup', 'taken'), [(60, 60, 6), (5, 5, 0), (12, 400, 1)]
)
def test_a_warmup_that_would_not_end_is_a_tenth_of_the_run(
  steps, warmup, taken
):
  config = base.get_config()
  config.train.steps, config.optimizer.warmup_steps = steps, warmup
  settings = Settings.from_config(config)
  assert settings.optimizer.warmup_steps == taken
  assert settings.note.startswith(f'warm-up    {taken} steps, a tenth of')
  assert settings.resolved['optimizer']['warmup_steps'] == warmup
  config.train.steps = warmup + 1
  settings = Settings.from_config(config)
  assert (settings.optimizer.warmup_steps, settings.note) == (warmup, '')


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    (key, value)
    for key, value in flatten(defaults()).items()
    if isinstance(value, int | float) and not isinstance(value, bool)
  ],
)
def test_numbers_that_no_array_holds_are_refused(key, value):
  """Whatever key, read by the loss of the run or not."""
  # Longer than 10 ** 308, which is no float either.
  wrong = [10**30, 10**400] if isinstance(value, int) else [
    float('inf'), float('-inf'), float('nan'), 1e300,
  ]  # fmt: skip
  *groups, name = key.split('.')
  for bad in wrong:
    resolved = base.get_config().to_dict()
    functools.reduce(dict.get, groups, resolved)[name] = bad
    with pytest.raises(ConfigError, match=name) as raised:
      Settings.from_resolved(resolved)
    assert '\n' not in str(raised.value)


def test_a_run_from_before_these_keys_is_the_same_run():
  config = resolved('summarize', 'tiny')
  was = config_hash(config)
  for key in ('param_dtype', 'adapter', 'lora'):
    del config['model'][key]
  del config['optimizer']['mu_dtype']
  assert config_hash(config) == was
  found = Settings.from_resolved(config)
  assert found.model.param_dtype == found.optimizer.mu_dtype == 'float32'
  assert found.model.adapter == '' and found.model.lora is None
