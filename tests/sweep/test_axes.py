"""Axes to cells: the product, runs that are the same, what is refused."""

import sys
import types

import pytest
from absl import flags
from ml_collections import config_flags

from configs.base import get_config
from pdl_jax.config import Settings, config_hash, numbers
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


def test_the_product_varies_the_last_axis_fastest():
  base = get_config('tiny')
  found = swept('alpha', 'seed', base=base)
  assert [cell.overrides for cell in found] == [
    {**alpha, **seed} for alpha in ALPHA for seed in SEED
  ]
  assert found[2].labels == ('alpha=0.5 seed=0',)
  assert found[2].config['loss']['alpha'] == 0.5
  # The order of the axes changes no run, and the base is left alone.
  turned = swept('seed', 'alpha')
  assert [cell.overrides for cell in turned[:2]] == [
    {**SEED[0], **alpha} for alpha in ALPHA[:2]
  ]
  assert {(cell.digest, cell.run_id) for cell in found} == {
    (cell.digest, cell.run_id) for cell in turned
  }
  assert base.to_json() == get_config('tiny').to_json()


def test_a_cell_is_what_the_command_line_makes(monkeypatch):
  """And is named by what differs from the config file."""
  base = get_config('tiny')
  base.train.steps = 7
  named = swept('alpha', 'seed', base=base, given=['train.steps'])[3]
  assert named.config['train']['steps'] == 7
  assert named.run_id == 'alpha=0.5,seed=1,steps=7'
  cell = swept('alpha', 'seed')[3]
  assert cell.digest == config_hash(cell.config)
  line, values = ['launch.py', *cell.flags], flags.FlagValues()
  monkeypatch.setattr(sys, 'argv', line)
  flag = config_flags.DEFINE_config_dict(
    'config', get_config('tiny'), flag_values=values
  )
  values(line)
  assert Settings.from_config(flag.value).resolved == cell.config


def test_cells_of_one_name_have_their_hash_in_it():
  """Two keys may end alike, and long names are cut."""
  long = 'x' * 90
  ranks = [{'model.rank': 4, 'model.head': 'low_rank'},
           {'model.lora.rank': 4, 'model.head': 'low_rank',
            'optimizer.trainable': 'lora'}]  # fmt: skip
  tables = [{'loss.frequency_table': long + end} for end in 'ab']
  for values, many in ((ranks, False), (tables, True)):
    found = swept('axis', axes=module(axis=values))
    assert len({cell.run_id for cell in found}) == 2
    for cell in found:
      assert cell.run_id.endswith(f'-{cell.digest}') == many


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
  assert found[0].config['loss']['name'] == 'power_law'
  log = module(log=[{'train.log_every': n} for n in (1, 2, 3)])
  assert len(swept('log', axes=log)) == 1


@pytest.mark.parametrize(
  ('entry', 'overrides'),
  [
    ('seed=3', [{'seed': 3}]),
    ('loss.alpha=0,0.5', [{'loss.alpha': 0.0}, {'loss.alpha': 0.5}]),
    ('alpha=0.5', [{'loss.alpha': 0.5}]),
    ('loss=focal,mile', [{'loss.name': 'focal'}, {'loss.name': 'mile'}]),
    ('width=32,64', [{'model.width': 32}, {'model.width': 64}]),
    ('remat=False', [{'model.remat': False}]),
    ('clip=1,1e2', [{'loss.clip': 1.0}, {'loss.clip': 100.0}]),
  ],
)
def test_an_axis_may_be_a_key_and_its_values(entry, overrides):
  """A short name is that of an axis, or the end of one key."""
  found = [cell.overrides for cell in swept(entry)]
  # Their types count too.
  assert repr(found) == repr(overrides)


BOTH = module(
  alpha=ALPHA, both=[{'loss.alpha': 1, 'seed': 1}], empty=[],
  rival=[{'loss.alpha': 0.5, 'seed': 1}],
)  # fmt: skip


@pytest.mark.parametrize(
  ('names', 'words'),
  [
    (['alhpa'], "'alhpa'; did you mean 'alpha'?.*alpha, both"),
    (['alpha', 'both', 'alpha'], 'alpha is named twice'),
    (['alpha=0', 'alpha=1'], 'alpha is named twice'),
    (['empty'], 'empty of configs.made yields nothing'),
    (['alpha=0,half'], "alpha=0,half: 'half' is not a number, as loss.alpha"),
    (['seed=0,0.5'], "'0.5' is not a whole number, as seed is"),
    (['remat=yes'], "'yes' is not true or false, as model.remat is"),
    (['alpha='], "'' is not a number"),
    (['loss.alhpa=1'], "did you mean 'loss.alpha'"),
    (['rank=4'], 'can mean model.lora.rank, model.rank; give one whole'),
    (['both=1'], 'can mean loss.alpha, seed; give one whole'),
    (['alpha=0,-1'], 'loss.alpha must be a finite number >= 0, got -1.0'),
    (['loss.alpha=0', 'alpha'], 'loss.alpha is set by sweep axis alpha'),
    (['alpha', 'rival'], 'loss.alpha is set by sweep axis rival and by sweep'),
  ],
)  # fmt: skip
def test_axes_that_are_not_understood_are_refused(names, words):
  with pytest.raises(ConfigError, match=words) as error:
    swept(*names, axes=BOTH)
  assert '\n' not in str(error.value)


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


def test_what_cannot_go_together_is_refused(monkeypatch):
  with pytest.raises(ConfigError, match='sweep_alpha'):
    swept('alpha', axes=module())
  with pytest.raises(ConfigError, match='by the command line'):
    swept('alpha', given=['loss.alpha'])
  monkeypatch.setattr('pdl_jax.sweep.axes.config_hash', lambda _: '0123abcd')
  with pytest.raises(ConfigError, match='alpha=0 and alpha=0.5 are different'):
    swept('alpha')


UNREAD = {
  'loss.epsilon': 1e-7, 'loss.unit': 'probability', 'loss.clip': 5.0,
  'loss.schedule': 'anneal', 'loss.schedule_steps': 9,
}  # fmt: skip


@pytest.mark.parametrize(
  ('changes', 'told_apart'),
  [
    (UNREAD, False), ({'loss.epsilon': 1e-7}, False),
    ({'loss.unit': 'probability', 'loss.clip': 5.0}, False),
    ({'loss.reduction': 'sum'}, True), ({'loss.label_smoothing': 0.1}, True),
    ({'loss.z_loss': 1e-4}, True), ({'loss.frequency_table': 'x.npz'}, True),
    ({'seed': 1}, True),
  ],
)  # fmt: skip
def test_at_alpha_zero_and_there_alone_power_law_is_cross_entropy(
  changes, told_apart
):
  plain = numbers(resolved(**{'loss.name': 'cross_entropy'}))
  zero = numbers(resolved(**{'loss.alpha': 0.0}, **changes))
  assert (zero != plain) == told_apart
  assert numbers(resolved(**{'loss.alpha': 1e-9}, **changes)) != zero
