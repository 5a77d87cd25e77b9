"""Axes to cells: the product, runs that are the same, what is refused."""

import json
import sys
import types

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from configs.base import get_config
from pdl_jax.config import Settings, config_hash, flatten, numbers, run_id
from pdl_jax.errors import ConfigError
from pdl_jax.sweep.axes import cells


def module(**axes):
  """A config file with axes, given as lists of overrides."""
  made = types.ModuleType('configs.made')
  for name, values in axes.items():
    setattr(made, f'sweep_{name}', lambda values=values: iter(values))
  return made


ALPHA = [{'loss.alpha': alpha} for alpha in (0, 0.5, 1)]
SEED = [{'seed': seed} for seed in (0, 1)]
LOSS = [{'loss.name': name} for name in ('power_law', 'cross_entropy')]
AXES = module(alpha=ALPHA, seed=SEED, loss=LOSS)


def swept(*names, axes=AXES, base=None, **options):
  base = get_config('tiny') if base is None else base
  return cells(axes, names, base, **options)


def resolved(**changes):
  config = get_config()
  config.update_from_flattened_dict(changes)
  return Settings.from_config(config).resolved


def test_an_axis_alone_is_its_values_in_order():
  found = swept('alpha')
  assert [cell.overrides for cell in found] == ALPHA
  assert [cell.config['loss']['alpha'] for cell in found] == [0.0, 0.5, 1.0]
  assert [cell.labels for cell in found] == [
    ('alpha=0',), ('alpha=0.5',), ('alpha=1',),
  ]  # fmt: skip


def test_the_product_varies_the_last_axis_fastest():
  assert [cell.overrides for cell in swept('alpha', 'seed')] == [
    {**alpha, **seed} for alpha in ALPHA for seed in SEED
  ]
  assert [cell.overrides for cell in swept('seed', 'alpha')] == [
    {**seed, **alpha} for seed in SEED for alpha in ALPHA
  ]


def test_the_order_of_the_axes_changes_no_run():
  runs = [
    {(cell.digest, cell.run_id) for cell in swept(*names)}
    for names in (('alpha', 'seed'), ('seed', 'alpha'))
  ]
  assert runs[0] == runs[1]


def test_hash_and_name_are_those_of_the_command_line(monkeypatch):
  cell = swept('alpha', 'seed')[3]
  assert cell.digest == config_hash(cell.config)
  assert cell.run_id == f'alpha=0.5,seed=1-{cell.digest}'
  line, values = ['launch.py', *cell.flags], flags.FlagValues()
  monkeypatch.setattr(sys, 'argv', line)
  flag = config_flags.DEFINE_config_dict(
    'config', get_config('tiny'), flag_values=values
  )
  values(line)
  assert Settings.from_config(flag.value).resolved == cell.config


def test_points_that_are_the_same_run_are_one_cell():
  found = swept('loss', 'alpha')
  assert [cell.labels for cell in found] == [
    (
      'name=power_law alpha=0', 'name=cross_entropy alpha=0',
      'name=cross_entropy alpha=0.5', 'name=cross_entropy alpha=1',
    ),
    ('name=power_law alpha=0.5',),
    ('name=power_law alpha=1',),
  ]  # fmt: skip
  assert found[0].overrides == {'loss.name': 'power_law', 'loss.alpha': 0}


def test_what_changes_no_number_makes_no_cell():
  axes = module(log=[{'train.log_every': n} for n in (1, 2, 3)])
  assert len(swept('log', axes=axes)) == 1


def test_the_base_is_left_alone():
  base = get_config('tiny')
  swept('alpha', 'seed', base=base)
  assert base.to_json() == get_config('tiny').to_json()


def test_keys_of_the_command_line_are_in_the_name():
  base = get_config('tiny')
  base.train.steps = 7
  (cell, *_) = swept('alpha', base=base, given=['train.steps'])
  assert cell.run_id == f'alpha=0.0,steps=7-{cell.digest}'
  assert cell.config['train']['steps'] == 7


def test_an_axis_may_be_a_key_and_its_values():
  found = swept('loss.alpha=0,0.5', 'seed')
  assert [cell.overrides for cell in found] == [
    {'loss.alpha': alpha, **seed} for alpha in (0.0, 0.5) for seed in SEED
  ]
  declared = swept('alpha', 'seed')[:4]
  assert [cell.run_id for cell in found] == [cell.run_id for cell in declared]


@pytest.mark.parametrize(
  ('entry', 'overrides'),
  [
    ('seed=3', [{'seed': 3}]),
    ('alpha=0.5', [{'loss.alpha': 0.5}]),
    ('loss=focal,mile', [{'loss.name': 'focal'}, {'loss.name': 'mile'}]),
    ('width=32,64', [{'model.width': 32}, {'model.width': 64}]),
    ('remat=False', [{'model.remat': False}]),
    ('unit=count', [{'loss.unit': 'count'}]),
    ('clip=1,1e2', [{'loss.clip': 1.0}, {'loss.clip': 100.0}]),
  ],
)
def test_values_are_of_their_keys_type(entry, overrides):
  """A short name is that of an axis, or the end of one key."""
  found = [cell.overrides for cell in swept(entry)]
  assert found == overrides
  assert repr(found) == repr(overrides)


def refused(*names, axes=AXES, **options):
  with pytest.raises(ConfigError) as error:
    swept(*names, axes=axes, **options)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_an_unknown_axis_names_the_nearest():
  line = refused('alhpa')
  assert "'alhpa'; did you mean 'alpha'?" in line
  assert 'alpha, seed, loss' in line


def test_a_config_without_axes_says_what_to_write():
  assert 'sweep_alpha' in refused('alpha', axes=module())


def test_an_axis_twice_or_empty_is_refused():
  assert 'alpha is named twice' in refused('alpha', 'seed', 'alpha')
  assert 'empty of configs.made' in refused('empty', axes=module(empty=[]))


@pytest.mark.parametrize(
  ('entry', 'words'),
  [
    ('alpha=0,half', "alpha=0,half: 'half' is not a number, as loss.alpha"),
    ('seed=0,0.5', "'0.5' is not a whole number, as seed is"),
    ('remat=yes', "'yes' is not true or false, as model.remat is"),
    ('alpha=', "'' is not a number"),
    ('loss.alhpa=1', "did you mean 'loss.alpha'"),
    ('rank=4', 'can mean model.lora.rank, model.rank; give one whole'),
    ('both=1', 'can mean loss.alpha, seed; give one whole'),
    ('alpha=0,-1', 'loss.alpha must be a finite number >= 0, got -1.0'),
  ],
)
def test_values_that_are_not_understood_are_refused(entry, words):
  axes = module(alpha=ALPHA, both=[{'loss.alpha': 1, 'seed': 1}])
  assert words in refused(entry, axes=axes)


def test_a_key_of_two_axes_is_refused():
  assert 'alpha is named twice' in refused('alpha=0', 'alpha=1')
  assert 'loss.alpha is set by sweep axis alpha' in refused(
    'loss.alpha=0', 'alpha'
  )
  axes = module(alpha=ALPHA, rival=[{'loss.alpha': 0.5, 'seed': 1}])
  line = refused('alpha', 'rival', axes=axes)
  assert line.startswith('loss.alpha is set by sweep axis rival and by sweep')


def test_a_key_of_an_axis_and_the_command_line_is_refused():
  assert 'by the command line' in refused('alpha', given=['loss.alpha'])


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'loss.alhpa': 1.0}, "'loss.alhpa'; did you mean 'loss.alpha'?"),
    ({'loss': 1.0}, "config key 'loss'"),
    ({'loss.alpha': 'half'}, 'sweep cell alpha=half: .*alpha'),
    ({'seed': 0.5}, 'sweep cell seed=0.5: .*seed'),
    ({'loss.alpha': -1.0}, 'sweep cell alpha=-1.0: loss.alpha .* -1.0'),
    ({'seed': 3, 'train.steps': 0}, 'sweep cell seed=3 steps=0: .*steps'),
  ],
)
def test_overrides_that_are_not_understood_are_refused(overrides, words):
  with pytest.raises(ConfigError, match=words):
    swept('bad', axes=module(bad=[{'seed': 1}, overrides]))


def test_different_runs_of_one_hash_are_refused(monkeypatch):
  monkeypatch.setattr('pdl_jax.sweep.axes.config_hash', lambda _: '0123abcd')
  assert 'alpha=0 and alpha=0.5 are different runs' in refused('alpha')


@given(
  st.sampled_from([0.0, 1e-9, 0.25]), st.sampled_from([0.0, 1e-7, 1.0]),
  st.sampled_from(['count', 'probability']), st.sampled_from([0.0, 5.0]),
  st.sampled_from(['constant', 'anneal']),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_power_law_is_cross_entropy_at_alpha_zero_alone(
  alpha, epsilon, unit, clip, schedule
):
  ours = resolved(**{
    'loss.alpha': alpha, 'loss.epsilon': epsilon, 'loss.unit': unit,
    'loss.clip': clip, 'loss.schedule': schedule, 'loss.schedule_steps': 9,
  })  # fmt: skip
  plain = resolved(**{'loss.name': 'cross_entropy'})
  assert (numbers(ours) == numbers(plain)) == (alpha == 0)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('loss.reduction', 'sum'), ('loss.label_smoothing', 0.1),
    ('loss.z_loss', 1e-4), ('loss.frequency_table', 'x.npz'), ('seed', 1),
  ],
)  # fmt: skip
def test_at_alpha_zero_the_other_keys_still_tell_runs_apart(key, value):
  zero = {'loss.alpha': 0.0}
  assert numbers(resolved(**zero, **{key: value})) != numbers(resolved(**zero))


def test_a_run_at_alpha_zero_keeps_its_name():
  config = resolved(**{'loss.alpha': 0.0})
  assert run_id(config, ['loss.alpha']).startswith('alpha=0.0-')
  assert json.loads(json.dumps(config))['loss']['name'] == 'power_law'
  assert flatten(config)['loss.alpha'] == 0
